"""Rule packs: YAML becomes detectors with their parameters, scope, severity and action."""

from collections.abc import Callable

import msgspec

from handrail.detectors import Detector, Rule
from handrail.event import Event

Where = Callable[[Event], bool]


class Watch(msgspec.Struct, kw_only=True):
    """One rule in force: its detector, which events it looks at, and how often the detector failed."""

    rule: Rule
    detector: Detector
    where: Where | None = None
    failures: int = 0
    off: bool = False


