"""Source: VinDr-CXR (Nguyen et al. 2022, Scientific Data 9, 429).

PhysioNet's edition, 1.0.0:

- ``train/<image_id>.dicom``, ``test/<image_id>.dicom``;
- ``annotations/image_labels_{train,test}.csv``: ``image_id``, in ``train`` ``rad_id``, and a column of 0 and 1 for each
  of 22 local findings (the concepts) and 6 global labels (the classes; an image can have several). ``train`` has three
  rows an image, a radiologist each, ``test`` one, their consensus, and calls ``Other diseases`` ``Other disease``;
- ``annotations/annotations_{train,test}.csv``: ``image_id``, in ``train`` ``rad_id``, ``class_name, x_min, y_min,
  x_max, y_max`` in pixels of the DICOM image, without coordinates for labels that have no place.

A label is present where enough of an image's readers say so (`VinDrConfig.consensus`). Of a finding that is present all
readers' boxes are kept, those that overlap as one (`VinDrConfig.merge_iou`), and none of one that was voted down: that
is what a vote means, and no mistake. Labels that hardly any training image has are left out (`VinDrConfig.least`). The
official test images are the test split, which speaks with one voice, so its boxes are kept as they are; a validation
split is drawn from the others. The set names no patients, so an image counts as one.

Kaggle's edition, ``train.csv`` with ``image_id, class_name, class_id, rad_id, x_min, y_min, x_max, y_max`` and
``train/<image_id>.dicom``, has 14 findings, "No finding" and no global labels: nothing but concepts can be learned. Its
test images have no labels, so all splits are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from csr.data.files import read_rows
from csr.data.problems import Problems
from csr.data.raw import RawSet, check_boxes, named_columns, no_boxes
from csr.data.records import BOX_COLUMNS, CONCEPT_PREFIX, CORNERS, TARGET_PREFIX, Collection
from csr.data.sources.merging import merge_overlapping
from csr.data.splits import SplitShares, complete_split
from csr.errors import ConfigError, DataError

FINDINGS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
)
DISEASES = ("COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding")
KAGGLE_FINDINGS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
)
NORMAL = "No finding"
SYNONYMS = {"other disease": "Other diseases"}
SUFFIXES = (".dicom", ".dcm")
NO_DISEASES = (
    "Kaggle's edition of VinDr-CXR has 14 findings and no diseases, so no diagnosis can be learned from it; take "
    "PhysioNet's edition"
)


@dataclass(frozen=True)
class VinDrConfig:
    """What the publisher leaves to the user.

    Args:
        consensus: how many of an image's readers must name a label: ``any`` one, the ``majority``, or ``all``.
        least: labels that fewer images have, by that rule and without those of the test split, are left out; 22
            findings and 6 global labels were asked for, and some were hardly ever found.
        merge_iou: boxes of one finding, drawn on one image by several readers, become one from this intersection over
            union on (`csr.data.sources.merging`); None: every reader's box stays. 0.4 is what Kaggle's competition
            called found.
    """

    consensus: Literal["any", "majority", "all"] = "majority"
    least: int = 10
    merge_iou: float | None = 0.4

    def __post_init__(self) -> None:
        if self.merge_iou is not None and not 0 < self.merge_iou <= 1:
            raise ConfigError(
                "data.vindr_cxr.merge_iou: must be greater than 0 and at most 1, or null to keep every reader's box, "
                f"got {self.merge_iou}"
            )
        if self.least < 1:
            raise ConfigError(
                "data.vindr_cxr.least: must be at least 1, since a label that no image has is not learned"
            )


def read_vindr_cxr(folder: Path, config: VinDrConfig, shares: SplitShares, problems: Problems) -> RawSet:
    """Reads either edition.

    Args:
        folder: holds ``train`` and, of PhysioNet's edition, ``test`` and ``annotations``, of Kaggle's ``train.csv``.
        shares: of PhysioNet's training images, ``validation`` is for validation; of Kaggle's, both count.
        problems: gets what is wrong; the row is left out.

    Raises:
        DataError: neither edition is there, or a missing file or column.
    """
    if (folder / "annotations").is_dir():
        return _read_physionet(folder, config, shares, problems)
    if (folder / "train.csv").is_file():
        return _read_kaggle(folder, config, shares, problems)
    raise DataError(
        f"{folder}: has neither 'annotations' (PhysioNet's edition) nor 'train.csv' (Kaggle's); data.path must name "
        "the folder that holds them"
    )


def _read_physionet(folder: Path, config: VinDrConfig, shares: SplitShares, problems: Problems) -> RawSet:
    parts = [_image_labels(folder, split, config, problems) for split in ("train", "test")]
    studies = pd.concat(parts, ignore_index=True)
    twice = studies["study_id"].duplicated()
    problems.add_rows(studies, twice, "image_id is in train and in test", "study_id")
    studies = studies[~twice].reset_index(drop=True)
    free = studies["split"] == "train"
    studies, notes = _without_rare(studies, free, config)
    without_test = replace(shares, test=0.0)
    studies["split"] = complete_split(studies.assign(split=studies["split"].where(~free, "")), without_test)
    studies["part"] = studies["split"]
    findings, diseases = named_columns(studies, CONCEPT_PREFIX), named_columns(studies, TARGET_PREFIX)
    is_test = studies["split"] == "test"
    voted = _annotations(folder, "train", studies[~is_test], findings, problems)
    agreed = _annotations(folder, "test", studies[is_test], findings, problems)
    voted, merged = _merged(_of_present(voted, studies), config)
    # the test set speaks with one voice, so a box there of what it calls absent is a mistake, and is found later
    tables = [table for table in (voted, agreed) if len(table)]
    boxes = pd.concat(tables or [no_boxes()], ignore_index=True)
    collection = Collection("vindr_cxr", findings, diseases, studies, boxes, "multilabel")
    return RawSet(collection, folder, notes=(*notes, *merged))


def _without_rare(
    studies: pd.DataFrame, counted: pd.Series, config: VinDrConfig
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The studies without the labels that too few of the counted ones have, and a sentence that names those."""
    counts = studies[counted].filter(like=":").sum().astype(int)
    rare = counts[counts < config.least]
    if rare.empty:
        return studies, ()
    names = ", ".join(f"{column.partition(':')[2]} ({count})" for column, count in rare.items())
    note = (
        f"labels that fewer than {config.least} images have, of those that are not for testing, are left out: {names}; "
        "data.vindr_cxr.least is that number"
    )
    return studies.drop(columns=rare.index), (note,)


