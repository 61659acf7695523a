"""The set on disk: the same bytes for the same rows, the same rows back, and nothing read that was altered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.data.digests import folder_digest
from csr.data.feedback import FeedbackSet, Reading
from csr.data.feedback.folder import _digests, _version
from csr.data.images import pixel_digest
from csr.errors import DataError
from tests.csr.data.feedback.examples import finding, picture, reading, review, write
from tests.csr.data.feedback.test_consensus import a_reading

PICTURES = [picture(seed) for seed in range(3)]
DIGESTS = [pixel_digest(each) for each in PICTURES]
READINGS = [
    reading(DIGESTS[0], 3, "a", found=("mild",), confirmed=("round",), boxes=(finding("haze", 1, 2, 9, 8.5),)),
    reading(DIGESTS[0], 7, "b", found=("mild",), rejected=("haze",)),
    reading(DIGESTS[1], 5, "a", decision="revert", found=("severe",)),
]
REVIEWS = [review("round", 1, number=9), review("haze", 0, "keep", 8, s001=0.25, s002=0.125)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "set", READINGS, PICTURES, REVIEWS).path


def test_what_is_written_is_read(path: Path) -> None:
    found = FeedbackSet.open(path)
    assert found.readings == tuple(sorted(READINGS, key=lambda each: (each.study, each.number)))
    assert found.reviews == tuple(reversed(REVIEWS))
    assert found.studies == tuple(sorted(DIGESTS[:2]))
    assert (found.canvas(DIGESTS[0]) == PICTURES[0]).all()
    assert json.loads((path / "manifest.json").read_text())["ledger"] == {"number": 9, "hash": "f" * 64}


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_the_order_changes_no_byte(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    pairs = data.draw(st.sets(st.tuples(st.sampled_from(DIGESTS), st.sampled_from("abc")), max_size=6))
    numbered = [data.draw(a_reading(*pair)) for pair in sorted(pairs)]
    readings = [Reading(**(vars(each) | {"number": n})) for n, each in enumerate(numbered, 1)]
    folder = tmp_path_factory.mktemp("order")
    first = write(folder / "first", readings, PICTURES, REVIEWS)
    again = write(folder / "again", data.draw(st.permutations(readings)), PICTURES, REVIEWS[::-1])
    assert folder_digest(first.path) == folder_digest(again.path)
    assert first.readings == again.readings and first.version == again.version


def test_a_set_without_anything_can_be_written_and_read(tmp_path: Path) -> None:
    empty = write(tmp_path / "set", [], [])
    assert (empty.readings, empty.labels, empty.reviews, empty.studies) == ((), (), (), ())


def rewritten(path: Path) -> None:
    """The manifest as whoever altered a file might write it anew."""
    file = path / "manifest.json"
    files = _digests(path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"files": files, "version": _version(files)}))


def _edit(name: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def alter(path: Path) -> None:
        pq.write_table(change(pq.read_table(path / name)), path / name)
        rewritten(path)

    return alter


def _other_pixels(path: Path) -> None:
    shutil.copy(path / "images" / f"{DIGESTS[0]}.png", path / "images" / f"{DIGESTS[1]}.png")
    rewritten(path)


def _surplus_image(path: Path) -> None:
    shutil.copy(path / "images" / f"{DIGESTS[0]}.png", path / "images" / f"{DIGESTS[2]}.png")
    rewritten(path)


def _set(column: str, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0][column] = value
        return pa.Table.from_pylist(rows, schema=table.schema)

    return change


def _manifest(**changes: object) -> Callable[[Path], None]:
    def alter(path: Path) -> None:
        file = path / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return alter


FAR = [{"kind": "focus", "concept": None, "x_min": 0.0, "y_min": 0.0, "x_max": 99.0, "y_max": 9.0}]


@pytest.mark.parametrize(
    ("alter", "sentence"),
    [
        (lambda path: (path / "manifest.json").unlink(), "is no feedback set, manifest.json is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "is not the manifest of a feedback set"),
        (_manifest(format=2), "has format 2, this version of csr reads 1"),
        (_manifest(rule="the loudest"), "are not what the readings come to"),
        (_manifest(version="0" * 16), "the version is not that of the files"),
        (lambda path: (path / "labels.parquet").unlink(), r"labels.parquet: is missing"),
        (lambda path: (path / "mine.txt").write_text("x"), r"mine.txt: does not belong to the feedback set"),
        (lambda path: (path / "reviews.parquet").write_bytes(b"x"), "was changed after the export"),
        (_edit("labels.parquet", _set("yes", 9)), "are not what the readings come to"),
        (_edit("labels.parquet", lambda table: table.slice(1)), "are not what the readings come to"),
        (_edit("readings.parquet", lambda table: table.drop(["bundle"])), "its columns are not those"),
        (_edit("readings.parquet", _set("decision", "maybe")), "row 1: decision: 'maybe' is neither"),
        (_edit("readings.parquet", _set("boxes", FAR)), "a box reaches beyond the image of 32 pixels"),
        (_edit("readings.parquet", _set("found", ["plague"])), "row 1: found: names what is none of the classes"),
        (_edit("reviews.parquet", _set("verdict", "burn")), "row 1: verdict: 'burn' is neither"),
        (_other_pixels, "its pixels have another digest"),
        (_surplus_image, "images and readings are not of the same studies"),
    ],
)
def test_what_was_altered_is_refused(path: Path, alter: Callable[[Path], None], sentence: str) -> None:
    alter(path)
    with pytest.raises(DataError, match=sentence):
        FeedbackSet.open(path)


def test_nothing_but_a_feedback_set_is_replaced(path: Path, tmp_path: Path) -> None:
    write(path, READINGS[:1], PICTURES)
    assert len(FeedbackSet.open(path).readings) == 1
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("do not lose me")
    with pytest.raises(DataError, match="is there and holds no feedback set"):
        write(other, READINGS, PICTURES)
    assert (other / "chapter.txt").read_text() == "do not lose me"
