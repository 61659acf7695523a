"""The schema of the tables: what readers make passes, and every break is named with table, row, column and value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from csr.data.raw import no_boxes
from csr.data.records import Collection
from csr.data.schema import SHOWN, check_schema
from csr.errors import DataError
from tests.csr.synthetic import SIDE, make_collection

Change = Callable[[pd.DataFrame], object]


def make(task: str = "multiclass") -> Collection:
    """A collection of a task; with several classes its table has a column of targets for each."""
    collection = make_collection()
    if task == "multiclass":
        return collection
    studies = collection.studies.drop(columns="label")
    if task == "concepts":
        return replace(collection, studies=studies, classes=(), task="concepts")
    for name, has in zip(collection.classes, collection.class_indicators().T, strict=True):
        studies[f"target:{name}"] = has
    studies.loc[0, "target:mild"] = np.nan
    return replace(collection, studies=studies, task="multilabel")


def complaints(collection: Collection) -> list[str]:
    with pytest.raises(DataError) as caught:
        check_schema(collection, SIDE)
    return str(caught.value).splitlines()


def changed(table: str, change: Change, task: str = "multiclass") -> Collection:
    collection = make(task)
    frame = getattr(collection, table).copy()
    frame = frame.astype({name: object for name in frame if not pd.api.types.is_numeric_dtype(frame[name])})
    result = change(frame)
    return replace(collection, **{table: result if isinstance(result, pd.DataFrame) else frame})


def put(column: str, row: int, value: object) -> Change:
    def change(table: pd.DataFrame) -> None:
        table.loc[row, column] = value

    return change


def column(name: str, value: object) -> Change:
    return lambda table: table.__setitem__(name, value)


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "concepts"])
def test_what_readers_make_passes(task: str) -> None:
    collection = make(task)
    collection.studies.loc[1, "concept:haze"] = np.nan
    check_schema(collection, SIDE)
    check_schema(replace(collection, boxes=no_boxes().drop(columns="where")), SIDE)
    kept = collection.boxes[::2]
    check_schema(replace(collection, boxes=kept.assign(mask=np.where(kept.index % 4, kept.index, -1))), SIDE)


@pytest.mark.parametrize("name", ["patient_id", "site"])
def test_some_columns_may_be_missing(name: str) -> None:
    check_schema(changed("studies", lambda table: table.drop(columns=name)), SIDE)


@pytest.mark.parametrize("name", ["filled:haze", "marker", "age", "where"])
def test_further_columns_of_studies_are_free(name: str) -> None:
    check_schema(changed("studies", column(name, [None, *[True] * 67])), SIDE)


def test_a_concept_study_may_keep_a_label_that_nothing_predicts() -> None:
    check_schema(changed("studies", column("label", "anything"), "concepts"), SIDE)


STUDIES = [
    (put("study_id", 3, "s002"), "studies.parquet row 4 (study 's002'): study_id occurs twice, got 's002'"),
    (put("study_id", 3, ""), "studies.parquet row 4 (study ''): study_id must be a text that is not empty, got ''"),
    (put("study_id", 3, 7), "studies.parquet row 4 (study 7): study_id must be a text that is not empty, got 7"),
    (put("image", 3, None), "studies.parquet row 4 (study 's003'): image must be a text that is not empty, got None"),
    (
        put("split", 67, "dev"),
        "studies.parquet row 68 (study 's067'): split must be one of train, val, test, got 'dev'",
    ),
    (put("split", 67, np.nan), "studies.parquet row 68 (study 's067'): split must be one of train, val, test, got nan"),
    (
        put("part", 0, "iid"),
        "studies.parquet row 1 (study 's000'): part must be the split's name: only 'test' has parts, got 'iid'",
    ),
    (put("part", 67, ""), "studies.parquet row 68 (study 's067'): part must be a text that is not empty, got ''"),
    (
        put("label", 5, "unheard"),
        "studies.parquet row 6 (study 's005'): label must be one of clear, mild, severe, got 'unheard'",
    ),
    (
        put("label", 45, None),
        "studies.parquet row 46 (study 's045'): split must be 'train', for the study has no class, got 'val'",
    ),
    (
        put("concept:haze", 2, 0.5),
        "studies.parquet row 3 (study 's002'): concept:haze must be 1, 0 or empty, got 0.5",
    ),
    (column("concept:haze", 1), "studies.parquet: column 'concept:haze' must hold floating-point numbers, has type"),
    (column("concept:haze", "1"), "studies.parquet: column 'concept:haze' must hold floating-point numbers, has type"),
    (column("concept:other", 1.0), "studies.parquet: column 'concept:other' does not belong there"),
    (put("site", 4, 3), "studies.parquet row 5 (study 's004'): site must be a text, got 3"),
    *[
        (lambda table, name=name: table.drop(columns=name), f"studies.parquet: column {name!r} is missing")
        for name in ("study_id", "image", "split", "part", "label", "concept:haze")
    ],
]


@pytest.mark.parametrize(("change", "sentence"), STUDIES, ids=[sentence for _, sentence in STUDIES])
def test_what_is_wrong_with_a_study_is_named(change: Change, sentence: str) -> None:
    found = complaints(changed("studies", change))
    assert any(line.startswith(sentence) for line in found), found


BOXES = [
    (put("study_id", 0, "who"), "study_id must be in the table of studies, got 'who'", "who"),
    (put("concept", 0, "flat"), "concept must be one of round, streak, haze, got 'flat'", None),
    (put("x_min", 0, np.nan), "x_min must be a finite number, got nan", None),
    (put("y_max", 0, np.inf), "y_max must be a finite number, got inf", None),
    (put("x_min", 0, -0.01), "x_min must be at least 0, got -0.01", None),
    (put("x_max", 0, 32.01), "x_max must be at most 32, the image's side, got 32.01", None),
    (put("y_max", 0, 4.0), "y_max must be greater than y_min, got 4.0", None),
    (put("x_max", 0, 1.0), "x_max must be greater than x_min, got 1.0", None),
    (column("mask", [-2, *range(75)]), "mask must be a row of masks.npy, or -1, got -2", None),
]


@pytest.mark.parametrize(("change", "sentence", "study"), BOXES, ids=[sentence for _, sentence, _ in BOXES])
def test_what_is_wrong_with_a_box_is_named_alone(change: Change, sentence: str, study: str | None) -> None:
    study = study or make().boxes["study_id"].iat[0]
    assert complaints(changed("boxes", change)) == [f"boxes.parquet row 1 (study {study!r}): {sentence}"]


def test_what_is_wrong_with_a_column_of_boxes_is_named() -> None:
    def mess(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(x_min=table["x_min"].astype(str), mask=-1.0, extra=1).drop(columns="y_max")

    kind = "boxes.parquet: column"
    assert complaints(changed("boxes", mess)) == [
        f"{kind} 'extra' does not belong there",
        f"{kind} 'y_max' is missing",
        f"{kind} 'x_min' must hold numbers, has type {pd.Series(['a']).dtype}",
        f"{kind} 'mask' must hold whole numbers, has type float64",
    ]


def test_two_boxes_do_not_share_a_mask() -> None:
    found = complaints(changed("boxes", column("mask", [*range(75), 74])))
    assert [line.partition("): ")[2] for line in found] == ["mask must not be the mask of another box, got 74"]


@pytest.mark.parametrize("value", [0.5, 2.0])
def test_targets_are_checked_as_concepts_are(value: float) -> None:
    found = complaints(changed("studies", put("target:mild", 2, value), "multilabel"))
    assert found == [f"studies.parquet row 3 (study 's002'): target:mild must be 1, 0 or empty, got {value}"]
    (found,) = complaints(changed("studies", lambda table: table.drop(columns="target:mild"), "multilabel"))
    assert found == "studies.parquet: column 'target:mild' is missing"
    (found,) = complaints(changed("studies", column("target:odd", value), "multilabel"))
    assert found == "studies.parquet: column 'target:odd' does not belong there"


def test_a_corner_on_the_border_may_be_off_by_rounding() -> None:
    off = 0.9e-6 * SIDE
    check_schema(changed("boxes", lambda t: (put("x_min", 0, -off)(t), put("y_max", 0, SIDE + off)(t))), SIDE)
    assert len(complaints(changed("boxes", put("x_min", 0, -1.1e-6 * SIDE)))) == 1
    assert len(complaints(changed("boxes", put("y_max", 0, SIDE + 1.1e-6 * SIDE)))) == 1


def test_empty_values_elsewhere_hide_nothing_and_shift_no_row() -> None:
    def mess(table: pd.DataFrame) -> None:
        table.loc[:5, "concept:haze"] = np.nan
        table.loc[6, "concept:haze"] = 3
        table["marker_x_min"] = np.nan
        table.loc[4, "part"] = "iid"

    assert [line.partition(": ")[0] for line in complaints(changed("studies", mess))] == [
        "studies.parquet row 7 (study 's006')",
        "studies.parquet row 5 (study 's004')",
    ]


def test_everything_that_is_wrong_is_named_at_once() -> None:
    wrong = changed("studies", lambda t: [put("split", 1, "dev")(t), put("label", 2, "a")(t), put("image", 3, "")(t)])
    wrong = replace(wrong, boxes=wrong.boxes.assign(x_max=1.0).drop(columns="concept"))
    found = complaints(wrong)
    assert sum(line.startswith("studies.parquet row ") for line in found) == 4  # the second's part is no split's name
    assert "boxes.parquet: column 'concept' is missing" in found
    ordered = [line for line in found if "x_max must be greater than x_min" in line]
    narrow = int((make().boxes["x_min"] >= 1).sum())
    assert narrow > SHOWN and len(ordered) == SHOWN + 1
    assert ordered[-1] == f"boxes.parquet: x_max must be greater than x_min, in {narrow - SHOWN} more rows"
