"""handoff.loop on recorded runs of an orchestrator with four agents, whose own ledger judged after each step.

Judged per step: a step counts as found where a finding of the rule fired on the event after which the ledger judged.
The labels are a model's opinion: of the twelve events that are judged twice, ten are judged both ways.
`pytest -s tests/detectors/test_magentic.py` prints the figures.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest

from handrail.detectors.loop import SETTINGS
from handrail.event import Event, event_from
from handrail.pipeline import Pipeline

RUNS = Path(__file__).parents[2].parent / "shared" / "fixtures" / "traces" / "magentic"
pytestmark = pytest.mark.skipif(not RUNS.is_dir(), reason="the recorded runs are not beside this checkout")
Build = Callable[..., Pipeline]
Run = tuple[list[Event], list[tuple[str, bool]]]
Counts = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Each run's events, and its judged steps as (event, whether in a loop)."""
    found: dict[str, Run] = {}
    for path in sorted(RUNS.glob("*.jsonl")):
        labels = orjson.loads(path.with_suffix(".labels.json").read_bytes())
        events = [event_from(orjson.loads(line)) for line in path.read_bytes().splitlines()]
        found[path.stem] = events, [(label["after"], label["is_in_loop"]) for label in labels]
    return found


def counts(build: Build, run: Run, params: dict[str, Any]) -> Counts:
    """Steps rightly found, wrongly found, missed; and findings at all."""
    events, steps = run
    pipeline = build("handoff.loop", params)
    fired = [found.event for event in events for found in pipeline.observe(event).findings]
    verdicts = [(event in fired, in_loop) for event, in_loop in steps]
    return (verdicts.count((True, True)), verdicts.count((True, False)), verdicts.count((False, True)), len(fired))


def scores(parts: Iterable[Counts]) -> tuple[float, float, float]:
    """F1, precision and recall of several runs taken together."""
    right, wrong, missed = (sum(column) for column in list(zip(*parts, strict=True))[:3])
    return 2 * right / (2 * right + wrong + missed), right / max(1, right + wrong), right / (right + missed)


def test_the_sensitive_setting_finds_what_the_labels_allow(runs: dict[str, Run], build: Build) -> None:
    """F1 of at least 0.60 over all steps, and with thresholds that were chosen on the other runs."""
    everything = {name: counts(build, run, {"setting": "sensitive"}) for name, run in runs.items()}
    f1, precision, recall = scores(everything.values())
    choices = [
        {"setting": "sensitive", "first_rounds": first, "new_phrases": phrases}
        for first in (2, 3, 4)
        for phrases in (75, 100, 125, 150)
    ]
    tried = [{name: counts(build, run, choice) for name, run in runs.items()} for choice in choices]
    held_out = []
    for name in runs:
        best = max(tried, key=lambda each: scores(each[other] for other in runs if other != name)[0])
        held_out.append(best[name])
    crossed = scores(held_out)
    print(
        f"\nsensitive: F1 {f1:.3f} precision {precision:.3f} recall {recall:.3f}; "
        f"thresholds chosen on the other runs: F1 {crossed[0]:.3f} precision {crossed[1]:.3f} recall {crossed[2]:.3f}"
    )
    assert f1 >= 0.60
    assert crossed[0] >= 0.60
    assert SETTINGS["sensitive"].first_rounds in (2, 3, 4)


def test_the_precise_setting_is_right_and_silent_where_all_went_well(runs: dict[str, Run], build: Build) -> None:
    """Precision of at least 0.75; no alarm in the runs that were never judged to be in a loop."""
    everything = {name: counts(build, run, {}) for name, run in runs.items()}
    f1, precision, recall = scores(everything.values())
    well = [name for name, (_, steps) in runs.items() if not any(in_loop for _, in_loop in steps)]
    handoffs, alarms = sum(len(runs[name][0]) for name in well), sum(everything[name][3] for name in well)
    print(
        f"\nprecise: F1 {f1:.3f} precision {precision:.3f} recall {recall:.3f}; {alarms} alarms in {handoffs} handoffs "
        f"of {len(well)} runs without a loop; {sum(each[3] for each in everything.values())} in all"
    )
    assert precision >= 0.75
    assert alarms == 0
