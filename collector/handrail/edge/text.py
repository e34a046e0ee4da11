"""Text files become text, or what is wrong with them.

A module of its own, because every command needs it and most need nothing else of what files hold.
"""

from collections.abc import Sequence
from pathlib import Path


class Unreadable(ValueError):
    """Files that cannot be taken as they are: for each its path, what is wrong and how to fix it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def read_text(path: str | Path) -> str:
    """A UTF-8 text file. Raises Unreadable naming the file, and the line that is not UTF-8."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise Unreadable([f"{path}: {in_words(error)}"]) from None
    return decoded(raw, str(path))


def decoded(raw: bytes, file: str) -> str:
    """UTF-8 bytes to text. Raises Unreadable naming the file and the line that is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Unreadable([f"{file}: line {line}: is not UTF-8 text"]) from None


def in_words(error: Exception) -> str:
    """What went wrong with a file, without its name."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror.lower()}"
    return str(error)
