"""Names and ids of a workflow become one text: as strings in lists and dicts they take three times the memory.

And each list, dict and object is one more thing for the garbage collector to walk. A text is `\\0one\\0other`, each
item quoted, so that whatever a name holds, it comes out as it went in. Pairs are `\\0key\\1value\\0key\\1value\\0`:
`in` and `find` then say what a dict would, because neither separator is in an item.
"""


def quoted(text: str) -> str:
    """Without U+0000 and U+0001, and different for different texts; most texts as they are."""
    if text.isprintable():
        return text
    return text.replace("\2", "\2c").replace("\1", "\2b").replace("\0", "\2a")


def unquoted(text: str) -> str:
    """What was quoted."""
    return text.replace("\2a", "\0").replace("\2b", "\1").replace("\2c", "\2")


def pushed(items: str, item: str, most: int) -> str:
    """With one more item, which is quoted already, at its end; without the first where they were `most`."""
    if items.count("\0") < most:
        return items + "\0" + item
    after = items.find("\0", 1)
    return (items[after:] if after > 0 else "") + "\0" + item


def unpacked(items: str) -> list[str]:
    """The items, unquoted, in the order in which they were pushed."""
    return [unquoted(item) for item in items.split("\0")[1:]]


def has_last(items: str, item: str) -> bool:
    """Whether this one, quoted already, was pushed last."""
    return items.endswith("\0" + item)


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
