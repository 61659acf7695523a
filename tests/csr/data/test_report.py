"""The data report: its numbers are those of the tables, and it warns of what cannot work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from csr.data.html_report import Section, to_html
from csr.data.missing import hide_class_labels
from csr.data.prepared import PreparedSet
from csr.data.records import BOX_COLUMNS
from csr.data.report import data_sections
from tests.csr.synthetic import CLASSES, CONCEPTS, make_collection, make_prepared, with_labels

NOTHING = pd.DataFrame(columns=["where", "reason", "kind"])


@pytest.fixture
def data(tmp_path: Path) -> PreparedSet:
    collection = make_collection()
    labels = collection.concept_labels()
    labels[:5, 1] = np.nan
    return make_prepared(tmp_path / "prepared", with_labels(collection, labels))


def sections(data: PreparedSet, stride: int = 8, skipped: pd.DataFrame = NOTHING) -> dict[str, Section]:
    return {section.title: section for section in data_sections(data, stride, skipped)}


def test_counts_are_those_of_the_tables(data: PreparedSet) -> None:
    studies = data.collection.studies
    rows = {row[0]: row[1:] for row in sections(data)["Studies"].tables[0].rows}
    for name in CLASSES:
        for split, cell in zip(("train", "val", "test"), rows[name], strict=False):
            assert int(cell) == ((studies["label"] == name) & (studies["split"] == split)).sum()
    assert rows["all"] == ("40", "16", "12", "68")


def test_concepts_are_counted_as_present_absent_and_unknown(data: PreparedSet) -> None:
    labels = data.collection.concept_labels()
    rows = {row[0]: row for row in sections(data)["Concepts"].tables[0].rows}
    train = labels[data.collection.rows("train"), 1]
    assert rows[CONCEPTS[1]][1] == f"{(train == 1).sum()} / {(train == 0).sum()} / 5"
    assert rows[CONCEPTS[0]][4] == str((data.collection.boxes["concept"] == CONCEPTS[0]).sum())


def test_co_occurrence_is_the_share_of_the_studies_of_a_row_or_class(data: PreparedSet) -> None:
    shown = data.collection.concept_labels() == 1
    of_class, of_concept = sections(data)["Co-occurrence"].tables
    first = shown[data.collection.truth() == 0, 0].mean()
    assert of_class.rows[0][1] == f"{first:.0%}"
    assert of_concept.rows[0][1] == ""
    assert of_concept.rows[0][2] == f"{shown[shown[:, 0], 1].mean():.0%}"


@pytest.mark.parametrize(("stride", "warned"), [(4, False), (5, True)])
def test_boxes_smaller_than_a_cell_are_warned_of(data: PreparedSet, stride: int, warned: bool) -> None:
    boxes = pd.DataFrame([("s000", "haze", 0.0, 0.0, 8.0, 2.0)] * 3, columns=list(BOX_COLUMNS))
    small = replace(data, collection=replace(data.collection, boxes=boxes))
    section = sections(small, stride)["Boxes"]
    assert any(text.startswith("Warning: most boxes of haze are smaller") for text in section.paragraphs) is warned
    rows = {row[0]: row[1:] for row in section.tables[0].rows}
    assert rows["haze"] == ("3", "4", f"{4 / stride:.1f}", "100%" if warned else "0%")
    assert rows[CONCEPTS[0]][0] == "0"


def test_what_was_left_out_is_listed(data: PreparedSet) -> None:
    assert "Left out" not in sections(data)
    wrong = [(f"a.csv row {row}", f"is wrong, got {row}", "is wrong") for row in range(3, 7)]
    skipped = pd.DataFrame([*wrong, ("b.csv row 2", "is late", "is late")], columns=list(NOTHING))
    section = sections(data, skipped=skipped)["Left out"]
    assert section.paragraphs == ("5 rows or studies; skipped.csv lists each.",)
    assert section.tables[0].rows == [
        ("a.csv", "4 rows", "is wrong", "row 3, got 3"),
        ("b.csv row 2", "", "is late", ""),
    ]


def test_studies_without_a_class_are_counted_apart(data: PreparedSet) -> None:
    hidden = replace(data, collection=hide_class_labels(data.collection, 0.25, 0))
    section = sections(hidden)["Studies"]
    rows = {row[0]: row[1:] for row in section.tables[0].rows}
    assert rows["class unknown"] == ("10", "0", "0", "10")
    assert sum(int(rows[name][0]) for name in CLASSES) == 30 and rows["all"][0] == "40"
    assert section.paragraphs[0].endswith("; those whose class is unknown train the concepts, not the head.")
    assert "class unknown" not in {row[0] for row in sections(data)["Studies"].tables[0].rows}


def test_the_page_shows_examples_of_every_class_and_needs_nothing_else(data: PreparedSet) -> None:
    page = to_html("Data", data_sections(data, 8, NOTHING))
    assert page.count("<img ") == 12 // len(CLASSES) * len(CLASSES)
    assert all(f", {name}: " in page for name in CLASSES)
    assert "http" not in page.replace("<!doctype html>", "")
