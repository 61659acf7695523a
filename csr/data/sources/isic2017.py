"""Source: the ISIC 2017 challenge (Codella et al. 2018) as its organisers ship it.

- ``ISIC-2017_{Training,Validation,Test_v2}_Data/<id>.jpg`` and ``<id>_superpixels.png``;
- ``ISIC-2017_…_Part2_GroundTruth/<id>_features.json``: for each dermoscopic feature a list of 0 and 1 over superpixels;
- ``ISIC-2017_…_Part3_GroundTruth.csv``: ``image_id, melanoma, seborrheic_keratosis``; both 0 is a nevus.

A superpixel's number is coded in its colour, R + 256·G + 65536·B. A concept is present where any superpixel shows it;
its boxes enclose the connected regions that such superpixels make. An image without a features file has unknown
concepts. The splits are the official ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from csr.data.files import read_rows
from csr.data.problems import Problems
from csr.data.raw import RawSet, no_boxes
from csr.data.records import BOX_COLUMNS, CONCEPT_PREFIX, Collection
from csr.data.regions import region_boxes
from csr.errors import DataError

CONCEPTS = ("pigment_network", "negative_network", "milia_like_cyst", "streaks")
CLASSES = ("melanoma", "nevus", "seborrheic_keratosis")
PARTS = {"train": "Training", "val": "Validation", "test": "Test_v2"}


def read_isic2017(
    folder: Path,
    workers: int,
    problems: Problems,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> RawSet:
    """Reads diagnoses, features and superpixels.

    Args:
        folder: holds the organisers' folders.
        workers: threads that decode superpixels.
        problems: gets what is wrong; the study is left out.

    Raises:
        DataError: a missing file or column.
    """
    studies = pd.concat([_read_part(folder, split, problems) for split in PARTS], ignore_index=True)
    twice = studies["study_id"].duplicated()
    problems.add_rows(studies, twice, "image_id occurs twice", "study_id")
    studies = studies[~twice].reset_index(drop=True)
    with ThreadPoolExecutor(workers) as pool:
        found = list(
            progress(
                pool.map(lambda *one: _features(folder, *one), studies["study_id"], studies["split"]), len(studies)
            )
        )
    labels = np.full((len(studies), len(CONCEPTS)), np.nan, np.float32)
    rows, good = [], np.ones(len(studies), bool)
    for index, (study, features) in enumerate(zip(studies["study_id"], found, strict=True)):
        if isinstance(features, DataError):
            where, _, reason = str(features).partition(": ")
            problems.add(where, reason)
            good[index] = False
        elif features is not None:
            for k, name in enumerate(CONCEPTS):
                labels[index, k] = len(features[name]) > 0
                where = f"{_features_file(folder, study, studies['split'].iat[index])} {name}"
                rows += [(study, name, *box, where) for box in features[name]]
    for k, name in enumerate(CONCEPTS):
        studies[CONCEPT_PREFIX + name] = labels[:, k]
    boxes = pd.DataFrame(rows, columns=[*BOX_COLUMNS, "where"]) if rows else no_boxes()
    return RawSet(Collection("isic2017", CONCEPTS, CLASSES, studies[good].reset_index(drop=True), boxes), folder)


def _read_part(folder: Path, split: str, problems: Problems) -> pd.DataFrame:
    name = f"ISIC-2017_{PARTS[split]}"
    table = read_rows(folder / f"{name}_Part3_GroundTruth.csv", ("image_id", "melanoma", "seborrheic_keratosis"))
    codes = table[["melanoma", "seborrheic_keratosis"]].apply(pd.to_numeric, errors="coerce")
    wrong = ~codes.isin((0, 1)).all(axis=1) | (codes.sum(axis=1) > 1)
    for where, (_, values) in zip(table.loc[wrong, "where"], table[wrong].iterrows(), strict=True):
        got = f"{values['melanoma']!r}, {values['seborrheic_keratosis']!r}"
        problems.add(where, f"melanoma and seborrheic_keratosis must be 0 or 1, and not both 1, got {got}")
    table, codes = table[~wrong], codes[~wrong]
    label = np.where(codes["melanoma"] == 1, "melanoma", "nevus")
    label = np.where(codes["seborrheic_keratosis"] == 1, "seborrheic_keratosis", label)
    return pd.DataFrame(
        {
            "study_id": table["image_id"],
            "image": f"{name}_Data/" + table["image_id"] + ".jpg",
            "split": split,
            "label": label,
            "patient_id": table["image_id"],
            "site": "",
            "part": split,
            "where": table["where"],
        }
    )


def _features_file(folder: Path, study: str, split: str) -> Path:
    return folder / f"ISIC-2017_{PARTS[split]}_Part2_GroundTruth" / f"{study}_features.json"


def _features(folder: Path, study: str, split: str) -> dict[str, np.ndarray] | DataError | None:
    """Boxes n×4 of each concept; None if the study has no features file; an error if what it has is wrong."""
    file = _features_file(folder, study, split)
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        return DataError(f"{file}: is not JSON ({error})")
    if not isinstance(content, dict) or not set(CONCEPTS) <= content.keys():
        return DataError(f"{file}: must hold a list for each of {', '.join(CONCEPTS)}")
    if wrong := [name for name in CONCEPTS if not _is_binary(content[name])]:
        return DataError(f"{file}: {wrong[0]} must be a list of 0 and 1")
    if not any(any(content[name]) for name in CONCEPTS):  # nothing to find a place for
        return {name: np.zeros((0, 4)) for name in CONCEPTS}
    picture = folder / f"ISIC-2017_{PARTS[split]}_Data" / f"{study}_superpixels.png"
    try:
        with Image.open(picture, formats=("PNG",)) as image:
            colours = np.asarray(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        return DataError(f"{picture}: cannot be read ({error})")
    number = colours @ np.array([1, 256, 65536], np.int32)
    count = int(number.max()) + 1
    if wrong := [name for name in CONCEPTS if len(content[name]) != count]:
        return DataError(f"{file}: {wrong[0]} has {len(content[wrong[0]])} values for {count} superpixels")
    return {name: region_boxes(np.asarray(content[name], bool)[number]) for name in CONCEPTS}


def _is_binary(values: Any) -> bool:
    return isinstance(values, list) and all(value in (0, 1) for value in values)
