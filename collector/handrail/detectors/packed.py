"""Names and ids of a workflow become one text: as strings in lists and dicts they take three times the memory.

And each list, dict and object is one more thing for the garbage collector to walk. A text is `\\0one\\0other`, each
item quoted, so that whatever a name holds, it comes out as it went in. Pairs are `\\0key\\1value\\0key\\1value\\0`:
`in` and `find` then say what a dict would, because neither separator is in an item.
"""


def quoted(text: str) -> str:
    """Without U+0000 and U+0001, and different for different texts; most texts as they are."""
    if "\0" not in text and "\1" not in text and "\2" not in text:  # each one memchr; isprintable asks each character
        return text
    return text.replace("\2", "\2c").replace("\1", "\2b").replace("\0", "\2a")


def unquoted(text: str) -> str:
    """What was quoted."""
    return text.replace("\2a", "\0").replace("\2b", "\1").replace("\2c", "\2")


def pushed(items: str, item: str, *, is_full: bool) -> str:
    """With one more item, `\\0` and what is quoted, at its end; without the first one where it is full."""
    if is_full:
        after = items.find("\0", 1)
        return items[after:] + item if after > 0 else item
    return items + item


def unpacked(items: str) -> list[str]:
    """The items, unquoted, in the order in which they were pushed."""
    return [unquoted(item) for item in items.split("\0")[1:]]


def value_of(pairs: str, key: str) -> str | None:
    """The value under a key; both are quoted."""
    at = pairs.find(f"\0{key}\1")
    if at < 0:
        return None
    at += len(key) + 2
    return pairs[at : pairs.index("\0", at)]


def without(pairs: str, key: str, value: str) -> str:
    """Pairs but for this one, which is among them."""
    return pairs.replace(f"\0{key}\1{value}\0", "\0", 1)
