"""What the `schema` commands work on: a schema directory, or a registry service, read and written from the shell."""

from collections.abc import Sequence
from typing import Protocol

from handrail.config import Config, ConfigError


class Catalogue(Protocol):
    """A registry as a person at a shell sees it."""


def opened(directory: str | None, url: str | None, token_file: str | None, config: Config | None) -> Catalogue:
    """The catalogue that flags or a configuration name. Raises ConfigError where they name none."""
    raise ConfigError("command line", "--schemas", "is missing; name a schema directory, or --registry URL")


def register(
    catalogue: Catalogue,
    subject: str,
    file: str,
    *,
    version: str | None = None,
    references: Sequence[str] = (),
    output: str = "text",
) -> int:
    """Registers a schema file. The exit status: 0, or 1 where it is not compatible."""
    return 0


def list_subjects(catalogue: Catalogue, *, output: str = "text") -> int:
    """Prints every subject with its versions."""
    return 0


def show(catalogue: Catalogue, subject: str, *, output: str = "text") -> int:
    """Prints one schema."""
    return 0
