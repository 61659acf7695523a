"""The table reader: what it reads, and that every mistake is refused whole, with file and row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from csr.datasets.prepared import PreparedSet
from csr.datasets.table import prepare_table, read_table
from csr.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve studies of 40×20 pixels, two classes, two concepts, one unknown value, boxes for one concept."""
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    rows, boxes = [], []
    for index in range(12):
        name = f"s{index:02d}"
        pixels = np.full((20, 40), 20 * index, np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        split = ("train", "train", "val", "test")[index % 4]
        rows.append(
            (name, f"{name}.png", split, "ab"[(index // 4) % 2], index // 4 % 2, "" if index == 8 else index % 2)
        )
        if index // 4 % 2:
            boxes.append((name, "round", 10, 5, 30, 15))
    columns = ["study_id", "image", "split", "label", "concept:round", "concept:dark"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(root / "studies.csv", index=False)
    names = ["study_id", "concept", "x_min", "y_min", "x_max", "y_max"]
    pd.DataFrame(boxes, columns=names).to_csv(root / "boxes.csv", index=False)
    return root


def edit(file: Path, change: Callable[[pd.DataFrame], object]) -> None:
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    change(table)
    table.to_csv(file, index=False)


def read(root: Path) -> object:
    return read_table(root, 0.2, 0.2, 0)


def test_reads_tables_unknown_labels_and_boxes(folder: Path) -> None:
    collection = read_table(folder, 0.2, 0.2, 0)
    assert collection.concepts == ("round", "dark")
    assert collection.classes == ("a", "b")
    assert np.isnan(collection.concept_labels()[8, 1])
    assert collection.test_parts() == ("test",)
    assert collection.boxes_of(4, "round").tolist() == [[10, 5, 30, 15]]


def test_prepare_letterboxes_images_and_moves_boxes_with_them(folder: Path, tmp_path: Path) -> None:
    collection = read_table(folder, 0.2, 0.2, 0)
    prepare_table(collection, folder, tmp_path / "prepared", side=20, channels=3, workers=2)
    data = PreparedSet.open(tmp_path / "prepared")
    assert data.images.shape == (12, 3, 20, 20)
    assert (data.images[3][:, :5] == 0).all() and (data.images[3][:, 5:15] == 60).all()
    assert data.collection.boxes_of(4, "round").tolist() == [[5, 7.5, 15, 12.5]]


def test_boxes_may_be_absent(folder: Path, tmp_path: Path) -> None:
    (folder / "boxes.csv").unlink()
    collection = read_table(folder, 0.2, 0.2, 0)
    prepare_table(collection, folder, tmp_path / "prepared", side=16, channels=1, workers=1)
    assert PreparedSet.open(tmp_path / "prepared").collection.boxes.empty


def test_an_empty_split_is_made_by_patient_and_class(folder: Path) -> None:
    rows = [(f"n{i:03d}", f"p{i // 3:03d}", "ab"[(i // 3) % 2]) for i in range(120)]
    Image.new("L", (8, 8)).save(folder / "images" / "x.png")
    table = pd.DataFrame(rows, columns=["study_id", "patient_id", "label"])
    table["image"], table["split"] = "x.png", ""
    table["concept:round"] = [i % 2 for i in range(120)]
    table.to_csv(folder / "studies.csv", index=False)
    (folder / "boxes.csv").unlink()
    studies = read_table(folder, 0.2, 0.2, 3).studies
    assert (studies.groupby("patient_id")["split"].nunique() == 1).all()
    shares = studies["split"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2) and shares["val"] == pytest.approx(0.2)
    again = read_table(folder, 0.2, 0.2, 3).studies["split"]
    assert again.tolist() == studies["split"].tolist()
    assert read_table(folder, 0.2, 0.2, 4).studies["split"].tolist() != studies["split"].tolist()


def set_value(column: str, row: int, value: str) -> Callable[[pd.DataFrame], None]:
    def change(table: pd.DataFrame) -> None:
        table.loc[row, column] = value

    return change


STUDIES = [
    (lambda t: t.pop("label"), "studies.csv: column 'label' is missing"),
    (lambda t: (t.pop("concept:round"), t.pop("concept:dark")), "has no column 'concept:<name>'"),
    (set_value("study_id", 3, "s00"), "studies.csv row 5: study_id occurs twice"),
    (set_value("split", 2, "dev"), "studies.csv row 4: split must be train, val, test or empty, got 'dev'"),
    (set_value("concept:dark", 1, "2"), "studies.csv row 3: column 'concept:dark' must be 1, 0 or empty, got '2'"),
    (set_value("image", 6, "no.png"), "studies.csv row 8: no such file"),
    (set_value("label", 0, ""), "studies.csv row 2: label is empty"),
    (lambda t: t.__setitem__("concept:dark", "0"), "concept 'dark' has no positive example in split 'train'"),
    (
        lambda t: t.__setitem__("label", t.label.where(t.split != "val", "a")),
        "class 'b' has no study in split 'val'",
    ),
    (lambda t: t.__setitem__("split", t.split.replace("val", "train")), "no study is in split 'val'"),
]


@pytest.mark.parametrize(("change", "sentence"), STUDIES, ids=[sentence for _, sentence in STUDIES])
def test_a_wrong_study_is_named(folder: Path, change: Callable, sentence: str) -> None:
    edit(folder / "studies.csv", change)
    with pytest.raises(DataError) as caught:
        read(folder)
    assert sentence in str(caught.value)


BOXES = [
    (lambda t: t.pop("x_max"), "boxes.csv: column 'x_max' is missing"),
    (set_value("study_id", 1, "who"), "boxes.csv row 3: study_id is not in studies.csv, got 'who'"),
    (set_value("concept", 0, "flat"), "boxes.csv row 2: concept has no column in studies.csv, got 'flat'"),
    (set_value("x_min", 2, "left"), "boxes.csv row 4: x_min must be a number, got 'left'"),
    (set_value("x_min", 2, "nan"), "boxes.csv row 4: x_min must be a number"),
    (set_value("x_max", 2, "5"), "boxes.csv row 4: x_max must be greater than x_min"),
]


@pytest.mark.parametrize(("change", "sentence"), BOXES, ids=[sentence for _, sentence in BOXES])
def test_a_wrong_box_is_named(folder: Path, change: Callable, sentence: str) -> None:
    edit(folder / "boxes.csv", change)
    with pytest.raises(DataError) as caught:
        read(folder)
    assert sentence in str(caught.value)


def test_a_damaged_image_is_named_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    data = (folder / "images" / "s05.png").read_bytes()
    (folder / "images" / "s05.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"studies\.csv row 7, image 's05\.png'"):
        prepare_table(read_table(folder, 0.2, 0.2, 0), folder, tmp_path / "out" / "prepared", 16, 1, workers=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_box_outside_its_image_is_named_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    edit(folder / "boxes.csv", lambda t: t.loc.__setitem__((1, ["x_min", "x_max"]), ["50", "60"]))
    with pytest.raises(DataError, match=r"boxes\.csv row 3: the box lies outside its 40×20 image"):
        prepare_table(read_table(folder, 0.2, 0.2, 0), folder, tmp_path / "out" / "prepared", 16, 1, workers=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_folder_says_where_the_layout_is_described(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Your own data"):
        read(tmp_path / "nowhere")


def test_a_byte_order_mark_is_not_part_of_a_column_name(folder: Path) -> None:
    file = folder / "studies.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_table(folder, 0.2, 0.2, 0).concepts == ("round", "dark")
