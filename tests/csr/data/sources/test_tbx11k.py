"""The TBX11K reader on an excerpt in the published layout, with each of its quirks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from csr.data.problems import Problems
from csr.data.raw import RawSet, prepare_raw
from csr.data.sources.tbx11k import TBX11KConfig, read_tbx11k
from csr.data.splits import SplitShares
from csr.errors import DataError

PER_CLASS = 10  # images a class in the training list; half as many in the validation list


def listing(split: str) -> list[str]:
    numbers = range(PER_CLASS) if split == "train" else range(PER_CLASS, PER_CLASS + PER_CLASS // 2)
    prefixes = {"health": "h", "sick": "s", "tb": "tb"}
    return [f"{label}/{prefix}{number:04d}.png" for label, prefix in prefixes.items() for number in numbers]


def coco(names: list[str]) -> dict:
    images = [{"id": index + 1, "file_name": name, "width": 512, "height": 512} for index, name in enumerate(names)]
    sick = [image for image in images if image["file_name"].startswith("tb/")]
    boxes = [
        {"id": 10 + i, "image_id": image["id"], "category_id": 1 + i % 3, "bbox": [100.0, 50.5, 30.0, 40.0]}
        for i, image in enumerate(sick)
    ]
    categories = [
        {"id": 1, "name": "ActiveTuberculosis"},
        {"id": 2, "name": "ObsoletePulmonaryTuberculosis"},
        {"id": 3, "name": "PulmonaryTuberculosis"},
    ]
    return {"images": images, "annotations": boxes, "categories": categories}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lists, pictures and COCO boxes; and what must not be read: VOC boxes in another resolution, extra, test."""
    root = tmp_path / "TBX11K"
    for name in ("lists", "annotations/json", "annotations/xml", "imgs/extra", "imgs/test"):
        (root / name).mkdir(parents=True)
    train, val = listing("train"), listing("val")
    for index, name in enumerate((*train, *val)):
        (root / "imgs" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (512, 512), (index, 40, 40)).save(root / "imgs" / name)
    for name, names in (("train", train), ("val", val), ("trainval", train + val)):
        (root / "lists" / f"TBX11K_{name}.txt").write_text("\n".join(names) + "\n")
        (root / "lists" / f"all_{name}.txt").write_text("\n".join([*names, "extra/da+db/p0001.png"]) + "\n")
        (root / "annotations/json" / f"TBX11K_{name}.json").write_text(json.dumps(coco(names)))
    (root / "lists" / "all_test.txt").write_text("test/t0001.png\n")
    (root / "annotations/xml" / "tb0000.xml").write_text("<annotation><size><width>2840</width></size></annotation>")
    table = pd.DataFrame({"image": [*train, *val]})
    table["concept:cavity"] = [int(name.startswith("tb/") and int(name[-5]) % 2 == 0) for name in table["image"]]
    table["concept:effusion"] = ["" if i % 7 == 6 else i % 2 for i in range(len(table))]
    table.to_csv(root / "concepts.csv", index=False)
    return root


def read(root: Path, located: tuple[str, ...] = ("cavity",)) -> tuple[RawSet, Problems]:
    problems = Problems()
    shares = SplitShares(0.2, 0.5, 0)
    raw = read_tbx11k(root, TBX11KConfig(located=located), shares, problems)
    return raw, problems


def test_the_official_validation_list_is_the_test_split_and_validation_comes_from_training(folder: Path) -> None:
    raw, problems = read(folder)
    assert not problems.found
    studies = raw.collection.studies.set_index("study_id")
    assert set(studies.index) == {*listing("train"), *listing("val")}
    assert (studies.loc[listing("val"), "split"] == "test").all()
    drawn = studies.loc[listing("train")]
    assert drawn["split"].value_counts().to_dict() == {"train": 24, "val": 6}
    assert (drawn[drawn["split"] == "val"]["label"].value_counts() == 2).all()
    assert (studies["part"] == studies["split"]).all()


def test_the_class_is_the_first_segment_of_the_path(folder: Path) -> None:
    studies = read(folder)[0].collection.studies
    assert (studies["label"] == studies["study_id"].str.partition("/")[0]).all()
    assert read(folder)[0].collection.classes == ("health", "sick", "tb")


def test_boxes_say_where_a_concept_is_but_never_that_it_is(folder: Path) -> None:
    raw, _ = read(folder)
    boxes, studies = raw.collection.boxes, raw.collection.studies.set_index("study_id")
    shown = studies.index[studies["concept:cavity"] == 1]
    assert set(boxes["study_id"]) == set(shown) and (boxes["concept"] == "cavity").all()
    assert boxes[["x_min", "y_min", "x_max", "y_max"]].drop_duplicates().to_numpy().tolist() == [[100, 50.5, 130, 90.5]]
    assert (studies.loc[studies["label"] == "tb", "concept:cavity"] == 0).any()  # a box is there, the concept is not
    assert read(folder, located=())[0].collection.boxes.empty


