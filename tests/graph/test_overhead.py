"""What coordination costs: two ends joined without a common clock, and critical paths against a brute-force walk."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.event import Event
from handrail.graph.overhead import Hop, critical_path, hops, workflows


def seen(
    number: int, side: str | None, at: float, ms: float, source: str = "a", target: str = "b", **more: Any
) -> Event:
    given = {"kind": "handoff", "outcome": "completed", "workflow": "w", "overhead_ms": 0.1}
    return Event(id=f"{number}", side=side, at=at, duration_ms=ms, source=source, target=target, **given | more)  # type: ignore[arg-type]


def span(number: int) -> dict[str, str]:
    return {"trace_id": "1" * 32, "span_id": f"{number:016x}"}


@given(skew=st.floats(-1e6, 1e6), own=st.integers(0, 1000), between=st.integers(0, 1000))
def test_network_and_queueing_do_not_hang_on_the_clocks(skew: float, own: int, between: int) -> None:
    """However wrong a host's clock is: what the caller waited less what the target took."""
    (hop,) = hops(
        [
            seen(1, "egress", 1000.0, own + between, **span(1)),
            seen(2, "ingress", 1000.0 + skew, own, **span(1)),
        ]
    )
    assert (hop.id, hop.ingress) == ("1", "2")
    assert (hop.total_ms, hop.own_ms, hop.between_ms) == (own + between, own, between)
    assert hop.overhead_ms == pytest.approx(0.2)


def test_ends_are_joined_by_task_and_attempt_where_there_is_no_span() -> None:
    """And the second attempt is not the first."""
    found = hops(
        [
            seen(1, "egress", 0.0, 100.0, task="t", attempt=1),
            seen(2, "egress", 1.0, 200.0, task="t", attempt=2),
            seen(3, "ingress", 9.0, 150.0, task="t", attempt=2),
        ]
    )
    assert [(hop.id, hop.ingress, hop.between_ms) for hop in found] == [("1", None, None), ("2", "3", 50.0)]


@pytest.mark.parametrize(
    "ends",
    [
        [("egress", 100.0), ("egress", 100.0), ("ingress", 90.0)],  # which of the two arrived?
        [("egress", 100.0), ("ingress", 200.0)],  # a target cannot take longer than its caller waits
        [("egress", 100.0)],
        [("ingress", 100.0)],
        [(None, 100.0), ("ingress", 90.0)],
    ],
)
def test_what_cannot_be_joined_is_not(ends: list[tuple[str | None, float]]) -> None:
    """No invented value: the handoff counts, and what lies between is not known."""
    found = hops(seen(number, side, float(number), ms, **span(1)) for number, (side, ms) in enumerate(ends))
    assert found
    assert all(hop.between_ms is None and hop.own_ms is None for hop in found)


def test_several_under_one_key_are_joined_in_their_order() -> None:
    """An agent that sends one traceparent with every request."""
    ends = [("egress", 0.0, 30.0), ("egress", 1.0, 50.0), ("ingress", 7.0, 20.0), ("ingress", 8.0, 10.0)]
    found = hops(seen(number, side, at, ms, **span(1)) for number, (side, at, ms) in enumerate(ends))
    assert [(hop.id, hop.ingress, hop.between_ms) for hop in found] == [("0", "2", 10.0), ("1", "3", 40.0)]


def test_a_span_that_an_agent_handed_on_stands_for_each_of_its_handoffs() -> None:
    """b sends its caller's traceparent to c as it came; where only one end of each was seen, neither is left out."""
    b, c = {"source": "a", "target": "b", **span(1)}, {"source": "b", "target": "c", **span(1)}
    inner, outer = seen(1, "egress", 1.0, 20.0, **c), seen(2, "ingress", 0.9, 500.0, **b)
    assert [(hop.id, hop.total_ms) for hop in hops([inner, outer])] == [("2", 500.0), ("1", 20.0)]
    whole = [seen(0, "egress", 0.8, 510.0, **b), outer, inner, seen(3, "ingress", 1.0, 15.0, **c)]
    assert [(hop.id, hop.ingress, hop.between_ms) for hop in hops(whole)] == [("0", "2", 10.0), ("1", "3", 5.0)]


