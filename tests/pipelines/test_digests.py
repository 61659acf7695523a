"""The prepared set is read once where it was written, and a change to it is noticed by whoever asks next."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from csr.data import digests
from csr.data.prepared import PreparedSet
from pipelines.digests import digests_below, path_digest
from pipelines.storage import Listing
from tests.csr.synthetic import make_collection, make_prepared


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set that was written a while ago, as far as its times can tell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digests, "_RECENT_NS", -(10**12))
    return make_prepared(Path("data/prepared"), make_collection()).path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read for their digest."""
    found: list[Path] = []
    plain = digests.file_digest

    def counted(file: Path) -> str:
        found.append(file)
        return plain(file)

    monkeypatch.setattr(digests, "file_digest", counted)
    return found


def test_the_stages_after_the_first_read_nothing(prepared: Path, reads: list[Path]) -> None:
    digest = PreparedSet.open(prepared).digest()
    reads.clear()
    assert path_digest(prepared) == digest, "the same data version as ever"
    files = [file for file in prepared.rglob("*") if file.is_file()]
    assert sorted(reads) == sorted(files)
    for _ in range(3):
        assert path_digest(prepared) == digest
    assert Listing.of(prepared).files == digests_below(prepared)
    assert len(reads) == len(files)


def test_an_image_that_was_altered_in_place_gives_another_version(prepared: Path) -> None:
    before, shard = path_digest(prepared), prepared / "images/00000.npy"
    times = shard.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    written = np.load(shard, mmap_mode="r+")
    written[3, 0, 0, 0] ^= 1
    written.flush()
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path_digest(prepared) == PreparedSet.open(prepared).digest() != before


def test_the_file_of_one_output_has_its_own_digest(prepared: Path) -> None:
    file = prepared / "studies.parquet"
    assert path_digest(file) == digests.file_digest(file) == Listing.of(file).files["studies.parquet"]
