"""Source: the ``table`` layout, the user's own data as a folder of images and two tables.

- ``images/``
- ``studies.csv`` (or ``.parquet``): ``study_id, image, split`` (train, val, test, or empty = make one), optional
  ``patient_id, site, part``, ``frame`` (which page or frame of a file of several, from 1), and one column
  ``concept:<name>`` per concept: 1 or present, 0 or absent, empty or unknown. What is to be predicted is in ``label``,
  one class a study, or in columns ``target:<name>``, valued like concepts, where a study can have several. Studies for
  training may have none: an empty ``label``, or empty targets;
- ``boxes.csv`` (or ``.parquet``; may be absent or cover only some concepts): ``study_id, concept, x_min, y_min, x_max,
  y_max`` in pixels of the stored image, optional ``mask``;
- ``masks/``: what column ``mask`` names, PNG images of the size that the stored image has when it is upright, not 0 on
  the finding. Where all four corners are empty, the box is the mask's tight one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from csr.data.files import read_rows
from csr.data.problems import Problems
from csr.data.raw import RawSet, check_boxes, concept_columns, label_values, named_columns, no_boxes
from csr.data.records import BOX_COLUMNS, CONCEPT_PREFIX, CORNERS, SPLITS, TARGET_PREFIX, Collection, Task
from csr.data.splits import SplitShares, complete_split
from csr.errors import DataError

REQUIRED = ("study_id", "image", "split")


def read_table(folder: Path, shares: SplitShares, problems: Problems) -> RawSet:
    """Reads and checks the two tables.

    Args:
        shares: of the studies whose split is empty; grouped by patient where ``patient_id`` is given.
        problems: gets every row that is wrong; the row is left out.

    Raises:
        DataError: a missing file or column, or a label that no study has; nothing can be read then.
    """
    file = _either(folder / "studies.csv")
    studies = read_rows(file, REQUIRED)
    concepts, targets = concept_columns(studies, file), named_columns(studies, TARGET_PREFIX)
    if targets and "label" in studies:
        raise DataError(f"{file}: has a column 'label' and columns '{TARGET_PREFIX}…'; keep what is to be predicted")
    studies, known = _good_studies(studies, concepts, targets, problems), set(studies["study_id"])
    if "label" in studies:
        studies["label"] = studies["label"].where(studies["label"] != "", None)
        if studies["label"].isna().all():
            raise DataError(
                f"{file}: column 'label' is empty in every row; fill it, or remove it to learn concepts only"
            )
    studies["image"] = "images/" + studies["image"]
    studies["patient_id"] = _optional(studies, "patient_id", studies["study_id"])
    studies["site"] = _optional(studies, "site", "")
    classes = tuple(sorted(studies["label"].dropna().unique())) if "label" in studies else targets
    task: Task = "multiclass" if "label" in studies else "multilabel" if targets else "concepts"
    boxes = _read_boxes(_either(folder / "boxes.csv"), known, concepts, problems)
    boxes = boxes[boxes["study_id"].isin(studies["study_id"])].reset_index(drop=True)
    studies["split"] = complete_split(studies, shares, set(boxes["study_id"]))
    part = _optional(studies, "part", "test")
    studies["part"] = np.where(studies["split"] == "test", np.where(part == "", "test", part), studies["split"])
    return RawSet(Collection(folder.name, concepts, classes, studies, boxes, task), folder)


def _either(file: Path) -> Path:
    """The CSV file, or the Parquet file in its place."""
    parquet = file.with_suffix(".parquet")
    if file.exists() and parquet.exists():
        raise DataError(f"{file}: {parquet.name} is there too; remove the one that is out of date")
    return parquet if parquet.exists() else file


def _good_studies(
    studies: pd.DataFrame, concepts: tuple[str, ...], targets: tuple[str, ...], problems: Problems
) -> pd.DataFrame:
    """The studies without those rows that are wrong, and with labels as numbers."""
    wrong = {
        "study_id is empty": (studies["study_id"] == "", "study_id"),
        "study_id occurs twice": (studies["study_id"].duplicated() & (studies["study_id"] != ""), "study_id"),
        f"split must be {', '.join(SPLITS)} or empty": (~studies["split"].isin((*SPLITS, "")), "split"),
    }
    good = pd.Series(True, index=studies.index)
    for reason, (rows, column) in wrong.items():
        problems.add_rows(studies, rows, reason, column)
        good &= ~rows
    if "frame" in studies:
        rows = (studies["frame"] != "") & ~studies["frame"].str.fullmatch("[1-9][0-9]{0,4}")
        problems.add_rows(studies, rows, "frame must be a number from 1, or empty", "frame")
        good &= ~rows
        studies["frame"] = pd.to_numeric(studies["frame"].mask(rows, ""), errors="coerce").astype("Int64")
    columns = [*(CONCEPT_PREFIX + name for name in concepts), *(TARGET_PREFIX + name for name in targets)]
    return label_values(studies[good], columns, problems)


def _optional(studies: pd.DataFrame, column: str, default: pd.Series | str) -> pd.Series:
    if column in studies:
        return studies[column]
    return default if isinstance(default, pd.Series) else pd.Series(default, index=studies.index, dtype=object)


def _read_boxes(file: Path, studies: set[str], concepts: tuple[str, ...], problems: Problems) -> pd.DataFrame:
    if not file.exists():
        return no_boxes()
    boxes = read_rows(file, BOX_COLUMNS)
    boxes = boxes[[*BOX_COLUMNS, *(["mask"] if "mask" in boxes else []), "where"]]
    for column, there, reason in (
        ("study_id", studies, "study_id is not in the table of studies"),
        ("concept", concepts, "concept has no column in the table of studies"),
    ):
        wrong = ~boxes[column].isin(there)
        problems.add_rows(boxes, wrong, reason, column)
        boxes = boxes[~wrong]
    return _check_outlined(boxes, problems) if "mask" in boxes else check_boxes(boxes, problems)


def _check_outlined(boxes: pd.DataFrame, problems: Problems) -> pd.DataFrame:
    """What `check_boxes` does, for boxes that may leave their corners, as NaN, to a mask."""
    named, empty = boxes["mask"] != "", boxes[CORNERS] == ""
    partly = named & empty.any(axis=1) & ~empty.all(axis=1)
    for where, gaps in zip(boxes.loc[partly, "where"], empty[partly].to_numpy(), strict=True):
        missing = ", ".join(np.array(CORNERS)[gaps])
        what = "empty; give all four corners, or none to take those of the mask"
        problems.add(where, f"{missing} {what}", kind=f"some corners are {what}")
    left = named & empty.all(axis=1)
    given = check_boxes(boxes[~left & ~partly], problems)
    found = pd.concat([given, boxes[left].assign(**dict.fromkeys(CORNERS, np.nan))])
    found["mask"] = ("masks/" + found["mask"]).where(found["mask"] != "", "")
    rank = {where: row for row, where in enumerate(boxes["where"])}
    return found.sort_values("where", key=lambda where: where.map(rank), ignore_index=True)
