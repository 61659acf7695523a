"""Feedback joins a prepared set: what becomes known of which study, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from csr.data.feedback import FeedbackBox
from csr.data.feedback.joining import JUDGED, NEARLY, NOTHING, PREFIX, SHAPE, join_feedback
from csr.data.images import pixel_digest
from csr.data.prepared import PreparedSet, copy_without
from csr.errors import DataError
from tests.csr.data.feedback.examples import finding, picture, reading, write
from tests.csr.synthetic import CLASSES, CONCEPTS, make_collection, make_prepared

NEW = [picture(seed) for seed in range(4)]
DIGESTS = [pixel_digest(each) for each in NEW]


@pytest.fixture
def data(tmp_path: Path) -> PreparedSet:
    return make_prepared(tmp_path / "prepared", make_collection())


def joined(data: PreparedSet, *readings, canvases=NEW, **options) -> tuple[PreparedSet, object]:
    feedback = write(data.path.parent / "feedback", readings, canvases)
    _, report = join_feedback(data, feedback, data.path.parent / "joined", **options)
    return PreparedSet.open(data.path.parent / "joined"), report


def study_of(data: PreparedSet, row: int) -> str:
    return pixel_digest(data.images[row])


def labels_of(data: PreparedSet, name: str) -> dict[str, float]:
    row = data.collection.studies["study_id"].tolist().index(name)
    return dict(zip(CONCEPTS, data.collection.concept_labels()[row].tolist(), strict=True))


def test_a_new_study_is_known_where_a_reader_said_so(data: PreparedSet) -> None:
    said = reading(DIGESTS[0], found=("mild",), rejected=("haze",), boxes=(finding("round", 4, 4, 12, 12),))
    found, report = joined(data, said)
    name = PREFIX + DIGESTS[0]
    np.testing.assert_equal(labels_of(found, name), {"round": 1.0, "streak": np.nan, "haze": 0.0})
    row = found.collection.studies.iloc[-1]
    assert (row["study_id"], row["split"], row["part"], row["label"]) == (name, "train", "train", "mild")
    assert (row["patient_id"], row["site"]) == ("", "")
    np.testing.assert_array_equal(found.images[-1], NEW[0])
    np.testing.assert_array_equal(found.collection.boxes_of(len(found.images) - 1, "round"), [[4, 4, 12, 12]])
    assert (report.added, report.relabelled, report.changed, sum(report.left_out.values())) == (1, 0, 0, 0)
    assert found.notes() == (report.note,)


def test_all_else_is_as_it_was(data: PreparedSet) -> None:
    found, _ = joined(data, reading(DIGESTS[0], found=("mild",), rejected=("haze",)))
    before, own = data.collection, found.collection.studies
    pd.testing.assert_frame_equal(own.iloc[:-1][list(before.studies)], before.studies)
    assert not found.collection.said_labels()[:-1].any() and not found.collection.said_classes()[:-1].any()
    pd.testing.assert_frame_equal(found.collection.boxes, before.boxes)
    np.testing.assert_array_equal(found.images[:-1], np.asarray(data.images))
    for split in ("val", "test"):
        np.testing.assert_array_equal(found.collection.rows(split), before.rows(split))


def test_what_readers_said_is_told_from_what_the_set_knew(data: PreparedSet) -> None:
    train = int(data.collection.rows("train")[3])
    said = reading(study_of(data, train), found=("mild",), confirmed=("haze",))
    new = reading(DIGESTS[0], 2, rejected=("round",), found=("clear",))
    found, _ = joined(data, said, new, canvases=[*NEW, data.images[train]], classes=False)
    labels, classes = found.collection.said_labels(), found.collection.said_classes()
    assert labels.sum() == 2 and labels[train, CONCEPTS.index("haze")] and labels[-1, CONCEPTS.index("round")]
    assert not classes.any(), "classes that are not learned are nobody's words"
    found, _ = joined(data, said, new, canvases=[*NEW, data.images[train]])
    assert found.collection.said_classes().nonzero()[0].tolist() == [train, len(found.images) - 1]
    assert not data.collection.said_labels().any() and not data.collection.said_classes().any()


def test_a_study_that_is_judged_on_is_never_learned_from(data: PreparedSet) -> None:
    val, test = int(data.collection.rows("val")[0]), int(data.collection.rows("test")[0])
    near = np.array(data.images[test])
    near[0, 0, 0] ^= 1
    canvases = [data.images[val], data.images[test], near, NEW[0]]
    said = [reading(pixel_digest(each), n, found=("mild",)) for n, each in enumerate(canvases, 1)]
    found, report = joined(data, *said, canvases=canvases)
    assert report.left_out == {JUDGED: 2, NEARLY: 1} and report.added == 1
    before = data.collection.studies
    pd.testing.assert_frame_equal(found.collection.studies.iloc[:-1][list(before)], before)
    _, report = joined(data, *said, canvases=canvases, near_bits=-1)
    assert report.left_out == {JUDGED: 2} and report.added == 2


def test_a_training_study_keeps_its_labels_but_for_what_readers_said(data: PreparedSet) -> None:
    row = int(np.flatnonzero(data.collection.studies["label"] == "mild")[0])  # shows "round", boxed at 0, 4, 8, 12
    name, before = data.collection.studies["study_id"].iat[row], data.collection.concept_labels()[row]
    said = reading(study_of(data, row), found=("clear",), rejected=("round",), boxes=(finding("haze", 1, 1, 9, 9),))
    found, report = joined(data, said, canvases=[data.images[row]])
    assert labels_of(found, name) == {"round": 0.0, "streak": before[1], "haze": 1.0}
    assert found.collection.studies["label"].iat[row] == "clear"
    assert len(found.collection.boxes_of(row, "round")) == 0, "no box of what is absent"
    np.testing.assert_array_equal(found.collection.boxes_of(row, "haze"), [[1, 1, 9, 9]])
    assert (report.added, report.relabelled, report.changed) == (0, 1, 2 + int(before[2] == 0))
    assert len(found.images) == len(data.images)


def test_boxes_of_several_readers_that_overlap_are_one_and_what_is_not_learned_is_left_out(data: PreparedSet) -> None:
    focus = FeedbackBox("focus", None, 0, 0, 9, 9)
    found, _ = joined(
        data,
        reading(DIGESTS[0], 1, "a", found=("mild",), boxes=(finding("round", 4, 4, 12, 12), focus)),
        reading(
            DIGESTS[0], 2, "b", found=("mild",), boxes=(finding("round", 6, 6, 12, 12), finding("wart", 1, 1, 2, 2))
        ),
    )
    np.testing.assert_array_equal(found.collection.boxes_of(len(found.images) - 1, "round"), [[5, 5, 12, 12]])
    drawn = found.reader_boxes()
    assert drawn["kind"].tolist() == ["finding", "focus"]
    assert drawn["concept"].iloc[0] == "round" and pd.isna(drawn["concept"].iloc[1])
    copy_without(found, "test", data.path.parent / "copy")
    pd.testing.assert_frame_equal(PreparedSet.open(data.path.parent / "copy").reader_boxes(), drawn)


def test_what_is_not_known_is_not_learned(data: PreparedSet) -> None:
    other = picture(9, side=16)
    readings = [
        reading(DIGESTS[0], 1, found=("mild", "severe")),  # two classes where a study has one
        reading(DIGESTS[1], 2, classes=("flu", "cold"), found=("flu",), confirmed=("wart",)),
        reading(DIGESTS[2], 3, "a", found=("mild",), confirmed=("round",)),
        reading(DIGESTS[2], 4, "b", found=("clear",), rejected=("round",)),
        reading(pixel_digest(other), 5, found=("mild",)),
        reading(DIGESTS[3], 6, found=("mild",), confirmed=("round",)),
    ]
    found, report = joined(data, *readings, canvases=[*NEW, other])
    assert report.left_out == {NOTHING: 3, SHAPE: 1} and report.added == 1
    assert found.collection.studies["label"].iat[-1] == "mild"
    found, report = joined(data, *readings, canvases=[*NEW, other], classes=False)
    assert pd.isna(found.collection.studies["label"].iat[-1]), "its concepts alone"
    assert not found.collection.has_class()[-1] and labels_of(found, PREFIX + DIGESTS[3])["round"] == 1


def test_of_several_classes_each_is_known_on_its_own(tmp_path: Path) -> None:
    base = make_collection()
    targets = {f"target:{name}": (base.studies["label"] == name).astype(np.float32) for name in CLASSES}
    several = replace(base, task="multilabel", studies=base.studies.drop(columns="label").assign(**targets))
    data = make_prepared(tmp_path / "prepared", several)
    found, _ = joined(
        data,
        reading(DIGESTS[0], 1, "a", found=("mild", "severe")),
        reading(DIGESTS[0], 2, "b", found=("mild",), classes=CLASSES),
    )
    np.testing.assert_array_equal(found.collection.truth()[-1], [0, 1, np.nan])


def test_a_set_of_another_size_altogether_is_refused(data: PreparedSet) -> None:
    other = picture(9, side=16)
    with pytest.raises(DataError, match=r"none of its studies has the size 1×32×32 of data\.side"):
        joined(data, reading(pixel_digest(other), found=("mild",)), canvases=[other])
    assert not (data.path.parent / "joined").exists()


def test_a_set_without_anything_changes_nothing_but_a_note(data: PreparedSet) -> None:
    found, _ = joined(data)
    pd.testing.assert_frame_equal(found.collection.studies, data.collection.studies)
    pd.testing.assert_frame_equal(found.collection.boxes, data.collection.boxes)
    np.testing.assert_array_equal(np.asarray(found.images), np.asarray(data.images))


def test_the_folder_may_be_the_sets_own_and_masks_stay_with_their_boxes(data: PreparedSet, tmp_path: Path) -> None:
    from csr.data.prepared import PreparedWriter

    boxes = data.collection.boxes.assign(mask=np.arange(len(data.collection.boxes)))
    with PreparedWriter(tmp_path / "masked", len(data.images), 1, data.side) as writer:
        for row, image in enumerate(data.images):
            writer.write_image(row, image)
        writer.write_tables(replace(data.collection, boxes=boxes))
        rng = np.random.default_rng(0)
        writer.write_masks(rng.integers(0, 255, (len(boxes), data.side**2 // 8), dtype=np.uint8))
    masked = PreparedSet.open(tmp_path / "masked")
    before = [masked.mask_of(box) for box in range(len(boxes))]
    said = reading(DIGESTS[0], found=("mild",), boxes=(finding("round", 4, 4, 12, 12),))
    join_feedback(masked, write(tmp_path / "feedback", [said], NEW), masked.path)
    found = PreparedSet.open(masked.path)
    assert len(found.images) == len(data.images) + 1
    for box, mask in enumerate(before):
        np.testing.assert_array_equal(found.mask_of(box), mask)
    assert found.mask_of(len(before)) is None
