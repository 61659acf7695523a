"""The VinDr-CXR reader on excerpts of both editions in the published layout, with each of their quirks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pandas as pd
import pytest

from csr.__main__ import main
from csr.data.html_report import to_html
from csr.data.prepared import PreparedSet
from csr.data.problems import Problems
from csr.data.raw import RawSet, prepare_raw
from csr.data.report import data_sections
from csr.data.sources.read import SourceOptions, read_source
from csr.data.sources.vindr_cxr import DISEASES, FINDINGS, KAGGLE_FINDINGS, VinDrConfig, read_vindr_cxr
from csr.data.splits import SplitShares
from csr.data.tasks import TaskChoice
from csr.errors import ConfigError, DataError
from tests.csr.data.test_images import dicom, recoded
from tests.csr.data.test_leaks import picture

READERS = ("R8", "R9", "R10")
TRAIN, TEST = [f"{i:04x}a" for i in range(24)], [f"{i:04x}b" for i in range(6)]
# what each reader of a training image says, by the image's number modulo 6; R8 always sees all of it
SEEN = {0: "R8 R9 R10", 1: "R8 R9", 2: "R8", 3: "", 4: "R8 R9 R10", 5: ""}
FINDING, DISEASE = "Pleural effusion", "Tuberculosis"
NOWHERE = ("", "", "", "")


def scan(number: int, photometric: str = "MONOCHROME1") -> bytes:
    """A 96×80 DICOM of 12 bits, every one another picture; JPEG 2000 as many of the published files are."""
    pixels = picture(number)[0, :80].astype(np.uint16) * 16
    plain = dicom(
        pixels, photometric, BitsStored=12, HighBit=11, **({} if number % 3 else {"PixelSpacing": [0.2, 0.3]})
    )
    return recoded(plain, gdcm.TransferSyntax.JPEG2000Lossless) if number % 2 else plain


def image_labels(image: str, reader: str | None, present: set[str], other: str) -> dict[str, str]:
    names = [other if name == "Other diseases" else name for name in (*FINDINGS, *DISEASES)]
    row = {"image_id": image} | ({"rad_id": reader} if reader else {})
    return row | {name: str(int(name in present)) for name in names}


@pytest.fixture
def physionet(tmp_path: Path) -> Path:
    """24 training images of three readers each, who differ, and 6 test images."""
    root = tmp_path / "vindr-cxr" / "1.0.0"
    for name in ("train", "test", "annotations"):
        (root / name).mkdir(parents=True)
    labels, boxes = [], []
    for number, image in enumerate(TRAIN):
        (root / "train" / f"{image}.dicom").write_bytes(scan(number))
        for order, reader in enumerate(READERS):
            sees = reader in SEEN[number % 6].split()
            labels.append(image_labels(image, reader, {FINDING, DISEASE} if sees else {"No finding"}, "Other diseases"))
            where = (10.5 + order, 20, 40, 50.25) if sees else NOWHERE
            boxes.append((image, reader, FINDING if sees else "No finding", *where))
    of_train = pd.DataFrame(boxes, columns=["image_id", "rad_id", "class_name", "x_min", "y_min", "x_max", "y_max"])
    of_train.to_csv(root / "annotations/annotations_train.csv", index=False)
    pd.DataFrame(labels).to_csv(root / "annotations/image_labels_train.csv", index=False)
    labels, rows = [], []
    for number, image in enumerate(TEST):
        (root / "test" / f"{image}.dicom").write_bytes(scan(100 + number, "MONOCHROME2"))
        sick = number % 2 == 0
        labels.append(image_labels(image, None, {FINDING, DISEASE} if sick else {"No finding"}, "Other disease"))
        rows.append((image, FINDING, 8, 8, 30, 30) if sick else (image, "No finding", *NOWHERE))
    table = pd.DataFrame(rows, columns=["image_id", "class_name", "x_min", "y_min", "x_max", "y_max"])
    table.to_csv(root / "annotations/annotations_test.csv", index=False)
    pd.DataFrame(labels).to_csv(root / "annotations/image_labels_test.csv", index=False)
    return root


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    root = tmp_path / "kaggle"
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    rows = []
    for number, image in enumerate(TRAIN):
        (root / "train" / f"{image}.dicom").write_bytes(scan(number))
        for reader in READERS:
            if reader in SEEN[number % 6].split():
                rows += [
                    (image, "Nodule/Mass", 8, reader, 5, 6, 20, 30),
                    (image, "Nodule/Mass", 8, reader, 40, 6, 60, 30),
                ]
            else:
                rows.append((image, "No finding", 14, reader, *NOWHERE))
    columns = ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "train.csv", index=False)
    (root / "test" / "unlabelled.dicom").write_bytes(scan(200))
    return root


def read(
    root: Path, consensus: str = "majority", least: int = 1, merge_iou: float | None = None
) -> tuple[RawSet, Problems]:
    problems, config = Problems(), VinDrConfig(consensus, least, merge_iou)
    return read_vindr_cxr(root, config, SplitShares(0.25, 0.25, 0), problems), problems


def with_finding(raw: RawSet, name: str = f"concept:{FINDING}") -> set[int]:
    """Numbers modulo 6 of the training images that have a label."""
    studies = raw.collection.studies
    return {TRAIN.index(image) % 6 for image in studies[studies[name] == 1]["study_id"] if image in TRAIN}


def edit(file: Path, change: Callable[[pd.DataFrame], object]) -> None:
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    changed = change(table)
    (changed if isinstance(changed, pd.DataFrame) else table).to_csv(file, index=False)


# PhysioNet's edition


def test_test_images_are_the_official_ones_and_validation_comes_from_training(physionet: Path) -> None:
    raw, problems = read(physionet)
    assert not problems.found
    studies = raw.collection.studies.set_index("study_id")
    assert (studies.loc[TEST, "split"] == "test").all()
    assert studies.loc[TRAIN, "split"].value_counts().to_dict() == {"train": 18, "val": 6}
    assert len(studies) == len(TRAIN) + len(TEST)
    assert studies.loc[TEST[0], "image"] == f"test/{TEST[0]}.dicom"


@pytest.mark.parametrize(("consensus", "seen"), [("any", {0, 1, 2, 4}), ("majority", {0, 1, 4}), ("all", {0, 4})])
def test_a_label_is_present_where_enough_readers_say_so(physionet: Path, consensus: str, seen: set[int]) -> None:
    raw, _ = read(physionet, consensus)
    assert with_finding(raw) == seen
    assert with_finding(raw, f"target:{DISEASE}") == seen


def test_a_majority_is_more_than_half_of_those_who_were_asked(physionet: Path) -> None:
    file = physionet / "annotations/image_labels_train.csv"
    edit(file, lambda table: table.drop(index=table.index[table["rad_id"] == "R10"]))
    assert with_finding(read(physionet)[0]) == {0, 1, 4}  # one of two is none: image 2 lacks it


def test_boxes_of_all_readers_are_kept_where_the_finding_is_and_none_where_it_was_voted_down(physionet: Path) -> None:
    raw, problems = read(physionet)
    assert not problems.found
    boxes = raw.collection.boxes.groupby("study_id").size().to_dict()
    assert {TRAIN.index(image) % 6: count for image, count in boxes.items() if image in TRAIN} == {0: 3, 1: 2, 4: 3}
    first = raw.collection.boxes[raw.collection.boxes["study_id"] == TRAIN[0]][["x_min", "y_max"]].to_numpy()
    assert first.tolist() == [[10.5, 50.25], [11.5, 50.25], [12.5, 50.25]]


def test_boxes_of_several_readers_that_overlap_become_one(physionet: Path) -> None:
    raw, problems = read(physionet, merge_iou=VinDrConfig().merge_iou)
    assert not problems.found
    boxes = raw.collection.boxes.set_index("study_id")
    counts = boxes.groupby("study_id").size()
    assert {TRAIN.index(image) % 6: counts[image] for image in counts.index if image in TRAIN} == {0: 1, 1: 1, 4: 1}
    assert boxes.loc[TRAIN[0], ["x_min", "y_min", "x_max", "y_max"]].tolist() == [11.5, 20, 40, 50.25]
    assert boxes.loc[TRAIN[1], "x_min"] == 11.0  # of two readers, the third having seen nothing
    assert any("32 boxes of several readers became 12:" in note and "merge_iou" in note for note in raw.notes)


def test_the_test_sets_boxes_are_one_voice_and_never_merged(physionet: Path) -> None:
    def add_another(table: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table, table.iloc[:1].assign(x_max="31")])

    edit(physionet / "annotations/annotations_test.csv", add_another)
    boxes = read(physionet, merge_iou=0.4)[0].collection.boxes
    assert boxes[boxes["study_id"] == TEST[0]]["x_max"].tolist() == [30, 31]


@pytest.mark.parametrize("value", [0, -0.5, 1.5, float("nan")])
def test_an_overlap_that_no_boxes_can_have_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"vindr_cxr\.merge_iou: must be greater than 0 and at most 1"):
        VinDrConfig(merge_iou=value)


def test_other_disease_and_other_diseases_are_one_label(physionet: Path) -> None:
    edit(physionet / "annotations/image_labels_train.csv", lambda table: table.__setitem__("Other diseases", "1"))
    edit(physionet / "annotations/image_labels_test.csv", lambda table: table.__setitem__("Other disease", "1"))
    studies = read(physionet)[0].collection.studies
    assert (studies["target:Other diseases"] == 1).all()
    assert "target:Other disease" not in studies


def test_columns_are_matched_by_name_whatever_their_order_and_capitals(physionet: Path) -> None:
    file = physionet / "annotations/image_labels_test.csv"
    before = read(physionet)[0].collection.studies
    table = pd.read_csv(file, dtype=str)
    table = table[table.columns[::-1]].rename(columns={"Nodule/Mass": "Nodule / mass", "Lung tumor": "lung Tumor"})
    table.to_csv(file, index=False)
    pd.testing.assert_frame_equal(read(physionet)[0].collection.studies, before, check_like=True)


def test_labels_that_hardly_any_training_image_has_are_left_out_and_named(physionet: Path) -> None:
    edit(
        physionet / "annotations/image_labels_train.csv",
        lambda table: table.loc.__setitem__((slice(0, 5), "Edema"), "1"),
    )
    raw, problems = read(physionet, least=2)
    assert not problems.found
    assert set(raw.collection.concepts) == {FINDING, "Edema"}
    raw, _ = read(physionet, least=3)
    assert raw.collection.concepts == (FINDING,)
    assert set(raw.collection.classes) == {DISEASE, "No finding"}
    (note,) = raw.notes
    assert "Edema (2)" in note and "COPD (0)" in note and "least" in note


def test_boxes_of_a_label_that_is_left_out_are_left_out_too(physionet: Path) -> None:
    def add_box(table: pd.DataFrame) -> None:
        table.loc[0, "class_name"] = "Edema"

    edit(physionet / "annotations/annotations_test.csv", add_box)
    raw, problems = read(physionet)
    assert not problems.found
    assert set(raw.collection.boxes["concept"]) == {FINDING}


def test_the_set_can_be_prepared_with_monochrome1_inverted_and_boxes_in_pixels_of_the_canvas(
    physionet: Path, tmp_path: Path
) -> None:
    raw, problems = read(physionet)
    prepare_raw(raw, tmp_path / "prepared", 48, 1, 2, problems)
    data = PreparedSet.open(tmp_path / "prepared")
    row = data.collection.studies.index[data.collection.studies["study_id"] == TRAIN[0]][0]
    shown, expected = data.images[row][0].astype(float), 255 - picture(0)[0, :80].reshape(40, 2, 48, 2).mean((1, 3))
    assert np.corrcoef(shown[4:44].ravel(), expected.ravel())[0, 1] > 0.99
    boxes = data.collection.boxes
    assert boxes[boxes["study_id"] == TRAIN[0]][["x_min", "y_min"]].to_numpy()[0].tolist() == [5.25, 14.0]


def test_the_size_of_pixels_moves_to_the_canvas_where_it_is_known(physionet: Path, tmp_path: Path) -> None:
    raw, problems = read(physionet)
    studies = prepare_raw(raw, tmp_path / "prepared", 48, 1, 2, problems).studies.set_index("study_id")
    assert studies.loc[TRAIN[0], ["pixel_height_mm", "pixel_width_mm"]].tolist() == [0.4, 0.6]  # scaled by a half
    assert studies.loc[TRAIN[2], ["pixel_height_mm", "pixel_width_mm"]].isna().all()
    page = to_html("Data", data_sections(PreparedSet.open(tmp_path / "prepared"), 8, problems.table()))
    assert "median side, mm" in page


def test_what_the_reader_has_to_say_stays_with_the_prepared_set(physionet: Path, tmp_path: Path) -> None:
    raw, problems = read(physionet, least=3)
    prepare_raw(raw, tmp_path / "prepared", 48, 1, 2, problems)
    data = PreparedSet.open(tmp_path / "prepared")
    (note,) = data.notes()
    assert data.notes() == raw.notes
    assert note[1:] in to_html("Data", data_sections(data, 8, data.skipped(), data.notes()))


def test_every_label_can_be_a_target_or_a_concept(physionet: Path) -> None:
    choice = TaskChoice(targets=(DISEASE,), concepts=(FINDING,))
    options = SourceOptions(SplitShares(0.25, 0.0, 0), choice=choice, vindr_cxr=VinDrConfig(least=1))
    raw = read_source("vindr_cxr", physionet, options, Problems())
    assert (raw.collection.task, raw.collection.classes, raw.collection.concepts) == (
        "multilabel",
        (DISEASE,),
        (FINDING,),
    )


def test_a_sound_set_passes_the_check_and_says_what_was_left_out(
    physionet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "check", str(physionet), "--source", "vindr_cxr", "--least", "4", "--validation-share", "0.25"])
    said = capsys.readouterr().out
    assert "nothing is wrong" in said and "2 classes, 1 concepts" in said
    assert (
        "warning: labels that fewer than 4 images have, of those that are not for testing, are left out: Aortic enlar"
        in said
    )


def put(file: str, row: int, column: str, value: str) -> Callable[[Path], None]:
    """Writes a value into a table of annotations."""
    return lambda root: edit(root / "annotations" / file, lambda table: table.loc.__setitem__((row, column), value))


wrong_label = put("image_labels_train.csv", 4, "Edema", "maybe")
wrong_corner = put("annotations_train.csv", 0, "x_max", "4")
half_a_box = put("annotations_train.csv", 0, "y_max", "")
stray_box = put("annotations_train.csv", 0, "image_id", TEST[0])
unknown_class = put("annotations_test.csv", 1, "class_name", "Goitre")
placed_disease = put("annotations_test.csv", 0, "class_name", "COPD")
twice = put("image_labels_train.csv", 1, "rad_id", "R8")
in_both = put("image_labels_test.csv", 5, "image_id", TRAIN[0])

WRONG = {
    wrong_label: "image_labels_train.csv row 6: column 'Edema' must be 0 or 1, got 'maybe'",
    wrong_corner: "annotations_train.csv row 2: x_max must be greater than x_min, got 4.0",
    half_a_box: "annotations_train.csv row 2: y_max must be a number, got ''",
    stray_box: f"annotations_train.csv row 2: image_id has no row in the table image_labels_train.csv, got {TEST[0]!r}",
    unknown_class: "annotations_test.csv row 3: class_name is none of VinDr-CXR's labels, got 'Goitre'",
    placed_disease: "annotations_test.csv row 2: there is a box of a label without a place, got 'COPD'",
    twice: "image_labels_train.csv row 3: image_id occurs twice for one rad_id, got ",
    in_both: f"image_labels_test.csv row 7: image_id is in train and in test, got {TRAIN[0]!r}",
}


@pytest.mark.parametrize("spoil", WRONG, ids=WRONG.values())
def test_what_is_wrong_is_named_with_its_file_and_row(physionet: Path, spoil: Callable[[Path], None]) -> None:
    spoil(physionet)
    found = [str(problem) for problem in read(physionet)[1].found]
    assert any(WRONG[spoil] in problem for problem in found), found


def test_one_report_names_all_that_is_wrong(physionet: Path, tmp_path: Path) -> None:
    for spoil in (wrong_label, wrong_corner, unknown_class):
        spoil(physionet)
    (physionet / "train" / f"{TRAIN[7]}.dicom").write_bytes(scan(7)[:400])
    (physionet / "test" / f"{TEST[3]}.dicom").unlink()
    raw, problems = read(physionet)
    with pytest.raises(DataError) as caught:
        prepare_raw(raw, tmp_path / "prepared", 48, 1, 2, problems)
    said = str(caught.value)
    expected = [WRONG[spoil] for spoil in (wrong_label, wrong_corner, unknown_class)]
    for sentence in (*expected, f"image 'train/{TRAIN[7]}.dicom'", "image_labels_test.csv row 5: no such file"):
        assert sentence in said
    assert not (tmp_path / "prepared").exists()


def test_a_box_in_the_test_set_of_what_its_label_calls_absent_is_a_mistake(physionet: Path, tmp_path: Path) -> None:
    edit(physionet / "annotations/image_labels_test.csv", lambda table: table.loc.__setitem__((2, FINDING), "0"))
    raw, problems = read(physionet)
    with pytest.raises(DataError, match=r"annotations_test\.csv row 4: there is a box, but .* absent"):
        prepare_raw(raw, tmp_path / "prepared", 48, 1, 2, problems)


def test_a_missing_column_is_named(physionet: Path) -> None:
    edit(physionet / "annotations/image_labels_train.csv", lambda table: table.pop("ILD"))
    with pytest.raises(DataError, match=r"image_labels_train\.csv: column 'ILD' is missing; it has image_id, rad_id"):
        read(physionet)


def test_a_column_that_is_no_label_is_refused(physionet: Path) -> None:
    edit(physionet / "annotations/image_labels_test.csv", lambda table: table.__setitem__("Goitre", "0"))
    with pytest.raises(DataError, match=r"image_labels_test\.csv: column 'Goitre' is none of VinDr-CXR's labels"):
        read(physionet)


def test_a_folder_of_neither_edition_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither 'annotations' .* nor 'train\.csv'"):
        read(tmp_path)


def test_a_label_that_no_image_has_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"vindr_cxr\.least: must be at least 1"):
        VinDrConfig(least=0)


# Kaggle's edition


def concepts_only(root: Path, task: str | None = "concepts", merge_iou: float | None = None) -> tuple[RawSet, Problems]:
    problems, config = Problems(), VinDrConfig(least=1, merge_iou=merge_iou)
    options = SourceOptions(SplitShares(0.25, 0.25, 0), choice=TaskChoice(task), vindr_cxr=config)  # type: ignore[arg-type]
    return read_source("vindr_cxr", root, options, problems), problems


@pytest.mark.parametrize("task", [None, "multiclass", "multilabel"])
def test_diagnoses_cannot_be_learned_from_kaggles_edition(kaggle: Path, task: str | None) -> None:
    with pytest.raises((DataError, ConfigError)) as caught:
        concepts_only(kaggle, task)
    assert "Kaggle's edition of VinDr-CXR has 14 findings and no diseases" in str(caught.value)


def test_kaggles_findings_are_concepts_by_consensus_with_the_boxes_of_all_readers(kaggle: Path) -> None:
    raw, problems = concepts_only(kaggle)
    assert not problems.found
    assert set(raw.collection.concepts) <= set(KAGGLE_FINDINGS)
    assert raw.collection.classes == ()
    assert with_finding(raw, "concept:Nodule/Mass") == {0, 1, 4}
    boxes = raw.collection.boxes.groupby("study_id").size().to_dict()
    assert boxes[TRAIN[0]] == 6 and boxes[TRAIN[1]] == 4 and TRAIN[2] not in boxes
    assert raw.collection.studies["split"].value_counts().to_dict() == {"train": 12, "val": 6, "test": 6}


def test_kaggles_boxes_that_overlap_become_one_too(kaggle: Path) -> None:
    boxes = concepts_only(kaggle, merge_iou=0.4)[0].collection.boxes
    assert boxes.groupby("study_id").size().unique().tolist() == [2]  # each reader sees two nodules, far apart
    assert boxes[boxes["study_id"] == TRAIN[0]]["x_min"].tolist() == [5, 40]


def test_kaggles_edition_can_be_prepared(kaggle: Path, tmp_path: Path) -> None:
    raw, problems = concepts_only(kaggle)
    collection = prepare_raw(raw, tmp_path / "prepared", 48, 1, 2, problems)
    assert len(collection.studies) == len(TRAIN)


def test_copies_as_png_are_refused_since_boxes_are_in_pixels_of_the_dicom_files(kaggle: Path) -> None:
    for file in (kaggle / "train").iterdir():
        file.rename(file.with_suffix(".png"))
    with pytest.raises(DataError, match=rf"{TRAIN[0]}\.png: is a copy in another format; .* \.dicom"):
        concepts_only(kaggle)


def test_an_unknown_class_of_kaggles_edition_is_named(kaggle: Path) -> None:
    edit(kaggle / "train.csv", lambda table: table.loc.__setitem__((0, "class_name"), "Rib fracture"))
    _, problems = concepts_only(kaggle)
    assert "train.csv row 2: class_name is none of Kaggle's 14 findings, got 'Rib fracture'" in str(problems.found[0])