def _image_labels(folder: Path, split: str, config: VinDrConfig, problems: Problems) -> pd.DataFrame:
    """One row an image with what its readers agree on."""
    file = folder / "annotations" / f"image_labels_{split}.csv"
    readers = ("rad_id",) if split == "train" else ()
    table = _with_known_columns(read_rows(file, ("image_id", *readers)), file, (*FINDINGS, *DISEASES))
    labels = [*FINDINGS, *DISEASES]
    wrong = pd.Series(False, index=table.index)
    for label in labels:
        bad = ~table[label].isin(("0", "1", "0.0", "1.0"))
        problems.add_rows(table, bad, f"column {label!r} must be 0 or 1", label)
        wrong |= bad
    twice = table.duplicated(["image_id", *readers])
    problems.add_rows(table, twice, f"image_id occurs twice{' for one rad_id' if readers else ''}", "image_id")
    table = table[~(wrong | twice)]
    votes = table.assign(**{label: table[label].astype(np.float32) for label in labels}).groupby("image_id", sort=False)
    said = _agreed(votes[labels].sum(), votes.size(), config)
    columns = {CONCEPT_PREFIX + name: said[name] for name in FINDINGS}
    columns |= {TARGET_PREFIX + name: said[name] for name in DISEASES}
    images = f"{split}/" + said.index.to_series() + ".dicom"
    return _studies(images, split, votes["where"].first(), pd.DataFrame(columns))


