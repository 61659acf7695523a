"""The reader of ISIC 2018's Task 2 on an excerpt in the published layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csr.__main__ import main
from csr.data.problems import Problems
from csr.data.raw import RawSet, prepare_raw
from csr.data.sources.isic2018 import ATTRIBUTES, read_isic2018
from csr.data.sources.read import SourceOptions, read_source
from csr.data.splits import SplitShares
from csr.data.tasks import TaskChoice
from csr.errors import DataError
from tests.csr.data.test_leaks import picture

COUNTS = {"Training": 12, "Validation": 4, "Test": 4}
MASKS = "ISIC2018_Task2_Training_GroundTruth_v3"
STREAKS = [(2, 3, 10, 9), (10, 9, 20, 12), (30, 20, 40, 30)]  # the first two touch at a corner


def outline(*boxes: tuple[int, int, int, int]) -> Image.Image:
    mask = np.zeros((60, 80), np.uint8)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 255
    return Image.fromarray(mask)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """In every part the first and third image show streaks, every other image globules, and no image anything else."""
    root = tmp_path / "isic"
    index = 0
    for part, count in COUNTS.items():
        images = root / f"ISIC2018_Task1-2_{part}_Input"
        truth = root / (MASKS if part == "Training" else f"ISIC2018_Task2_{part}_GroundTruth")
        images.mkdir(parents=True)
        truth.mkdir()
        (images / "LICENSE.txt").write_text("CC-0")
        for own in range(count):
            study = f"ISIC_{index:07d}"
            Image.fromarray(picture(index)[0, :60, :80]).convert("RGB").save(images / f"{study}.jpg")
            for name in ATTRIBUTES:
                shown = {"streaks": STREAKS if own in (0, 2) else [], "globules": [(5, 5, 9, 9)] if own % 2 else []}
                outline(*shown.get(name, [])).save(truth / f"{study}_attribute_{name}.png")
            index += 1
    return root


def read(root: Path) -> tuple[RawSet, Problems]:
    problems = Problems()
    return read_isic2018(root, SplitShares(0.25, 0.25, 0), 2, problems), problems


def remove(root: Path, part: str) -> None:
    for file in root.glob(f"ISIC2018_Task2_{part}_*"):
        file.rename(root / f"unpublished_{part}")


def test_splits_are_the_official_ones_where_their_masks_are_there(folder: Path) -> None:
    raw, problems = read(folder)
    assert not problems.found
    assert raw.collection.studies["split"].value_counts().to_dict() == {"train": 12, "val": 4, "test": 4}
    assert raw.collection.studies["image"].iat[0] == "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg"


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (("Validation", "Test"), {"train": 6, "val": 3, "test": 3}),
        (("Test",), {"train": 9, "val": 4, "test": 3}),
        (("Validation",), {"train": 9, "val": 3, "test": 4}),
    ],
)
def test_splits_without_masks_are_drawn_from_the_training_images(
    folder: Path, missing: tuple[str, ...], expected: dict[str, int]
) -> None:
    for part in missing:
        remove(folder, part)
    assert read(folder)[0].collection.studies["split"].value_counts().to_dict() == expected


def test_an_attribute_is_present_where_its_mask_shows_anything(folder: Path) -> None:
    collection = read(folder)[0].collection
    labels = {name: collection.concept_labels()[:4, k].tolist() for k, name in enumerate(collection.concepts)}
    shown = {"streaks": [1, 0, 1, 0], "globules": [0, 1, 0, 1]}
    assert labels == {name: shown.get(name, [0, 0, 0, 0]) for name in ATTRIBUTES}


def test_boxes_enclose_the_connected_regions_of_a_mask(folder: Path) -> None:
    collection = read(folder)[0].collection
    assert collection.boxes_of(0, "streaks").tolist() == [[2, 3, 20, 12], [30, 20, 40, 30]]
    assert collection.boxes_of(1, "globules").tolist() == [[5, 5, 9, 9]]
    assert collection.boxes_of(1, "streaks").size == 0


def test_an_attribute_without_a_mask_is_unknown(folder: Path) -> None:
    (folder / MASKS / "ISIC_0000001_attribute_globules.png").unlink()
    raw, problems = read(folder)
    assert not problems.found
    known = raw.collection.concept_labels()[1]
    assert np.isnan(known).tolist() == [name == "globules" for name in ATTRIBUTES]


def options(task: str | None) -> SourceOptions:
    choice = TaskChoice(task, concepts=("streaks", "globules"))  # type: ignore[arg-type]
    return SourceOptions(SplitShares(0.25, 0.25, 0), workers=2, choice=choice)


def test_diagnoses_cannot_be_learned_from_it(folder: Path) -> None:
    with pytest.raises(DataError, match=r"Task 2 of ISIC 2018 has attributes and no diagnoses .*data\.task: concepts"):
        read_source("isic2018", folder, options(None), Problems())


def test_the_set_can_be_prepared_for_concepts(folder: Path, tmp_path: Path) -> None:
    problems = Problems()
    raw = read_source("isic2018", folder, options("concepts"), problems)
    prepared = prepare_raw(raw, tmp_path / "prepared", 40, 3, 2, problems)
    assert prepared.boxes_of(0, "streaks").tolist() == [[1, 6.5, 10, 11], [15, 15, 20, 20]]


def test_a_sound_set_passes_the_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--task", "concepts", "--concepts", "streaks", "globules"]
    main(["data", "check", str(folder), "--source", "isic2018", *asked])
    assert "nothing is wrong. 12 train, 4 val, 4 test; 0 classes, 2 concepts" in capsys.readouterr().out


def no_image(root: Path) -> None:
    (root / "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg").unlink()


def no_mask(root: Path) -> None:
    (root / MASKS / "ISIC_0000000_attribute_streaks.png").write_bytes(b"no image")


def other_size(root: Path) -> None:
    Image.new("L", (60, 80)).save(root / MASKS / "ISIC_0000000_attribute_streaks.png")


def other_name(root: Path) -> None:
    outline().save(root / MASKS / "ISIC_0000000_attribute_dots.png")


WRONG = {
    no_image: "ISIC_0000000_attribute_globules.png: has no image ISIC_0000000.jpg",
    no_mask: "ISIC_0000000_attribute_streaks.png: cannot be read",
    other_size: "ISIC_0000000_attribute_streaks.png: is 60×80 pixels, its image 80×60",
    other_name: "ISIC_0000000_attribute_dots.png: names none of the attributes globules, ",
}


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_what_is_wrong_is_named_with_its_file(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    raw, problems = read(folder)
    assert any(WRONG[spoil] in str(problem) for problem in problems.found)
    assert set(raw.collection.boxes["study_id"]) <= set(raw.collection.studies["study_id"])


def test_every_wrong_mask_is_named_at_once(folder: Path, tmp_path: Path) -> None:
    for spoil in (no_mask, other_name):
        spoil(folder)
    Image.new("L", (60, 80)).save(folder / MASKS / "ISIC_0000003_attribute_streaks.png")
    problems = Problems()
    raw = read_source("isic2018", folder, options("concepts"), problems)
    with pytest.raises(DataError, match=r"(?s)3 problems.*dots.*ISIC_0000000_attribute_str.*ISIC_0000003"):
        prepare_raw(raw, tmp_path / "prepared", 40, 3, 2, problems)


def test_a_missing_folder_is_named(folder: Path) -> None:
    remove(folder, "Training")
    with pytest.raises(DataError, match="has no folder ISIC2018_Task2_Training_GroundTruth"):
        read(folder)


def test_masks_without_their_images_folder_are_refused(folder: Path) -> None:
    (folder / "ISIC2018_Task1-2_Test_Input").rename(folder / "elsewhere")
    with pytest.raises(DataError, match=r"ISIC2018_Task1-2_Test_Input: missing or without images"):
        read(folder)


def test_two_editions_of_the_masks_are_refused(folder: Path) -> None:
    (folder / "ISIC2018_Task2_Training_GroundTruth").mkdir()
    with pytest.raises(DataError, match=r"GroundTruth_v3: ISIC2018_Task2_Training_GroundTruth is there too"):
        read(folder)
