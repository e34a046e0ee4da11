"""The agents that the work came through, as `baggage` carries them from sidecar to sidecar."""

from hypothesis import given
from hypothesis import strategies as st

from handrail.dialects import CHAIN_AGENTS, CHAIN_BYTES, CHAIN_KEY, chain_in, with_chain

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="|"), min_size=1, max_size=40)


def test_the_sender_is_added_and_other_members_stay() -> None:
    """Properties of our own member may go; members of others are theirs."""
    assert with_chain(None, "a") == b"handrail-chain=a"
    assert with_chain(b"user=7;p=1, handrail-chain=a|b;x=y", "c d") == b"user=7;p=1,handrail-chain=a|b|c%20d"
    assert chain_in(b"user=7, handrail-chain=a|b|c%20d") == "a|b|c d"


def test_an_agent_that_is_the_last_already_is_not_added_again() -> None:
    """The sidecars of both sides may stamp one request."""
    assert with_chain(b"handrail-chain=a|b", "b") == b"handrail-chain=a|b"


def test_baggage_without_a_chain_names_nobody() -> None:
    """Other people's baggage, an empty chain, a name that only begins like ours."""
    for baggage in (b"", b"k=v", b"handrail-chain=", b"handrail-chains=a", b"x=handrail-chain"):
        assert chain_in(baggage) is None


@given(st.lists(names, min_size=1, max_size=60))
def test_the_chain_is_bounded_and_keeps_the_latest(agents: list[str]) -> None:
    """However long the way: at most so many agents and bytes, and the sender is always the last."""
    value: bytes | None = None
    for agent in agents:
        value = with_chain(value, agent)
    assert value is not None
    chain = (chain_in(value) or "").split("|")
    assert len(chain) <= CHAIN_AGENTS
    assert len(value) <= CHAIN_BYTES + len(CHAIN_KEY) + 1
    assert chain[-1] == agents[-1]
    assert value.isascii()
    assert b" " not in value


@given(st.binary(max_size=200))
def test_any_baggage_can_be_read_and_continued(baggage: bytes) -> None:
    """What a caller sends never raises, and the sender can be added to it."""
    chain_in(baggage)
    assert (chain_in(with_chain(baggage, "a")) or "").endswith("a")