def _agreed(votes: pd.DataFrame, readers: pd.Series, config: VinDrConfig) -> pd.DataFrame:
    """1 or 0 for each image (row) and label, from the number of readers who name it and the number who were asked."""
    needed = {"any": readers * 0 + 1, "majority": readers // 2 + 1, "all": readers}[config.consensus]
    return votes.ge(needed, axis=0).astype(np.float32)


def _studies(images: pd.Series, split: str, where: pd.Series, labels: pd.DataFrame) -> pd.DataFrame:
    """Args:
    images: file by image, the index of ``where`` and ``labels`` too.
    """
    names = images.index.to_series()
    about = {"study_id": names, "image": images, "split": split, "patient_id": names, "site": "", "where": where}
    return pd.concat([pd.DataFrame(about), labels], axis=1).reset_index(drop=True)


def _with_known_columns(table: pd.DataFrame, file: Path, labels: tuple[str, ...]) -> pd.DataFrame:
    """The table with its label columns named as in ``labels``."""
    table = table.rename(columns={name: _canonical(name, labels) for name in table})
    missing = [label for label in labels if label not in table]
    unknown = [name for name in table if name not in (*labels, "image_id", "rad_id", "where")]
    if missing or unknown:
        what = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is none of VinDr-CXR's labels"
        raise DataError(f"{file}: column {what}; it has {', '.join(name for name in table if name != 'where')}")
    return table


def _canonical(name: str, labels: tuple[str, ...]) -> str:
    """The label that is meant, whatever its capitals and spaces; the name itself if it is none."""
    simple = " ".join(name.replace("/", " / ").split()).replace(" / ", "/").casefold()
    known = {label.casefold(): label for label in labels} | {
        other: label for other, label in SYNONYMS.items() if label in labels
    }
    return known.get(simple, name)


def _annotations(
    folder: Path, split: str, studies: pd.DataFrame, findings: tuple[str, ...], problems: Problems
) -> pd.DataFrame:
    """Every reader's boxes of some findings."""
    file = folder / "annotations" / f"annotations_{split}.csv"
    rows = read_rows(file, ("image_id", "class_name", *CORNERS))
    table = f"image_labels_{split}.csv"
    boxes = _boxes(rows, (*FINDINGS, *DISEASES), FINDINGS, set(studies["study_id"]), table, problems)
    return boxes[boxes["concept"].isin(findings)].reset_index(drop=True)


def _boxes(
    rows: pd.DataFrame,
    labels: tuple[str, ...],
    findings: tuple[str, ...],
    images: set[str],
    table: str,
    problems: Problems,
) -> pd.DataFrame:
    rows = rows.assign(study_id=rows["image_id"], concept=[_canonical(name, labels) for name in rows["class_name"]])
    placed = (rows[CORNERS] != "").any(axis=1)
    unknown = ~rows["concept"].isin(labels)
    stray = ~rows["study_id"].isin(images)
    nowhere = placed & rows["concept"].isin(set(labels) - set(findings))
    problems.add_rows(rows, unknown, "class_name is none of VinDr-CXR's labels", "class_name")
    problems.add_rows(rows, stray, f"image_id has no row in the table {table}", "image_id")
    problems.add_rows(rows, nowhere, "there is a box of a label without a place", "class_name")
    rows = rows[placed & ~(unknown | stray | nowhere)]
    return check_boxes(rows[[*BOX_COLUMNS, "where"]], problems) if len(rows) else no_boxes()


def _of_present(boxes: pd.DataFrame, studies: pd.DataFrame) -> pd.DataFrame:
    """The boxes of findings that the readers agree on."""
    labels = studies.set_index("study_id")
    present = [labels.at[box.study_id, CONCEPT_PREFIX + box.concept] == 1 for box in boxes.itertuples()]
    return boxes[np.array(present, bool)].reset_index(drop=True)


def _merged(boxes: pd.DataFrame, config: VinDrConfig) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One box for those of several readers that overlap, and a sentence that counts them."""
    if config.merge_iou is None:
        return boxes, ()
    merged = merge_overlapping(boxes, config.merge_iou)
    if len(merged) == len(boxes):
        return boxes, ()
    note = (
        f"{len(boxes):,} boxes of several readers became {len(merged):,}: those of one finding that overlap are one, "
        f"from an intersection over union of {config.merge_iou:g} on; data.vindr_cxr.merge_iou is that number"
    )
    return merged, (note,)


def _read_kaggle(folder: Path, config: VinDrConfig, shares: SplitShares, problems: Problems) -> RawSet:
    file = folder / "train.csv"
    rows = read_rows(file, ("image_id", "class_name", "class_id", "rad_id", *CORNERS))
    labels = (*KAGGLE_FINDINGS, NORMAL)
    names = pd.Series([_canonical(name, labels) for name in rows["class_name"]], index=rows.index)
    known = names.isin(labels)
    problems.add_rows(rows, ~known, "class_name is none of Kaggle's 14 findings", "class_name")
    readers = rows.groupby("image_id", sort=False)["rad_id"].nunique()
    votes = pd.DataFrame(
        {name: rows[names == name].groupby("image_id")["rad_id"].nunique() for name in KAGGLE_FINDINGS}
    )
    said = _agreed(votes.reindex(readers.index).fillna(0), readers, config)
    suffix = _kaggle_suffix(folder, readers.index[0]) if len(readers) else SUFFIXES[0]
    columns = pd.DataFrame({CONCEPT_PREFIX + name: said[name] for name in KAGGLE_FINDINGS})
    images = "train/" + said.index.to_series() + suffix
    studies = _studies(images, "", rows.groupby("image_id")["where"].first(), columns)
    studies, notes = _without_rare(studies, studies["split"] == "", config)
    studies["split"] = complete_split(studies, shares)
    studies["part"] = studies["split"]
    findings = named_columns(studies, CONCEPT_PREFIX)
    boxes = _boxes(rows[known], labels, KAGGLE_FINDINGS, set(studies["study_id"]), file.name, problems)
    boxes, merged = _merged(_of_present(boxes[boxes["concept"].isin(findings)], studies), config)
    collection = Collection("vindr_cxr", findings, (), studies, boxes, "concepts")
    return RawSet(collection, folder, NO_DISEASES, (*notes, *merged))


def _kaggle_suffix(folder: Path, image: str) -> str:
    for suffix in SUFFIXES:
        if (folder / "train" / f"{image}{suffix}").is_file():
            return suffix
    if other := sorted((folder / "train").glob(f"{image}.*")):
        raise DataError(
            f"{other[0]}: is a copy in another format; Kaggle's boxes are in pixels of the DICOM files, and copies are "
            "usually of another size. Put the .dicom files in its place"
        )
    return SUFFIXES[0]  # the missing file is reported with its row
