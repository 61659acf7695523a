"""The prepared folder: what is written comes back, and nothing half-written is ever seen."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from csr.data.prepared import PreparedSet, PreparedWriter
from csr.data.records import BOX_COLUMNS, Collection
from csr.errors import DataError
from tests.csr.synthetic import make_collection, make_prepared


@pytest.fixture
def collection():
    return make_collection()


FILES = ["boxes.parquet", "collection.json", "images/00000.npy", "studies.parquet"]


def listing(path) -> dict[str, bytes]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def some(collection: Collection, count: int) -> Collection:
    """The first studies, with no box: these lie outside the small images here."""
    return replace(collection, studies=collection.studies[:count], boxes=collection.boxes[:0])


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
def test_masks_come_back_bit_by_bit_to_the_boxes_that_have_one(tmp_path, collection, side):
    masks = np.random.default_rng(0).random((3, side, side)) < 0.4
    boxes = pd.DataFrame([("s000", "round", 0.0, 0.0, 4.0, 4.0)] * 5, columns=list(BOX_COLUMNS))
    with PreparedWriter(tmp_path / "set", 1, 1, side) as writer:
        writer.write_tables(replace(some(collection, 1), boxes=boxes.assign(mask=[1, -1, 0, -1, 2])))
        writer.write_masks(np.packbits(mask) for mask in masks)
    data = PreparedSet.open(tmp_path / "set")
    for box, expected in enumerate([masks[1], None, masks[0], None, masks[2]]):
        np.testing.assert_array_equal(data.mask_of(box), expected)


def test_the_boxes_of_a_set_without_masks_have_none(tmp_path, collection):
    assert make_prepared(tmp_path / "set", collection).mask_of(0) is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_where_nothing_was(tmp_path, collection, error):
    with pytest.raises(error), PreparedWriter(tmp_path / "set", 2, 1, 8) as writer:
        writer.write_image(0, np.ones((1, 8, 8), np.uint8))
        writer.write_tables(some(collection, 2))
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_exception_keeps_the_previous_folder_byte_by_byte(tmp_path, collection):
    make_prepared(tmp_path / "set", collection)
    before = listing(tmp_path / "set")
    with pytest.raises(RuntimeError), PreparedWriter(tmp_path / "set", 2, 1, 8) as writer:
        writer.write_tables(some(collection, 2))
        raise RuntimeError
    assert listing(tmp_path / "set") == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_previous_folder_stays_readable_until_the_new_one_is_whole(tmp_path, collection):
    make_prepared(tmp_path / "set", collection)
    with PreparedWriter(tmp_path / "set", 3, 1, 8) as writer:
        assert PreparedSet.open(tmp_path / "set").side == 32
        writer.write_tables(some(collection, 3))
    assert PreparedSet.open(tmp_path / "set").side == 8
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_set_whose_reader_has_nothing_to_say_has_no_file_for_it(tmp_path, collection):
    assert make_prepared(tmp_path / "set", collection).notes() == ()
    with PreparedWriter(tmp_path / "set", 3, 1, 8) as writer:
        writer.write_tables(some(collection, 3))
        writer.write_notes(["„a“ is left out"])
    assert PreparedSet.open(tmp_path / "set").notes() == ("„a“ is left out",)


def test_leftovers_of_a_killed_run_are_no_part_of_the_next(tmp_path, collection):
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "stale.npy").write_bytes(b"old")
    make_prepared(tmp_path / "set", collection)
    assert list(listing(tmp_path / "set")) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_stage_that_makes_it(tmp_path, collection, name):
    make_prepared(tmp_path / "set", collection)
    (tmp_path / "set" / name).unlink()
    with pytest.raises(DataError, match=f"{name}.*prepare"):
        PreparedSet.open(tmp_path / "set")


def test_the_digest_is_that_of_the_content_and_not_of_the_place(tmp_path, collection):
    first, second = make_prepared(tmp_path / "a", collection), make_prepared(tmp_path / "b", collection)
    assert first.digest() == second.digest()
    assert make_prepared(tmp_path / "c", collection, seed=3).digest() != first.digest()


@pytest.mark.parametrize("name", FILES)
def test_the_digest_feels_one_byte_of_any_file(tmp_path, collection, name):
    data = make_prepared(tmp_path / "set", collection)
    before = data.digest()
    content = bytearray((tmp_path / "set" / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / "set" / name).write_bytes(content)
    assert data.digest() != before


@pytest.mark.parametrize("column", ["part", "label", "concept:haze"])
def test_a_missing_column_of_studies_is_named_with_the_stage_that_makes_it(tmp_path, collection, column):
    make_prepared(tmp_path / "set", collection)
    collection.studies.drop(columns=column).to_parquet(tmp_path / "set" / "studies.parquet")
    with pytest.raises(DataError, match=rf"studies\.parquet: column '{column}' is missing.*prepare.* again"):
        PreparedSet.open(tmp_path / "set")


def test_a_missing_column_of_boxes_is_named(tmp_path, collection):
    make_prepared(tmp_path / "set", collection)
    collection.boxes.drop(columns="y_max").to_parquet(tmp_path / "set" / "boxes.parquet")
    with pytest.raises(DataError, match=r"boxes\.parquet: column 'y_max' is missing"):
        PreparedSet.open(tmp_path / "set")


def test_as_many_images_as_studies(tmp_path, collection):
    make_prepared(tmp_path / "set", collection)
    collection.studies[:-1].to_parquet(tmp_path / "set" / "studies.parquet")
    with pytest.raises(DataError, match=r"68 images for 67 studies.*prepare"):
        PreparedSet.open(tmp_path / "set")


def test_opening_needs_no_pandera(tmp_path, collection):
    make_prepared(tmp_path / "set", collection)
    code = "import sys; from pathlib import Path; from csr.data.prepared import PreparedSet\n"
    code += "PreparedSet.open(Path(sys.argv[1])); sys.exit('pandera' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "set")]).returncode == 0


def test_the_first_images_can_be_kept_and_the_files_are_those_of_so_many(tmp_path, collection):
    canvases = np.random.default_rng(0).integers(0, 255, (9, 3, 8, 8), np.uint8)
    for path, count in ((tmp_path / "cut", 3000), (tmp_path / "whole", 7)):
        with PreparedWriter(path, count, 3, 8) as writer:
            for row in range(min(count, 9)):
                writer.write_image(row, canvases[row])
            writer.keep_images(7)
            np.testing.assert_array_equal(writer.images, canvases[:7])
            writer.write_tables(some(collection, 7))
    assert listing(tmp_path / "cut") == listing(tmp_path / "whole")
    np.testing.assert_array_equal(PreparedSet.open(tmp_path / "cut").images, canvases[:7])


@pytest.mark.parametrize("canvas", [np.zeros((1, 8, 7), np.uint8), np.zeros((1, 8, 8), np.float32)])
def test_an_image_of_another_shape_or_type_is_refused(tmp_path, canvas):
    with pytest.raises(ValueError, match="is not uint8 of"), PreparedWriter(tmp_path / "set", 1, 1, 8) as writer:
        writer.write_image(0, canvas)
