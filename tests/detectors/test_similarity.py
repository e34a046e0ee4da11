"""What payloads are compared by: laws of the phrases of texts, remembered or not."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from handrail.detectors import similarity
from handrail.detectors.similarity import SAMPLE, TEXT_CHARS, Phrases, phrases, text_of, texts_of

spoken = st.lists(st.sampled_from([f"word{number}" for number in range(300)]), max_size=400).map(" ".join)
texts = st.lists(spoken | st.text(max_size=300), max_size=6)
payloads = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def forget() -> None:
    similarity._texts.clear()
    similarity._together.clear()


def shown(made: Phrases) -> tuple[list[int], int, frozenset[int]]:
    return list(made.codes), made.mask, made.sample


@settings(max_examples=80, deadline=None)
@given(said=texts)
def test_what_is_remembered_of_a_text_is_what_it_says(said: list[str]) -> None:
    """Made anew, made once more, and made in any order: the same phrases, the same sample."""
    forget()
    fresh = shown(Phrases.of_texts(said))
    assert shown(Phrases.of_texts(said)) == fresh
    similarity._together.clear()
    assert shown(Phrases.of_texts(said)) == fresh
    long = [text for text in said if len(text) >= 256]
    there, back = Phrases.of_texts(long), Phrases.of_texts(long[::-1])
    assert (there.mask, there.sample, there.distinct()) == (back.mask, back.sample, back.distinct())


@settings(max_examples=80, deadline=None)
@given(said=texts)
@example(said=["word1 word2 word3 " * 200])
@example(said=[" ".join(f"word{number}" for number in range(start, start + 300)) for start in (0, 50, 5_000)])
def test_a_sample_holds_every_phrase_without_the_bits_of_its_mask(said: list[str]) -> None:
    """So that of two samples, looked at by the larger mask, each has what it has in common with the other."""
    made = Phrases.of_texts(said)
    assert len(made.sample) <= SAMPLE
    assert made.sample == {code for code in made.distinct() if not code & made.mask}
    assert made.distinct() == frozenset(made.codes)


@settings(max_examples=40, deadline=None)
@given(said=texts)
def test_a_long_text_says_the_same_wherever_it_stands(said: list[str]) -> None:
    """The phrases of each long text are among those of the whole; nothing is made up between two of them."""
    long = [text for text in said if len(text) >= 256]
    whole = Phrases.of_texts(said).distinct()
    assert all(phrases(text) <= whole for text in long)
    assert Phrases.of_texts(long).distinct() == frozenset().union(*map(phrases, long))


@settings(max_examples=80, deadline=None)
@given(payload=payloads)
@example(payload=["a" * 65_530, "b" * 20])
@example(payload={"a": "a" * TEXT_CHARS, "b": "c"})
@example(payload="a" * (TEXT_CHARS + 9))
def test_the_lines_of_a_payload_are_its_text(payload: Any) -> None:
    """Cut at the same character."""
    assert "\n".join(texts_of(payload)) == text_of(payload)


def test_what_is_remembered_is_bounded() -> None:
    """A thousand payloads leave what the limit says, and what is very long is not remembered."""
    forget()
    for number in range(1_000):
        Phrases.of_texts([f"text {number} " + "and so on " * 40, f"{number} times"])
    assert (len(similarity._texts), len(similarity._together)) == (128, 64)
    forget()
    Phrases.of_texts([" ".join(f"word{number}" for number in range(9_000)), "and more"])
    assert (len(similarity._texts), len(similarity._together)) == (1, 0)
