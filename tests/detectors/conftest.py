"""What every detector's test needs: the shipped rules, and a pipeline with some of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from handrail.config import EdgeConfig
from handrail.pipeline import Pipeline
from handrail.rules import Pack, load, watches
from handrail.schema.registry import Registry

PACKS = Path(__file__).parents[2] / "rules" / "detection"


@pytest.fixture(scope="session")
def builtin_packs() -> tuple[Pack, ...]:
    """The rule packs that are shipped."""
    return tuple(load(path.read_text(), path.name, builtin=True) for path in sorted(PACKS.glob("*.yaml")))


RULE = """
language: 1
rules:
  - id: {kind}
    title: t
    why: w
    maturity: stable
    severity: warning
    kind: {kind}
    action: {action}
    where: {where}
    with: {params}
    tests: [{{name: a, events: [], finds: 1}}, {{name: b, events: [], finds: 0}}]
"""

Build = Callable[..., Pipeline]


@pytest.fixture(scope="session")
def build() -> Build:
    """Builds a pipeline with one rule of a kind, its parameters, and schemas by subject and version."""

    def pipeline_of(
        kind: str,
        params: dict[str, Any] | None = None,
        schemas: dict[str, dict[str, Any]] | None = None,
        *,
        action: str = "observe",
        where: dict[str, Any] | None = None,
        edges: Sequence[EdgeConfig] = (),
    ) -> Pipeline:
        registry = Registry(edges)
        files = {
            f"{subject}/{version}.json": orjson.dumps(schema)
            for subject, versions in (schemas or {}).items()
            for version, schema in versions.items()
        }
        assert registry.load(files) == []
        text = RULE.format(
            kind=kind,
            action=action,
            where=orjson.dumps(where or {}).decode(),
            params=orjson.dumps(params or {}).decode(),
        )
        return Pipeline(watches([load(text, "test.yaml")], registry), registry)

    return pipeline_of
