"""The ISIC 2017 reader on an excerpt in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csr.data.problems import Problems
from csr.data.raw import RawSet, prepare_raw
from csr.data.sources.isic2017 import CONCEPTS, read_isic2017
from csr.errors import DataError

PARTS = {"Training": 6, "Validation": 3, "Test_v2": 3}
DIAGNOSES = ("1.0,0.0", "0.0,0.0", "0.0,1.0")  # melanoma, nevus, seborrheic keratosis
TILE = (
    10  # superpixels are squares of a 40×30 image, numbered from 300 so that two bytes are needed, with 0..299 unused
)


def superpixels() -> np.ndarray:
    rows, columns = np.mgrid[0:30, 0:40] // TILE
    number = 300 + 4 * rows + columns
    number[0, 0] = 0
    return np.stack([number % 256, number // 256 % 256, number // 65536], -1).astype(np.uint8)


def features(**shown: list[int]) -> dict[str, list[int]]:
    """Values of 312 superpixels; ``shown`` are those with a 1."""
    return {name: [int(number in shown.get(name, ())) for number in range(312)] for name in CONCEPTS}


SHOWN = features(streaks=[300, 301, 311], milia_like_cyst=[305, 310])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "isic"
    index = 0
    for part, count in PARTS.items():
        data, truth = root / f"ISIC-2017_{part}_Data", root / f"ISIC-2017_{part}_Part2_GroundTruth"
        data.mkdir(parents=True)
        truth.mkdir()
        lines = ["image_id,melanoma,seborrheic_keratosis"]
        for own in range(count):
            study = f"ISIC_{index:07d}"
            Image.new("RGB", (40, 30), (200, 150, 9 * index)).save(data / f"{study}.jpg")
            Image.fromarray(superpixels()).save(data / f"{study}_superpixels.png")
            if own == 0:
                content = SHOWN
            else:
                content = features(pigment_network=[303], negative_network=[307]) if own % 2 else features()
            (truth / f"{study}_features.json").write_text(json.dumps(content))
            lines.append(f"{study},{DIAGNOSES[own % 3]}")
            index += 1
        (root / f"ISIC-2017_{part}_Part3_GroundTruth.csv").write_text("\n".join(lines) + "\n")
    return root


def read(root: Path) -> tuple[RawSet, Problems]:
    problems = Problems()
    return read_isic2017(root, 2, problems), problems


def test_splits_are_the_official_ones_and_neither_disease_is_a_nevus(folder: Path) -> None:
    raw, problems = read(folder)
    assert not problems.found
    studies = raw.collection.studies
    assert studies["split"].value_counts().to_dict() == {"train": 6, "val": 3, "test": 3}
    assert studies["label"].tolist() == ["melanoma", "nevus", "seborrheic_keratosis"] * 4
    assert raw.collection.classes == ("melanoma", "nevus", "seborrheic_keratosis")


def test_a_concept_is_present_where_a_superpixel_shows_it(folder: Path) -> None:
    collection = read(folder)[0].collection
    labels = collection.concept_labels()
    assert collection.concepts == CONCEPTS
    assert labels[0].tolist() == [0, 0, 1, 1]
    assert labels[1].tolist() == [1, 1, 0, 0]
    assert labels[2].tolist() == [0, 0, 0, 0]


def test_boxes_enclose_connected_superpixels(folder: Path) -> None:
    collection = read(folder)[0].collection
    assert collection.boxes_of(0, "streaks").tolist() == [[0, 0, 20, 10], [30, 20, 40, 30]]
    assert collection.boxes_of(0, "milia_like_cyst").tolist() == [[10, 10, 30, 30]]  # they touch at a corner
    assert collection.boxes_of(1, "pigment_network").tolist() == [[30, 0, 40, 10]]
    assert collection.boxes_of(2, "streaks").size == 0


def test_an_image_without_features_has_unknown_concepts(folder: Path) -> None:
    (folder / "ISIC-2017_Training_Part2_GroundTruth/ISIC_0000002_features.json").unlink()
    raw, problems = read(folder)
    assert not problems.found
    assert np.isnan(raw.collection.concept_labels()[2]).all()


def test_the_set_can_be_prepared(folder: Path, tmp_path: Path) -> None:
    raw, problems = read(folder)
    prepared = prepare_raw(raw, tmp_path / "prepared", 20, 3, 2, problems, near_bits=-1)
    assert prepared.boxes_of(0, "streaks").tolist() == [[0, 2, 10, 7], [15, 12, 20, 17]]


def spoil_json(folder: Path, text: str) -> None:
    (folder / "ISIC-2017_Training_Part2_GroundTruth/ISIC_0000000_features.json").write_text(text)


WRONG = [
    (lambda f: spoil_json(f, "{"), "ISIC_0000000_features.json: is not JSON"),
    (lambda f: spoil_json(f, "[]"), "ISIC_0000000_features.json: must hold a list for each"),
    (lambda f: spoil_json(f, json.dumps(SHOWN | {"streaks": [2]})), "streaks must be a list of 0 and 1"),
    (lambda f: spoil_json(f, json.dumps(SHOWN | {"streaks": [0, 1]})), "streaks has 2 values for 312 superpixels"),
    (
        lambda f: (f / "ISIC-2017_Training_Data/ISIC_0000000_superpixels.png").write_bytes(b"no image"),
        "ISIC_0000000_superpixels.png: cannot be read",
    ),
]


@pytest.mark.parametrize(("spoil", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_wrong_features_are_named_and_the_study_is_left_out(folder: Path, spoil, sentence: str) -> None:
    spoil(folder)
    raw, problems = read(folder)
    assert len(problems.found) == 1 and sentence in str(problems.found[0])
    assert "ISIC_0000000" not in set(raw.collection.studies["study_id"])
    assert set(raw.collection.boxes["study_id"]) <= set(raw.collection.studies["study_id"])


@pytest.mark.parametrize("codes", ["1.0,1.0", "2,0", ",0", "yes,0"])
def test_a_wrong_diagnosis_is_named(folder: Path, codes: str) -> None:
    file = folder / "ISIC-2017_Validation_Part3_GroundTruth.csv"
    file.write_text(file.read_text().replace("ISIC_0000007,0.0,0.0", f"ISIC_0000007,{codes}"))
    _, problems = read(folder)
    (problem,) = problems.found
    assert "Validation_Part3_GroundTruth.csv row 3: melanoma and seborrheic_keratosis must be 0 or 1" in str(problem)


def test_an_image_listed_twice_is_named(folder: Path) -> None:
    file = folder / "ISIC-2017_Test_v2_Part3_GroundTruth.csv"
    file.write_text(file.read_text() + "ISIC_0000000,0,0\n")
    raw, problems = read(folder)
    assert "row 5: image_id occurs twice, got 'ISIC_0000000'" in str(problems.found[0])
    assert raw.collection.studies["study_id"].is_unique


def test_a_missing_table_is_named(folder: Path) -> None:
    (folder / "ISIC-2017_Test_v2_Part3_GroundTruth.csv").unlink()
    with pytest.raises(DataError, match=r"ISIC-2017_Test_v2_Part3_GroundTruth\.csv: missing"):
        read(folder)