def test_a_workflow_by_hand() -> None:
    """a asks b, which asks c and d at once; d is what b waits for, on a host whose clock is an hour ahead."""
    hour = 3600.0
    (flow,) = workflows(
        [
            seen(1, "egress", 0.0, 1000.0, "a", "b", **span(1)),
            seen(2, "ingress", hour + 0.1, 800.0, "a", "b", **span(1)),
            seen(3, "egress", hour + 0.2, 300.0, "b", "c", **span(2)),
            seen(4, "egress", hour + 0.2, 500.0, "b", "d", **span(3)),
            seen(5, "ingress", 5 * hour, 450.0, "b", "d", **span(3)),
            seen(6, "egress", 1.5, 500.0, "a", "e", **span(4)),
        ]
    )
    assert (flow.handoffs, flow.joined, flow.agents) == (4, 2, ("a", "b", "c", "d", "e"))
    assert flow.span_ms == pytest.approx(2000.0)
    told = [(step.target, round(step.self_ms, 3)) for step in flow.path]
    assert told == [("b", 200.0), ("d", 500.0), ("b", 300.0), ("e", 500.0)]
    assert flow.idle_ms == pytest.approx(500.0)
    assert flow.between_ms == pytest.approx(250.0)
    assert flow.between_share == pytest.approx(250.0 / 2000.0)
    assert (flow.paths_used, flow.paths_possible) == (4, 20)


# Critical paths against a walk in steps of one millisecond.

CLOCK = st.integers(0, 12)


@st.composite
def trees(draw: st.DrawFn) -> list[Hop]:
    """Handoffs nested in each other, some side by side; whole milliseconds; agents are named by who serves what."""
    found: list[Hop] = []

    def below(source: str, start: int, end: int, depth: int) -> None:
        for _ in range(draw(st.integers(0, 3))):
            low = draw(st.integers(start, end))
            high = draw(st.integers(low, end))
            number = len(found)
            found.append(
                Hop(
                    id=f"{number}", workflow="w", source=source, target=f"s{number}", at=low / 1000, total_ms=high - low
                )
            )
            if depth:
                below(f"s{number}", low, high, depth - 1)

    below("root", 0, 12, 2)
    return found


def walk(found: list[Hop]) -> dict[str | None, int]:
    """Milliseconds of the critical path by handoff: in each, what was waited for was what ended last."""
    start = {hop.id: round(hop.at * 1000) for hop in found}
    end = {hop.id: start[hop.id] + round(hop.total_ms) for hop in found}
    children: dict[str | None, list[str]] = {}
    for hop in found:
        children.setdefault(None if hop.source == "root" else hop.source[1:], []).append(hop.id)  # type: ignore[index]
    spent: dict[str | None, int] = {}

    def back(name: str | None, at: int, low: int) -> None:
        left = list(children.get(name, ()))
        while at > low:
            ready = [each for each in left if end[each] == at and start[each] < at]
            if ready:
                chosen = max(ready, key=lambda each: start[each])
                left.remove(chosen)
                back(chosen, at, start[chosen])
                at = start[chosen]
            else:
                spent[name] = spent.get(name, 0) + 1
                at -= 1

    back(None, max(end.values()), min(start.values()))
    return spent


@given(trees())
@settings(max_examples=300, deadline=None)
def test_a_critical_path_is_that_of_the_walk(found: list[Hop]) -> None:
    """Stretch by stretch, and all stretches together are the whole."""
    if not found:
        return
    steps, idle, whole = critical_path(found)
    assert sum(step.self_ms for step in steps) + idle == pytest.approx(whole)
    told: dict[str | None, float] = {}
    for step in steps:
        told[step.id] = told.get(step.id, 0.0) + step.self_ms
    if idle > 1e-6:
        told[None] = idle
    assert {name: round(ms) for name, ms in told.items() if round(ms)} == walk(found)


def test_a_long_chain_is_walked_without_recursion() -> None:
    """Ten thousand handoffs, each inside the one before."""
    deep = [
        Hop(id=f"{n}", workflow="w", source=f"a{n}", target=f"a{n + 1}", at=n / 1000, total_ms=20_000.0 - 2 * n)
        for n in range(9_000)
    ]
    steps, idle, whole = critical_path(deep)
    assert idle == pytest.approx(0.0, abs=1e-6)
    assert sum(step.self_ms for step in steps) == pytest.approx(whole)


def test_instants_of_today_are_exact_enough() -> None:
    """One handoff begins where another ended, in seconds since the epoch: both are on the path."""
    for micro in range(0, 1_000_000, 9_973):
        at = 1_790_000_000 + micro / 1e6
        found = hops([seen(1, None, at, 333.3, "a", "b"), seen(2, None, round(at + 0.3333, 6), 77.7, "a", "c")])
        steps, idle, whole = critical_path(found)
        assert [step.target for step in steps] == ["b", "c"]
        assert idle + sum(step.self_ms for step in steps) == pytest.approx(whole, abs=0.1)
