"""Digests: they say whether anything differs, and nothing else matters."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from csr.data import digests
from csr.data.digests import KnownDigests, file_digest, folder_digest


def test_a_files_digest_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"what is in it")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"what is in it").hexdigest()


def test_a_folders_digest_follows_names_and_contents_and_not_where_it_lies(tmp_path):
    (tmp_path / "one/deep").mkdir(parents=True)
    (tmp_path / "one/a").write_text("x")
    (tmp_path / "one/deep/b").write_text("y")
    first = folder_digest(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert folder_digest(tmp_path / "two") == first
    (tmp_path / "two/deep/b").write_text("z")
    changed = folder_digest(tmp_path / "two")
    (tmp_path / "two/deep/b").write_text("y")
    (tmp_path / "two/a").rename(tmp_path / "two/c")
    assert len({first, changed, folder_digest(tmp_path / "two")}) == 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files that were written a while ago, as far as their times can tell."""
    made = tmp_path / "set"
    made.mkdir()
    for name in "ab":
        (made / name).write_text(f"what is in {name}")
    monkeypatch.setattr(digests, "_RECENT_NS", -(10**12))
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    found: list[str] = []

    def counted(file: Path) -> str:
        found.append(file.name)
        return file_digest(file)

    monkeypatch.setattr(digests, "file_digest", counted)
    return found


def known(folder: Path) -> str:
    each = KnownDigests(folder.parent / "state/digests.json")
    digest = folder_digest(folder, each.of)
    each.save()
    return digest


def test_files_that_nobody_touched_are_read_once(folder: Path, reads: list[str]) -> None:
    assert known(folder) == known(folder) == known(folder) == folder_digest(folder)
    assert reads == ["a", "b"]


def test_a_file_that_was_altered_is_noticed_though_size_and_time_are_as_before(folder: Path, reads: list[str]) -> None:
    before, times = known(folder), (folder / "b").stat()
    (folder / "b").write_text("what is on b")
    os.utime(folder / "b", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (folder / "b").stat().st_size == times.st_size
    assert known(folder) == folder_digest(folder) != before
    assert reads == ["a", "b", "b"]


def test_a_file_that_another_took_the_place_of_is_noticed(folder: Path) -> None:
    before = known(folder)
    (folder.parent / "other").write_text("what is on b")
    (folder.parent / "other").replace(folder / "b")
    assert known(folder) == folder_digest(folder) != before
    (folder / "b").unlink()
    assert known(folder) == folder_digest(folder)
    assert [Path(name).name for name in json.loads((folder.parent / "state/digests.json").read_text())] == ["a", "b"]


def test_a_file_that_was_just_written_is_read_again(
    folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change within a tick of the file system's clock would leave its times as they are."""
    monkeypatch.setattr(digests, "_RECENT_NS", 2_000_000_000)
    assert known(folder) == known(folder)
    assert reads == ["a", "b"] * 2
    later = time.time_ns() + 3_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert known(folder) == known(folder)
    assert reads == ["a", "b"] * 3


@pytest.mark.parametrize("content", ["", "[1]", "no json", '{"a": 1'])
def test_what_was_kept_can_be_lost(folder: Path, content: str) -> None:
    (folder.parent / "state").mkdir()
    (folder.parent / "state/digests.json").write_text(content)
    assert known(folder) == folder_digest(folder)
