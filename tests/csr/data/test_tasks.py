"""What is learned from a data set's labels: tasks, targets, concepts, merged classes; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from csr.data.raw import RawSet
from csr.data.records import BOX_COLUMNS, Collection
from csr.data.tasks import TaskChoice, choose_task
from csr.errors import ConfigError, DataError

NAN = float("nan")


@pytest.fixture
def multiclass() -> RawSet:
    studies = pd.DataFrame(
        {
            "study_id": ["s0", "s1", "s2", "s3"],
            "label": ["a", "b", "c", "a"],
            "concept:round": [1.0, 0.0, NAN, 1.0],
            "concept:dark": [0.0, 1.0, 1.0, 0.0],
        }
    )
    boxes = pd.DataFrame([("s0", "round", 0, 0, 2, 2), ("s1", "dark", 1, 1, 3, 3)], columns=list(BOX_COLUMNS))
    return RawSet(Collection("toy", ("round", "dark"), ("a", "b", "c"), studies, boxes), Path("toy"))


@pytest.fixture
def multilabel(multiclass: RawSet) -> RawSet:
    studies = multiclass.collection.studies.drop(columns="label").assign(
        **{"target:x": [1.0, 0.0, 0.0, NAN], "target:y": [1.0, 0.0, NAN, 0.0], "target:z": [0.0, 0.0, 1.0, 1.0]}
    )
    collection = replace(multiclass.collection, classes=("x", "y", "z"), studies=studies, task="multilabel")
    return replace(multiclass, collection=collection)


@pytest.fixture
def concepts(multiclass: RawSet) -> RawSet:
    studies = multiclass.collection.studies.drop(columns="label")
    collection = replace(multiclass.collection, classes=(), studies=studies, task="concepts")
    return replace(multiclass, collection=collection, no_classes="this edition has findings only")


def test_by_default_everything_is_as_the_set_has_it(multiclass: RawSet, multilabel: RawSet) -> None:
    for raw in (multiclass, multilabel):
        chosen = choose_task(raw, TaskChoice()).collection
        assert (chosen.task, chosen.classes, chosen.concepts) == (
            raw.collection.task,
            raw.collection.classes,
            raw.collection.concepts,
        )
        np.testing.assert_array_equal(chosen.truth(), raw.collection.truth())
        np.testing.assert_array_equal(chosen.concept_labels(), raw.collection.concept_labels())
        assert len(chosen.boxes) == 2


def test_truth_has_two_forms(multiclass: RawSet, multilabel: RawSet) -> None:
    assert multiclass.collection.truth().tolist() == [0, 1, 2, 0]
    assert multiclass.collection.class_indicators().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    expected = [[1, 1, 0], [0, 0, 0], [0, NAN, 1], [NAN, 0, 1]]
    np.testing.assert_array_equal(multilabel.collection.truth(), np.array(expected, np.float32))
    np.testing.assert_array_equal(multilabel.collection.class_indicators(), np.array(expected, np.float32))
    assert [multilabel.collection.diagnosis(row) for row in range(4)] == ["x, y", "none", "z", "z"]
    assert multiclass.collection.diagnosis(1) == "b"


def test_findings_can_be_targets_and_are_no_concepts_then(multilabel: RawSet) -> None:
    chosen = choose_task(multilabel, TaskChoice(targets=("dark", "z"))).collection
    assert (chosen.task, chosen.classes, chosen.concepts) == ("multilabel", ("dark", "z"), ("round",))
    assert chosen.truth().tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert {"concept:dark", "target:x"}.isdisjoint(chosen.studies.columns)
    assert chosen.boxes["concept"].tolist() == ["round"]


def test_targets_can_be_concepts(multilabel: RawSet) -> None:
    chosen = choose_task(multilabel, TaskChoice(targets=("x",), concepts=("round", "y"))).collection
    assert chosen.concepts == ("round", "y")
    np.testing.assert_array_equal(chosen.concept_labels()[:, 1], np.array([1, 0, NAN, 0], np.float32))


def test_classes_can_become_questions_of_their_own(multiclass: RawSet) -> None:
    chosen = choose_task(multiclass, TaskChoice("multilabel", targets=("a", "c"))).collection
    assert chosen.task == "multilabel" and "label" not in chosen.studies
    assert chosen.truth().tolist() == [[1, 0], [0, 0], [0, 1], [1, 0]]


def test_concepts_only(multiclass: RawSet, concepts: RawSet) -> None:
    for raw in (multiclass, concepts):
        chosen = choose_task(raw, TaskChoice("concepts")).collection
        assert (chosen.task, chosen.classes) == ("concepts", ()) and "label" not in chosen.studies
        assert chosen.truth().shape == (4, 0)
    found = choose_task(concepts, TaskChoice("multilabel", targets=("dark",))).collection
    assert (found.classes, found.concepts) == (("dark",), ("round",))


def test_merging_classes(multiclass: RawSet, multilabel: RawSet) -> None:
    one = choose_task(multiclass, TaskChoice(merge={"ill": ("b", "c")})).collection
    assert one.classes == ("a", "ill") and one.studies["label"].tolist() == ["a", "ill", "ill", "a"]
    several = choose_task(multilabel, TaskChoice(merge={"x": ("x", "y")})).collection
    assert several.classes == ("x", "z")
    np.testing.assert_array_equal(several.truth()[:, 0], np.array([1, 0, NAN, NAN], np.float32))


REFUSED = [
    ("multilabel", TaskChoice(merge={"new": ("q",)}), "data.merge.new: no class 'q'; there are x, y, z"),
    ("multilabel", TaskChoice(merge={"m": ("x",), "n": ("x",)}), "'x' is merged twice"),
    ("multilabel", TaskChoice(merge={"z": ("x", "y")}), "data.merge.z: a class of this name is there already"),
    ("multilabel", TaskChoice(targets=("q",)), "data.targets: the data set has no label 'q'; it has round, dark, x"),
    ("multilabel", TaskChoice(targets=("x", "x")), "data.targets: 'x' is named twice"),
    ("multilabel", TaskChoice(targets=("x",), concepts=("x", "dark")), "data.concepts: 'x' is a class too"),
    ("multilabel", TaskChoice(targets=("dark", "round")), "data.concepts: no concept is left"),
    ("multilabel", TaskChoice("multiclass"), "its studies can have several classes"),
    ("multilabel", TaskChoice("concepts", targets=("x",)), "only data.task: multilabel has targets"),
    (
        "multiclass",
        TaskChoice("multilabel"),
        "data.targets: name the labels that are targets; 'toy' has round",
    ),
    ("concepts", TaskChoice(), "toy: this edition has findings only, or set data.task: concepts"),
    ("concepts", TaskChoice("multiclass"), "this edition has findings only"),
]


@pytest.mark.parametrize(("kind", "choice", "sentence"), REFUSED, ids=[sentence for *_, sentence in REFUSED])
def test_what_cannot_be_is_refused(
    kind: str, choice: TaskChoice, sentence: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        choose_task(request.getfixturevalue(kind), choice)
    assert sentence in str(caught.value)
