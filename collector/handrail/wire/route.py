"""How much of a message is looked at, and where: records apart from the code that works on them, which is compiled."""

import msgspec

from handrail.event import Side


class HeadLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How large the head of a message may be, in bytes and lines."""

    head_bytes: int = 65_536
    field_bytes: int = 16_384
    lines: int = 256


class BodyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a body is looked at."""

    body_bytes: int = 8_388_608
    decoded_bytes: int = 8_388_608
    decode_ratio: int = 100
    depth: int = 254
    """254 is where orjson stops writing, and costs nothing; a lower limit costs two counts, 3 µs for 4 KB."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an exchange before a byte is read: whose sidecar, which side, who is at the other end."""

    agent: str | None = None
    """The agent that this sidecar belongs to."""
    peer: str | None = None
    """The agent at the other end where the configuration names it."""
    side: Side = "ingress"
    instead: str | None = None
    """The agent that answers here in place of the one that the request names."""
    upstream: str = ""
    """Authority (`host:port`) of the upstream; the key under which agent cards are remembered."""
    dialects: tuple[str, ...] = ()
    limits: BodyLimits = BodyLimits()

    @property
    def source(self) -> str | None:
        return self.agent if self.side == "egress" else self.peer

    @property
    def target(self) -> str | None:
        return self.instead or (self.peer if self.side == "egress" else self.agent)