def test_images_that_the_users_table_does_not_name_are_unknown(folder: Path) -> None:
    table = pd.read_csv(folder / "concepts.csv", dtype=str, keep_default_na=False)
    table[table["image"] != "tb/tb0000.png"].to_csv(folder / "concepts.csv", index=False)
    labels = read(folder)[0].collection.studies.set_index("study_id")["concept:cavity"]
    assert np.isnan(labels["tb/tb0000.png"])
    assert labels.drop("tb/tb0000.png").notna().all()


def test_paths_may_start_with_imgs(folder: Path) -> None:
    before = read(folder)[0].collection
    for name in ("lists/TBX11K_train.txt", "lists/TBX11K_val.txt", "concepts.csv"):
        text = (folder / name).read_text()
        for label in ("health", "sick", "tb"):
            text = text.replace(f"{label}/", f"imgs/{label}/")
        (folder / name).write_text(text)
    after = read(folder)[0].collection
    pd.testing.assert_frame_equal(after.studies, before.studies)
    pd.testing.assert_frame_equal(after.boxes.drop(columns="where"), before.boxes.drop(columns="where"))


def test_patients_stay_in_one_split(folder: Path) -> None:
    table = pd.read_csv(folder / "concepts.csv", dtype=str, keep_default_na=False)
    table["patient_id"] = [f"{name.partition('/')[0]}-{i // 2}" for i, name in enumerate(table["image"])]
    table.to_csv(folder / "concepts.csv", index=False)
    studies = read(folder)[0].collection.studies
    drawn = studies[studies["split"] != "test"]
    assert drawn["patient_id"].nunique() == 15
    assert (drawn.groupby("patient_id")["split"].nunique() == 1).all()


def test_boxes_move_with_the_images(folder: Path, tmp_path: Path) -> None:
    raw, problems = read(folder)
    prepared = prepare_raw(raw, tmp_path / "prepared", 128, 3, 2, problems, near_bits=-1)
    assert prepared.boxes[["x_min", "y_min", "x_max", "y_max"]].drop_duplicates().to_numpy().tolist() == [
        [25, 12.625, 32.5, 22.625]
    ]


def test_every_problem_is_named_with_file_and_row(folder: Path) -> None:
    lines = (folder / "lists/TBX11K_train.txt").read_text().splitlines()
    (folder / "lists/TBX11K_train.txt").write_text("\n".join([*lines, "extra/x.png", lines[0]]))
    table = pd.read_csv(folder / "concepts.csv", dtype=str, keep_default_na=False)
    table.loc[1, "concept:cavity"] = "maybe"
    table.loc[len(table)] = ["tb/tb9999.png", "1", "1"]
    table.loc[len(table)] = table.loc[0]
    table.to_csv(folder / "concepts.csv", index=False)
    content = coco(listing("train"))
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["category_id"] = 4
    (folder / "annotations/json/TBX11K_train.json").write_text(json.dumps(content))
    text = "\n".join(map(str, read(folder)[1].found))
    for sentence in (
        "TBX11K_train.txt line 31: the class of 'extra/x.png' is none of health, sick, tb",
        "TBX11K_train.txt line 32: image is listed twice, got 'health/h0000.png'",
        "concepts.csv row 3: column 'concept:cavity' must be 1, 0 or empty, got 'maybe'",
        "concepts.csv row 47: image is in neither list, got 'tb/tb9999.png'",
        "concepts.csv row 48: image occurs twice, got 'health/h0000.png'",
        "TBX11K_train.json annotation 10: bbox must have a positive width and height",
        "TBX11K_train.json annotation 11: names an unknown image or category",
    ):
        assert sentence in text
    assert len(text.splitlines()) == 7


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lists/TBX11K_val.txt", "TBX11K_val.txt: missing"),
        ("annotations/json/TBX11K_val.json", "TBX11K_val.json: missing"),
        ("concepts.csv", "concepts.csv: missing"),
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str, sentence: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=sentence):
        read(folder)


def test_a_located_concept_must_have_a_column(folder: Path) -> None:
    with pytest.raises(DataError, match="no column 'concept:nodule'"):
        read(folder, located=("nodule",))


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}'])
def test_boxes_that_are_not_coco_are_refused(folder: Path, text: str) -> None:
    (folder / "annotations/json/TBX11K_train.json").write_text(text)
    with pytest.raises(DataError, match=r"TBX11K_train\.json: is not"):
        read(folder)
