"""Laws of the registry's state: nothing is lost, nothing is changed, and the same changes make the same store."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.schema.store import (
    Change,
    Deleted,
    Denied,
    Reference,
    Registered,
    Store,
    Version,
    content_key,
    from_files,
    version_number,
)


def registered(store: Store, subject: str, document: Any, *references: Reference, **more: Any) -> Version | Registered:
    made = store.register(subject, document if isinstance(document, str) else json.dumps(document), references, **more)
    if isinstance(made, Registered):
        store.apply(made)
    return made


def denied(call: Any, *args: Any, **more: Any) -> int:
    with pytest.raises(Denied) as caught:
        call(*args, **more)
    return caught.value.code


orders = st.one_of(
    st.tuples(st.just("register"), st.sampled_from("ab"), st.sampled_from(['{"title":"1"}', "{}", "true", '{"a":1}'])),
    st.tuples(st.just("delete"), st.sampled_from("ab"), st.booleans()),
    st.tuples(st.just("version"), st.sampled_from("ab"), st.sampled_from(["1", "2", "latest"]), st.booleans()),
    st.tuples(st.just("level"), st.sampled_from(["a", None]), st.sampled_from(["NONE", "full"])),
)


def decided(store: Store, order: Any) -> Any:
    match order:
        case ("register", subject, text):
            return store.register(subject, text)
        case ("delete", subject, permanent):
            return store.delete(subject, permanent=permanent)
        case ("version", subject, version, permanent):
            return store.delete_version(subject, version, permanent=permanent)
        case (_, subject, level):
            return store.set_level(subject, level)


@settings(max_examples=300, deadline=None)
@given(st.lists(orders, max_size=25))
def test_nothing_registered_is_changed(history: list[Any]) -> None:
    """Whatever is ordered: a place never holds another schema, an id never names another text, equal content has one
    id, and the changes alone make the same store again."""
    store, log = Store(), []
    places: dict[tuple[str, int], int] = {}
    texts: dict[int, str] = {}
    ids: dict[bytes, int] = {}
    for order in history:
        try:
            change = decided(store, order)
        except Denied:
            continue
        if isinstance(change, Change):
            store.apply(change)
            log.append(change)
        for subject in store.subjects(deleted=True):
            for each in store.versions(subject, deleted=True):
                text = store.text(each).text
                assert places.setdefault((subject, each.version), each.id) == each.id
                assert texts.setdefault(each.id, text) == text
                assert ids.setdefault(content_key(json.loads(text), ()), each.id) == each.id
                assert store.document(each.id).text == text
    again = Store()
    for change in log:
        again.apply(change)
    assert again.changes == store.changes
    for subject in store.subjects(deleted=True):
        assert again.versions(subject, deleted=True) == store.versions(subject, deleted=True)
    assert again.subjects(deleted=True) == store.subjects(deleted=True)
    assert again.level("a") == store.level("a")


def test_an_order_changes_nothing_by_itself() -> None:
    """Only what is applied has happened."""
    store = Store()
    store.register("s", "{}")
    assert (store.subjects(), store.changes) == ([], 0)


def test_a_version_number_is_never_given_twice() -> None:
    """Not even after it was deleted for good: somebody may still hold a pin on it."""
    store = Store()
    for title in ("1", "2"):
        registered(store, "s", {"title": title})
    store.apply(store.delete("s"))
    store.apply(store.delete("s", permanent=True))
    assert denied(store.versions, "s") == 40401
    assert denied(store.document, 1) == 40403
    made = registered(store, "s", {"title": "3"})
    assert (made.version, made.id) == (3, 3)
    assert registered(store, "s", {"title": "1"}).id == 1


def test_content_is_what_counts() -> None:
    """Not layout or the order of keys; but the references, and what a number is."""
    plain = content_key({"a": 1, "b": [1, 2]}, ())
    assert content_key({"b": [1, 2], "a": 1}, ()) == plain
    assert content_key({"a": 1, "b": [2, 1]}, ()) != plain
    assert content_key({"a": True, "b": [1, 2]}, ()) != plain
    assert content_key({"a": 1, "b": [1, 2]}, (Reference("x", "s", 1),)) != plain
    one, two = Reference("x", "s", 1), Reference("y", "s", 2)
    assert content_key({}, (one, two)) == content_key({}, (two, one))


def test_what_is_referred_to_stays() -> None:
    """As long as a schema in use refers to it; a subject that refers to itself can go as a whole."""
    store = Store()
    registered(store, "a", {"title": "a"})
    registered(store, "o", {"$ref": "a"}, Reference("a", "a", 1))
    assert store.referrers("a", 1) == [2]
    assert denied(store.delete, "a") == 42206
    assert denied(store.delete_version, "a", "1") == 42206
    store.apply(store.delete("o"))
    assert store.delete("a").versions == (1,)
    registered(store, "self", {"title": "base"})
    registered(store, "self", {"$ref": "b"}, Reference("b", "self", 1))
    assert store.delete("self") == Deleted(subject="self", versions=(1, 2))


def test_import_mode_takes_ids_as_they_are() -> None:
    """So that a registry can be moved with its ids; never an id that is another schema's."""
    store = Store()
    store.apply(store.set_mode(None, "IMPORT"))
    made = registered(store, "s", {"title": "1"}, id=70, version=7)
    assert (made.id, made.version) == (70, 7)
    assert denied(store.register, "s", '{"title":"2"}', id=70) == 42207
    assert denied(store.register, "s", '{"title":"2"}', version=7) == 409
    assert denied(store.set_mode, None, "IMPORT") == 42205
    store.apply(store.set_mode(None, "READWRITE"))
    assert registered(store, "s", {"title": "2"}).id == 71
    assert denied(store.register, "s", '{"title":"3"}', id=99) == 42205


def test_the_nearest_level_counts() -> None:
    """The subject's, else that of all, else the configuration's; and it says which versions it is about."""
    store = Store("FULL")
    for title in "123":
        registered(store, "s", {"title": title})
    assert (store.level("s"), [each.version for each in store.against("s")]) == ("FULL", [3])
    store.apply(store.set_level(None, "backward_transitive"))
    assert [each.version for each in store.against("s")] == [3, 2, 1]
    store.apply(store.set_level("s", "NONE"))
    assert store.against("s") == []
    assert denied(store.level_of, "other") == 40408
    assert denied(store.set_level, "s", "WHATEVER") == 42203
    assert denied(store.set_level, "s", None) == 42203


@pytest.mark.parametrize("version", ["0", "-2", "1.0", "", "x", "99999999999", "²", "+1"])
def test_what_is_no_version_is_refused(version: str) -> None:
    """A version is a number from 1, or the latest."""
    assert denied(version_number, version) == 42202


def test_a_directory_has_the_same_ids_everywhere() -> None:
    """An id comes from the content alone: other files, other layout and other names leave it."""
    one = from_files({"a/1.json": b'{"title":"x"}', "b/v2.json": b"true"})
    two = from_files({"z/7.json": b'{ "title" : "x" }', "c/1.json": b"false"})
    assert one.version("a", "1").id == two.version("z", "7").id
    assert one.version("b", "v2") == one.version("b", "2")


def test_versions_that_are_no_numbers_have_places() -> None:
    """Oldest first; by its name a version is found too."""
    store = from_files(
        {f"s/{label}.json": json.dumps({"title": label}).encode() for label in ("1.10", "1.9", "2.0-rc")}
    )
    assert [(each.version, each.label) for each in store.versions("s")] == [(1, "1.9"), (2, "1.10"), (3, "2.0-rc")]
    assert store.version("s", "1.10").version == 2
