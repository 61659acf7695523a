"""Source: ISIC 2018, Task 2: lesion attributes (Codella et al. 2019, arXiv 1902.03368), as its organisers ship it.

- ``ISIC2018_Task1-2_{Training,Validation,Test}_Input/ISIC_<id>.jpg``;
- ``ISIC2018_Task2_{Training,Validation,Test}_GroundTruth/ISIC_<id>_attribute_<name>.png`` (the folder may end in
  ``_v3``): masks of the image's size, not 0 where the attribute is.

An attribute is present where its mask shows anything; its boxes enclose the mask's connected regions. One without a
file is unknown. Where the organisers' validation and test masks are there they are the splits, else those are drawn
from the training images.

Task 2 has no diagnoses, and those of Task 3 (MEL, NV, BCC, AKIEC, BKL, DF, VASC) are of other images: nothing but
concepts can be learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from csr.data.problems import Problems
from csr.data.raw import RawSet, no_boxes
from csr.data.records import BOX_COLUMNS, CONCEPT_PREFIX, Collection
from csr.data.regions import region_boxes
from csr.data.splits import SplitShares, complete_split
from csr.errors import DataError

ATTRIBUTES = ("globules", "milia_like_cyst", "negative_network", "pigment_network", "streaks")
PARTS = {"train": "Training", "val": "Validation", "test": "Test"}
NO_DIAGNOSES = (
    "Task 2 of ISIC 2018 has attributes and no diagnoses (those of Task 3 are of other images), so none can be learned"
)


def read_isic2018(
    folder: Path,
    shares: SplitShares,
    workers: int,
    problems: Problems,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> RawSet:
    """Reads attributes and their masks.

    Args:
        folder: holds the organisers' folders.
        shares: of the training images, for splits that have no masks of their own.
        workers: threads that decode masks.
        problems: gets what is wrong; the study is left out.

    Raises:
        DataError: the training images or masks are missing.
    """
    parts = {split: _truth_folder(folder, split) for split in PARTS}
    if parts["train"] is None:
        raise DataError(
            f"{folder}: has no folder ISIC2018_Task2_Training_GroundTruth; data.path must name the folder that holds it"
        )
    official = {split: truth for split, truth in parts.items() if truth is not None}
    studies = pd.concat([_images(folder, split) for split in official], ignore_index=True)
    for split, truth in official.items():
        _name_strays(truth, set(studies[studies["split"] == split]["study_id"]), problems)
    jobs = [(folder / row.image, official[row.split], row.study_id) for row in studies.itertuples()]
    with ThreadPoolExecutor(workers) as pool:
        found = list(progress(pool.map(lambda job: _attributes(*job), jobs), len(jobs)))
    labels = np.full((len(studies), len(ATTRIBUTES)), np.nan, np.float32)
    rows, good = [], np.ones(len(studies), bool)
    for index, own in enumerate(found):
        if isinstance(own, DataError):
            where, _, reason = str(own).partition(": ")
            problems.add(where, reason)
            good[index] = False
            continue
        for name, boxes in own.items():
            labels[index, ATTRIBUTES.index(name)] = len(boxes) > 0
            study = studies["study_id"].iat[index]
            rows += [(study, name, *box, str(_mask_file(jobs[index][1], study, name))) for box in boxes]
    for k, name in enumerate(ATTRIBUTES):
        studies[CONCEPT_PREFIX + name] = labels[:, k]
    studies = studies[good].reset_index(drop=True)
    free = studies["split"] == "train"
    own_shares = replace(
        shares,
        validation=0.0 if "val" in official else shares.validation,
        test=0.0 if "test" in official else shares.test,
    )
    studies["split"] = complete_split(studies.assign(split=studies["split"].where(~free, "")), own_shares)
    studies["part"] = studies["split"]
    table = pd.DataFrame(rows, columns=[*BOX_COLUMNS, "where"]) if rows else no_boxes()
    return RawSet(Collection("isic2018", ATTRIBUTES, (), studies, table, "concepts"), folder, NO_DIAGNOSES)


def _truth_folder(folder: Path, split: str) -> Path | None:
    found = sorted(folder.glob(f"ISIC2018_Task2_{PARTS[split]}_GroundTruth*"))
    if len(found) > 1:
        raise DataError(f"{found[1]}: {found[0].name} is there too; remove the one that is out of date")
    return found[0] if found else None


def _images(folder: Path, split: str) -> pd.DataFrame:
    source = folder / f"ISIC2018_Task1-2_{PARTS[split]}_Input"
    names = pd.Series(sorted(file.stem for file in source.glob("ISIC_*.jpg")), dtype=object)
    if names.empty:
        raise DataError(f"{source}: missing or without images; the masks of split {split!r} need it")
    return pd.DataFrame(
        {
            "study_id": names,
            "image": f"{source.name}/" + names + ".jpg",
            "split": split,
            "patient_id": names,
            "site": "",
            "where": [str(source / f"{name}.jpg") for name in names],
        }
    )


def _name_strays(truth: Path, images: set[str], problems: Problems) -> None:
    """Masks of an image or an attribute that is not there."""
    for file in sorted(truth.glob("*.png")):
        image, _, name = file.stem.partition("_attribute_")
        if name not in ATTRIBUTES:
            problems.add(str(file), f"names none of the attributes {', '.join(ATTRIBUTES)}")
        elif image not in images:
            problems.add(str(file), f"has no image {image}.jpg")


def _mask_file(truth: Path, study: str, name: str) -> Path:
    return truth / f"{study}_attribute_{name}.png"


def _attributes(image: Path, truth: Path, study: str) -> dict[str, np.ndarray] | DataError:
    """Boxes n×4 of each attribute that has a mask; an error if a mask is wrong."""
    found: dict[str, np.ndarray] = {}
    for name in ATTRIBUTES:
        file = _mask_file(truth, study, name)
        if not file.exists():
            continue
        try:
            with Image.open(file, formats=("PNG",)) as picture:
                mask = np.asarray(picture.convert("L")) > 0
            with Image.open(image, formats=("JPEG",)) as picture:
                width, height = picture.size
        except (OSError, Image.DecompressionBombError) as error:
            return DataError(f"{file}: cannot be read beside its image ({error})")
        if mask.shape != (height, width):
            return DataError(f"{file}: is {mask.shape[1]}×{mask.shape[0]} pixels, its image {width}×{height}")
        found[name] = region_boxes(mask)
    return found
