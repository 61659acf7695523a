"""The tables of a data set and the checks they pass before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from csr.data.records import BOX_COLUMNS, check_collection
from csr.errors import DataError
from tests.csr.synthetic import CLASSES, CONCEPTS, make_collection, with_labels


@pytest.fixture
def collection():
    return make_collection()


def test_concept_labels_are_float32_in_concept_order_with_nan_for_unknown(collection):
    studies = collection.studies.copy()
    studies.loc[3, "concept:haze"] = np.nan
    labels = replace(collection, studies=studies).concept_labels()
    assert labels.dtype == np.float32
    assert labels.shape == (len(studies), 3)
    for k, name in enumerate(CONCEPTS):
        np.testing.assert_array_equal(labels[:, k], studies[f"concept:{name}"])
    assert np.isnan(labels[3, 2])


def test_concept_labels_are_a_copy(collection):
    collection.concept_labels()[:] = 9
    assert collection.concept_labels().max() <= 1


def test_class_labels_index_the_class_names(collection):
    labels = collection.truth()
    assert labels.dtype == np.int64
    assert [CLASSES[index] for index in labels] == collection.studies["label"].tolist()


def test_rows_are_those_of_the_split_or_of_one_part_of_it(collection):
    studies = collection.studies.copy()
    test = np.flatnonzero(studies["split"] == "test")
    studies.loc[test, "part"] = ["iid", "shifted"] * (len(test) // 2)
    parted = replace(collection, studies=studies)
    np.testing.assert_array_equal(parted.rows("train"), np.arange(40))
    np.testing.assert_array_equal(parted.rows("test"), test)
    np.testing.assert_array_equal(parted.rows("test", "shifted"), test[1::2])
    assert parted.test_parts() == ("iid", "shifted")


def test_rows_follow_the_table_even_when_splits_are_mixed(collection):
    order = np.random.default_rng(0).permutation(len(collection.studies))
    mixed = replace(collection, studies=collection.studies.iloc[order].reset_index(drop=True))
    rows = mixed.rows("val")
    assert (np.diff(rows) > 0).all()
    assert set(mixed.studies["study_id"].iloc[rows]) == {f"s{row:03d}" for row in range(40, 56)}


def test_boxes_by_pair_agree_with_boxes_of_and_lack_pairs_without_a_box(collection):
    extra = pd.DataFrame([("s000", "haze", 1.0, 2.0, 3.0, 4.0)] * 2, columns=list(BOX_COLUMNS))
    more = replace(collection, boxes=pd.concat([collection.boxes, extra], ignore_index=True))
    pairs = more.boxes_by_pair()
    assert sum(len(boxes) for boxes in pairs.values()) == len(more.boxes)
    for row in range(20):
        for k, name in enumerate(CONCEPTS):
            own = more.boxes_of(row, name)
            assert own.shape[1:] == (4,)
            assert ((row, k) in pairs) == (len(own) > 0)
            np.testing.assert_array_equal(pairs.get((row, k), np.zeros((0, 4))), own)


def test_a_study_whose_patient_is_not_known_counts_as_a_patient_of_its_own(collection):
    few = collection.studies.iloc[:4].assign(patient_id=["s000", "p", "p", None])
    names = replace(collection, studies=few).patients()
    assert names[1] == names[2] and len(set(names)) == 3
    empty = replace(collection, studies=few.assign(patient_id=["p", "", "", "s001"])).patients()
    assert len(set(empty)) == 4
    assert len(set(replace(collection, studies=few.drop(columns="patient_id")).patients())) == 4


def test_a_collection_with_everything_it_needs_passes(collection):
    check_collection(collection, "here")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_split_is_refused_by_its_name(collection, split):
    kept = collection.studies[collection.studies["split"] != split]
    with pytest.raises(DataError, match=f"studies.csv.*{split!r}"):
        check_collection(replace(collection, studies=kept), "studies.csv")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_class_that_a_split_lacks_is_refused_by_both_names(collection, split):
    studies = collection.studies
    kept = studies[(studies["split"] != split) | (studies["label"] != "mild")]
    with pytest.raises(DataError, match=f"'mild'.*{split!r}"):
        check_collection(replace(collection, studies=kept), "here")


@pytest.mark.parametrize(("value", "word"), [(1, "negative"), (0, "positive"), (np.nan, "positive")])
def test_a_concept_without_both_kinds_in_train_is_refused_by_its_name(collection, value, word):
    labels = collection.concept_labels()
    labels[:40, 1] = value  # the other splits keep both kinds
    with pytest.raises(DataError, match=f"'streak'.*{word}"):
        check_collection(with_labels(collection, labels), "here")


def test_unknown_labels_are_welcome_as_long_as_both_kinds_are_known(collection):
    labels = collection.concept_labels()
    labels[2:30] = np.nan
    check_collection(with_labels(collection, labels), "here")
