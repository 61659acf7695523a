"""The prepared folder: what is written comes back, and nothing half-written is ever seen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from csr.datasets.prepared import PreparedSet, PreparedWriter
from csr.errors import DataError
from tests.csr.synthetic import make_collection, make_prepared


@pytest.fixture
def collection():
    return make_collection()


def listing(path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_tables_and_images_come_back_as_they_were_written(tmp_path, collection):
    data = make_prepared(tmp_path / "set", collection)
    again = PreparedSet.open(tmp_path / "set")
    pd.testing.assert_frame_equal(again.collection.studies, collection.studies)
    pd.testing.assert_frame_equal(again.collection.boxes, collection.boxes)
    assert (again.collection.name, again.collection.concepts, again.collection.classes) == (
        collection.name,
        collection.concepts,
        collection.classes,
    )
    assert again.images.shape == (68, 1, 32, 32)
    assert (again.channels, again.side) == (1, 32)
    np.testing.assert_array_equal(again.images, data.images)


@pytest.mark.parametrize("side", [8, 7])
def test_masks_come_back_bit_by_bit(tmp_path, collection, side):
    masks = np.random.default_rng(0).random((5, side, side)) < 0.4
    with PreparedWriter(tmp_path / "set", 1, 1, side) as writer:
        writer.write_image(0, np.zeros((1, side, side), np.uint8))
        writer.write_tables(collection)
        writer.write_masks(np.packbits(mask) for mask in masks)
    np.testing.assert_array_equal(PreparedSet.open(tmp_path / "set").masks(), masks)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_where_nothing_was(tmp_path, collection, error):
    with pytest.raises(error), PreparedWriter(tmp_path / "set", 2, 1, 8) as writer:
        writer.write_image(0, np.ones((1, 8, 8), np.uint8))
        writer.write_tables(collection)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_exception_keeps_the_previous_folder_byte_by_byte(tmp_path, collection):
    make_prepared(tmp_path / "set", collection)
    before = listing(tmp_path / "set")
    with pytest.raises(RuntimeError), PreparedWriter(tmp_path / "set", 2, 1, 8) as writer:
        writer.write_tables(collection)
        raise RuntimeError
    assert listing(tmp_path / "set") == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_previous_folder_stays_readable_until_the_new_one_is_whole(tmp_path, collection):
    make_prepared(tmp_path / "set", collection)
    with PreparedWriter(tmp_path / "set", 3, 1, 8) as writer:
        assert PreparedSet.open(tmp_path / "set").side == 32
        writer.write_tables(collection)
    assert PreparedSet.open(tmp_path / "set").side == 8
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_leftovers_of_a_killed_run_are_no_part_of_the_next(tmp_path, collection):
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "stale.npy").write_bytes(b"old")
    make_prepared(tmp_path / "set", collection)
    assert sorted(listing(tmp_path / "set")) == ["boxes.parquet", "collection.json", "images.npy", "studies.parquet"]


@pytest.mark.parametrize("name", ["collection.json", "studies.parquet", "boxes.parquet", "images.npy"])
def test_a_missing_file_is_named_with_the_stage_that_makes_it(tmp_path, collection, name):
    make_prepared(tmp_path / "set", collection)
    (tmp_path / "set" / name).unlink()
    with pytest.raises(DataError, match=f"{name}.*prepare"):
        PreparedSet.open(tmp_path / "set")


def test_the_digest_is_that_of_the_content_and_not_of_the_place(tmp_path, collection):
    first, second = make_prepared(tmp_path / "a", collection), make_prepared(tmp_path / "b", collection)
    assert first.digest() == second.digest()
    assert make_prepared(tmp_path / "c", collection, seed=3).digest() != first.digest()


@pytest.mark.parametrize("name", ["collection.json", "studies.parquet", "boxes.parquet", "images.npy"])
def test_the_digest_feels_one_byte_of_any_file(tmp_path, collection, name):
    data = make_prepared(tmp_path / "set", collection)
    before = data.digest()
    content = bytearray((tmp_path / "set" / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / "set" / name).write_bytes(content)
    assert data.digest() != before


def test_the_first_images_can_be_kept_and_the_file_is_that_of_so_many(tmp_path, collection):
    canvases = np.random.default_rng(0).integers(0, 255, (120, 3, 8, 8), np.uint8)
    for path, count in ((tmp_path / "cut", 120), (tmp_path / "whole", 7)):
        with PreparedWriter(path, count, 3, 8) as writer:
            for row in range(7):
                writer.write_image(row, canvases[row])
            writer.keep_images(7)
            np.testing.assert_array_equal(writer.images, canvases[:7])
            writer.write_tables(collection)
    assert (tmp_path / "cut" / "images.npy").read_bytes() == (tmp_path / "whole" / "images.npy").read_bytes()
    np.testing.assert_array_equal(PreparedSet.open(tmp_path / "cut").images, canvases[:7])


def test_the_file_is_what_numpy_writes(tmp_path, collection):
    canvases = np.random.default_rng(0).integers(0, 255, (5, 1, 8, 8), np.uint8)
    with PreparedWriter(tmp_path / "set", 5, 1, 8) as writer:
        for row in (4, 0, 2, 1, 3):
            writer.write_image(row, canvases[row])
        writer.write_tables(collection)
    np.lib.format.open_memmap(tmp_path / "numpy.npy", "w+", np.uint8, canvases.shape)[:] = canvases
    assert (tmp_path / "set" / "images.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


@pytest.mark.parametrize("canvas", [np.zeros((1, 8, 7), np.uint8), np.zeros((1, 8, 8), np.float32)])
def test_an_image_of_another_shape_or_type_is_refused(tmp_path, canvas):
    with pytest.raises(ValueError, match="is not uint8 of"), PreparedWriter(tmp_path / "set", 1, 1, 8) as writer:
        writer.write_image(0, canvas)
