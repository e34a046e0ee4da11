"""What is wrong with a schema, and what is wrong with a payload by its schema."""

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """Why a schema file cannot be put in force."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class Violation(msgspec.Struct, frozen=True):
    """One place where a payload is not what its schema says. Nothing in it is taken from the payload's values."""

    path: str
    """JSON Pointer into the payload; `*` for array indices and for keys that the schema does not name."""
    keyword: str
    message: str
    """What was expected, and the type that was found."""
    schema_path: str
    """JSON Pointer into the schema."""
