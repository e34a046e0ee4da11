"""Real frameworks in environments of their own, run through `handrail run --` against a model that follows a script."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from conftest import missing
from handrail.event import Event, event_from

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
ENVIRONMENTS = Path(os.environ.get("HANDRAIL_FRAMEWORKS", REPOSITORY / ".venv-frameworks"))
"""Where `make frameworks` puts them, one for each group of pyproject.toml: their pins exclude each other's."""


class Seen(msgspec.Struct):
    """What one run came to."""

    answers: list[dict[str, Any]]
    """The lines of the script that the model answered with, in order."""
    events: list[Event]
    findings: list[dict[str, Any]]
    process: "subprocess.CompletedProcess[str]"

    @property
    def handoffs(self) -> list[Event]:
        return [event for event in self.events if event.kind == "handoff"]

    @property
    def usages(self) -> list[Event]:
        return [event for event in self.events if event.kind == "usage"]


def python_of(environment: str) -> Path:
    """The interpreter of a framework's environment; where there is none the test is skipped, or fails in CI."""
    python = ENVIRONMENTS / environment / "bin" / "python"
    if not python.exists():
        missing(f"{environment} is not installed (make frameworks)")
    return python


def run(
    environment: str,
    program: str,
    script: Sequence[dict[str, Any]],
    questions: Sequence[str],
    directory: Path,
    *flags: str,
    seconds: int = 45,
    handrail: Sequence[str] = (),
    **environ: str,
) -> Seen:
    """`handrail run -- python PROGRAM QUESTIONS…` with the scripted model where OPENAI_BASE_URL leads.

    The program is killed after `seconds`. `handrail` are flags of `handrail run`.
    """
    python = python_of(environment)
    lines, answers, record = directory / "script.json", directory / "answers.jsonl", directory / "run.jsonl"
    lines.write_text(json.dumps(script))
    answers.write_text("")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HANDRAIL_", "OPENAI_", "AZURE_", "ANTHROPIC_", "REDIS_", "NATS_", "OTEL_", "PYTHON"))
    }
    command = [
        *(sys.executable, EXAMPLES / "scripted_model" / "model.py", lines, "--log", answers, "--"),
        *(sys.executable, "-m", "handrail", "run", "--record", record, *handrail, "--"),
        *(
            "timeout",
            "-s",
            "KILL",
            str(seconds),
            "env",
            "-u",
            "PYTHONPATH",
            python,
            EXAMPLES / program,
            *flags,
            *questions,
        ),
    ]
    process = _run(
        list(map(str, command)),
        directory,
        {**kept, "PYTHONPATH": os.environ["PYTHONPATH"], "OPENAI_AGENTS_DISABLE_TRACING": "1", **environ},
    )
    told = [json.loads(line) for line in record.read_text().splitlines()]
    return Seen(
        answers=[json.loads(line) for line in answers.read_text().splitlines()],
        events=[event_from(each) for each in told if each["type"] == "event"],
        findings=[each for each in told if each["type"] == "finding"],
        process=process,
    )


def _run(command: list[str], directory: Path, environ: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """In a session of its own, which is ended as a whole where it takes too long."""
    with subprocess.Popen(
        command,
        cwd=directory,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, told = process.communicate(timeout=50)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, said, told)
