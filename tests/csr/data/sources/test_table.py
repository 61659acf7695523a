"""The table reader: what it reads, and that every mistake is refused whole, with file and row."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from csr.data.orientation import turn_boxes_back, turn_image_back
from csr.data.prepared import PreparedSet
from csr.data.problems import Problems
from csr.data.raw import RawSet, ordered_map, prepare_raw
from csr.data.records import Collection
from csr.data.sources.table import read_table
from csr.data.splits import SplitShares
from csr.errors import DataError
from tests.csr.data.test_images import dicom


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


def read(root: Path, seed: int = 0) -> RawSet:
    """What the reader makes of a folder in which nothing is wrong."""
    problems = Problems()
    raw = read_table(root, SplitShares(0.2, 0.2, seed), problems)
    problems.settle(skip_bad=False)
    return raw


def prepare(root: Path, path: Path, side: int = 16, channels: int = 1, *, skip_bad: bool = False) -> Collection:
    problems = Problems()
    raw = read_table(root, SplitShares(0.2, 0.2, 0), problems)
    return prepare_raw(raw, path, side, channels, 2, problems, skip_bad=skip_bad, near_bits=-1)  # all pictures are flat


def test_reads_tables_unknown_labels_and_boxes(folder: Path) -> None:
    collection = read(folder).collection
    assert collection.concepts == ("round", "dark")
    assert collection.classes == ("a", "b")
    assert np.isnan(collection.concept_labels()[8, 1])
    assert collection.test_parts() == ("test",)
    assert collection.boxes_of(4, "round").tolist() == [[10, 5, 30, 15]]


def test_prepare_letterboxes_images_and_moves_boxes_with_them(folder: Path, tmp_path: Path) -> None:
    prepare(folder, tmp_path / "prepared", side=20, channels=3)
    data = PreparedSet.open(tmp_path / "prepared")
    assert data.images.shape == (12, 3, 20, 20)
    assert (data.images[3][:, :5] == 0).all() and (data.images[3][:, 5:15] == 60).all()
    assert data.collection.boxes_of(4, "round").tolist() == [[5, 7.5, 15, 12.5]]


def test_boxes_may_be_absent(folder: Path, tmp_path: Path) -> None:
    (folder / "boxes.csv").unlink()
    prepare(folder, tmp_path / "prepared")
    assert PreparedSet.open(tmp_path / "prepared").collection.boxes.empty


def test_an_empty_split_is_made_by_patient_and_class(folder: Path) -> None:
    rows = [(f"n{i:03d}", f"p{i // 3:03d}", "ab"[(i // 3) % 2]) for i in range(120)]
    Image.new("L", (8, 8)).save(folder / "images" / "x.png")
    table = pd.DataFrame(rows, columns=["study_id", "patient_id", "label"])
    table["image"], table["split"] = "x.png", ""
    table["concept:round"] = [i % 2 for i in range(120)]
    table.to_csv(folder / "studies.csv", index=False)
    (folder / "boxes.csv").unlink()
    studies = read(folder, 3).collection.studies
    assert (studies.groupby("patient_id")["split"].nunique() == 1).all()
    shares = studies["split"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2) and shares["val"] == pytest.approx(0.2)
    again = read(folder, 3).collection.studies["split"]
    assert again.tolist() == studies["split"].tolist()
    assert read(folder, 4).collection.studies["split"].tolist() != studies["split"].tolist()


def set_value(column: str, row: int, value: str) -> Callable[[pd.DataFrame], None]:
    def change(table: pd.DataFrame) -> None:
        table.loc[row, column] = value

    return change


STUDIES = [
    (lambda t: (t.pop("concept:round"), t.pop("concept:dark")), "has no column 'concept:<name>'"),
    (set_value("study_id", 3, "s00"), "studies.csv row 5: study_id occurs twice"),
    (set_value("split", 2, "dev"), "studies.csv row 4: split must be train, val, test or empty, got 'dev'"),
    (set_value("concept:dark", 1, "2"), "studies.csv row 3: column 'concept:dark' must be 1, 0 or empty, got '2'"),
    (set_value("image", 6, "no.png"), "studies.csv row 8: no such file"),
    (
        set_value("label", 2, ""),
        "studies.csv row 4: a study without a class can be in split 'train' only; move it there, or give it a label, "
        "got 'val'",
    ),
    (lambda t: t.__setitem__("label", ""), "studies.csv: column 'label' is empty in every row; fill it, or remove it"),
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
        prepare(folder, folder.parent / "out" / "prepared")
    assert sentence in str(caught.value)
    assert not (folder.parent / "out").exists() or not list((folder.parent / "out").iterdir())


def test_a_study_for_training_needs_no_class(folder: Path, tmp_path: Path) -> None:
    edit(folder / "studies.csv", set_value("label", 1, ""))
    edit(folder / "studies.csv", set_value("label", 9, ""))
    prepare(folder, tmp_path / "prepared")
    collection = PreparedSet.open(tmp_path / "prepared").collection
    assert collection.classes == ("a", "b")
    assert np.flatnonzero(~collection.has_class()).tolist() == [1, 9]
    assert np.isnan(collection.class_indicators()[[1, 9]]).all()
    assert len(collection.class_rows("train")) == len(collection.rows("train")) - 2


def test_a_study_with_no_known_target_can_be_trained_on_only(folder: Path, tmp_path: Path) -> None:
    def targets(table: pd.DataFrame) -> None:
        label = table.pop("label")
        for name in "ab":
            table[f"target:{name}"] = (label == name).astype(int).astype(str)
        table.loc[[1, 2], ["target:a", "target:b"]] = ""
        table.loc[5, "target:a"] = ""

    edit(folder / "studies.csv", targets)
    with pytest.raises(DataError, match=r"row 4: a study without a class .* or give it a target, got 'val'"):
        prepare(folder, tmp_path / "prepared")
    kept = prepare(folder, tmp_path / "prepared", skip_bad=True)
    assert "s02" not in set(kept.studies["study_id"])
    assert np.flatnonzero(~kept.has_class()).tolist() == [1]


BOXES = [
    (lambda t: t.pop("x_max"), "boxes.csv: column 'x_max' is missing"),
    (set_value("study_id", 1, "who"), "boxes.csv row 3: study_id is not in the table of studies, got 'who'"),
    (set_value("concept", 0, "flat"), "boxes.csv row 2: concept has no column in the table of studies, got 'flat'"),
    (set_value("x_min", 2, "left"), "boxes.csv row 4: x_min must be a number, got 'left'"),
    (set_value("x_min", 2, "nan"), "boxes.csv row 4: x_min must be a number"),
    (set_value("x_max", 2, "5"), "boxes.csv row 4: x_max must be greater than x_min"),
    (
        set_value("concept", 0, "dark"),
        "boxes.csv row 2: there is a box, but the study's label says that the concept is",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), BOXES, ids=[sentence for _, sentence in BOXES])
def test_a_wrong_box_is_named(folder: Path, change: Callable, sentence: str) -> None:
    edit(folder / "boxes.csv", change)
    with pytest.raises(DataError) as caught:
        prepare(folder, folder.parent / "out" / "prepared")
    assert sentence in str(caught.value)
    assert not (folder.parent / "out").exists() or not list((folder.parent / "out").iterdir())


def test_a_damaged_image_is_named_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    data = (folder / "images" / "s05.png").read_bytes()
    (folder / "images" / "s05.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"studies\.csv row 7, image 'images/s05\.png'"):
        prepare(folder, tmp_path / "out" / "prepared")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_box_outside_its_image_is_named_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    edit(folder / "boxes.csv", lambda t: t.loc.__setitem__((1, ["x_min", "x_max"]), ["50", "60"]))
    with pytest.raises(DataError, match=r"boxes\.csv row 3: the box lies outside its 40×20 image"):
        prepare(folder, tmp_path / "out" / "prepared")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_folder_says_where_the_layout_is_described(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Your own data"):
        read(tmp_path / "nowhere")


def test_a_byte_order_mark_is_not_part_of_a_column_name(folder: Path) -> None:
    file = folder / "studies.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(folder).collection.concepts == ("round", "dark")


def spoil(folder: Path) -> None:
    """One mistake of every kind that can be skipped, in different studies."""
    edit(folder / "studies.csv", set_value("split", 0, "dev"))
    edit(folder / "studies.csv", set_value("concept:dark", 1, "2"))
    (folder / "images" / "s02.png").unlink()
    (folder / "images" / "s03.png").write_bytes(b"no image")
    edit(folder / "boxes.csv", set_value("x_min", 0, "left"))
    edit(folder / "boxes.csv", set_value("study_id", 1, "who"))
    edit(folder / "boxes.csv", lambda t: t.loc.__setitem__((2, ["x_min", "x_max"]), ["50", "60"]))


SPOILT = (
    "studies.csv row 3: column 'concept:dark' must be 1, 0 or empty, got '2'",
    "studies.csv row 2: split must be train, val, test or empty, got 'dev'",
    "boxes.csv row 3: study_id is not in the table of studies, got 'who'",
    "boxes.csv row 2: x_min must be a number, got 'left'",
    "studies.csv row 4: no such file",
    "studies.csv row 5, image 'images/s03.png': not a PNG, JPEG, TIFF, BMP, WebP or DICOM image",
    "boxes.csv row 4: the box lies outside its 40×20 image",
)


def test_one_report_names_every_problem(folder: Path, tmp_path: Path) -> None:
    spoil(folder)
    with pytest.raises(DataError) as caught:
        prepare(folder, tmp_path / "out" / "prepared")
    assert all(sentence in str(caught.value) for sentence in SPOILT)
    assert len(str(caught.value).splitlines()) == 1 + len(SPOILT)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_wrong_can_be_skipped_and_is_listed(folder: Path, tmp_path: Path) -> None:
    spoil(folder)
    whole = [f"s{index:02d}" for index in range(12)]
    kept = prepare(folder, tmp_path / "prepared", side=20, skip_bad=True)
    assert kept.studies["study_id"].tolist() == [name for name in whole if name not in ("s00", "s01", "s02", "s03")]
    assert kept.boxes["study_id"].tolist() == ["s07"]
    data = PreparedSet.open(tmp_path / "prepared")
    assert data.images.shape == (8, 1, 20, 20)
    for row, study in enumerate(data.collection.studies["study_id"]):
        assert (data.images[row][:, 5:15] == 20 * whole.index(study)).all()
    listed = pd.read_csv(tmp_path / "prepared" / "skipped.csv")
    assert len(listed) == len(SPOILT)
    text = (listed["where"] + ": " + listed["reason"]).str.cat(sep="\n")
    assert all(sentence in text for sentence in SPOILT)


def test_an_image_that_the_disk_does_not_give_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "s05.png":
            raise OSError(5, "Input/output error")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(DataError, match=r"row 7, image 'images/s05\.png': cannot be read \(Input/output error\)"):
        prepare(folder, tmp_path / "prepared")


def test_what_concerns_the_whole_set_is_not_skipped(folder: Path, tmp_path: Path) -> None:
    edit(folder / "studies.csv", lambda t: t.__setitem__("split", t.split.replace("val", "train")))
    with pytest.raises(DataError, match="no study is in split 'val'"):
        prepare(folder, tmp_path / "out" / "prepared", skip_bad=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_skipped_is_no_list(folder: Path, tmp_path: Path) -> None:
    prepare(folder, tmp_path / "prepared", skip_bad=True)
    assert not (tmp_path / "prepared" / "skipped.csv").exists()


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_told_from_the_header(folder: Path, delimiter: str) -> None:
    before = read(folder).collection
    for name in ("studies.csv", "boxes.csv"):
        pd.read_csv(folder / name, dtype=str, keep_default_na=False).to_csv(folder / name, sep=delimiter, index=False)
    after = read(folder).collection
    pd.testing.assert_frame_equal(after.studies, before.studies)
    pd.testing.assert_frame_equal(after.boxes, before.boxes)


def test_parquet_tables_read_as_csv_tables_do(folder: Path) -> None:
    before = read(folder).collection
    for name in ("studies", "boxes"):
        pd.read_csv(folder / f"{name}.csv").to_parquet(folder / f"{name}.parquet")
        (folder / f"{name}.csv").unlink()
    after = read(folder).collection
    for table in ("studies", "boxes"):
        ours, theirs = getattr(after, table), getattr(before, table)
        pd.testing.assert_frame_equal(ours.drop(columns="where"), theirs.drop(columns="where"))
    assert after.studies["where"].iat[0] == f"{folder / 'studies.parquet'} row 1"


def test_a_table_that_is_there_twice_is_refused(folder: Path) -> None:
    pd.read_csv(folder / "studies.csv").to_parquet(folder / "studies.parquet")
    with pytest.raises(DataError, match=r"studies\.parquet is there too"):
        read(folder)


def test_concept_labels_may_be_words(folder: Path) -> None:
    before = read(folder).collection.concept_labels()
    words = {"1": "Present", "0": "absent", "": "unknown"}
    edit(folder / "studies.csv", lambda t: t.__setitem__("concept:dark", t["concept:dark"].map(words)))
    np.testing.assert_array_equal(read(folder).collection.concept_labels(), before)


def test_mixed_encodings_are_refused_with_the_line(folder: Path) -> None:
    file = folder / "studies.csv"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b"s03.png", "größe.png".encode("latin-1"))
    file.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"studies\.csv line 5: is not UTF-8"):
        read(folder)


def test_an_empty_table_is_refused(folder: Path) -> None:
    (folder / "studies.csv").write_bytes(b"")
    with pytest.raises(DataError, match="is not a table with a header"):
        read(folder)


def test_only_a_few_images_are_in_memory_at_a_time_and_they_come_in_order() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number

    with ThreadPoolExecutor(2) as pool:
        results = ordered_map(pool, work, ((number,) for number in range(50)), ahead=4)
        for taken, result in enumerate(results):
            assert result == taken
            assert len(begun) <= taken + 1 + 4
    assert sorted(begun) == list(range(50))


def test_prepare_turns_dicom_upright_reads_frames_and_says_how_grey_values_were_decided(
    folder: Path, tmp_path: Path
) -> None:
    upright = np.zeros((40, 20), np.uint16)
    upright[5:15, 12:18] = 4080
    stored = np.ascontiguousarray(turn_image_back(upright, 6))  # 20 rows of 40
    tags = {"Modality": "DX", "PatientOrientation": ["F", "R"], "PixelSpacing": [0.1, 0.3]}
    (folder / "images" / "s04.png").write_bytes(dicom(stored, **tags))
    pages = [Image.fromarray(np.full((20, 40), value, np.uint8)) for value in (7, 207)]
    pages[0].save(folder / "images" / "s05.png", "TIFF", save_all=True, append_images=pages[1:])
    edit(folder / "studies.csv", lambda table: table.insert(3, "frame", ["2" if n == 5 else "" for n in range(12)]))
    left, top, right, bottom = turn_boxes_back(np.array([[12, 5, 18, 15]]), 6, 40, 20)[0]
    corners = {"x_min": left, "y_min": top, "x_max": right, "y_max": bottom}
    for name, value in corners.items():
        edit(folder / "boxes.csv", set_value(name, 0, str(value)))
    problems = Problems()
    raw = read_table(folder, SplitShares(0.2, 0.2, 0), problems)
    prepare_raw(raw, tmp_path / "prepared", 40, 1, 2, problems, near_bits=-1, display="L\\F")
    data = PreparedSet.open(tmp_path / "prepared")
    studies = data.collection.studies.set_index("study_id")
    assert data.collection.display == "L\\F"
    assert studies.at["s04", "window"] == "12 bits are used" and studies.at["s00", "window"] == "8 bits"
    assert data.images[5].max() == 207
    assert data.collection.boxes_of(4, "round").tolist() == [[22, 5, 28, 15]]
    assert (data.images[4][0, 5:15, 22:28] > 250).all() and (data.images[4] > 250).sum() == 60
    sizes = studies.loc["s04", ["pixel_height_mm", "pixel_width_mm"]].tolist()
    assert sizes == pytest.approx([0.3, 0.1])


@pytest.mark.parametrize("frame", ["0", "-1", "two", "1.5"])
def test_a_frame_that_is_no_number_is_named(folder: Path, frame: str) -> None:
    edit(folder / "studies.csv", lambda table: table.insert(3, "frame", [frame] + [""] * 11))
    with pytest.raises(DataError, match=rf"studies.csv row 2: frame must be a number from 1, or empty, got '{frame}'"):
        read(folder)
