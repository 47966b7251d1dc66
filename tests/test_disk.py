"""Files are complete or not there; JSON is refused where Python's own reader lets it pass."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lightning_sparsity import disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file"


def test_a_file_is_written_and_replaced_with_nothing_beside_it(path: Path) -> None:
    for content in (b"one", b"", b"another"):
        disk.write(path, content)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


def test_the_content_is_on_disk_before_the_name_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append("fsync")
        fsync(handle)

    def replaced(source: Path, target: Path) -> None:
        steps.append(source.read_text())
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    disk.write(path, b"content")
    assert steps[:2] == ["fsync", "content"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_gets_the_permissions_of_any_new_file(mask: int, path: Path) -> None:
    before = os.umask(mask)
    try:
        disk.write(path, b"content")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.skipif(os.name == "nt", reason="links need permission there")
def test_symbolic_links_are_not_followed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = path.parent.parent / "precious"
    precious.write_text("keep me")
    path.parent.mkdir()
    path.symlink_to(precious)
    path.with_name("file.partial").symlink_to(precious)  # a name that somebody might guess
    disk.write(path, b"content")
    assert path.read_bytes() == b"content"
    assert not path.is_symlink()
    monkeypatch.setattr(disk.secrets, "token_hex", lambda n: "guessed")
    path.with_name(".guessed.partial").symlink_to(precious)
    with pytest.raises(FileExistsError, match="cannot be written"):
        disk.write(path, b"more")
    assert precious.read_text() == "keep me"
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt("stop")])
def test_a_failure_leaves_what_was_there_and_nothing_else(
    step: str, error: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.write(path, b"before")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    message = "stop|folder/file cannot be written .No space left.*Make .*folder a folder with write"
    with pytest.raises(type(error), match=message):
        disk.write(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_named(path: Path) -> None:
    path.parent.write_text("a file")
    with pytest.raises(OSError, match=r"folder/file cannot be written .*Make .*folder a folder"):
        disk.write(path, b"content")
    assert path.parent.read_text() == "a file"


def test_a_file_that_is_a_folder_is_named(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(OSError, match="cannot be written"):
        disk.write(path, b"content")
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_without_write_permission_is_named(path: Path) -> None:
    disk.write(path, b"before")
    path.parent.chmod(0o555)
    try:
        if os.access(path.parent, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(PermissionError, match=r"Make .*folder a folder with write permission"):
            disk.write(path, b"after")
    finally:
        path.parent.chmod(0o755)
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("content", [None, True, 0, -1, 2**63, 1.5, "ä", [], {"a": [{"b": "c"}]}])
def test_plain_json_is_read(content: Any) -> None:
    for text in (json.dumps(content), json.dumps(content).encode()):
        assert disk.parse(text) == content


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "Expecting value"),
        (b"\xff", "can't decode"),
        ("{}".encode("utf-16"), "can't decode"),
        ("\ufeff{}", "BOM"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[NaN]", "NaN is not a finite number"),
        ("-Infinity", "-Infinity is not a finite number"),
        ("1e999", "1e999 is not a finite number"),
        ("9" * 5000, "a number has 5000 digits"),
        ('{"a": 1, "a": 1}', "names an entry twice"),
        ('[{"b": {"a": 1, "a": 2}}]', "names an entry twice"),
        ("{'a': 1}", "Expecting property name"),
        ("[1] 2", "Extra data"),
    ],
    ids=lambda text: str(text)[:20],
)
def test_other_json_is_refused(text: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        disk.parse(text)


@pytest.mark.parametrize("numbers", [[-1], [1.0], [True], ["1"], [[1]], [None], "1", 1, None, {}])
def test_only_lists_of_whole_numbers_are_counts(numbers: Any) -> None:
    assert not disk.are_counts(numbers)
    assert disk.are_counts([0, 1, 2**40])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_a_pipe_is_not_waited_for(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        disk.open_regular(path)
