"""Source: TBX11K (Liu et al. 2020) as its authors ship it, with concept labels of the user's own.

- ``imgs/{health,sick,tb,test,extra}/*.png``, 512×512;
- ``lists/TBX11K_{train,val}.txt``: a line an image, such as ``tb/tb0005.png``; the first path segment is the class;
- ``annotations/json/TBX11K_{train,val}.json``: COCO, boxes of tuberculosis in pixels of the images. The VOC files in
  ``annotations/xml`` are in the resolution of the original radiographs and are not read.

Test labels are withheld by the authors (their server judges them), so the official validation list is the test split
and a validation split is drawn from the training list. ``extra`` images come from other collections and have no class.

The data set has no findings. Concepts come from a table of the user's, ``image`` (as in the lists) and columns
``concept:<name>`` as in the ``table`` layout; images that it does not name are unknown. Concept labels are never made
from the boxes: a box means tuberculosis, so such a concept would tell the class. A box can say where a finding is in
images that the table says have it (``located``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from csr.data.files import read_rows
from csr.data.problems import Problems
from csr.data.raw import RawSet, concept_columns, label_values, no_boxes
from csr.data.records import BOX_COLUMNS, CONCEPT_PREFIX, Collection
from csr.data.splits import SplitShares, complete_split
from csr.errors import DataError

CLASSES = ("health", "sick", "tb")
CATEGORIES = {1: "ActiveTuberculosis", 2: "ObsoletePulmonaryTuberculosis", 3: "PulmonaryTuberculosis"}
LISTS = {"train": "TBX11K_train", "test": "TBX11K_val"}  # our split → their list


@dataclass(frozen=True)
class TBX11KConfig:
    """What the publisher leaves to the user.

    Args:
        concepts: the user's table of concept labels, CSV or Parquet; a path in the data set's folder, whose changes DVC
            then sees.
        located: concepts whose place is the official box, in images where the table says that they are present.
    """

    concepts: str = "concepts.csv"
    located: tuple[str, ...] = ()


def read_tbx11k(folder: Path, config: TBX11KConfig, shares: SplitShares, problems: Problems) -> RawSet:
    """Reads lists, boxes and the user's concepts.

    Args:
        folder: holds ``imgs``, ``lists`` and ``annotations``.
        shares: ``validation`` is the share of the official training list that becomes the validation split, or
            ``folds`` are of that list.
        problems: gets what is wrong; the row is left out.

    Raises:
        DataError: a missing file or column.
    """
    listed = pd.concat([_read_list(folder / "lists" / f"{name}.txt", split, problems) for split, name in LISTS.items()])
    twice = listed["study_id"].duplicated()
    problems.add_rows(listed, twice, "image is listed twice", "study_id")
    studies = listed[~twice].reset_index(drop=True)
    file = folder / config.concepts
    table = read_rows(file, ("image",))
    concepts = concept_columns(table, file)
    if unknown := [name for name in config.located if name not in concepts]:
        raise DataError(f"data.tbx11k.located: {file} has no column '{CONCEPT_PREFIX}{unknown[0]}'")
    studies = _join(studies, table, concepts, problems)
    part_of_train = replace(shares, test=0.0)
    free = studies["split"] == "train"
    studies["split"] = complete_split(studies.assign(split=studies["split"].where(~free, "")), part_of_train)
    studies["part"] = studies["split"]
    boxes = _read_boxes(folder / "annotations" / "json", studies, config.located, problems)
    return RawSet(Collection("tbx11k", concepts, CLASSES, studies, boxes), folder)


def _read_list(file: Path, split: str, problems: Problems) -> pd.DataFrame:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{file}: missing; data.path must name the folder that holds imgs, lists and annotations"
        ) from None
    rows = []
    for number, line in enumerate(lines, 1):
        name, where = line.strip().removeprefix("imgs/"), f"{file} line {number}"
        if not name:
            continue
        label = name.partition("/")[0]
        if label in CLASSES:
            rows.append((name, f"imgs/{name}", split, label, name, "", where))
        else:
            problems.add(where, f"the class of {name!r} is none of {', '.join(CLASSES)}")
    return pd.DataFrame(rows, columns=["study_id", "image", "split", "label", "patient_id", "site", "where"])


def _join(studies: pd.DataFrame, table: pd.DataFrame, concepts: tuple[str, ...], problems: Problems) -> pd.DataFrame:
    """The studies with the user's labels; unknown where the table names no image."""
    columns = [CONCEPT_PREFIX + name for name in concepts]
    table = label_values(table, columns, problems)
    table["study_id"] = table["image"].str.removeprefix("imgs/")
    for wrong, reason in (
        (table["study_id"].duplicated(), "image occurs twice"),
        (~table["study_id"].isin(studies["study_id"]), "image is in neither list"),
    ):
        problems.add_rows(table, wrong, reason, "image")
    if "patient_id" in table:
        patients = table.drop_duplicates("study_id").set_index("study_id")["patient_id"]
        known = studies["study_id"].map(patients).fillna("")
        studies = studies.assign(patient_id=known.where(known != "", studies["study_id"]))
    labels = table.drop_duplicates("study_id")[["study_id", *columns]]
    return studies.merge(labels, on="study_id", how="left", validate="one_to_one").astype(
        dict.fromkeys(columns, np.float32)
    )


def _read_boxes(folder: Path, studies: pd.DataFrame, located: tuple[str, ...], problems: Problems) -> pd.DataFrame:
    """The official boxes as boxes of the located concepts that their image shows."""
    if not located:
        return no_boxes()
    labels = studies.set_index("study_id")
    rows = []
    for name in LISTS.values():
        file = folder / f"{name}.json"
        content = _read_json(file)
        images = {image["id"]: image["file_name"].removeprefix("imgs/") for image in content["images"]}
        for number, annotation in enumerate(content["annotations"]):
            where = f"{file} annotation {annotation.get('id', number)}"
            study = images.get(annotation["image_id"])
            if study is None or annotation["category_id"] not in CATEGORIES:
                problems.add(
                    where, f"names an unknown image or category: {annotation['image_id']}, {annotation['category_id']}"
                )
                continue
            x, y, width, height = map(float, annotation["bbox"])
            if width <= 0 or height <= 0:
                problems.add(where, f"bbox must have a positive width and height, got {annotation['bbox']}")
                continue
            if study in labels.index:
                shown = [each for each in located if labels.at[study, CONCEPT_PREFIX + each] == 1]
                rows += [(study, each, x, y, x + width, y + height, where) for each in shown]
    return pd.DataFrame(rows, columns=[*BOX_COLUMNS, "where"]) if rows else no_boxes()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{file}: missing; data.tbx11k.located needs the official boxes") from None
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({error})") from None
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise DataError(f"{file}: is not in COCO's format: 'images' and 'annotations' are missing")
    return content
