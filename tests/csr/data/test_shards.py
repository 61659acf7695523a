"""Images in shards read like the one array that they are, and a damaged shard is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from csr.data import shards
from csr.data.shards import PER_SHARD, ImageShards, ShardWriter
from csr.errors import DataError

SHAPE = (1, 3, 3)
COUNT = 2 * PER_SHARD + 100


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), np.uint8)


def write(folder: Path, images: np.ndarray, rows: np.ndarray | None = None) -> Path:
    folder.mkdir()
    writer = ShardWriter(folder, len(images), images.shape[1:])
    for row in range(len(images)) if rows is None else rows:
        writer.write(row, images[row])
    writer.close()
    return folder


@pytest.fixture(scope="module")
def folder(whole: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards") / "images", whole)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


ROWS = [
    0,
    -1,
    np.int32(PER_SHARD),
    np.array(PER_SHARD - 1),
    slice(None),
    slice(PER_SHARD - 2, PER_SHARD + 2),
    slice(None, None, -700),
    slice(5, 5),
    slice(-3, 10**6),
    [],
    [COUNT - 1, 0, PER_SHARD, PER_SHARD - 1, 0, -1, -COUNT],
    np.array([3, 2 * PER_SHARD, 3], np.int16),
    np.zeros(0, np.int64),
]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_are_those_of_one_array(folder: Path, whole: np.ndarray, rows: object) -> None:
    images = ImageShards(folder)[rows]
    np.testing.assert_array_equal(images, whole[rows])
    assert type(images) is np.ndarray and images.dtype == np.uint8 and images.flags.writeable
    images[...] = 0  # is no view of what is on disk
    np.testing.assert_array_equal(ImageShards(folder)[rows], whole[rows])


@pytest.mark.parametrize("row", [COUNT, -COUNT - 1, [0, COUNT], np.array([-COUNT - 1])], ids=str)
def test_a_row_that_is_not_there_is_refused(folder: Path, row: object) -> None:
    with pytest.raises(IndexError, match=f"is none of the {COUNT}"):
        ImageShards(folder)[row]


@pytest.mark.parametrize("rows", [np.ones(COUNT, bool), True, 1.0, "0", None, [[0, 1]], (0, 1), (0, slice(None), [1])])
def test_what_is_no_row_is_refused(folder: Path, rows: object) -> None:
    with pytest.raises(IndexError, match="images are indexed by"):
        ImageShards(folder)[rows]


def test_shape_length_iteration_and_array_are_those_of_one_array(folder: Path, whole: np.ndarray) -> None:
    images = ImageShards(folder)
    assert images.shape == whole.shape and images.dtype == whole.dtype and len(images) == len(whole)
    np.testing.assert_array_equal(np.stack(list(images)), whole)
    np.testing.assert_array_equal(np.asarray(images), whole)
    assert np.asarray(images, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(images, copy=False)


def test_shards_are_what_numpy_writes(folder: Path, whole: np.ndarray, tmp_path: Path) -> None:
    for number, start in enumerate(range(0, COUNT, PER_SHARD)):
        expected = whole[start : start + PER_SHARD]
        np.lib.format.open_memmap(tmp_path / f"{number:05d}.npy", "w+", np.uint8, expected.shape)[:] = expected
    assert contents(folder) == contents(tmp_path)


def test_images_may_be_written_in_any_order(folder: Path, whole: np.ndarray, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).permutation(COUNT)
    assert contents(write(tmp_path / "images", whole, rows)) == contents(folder)


def test_a_grown_set_keeps_its_full_shards(folder: Path, whole: np.ndarray, tmp_path: Path) -> None:
    grown = contents(write(tmp_path / "images", np.concatenate([whole, whole])))
    before = contents(folder)
    assert [name for name in before if grown[name] != before[name]] == ["00002.npy"]


@pytest.mark.parametrize("count", [0, 1, PER_SHARD - 1, PER_SHARD, PER_SHARD + 1, COUNT - 1, COUNT])
def test_the_first_images_can_be_kept(whole: np.ndarray, tmp_path: Path, count: int) -> None:
    (tmp_path / "cut").mkdir()
    writer = ShardWriter(tmp_path / "cut", COUNT + 3000, SHAPE)
    for row in range(COUNT):
        writer.write(row, whole[row])
    writer.keep(count)
    np.testing.assert_array_equal(writer.read(), whole[:count])
    writer.close()
    assert contents(tmp_path / "cut") == contents(write(tmp_path / "whole", whole[:count]))


def test_what_is_written_can_be_read_before_the_writer_closes(whole: np.ndarray, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 2000, SHAPE)
    writer.write(1500, whole[0])
    np.testing.assert_array_equal(writer.read()[[1500, 0]], [whole[0], np.zeros(SHAPE)])
    writer.close()


def test_only_a_few_shards_are_open_at_a_time(folder: Path, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_OPEN", 2)
    images, rows = ImageShards(folder), np.arange(0, COUNT, 50)
    np.testing.assert_array_equal(images[rows], whole[rows])
    assert sorted(images._open) == [1, 2]
    np.testing.assert_array_equal(images[rows[::-1]], whole[rows[::-1]])


@pytest.mark.parametrize("name", ["00000.npy", "00001.npy"])
def test_a_missing_shard_is_named(whole: np.ndarray, tmp_path: Path, name: str) -> None:
    (write(tmp_path / "images", whole) / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing; run the stage 'prepare'"):
        ImageShards(tmp_path / "images")


DAMAGE = {
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "no array": lambda file: file.write_bytes(b"nothing" * 99),
    "of another type": lambda file: np.save(file, np.zeros((PER_SHARD, *SHAPE), np.int8)),
    "of fewer images": lambda file: np.save(file, np.zeros((PER_SHARD - 1, *SHAPE), np.uint8)),
    "of other images": lambda file: np.save(file, np.zeros((PER_SHARD, 1, 9, 1), np.uint8)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named_when_it_is_read(whole: np.ndarray, tmp_path: Path, damage: str) -> None:
    DAMAGE[damage](write(tmp_path / "images", whole) / "00001.npy")
    images = ImageShards(tmp_path / "images")
    with pytest.raises(DataError, match=r"00001\.npy: is damaged .*; run the stage 'prepare'"):
        images[PER_SHARD]


@pytest.mark.parametrize("name", ["00000.npy", "00002.npy"])
def test_a_damaged_first_or_last_shard_is_named_at_once(whole: np.ndarray, tmp_path: Path, name: str) -> None:
    (write(tmp_path / "images", whole) / name).write_bytes(b"nothing" * 99)
    with pytest.raises(DataError, match=f"{name}: is damaged"):
        ImageShards(tmp_path / "images")
