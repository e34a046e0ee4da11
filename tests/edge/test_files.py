"""Schema directories and rule files become plain values, or a list of what could not be read."""

import os
from pathlib import Path

import pytest

from handrail.config import Config, SchemasConfig
from handrail.edge.files import (
    MAX_SCHEMA_BYTES,
    Unreadable,
    builtin_packs,
    load_registry,
    read_packs,
    read_schemas,
    read_text,
    schema_stamp,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """One subject with two versions."""
    (tmp_path / "order").mkdir()
    (tmp_path / "order" / "1.json").write_text("{}")
    (tmp_path / "order" / "2.json").write_text('{"type": "object"}')
    return tmp_path


def problems_of(directory: Path) -> tuple[str, ...]:
    with pytest.raises(Unreadable) as caught:
        read_schemas(directory)
    return tuple(problem.removeprefix(f"{directory}").removeprefix("/") for problem in caught.value.problems)


def test_schemas_are_keyed_by_subject_and_version(directory: Path) -> None:
    """The key is the path below the directory, the value the file's bytes."""
    assert read_schemas(directory) == {"order/1.json": b"{}", "order/2.json": b'{"type": "object"}'}


def test_dotfiles_and_other_files_are_passed_over(directory: Path) -> None:
    """An editor's and a version control's files are no schemas."""
    (directory / ".git").mkdir()
    (directory / ".git" / "3.json").write_text("{}")
    (directory / "order" / ".1.json.swp").write_text("x")
    (directory / "README.md").write_text("x")

    assert set(read_schemas(directory)) == {"order/1.json", "order/2.json"}


def test_a_mounted_config_map_is_followed(tmp_path: Path) -> None:
    """Kubernetes swaps the link `..data`; the visible names are links through it."""
    generation = tmp_path / "..2026_11_22"
    generation.mkdir()
    (generation / "1.json").write_text("1")
    (tmp_path / "..data").symlink_to(generation.name)
    (tmp_path / "order").mkdir()
    (tmp_path / "order" / "1.json").symlink_to("../..data/1.json")

    before = schema_stamp(tmp_path)
    assert read_schemas(tmp_path) == {"order/1.json": b"1"}

    following = tmp_path / "..2026_11_23"
    following.mkdir()
    (following / "1.json").write_text("2")
    (tmp_path / "..new").symlink_to(following.name)
    (tmp_path / "..new").rename(tmp_path / "..data")

    assert schema_stamp(tmp_path) != before
    assert read_schemas(tmp_path) == {"order/1.json": b"2"}


def test_what_cannot_be_a_schema_refuses_the_whole(directory: Path) -> None:
    """Each problem names its file; no half of a directory comes into force."""
    (directory / "order" / "nested").mkdir()
    (directory / "order" / "3.json").symlink_to("nowhere")
    (directory / "order" / "4.json").write_bytes(b" " * (MAX_SCHEMA_BYTES + 1))
    os.mkfifo(directory / "order" / "5.json")

    assert problems_of(directory) == (
        "order/3.json: cannot be read: no such file or directory",
        f"order/4.json: is longer than {MAX_SCHEMA_BYTES} bytes",
        "order/5.json: is not a regular file",
        "order/nested: is a directory inside a subject; a schema is <subject>/<version>.json",
    )


def test_a_url_in_a_problem_is_told_as_it_is(directory: Path) -> None:
    """The path of the file stands before it and does not swallow one of its slashes."""
    (directory / "order" / "1.json").write_text('{"$ref": "https://schemas.test/x"}')
    with pytest.raises(Unreadable, match=r"order/1.json: /\$ref: https://schemas.test/x leaves the document"):
        load_registry(Config(schemas=SchemasConfig(directory=str(directory))))


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The same for a file where a directory should be."""
    with pytest.raises(Unreadable, match="absent: cannot be read: no such file or directory"):
        read_schemas(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreadable, match="file: cannot be read: not a directory"):
        read_schemas(tmp_path / "file")


def test_the_stamp_changes_with_every_change(directory: Path) -> None:
    """Content, addition, removal, and the directory itself going away."""
    stamps = [schema_stamp(directory)]
    assert schema_stamp(directory) == stamps[0]

    (directory / "order" / "2.json").write_text("{ }")
    stamps.append(schema_stamp(directory))
    (directory / "order" / "3.json").write_text("{}")
    stamps.append(schema_stamp(directory))
    (directory / "order" / "3.json").unlink()
    (directory / "order" / "1.json").unlink()
    stamps.append(schema_stamp(directory))
    stamps.append(schema_stamp(directory / "absent"))

    assert len(set(stamps)) == 5


def test_built_in_packs_are_found() -> None:
    """From a wheel or from the repository; there is always at least one."""
    packs = builtin_packs()

    assert packs
    assert all(name.endswith(".yaml") and text for name, text in packs)


def test_packs_come_from_files_and_directories(tmp_path: Path) -> None:
    """A directory stands for its .yaml files, in order of name."""
    (tmp_path / "b.yaml").write_text("b")
    (tmp_path / "a.yaml").write_text("a")
    (tmp_path / "notes.txt").write_text("n")

    assert [text for _, text in read_packs([str(tmp_path), str(tmp_path / "b.yaml")])] == ["a", "b", "b"]


def test_packs_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    """An absent file, an empty directory and a file that is not text."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.yaml").write_bytes(b"a\nb\xff")

    with pytest.raises(Unreadable) as caught:
        read_packs([str(tmp_path / name) for name in ("absent.yaml", "empty", "bytes.yaml")])

    assert caught.value.problems == (
        f"{tmp_path}/absent.yaml: cannot be read: no such file or directory",
        f"{tmp_path}/empty: holds no .yaml file",
        f"{tmp_path}/bytes.yaml: line 2: is not UTF-8 text",
    )


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """Some editors write one; YAML would read it as part of the first key."""
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1")

    assert read_text(tmp_path / "a.yaml") == "a: 1"
