"""Reader of the ``table`` layout: the user's own data as a folder of images and two CSV files.

- ``images/``
- ``studies.csv``: ``study_id, image, split, label`` (split train, val, test, or empty = make one), optional
  ``patient_id, site, part`` and one column ``concept:<name>`` per concept holding 1, 0 or empty (unknown);
- ``boxes.csv`` (may be absent or cover only some concepts): ``study_id, concept, x_min, y_min, x_max, y_max`` in pixels
  of the stored image.

Every problem is refused before anything is written, with file and row (row 2 is the first below the header).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from csr.datasets.prepared import PreparedWriter
from csr.errors import DataError, ImageError
from csr.images import Placement, decode, fit
from csr.records import BOX_COLUMNS, CONCEPT_PREFIX, CORNERS, SPLITS, Collection, check_collection

REQUIRED = ("study_id", "image", "split", "label")


def read_table(
    folder: Path, validation_share: float, test_share: float, seed: int, pending: Container[str] = ()
) -> Collection:
    """Reads and checks the two CSV files; box coordinates stay in pixels of the stored images.

    Args:
        folder: the data set.
        validation_share, test_share: of the studies whose split is empty.
        seed: of that split; grouped by patient where ``patient_id`` is given, stratified by label.
        pending: concepts that get labels later (`prepare_table`'s ``finish``); their columns may be empty.

    Raises:
        DataError: a missing file or column, a wrong value, a duplicate id, a missing image, or a data set that cannot
            be trained or judged on (`csr.records.check_collection`).
    """
    file = folder / "studies.csv"
    studies = _read_csv(file)
    for column in REQUIRED:
        if column not in studies:
            raise DataError(f"{file}: column {column!r} is missing; it has {', '.join(studies.columns)}")
    concepts = tuple(name.removeprefix(CONCEPT_PREFIX) for name in studies if name.startswith(CONCEPT_PREFIX))
    if not concepts:
        raise DataError(f"{file}: has no column '{CONCEPT_PREFIX}<name>'; CSR needs at least one concept")
    _check_studies(file, studies, folder)
    for name in concepts:
        column = CONCEPT_PREFIX + name
        values = studies[column].str.strip()
        _refuse_rows(
            file, ~values.isin(("1", "0", "", "1.0", "0.0")), values, f"column {column!r} must be 1, 0 or empty"
        )
        studies[column] = pd.to_numeric(values, errors="coerce").astype(np.float32)
    studies["patient_id"] = _optional(studies, "patient_id", studies["study_id"])
    studies["site"] = _optional(studies, "site", "")
    studies["split"] = _complete_split(studies, validation_share, test_share, seed)
    part = _optional(studies, "part", "test")
    studies["part"] = np.where(studies["split"] == "test", np.where(part == "", "test", part), studies["split"])
    classes = tuple(sorted(studies["label"].unique()))
    boxes = _read_boxes(folder / "boxes.csv", set(studies["study_id"]), concepts)
    collection = Collection(folder.name, concepts, classes, studies, boxes)
    check_collection(collection, str(file), pending)
    return collection


def prepare_table(
    collection: Collection,
    folder: Path,
    path: Path,
    side: int,
    channels: int,
    workers: int,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
    finish: Callable[[Collection, np.ndarray], Collection] = lambda collection, images: collection,
) -> Collection:
    """Decodes all images into a prepared set at ``path``; boxes move with their images.

    Args:
        finish: gets the tables and all prepared images N×C×S×S, and returns the tables that are written.

    Raises:
        DataError: an image that will not decode, or a box outside its image; nothing is written.
    """
    rows = range(len(collection.studies))
    files = collection.studies["image"].tolist()

    def load(row: int) -> tuple[np.ndarray, Placement]:
        name = f"{folder / 'studies.csv'} row {row + 2}, image {files[row]!r}"
        return fit(decode((folder / "images" / files[row]).read_bytes(), name), side, channels)

    placements: list[Placement] = []
    with (
        PreparedWriter(path, len(rows), channels, side) as writer,
        ThreadPoolExecutor(workers) as pool,  # Pillow and pydicom's decoders release the interpreter lock
    ):
        try:
            for row, (canvas, placement) in zip(rows, progress(pool.map(load, rows), len(rows)), strict=True):
                writer.write_image(row, canvas)
                placements.append(placement)
        except ImageError as error:
            pool.shutdown(cancel_futures=True)
            raise DataError(str(error)) from None
        boxes = _place_boxes(collection, placements, folder / "boxes.csv")
        moved = Collection(collection.name, collection.concepts, collection.classes, collection.studies, boxes)
        finished = finish(moved, writer.images)
        writer.write_tables(finished)
    return finished


def _read_csv(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file}: missing; see 'Your own data' in the README for the layout") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is not a comma-separated UTF-8 table ({' '.join(str(error).split())})") from None
    table.columns = [str(name).strip() for name in table.columns]
    return table


def _check_studies(file: Path, studies: pd.DataFrame, folder: Path) -> None:
    ids = studies["study_id"]
    _refuse_rows(file, ids == "", ids, "study_id is empty")
    _refuse_rows(file, ids.duplicated(), ids, "study_id occurs twice")
    _refuse_rows(file, studies["label"] == "", ids, "label is empty")
    known = studies["split"].isin((*SPLITS, ""))
    _refuse_rows(file, ~known, studies["split"], f"split must be {', '.join(SPLITS)} or empty")
    there = np.array([(folder / "images" / name).is_file() for name in studies["image"]])
    _refuse_rows(file, ~there, studies["image"], f"no such file in {folder / 'images'}")


def _refuse_rows(file: Path, wrong: pd.Series | np.ndarray, values: pd.Series, reason: str) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        others = f" ({len(rows) - 1} more rows like it)" if len(rows) > 1 else ""
        raise DataError(f"{file} row {rows[0] + 2}: {reason}, got {values.iat[rows[0]]!r}{others}")


def _optional(studies: pd.DataFrame, column: str, default: pd.Series | str) -> pd.Series:
    if column in studies:
        return studies[column]
    return default if isinstance(default, pd.Series) else pd.Series(default, index=studies.index)


def _complete_split(studies: pd.DataFrame, validation_share: float, test_share: float, seed: int) -> pd.Series:
    """Fills empty splits: whole patients, class by class, seeded."""
    split = studies["split"].copy()
    empty = split == ""
    if not empty.any():
        return split
    patients = studies[empty].groupby("patient_id", sort=True)["label"].first()
    rng = np.random.default_rng(seed)
    assigned: dict[str, str] = {}
    for _, group in patients.groupby(patients, sort=True):
        order = rng.permutation(group.index.to_numpy())
        test, val = round(len(order) * test_share), round(len(order) * validation_share)
        assigned |= dict.fromkeys(order[:test], "test") | dict.fromkeys(order[test : test + val], "val")
        assigned |= dict.fromkeys(order[test + val :], "train")
    split[empty] = studies.loc[empty, "patient_id"].map(assigned)
    return split


def _read_boxes(file: Path, studies: set[str], concepts: tuple[str, ...]) -> pd.DataFrame:
    if not file.exists():
        return pd.DataFrame(
            {name: pd.Series(dtype=object if name in BOX_COLUMNS[:2] else float) for name in BOX_COLUMNS}
        )
    boxes = _read_csv(file)
    for column in BOX_COLUMNS:
        if column not in boxes:
            raise DataError(f"{file}: column {column!r} is missing; it has {', '.join(boxes.columns)}")
    boxes = boxes[list(BOX_COLUMNS)].copy()
    _refuse_rows(file, ~boxes["study_id"].isin(studies), boxes["study_id"], "study_id is not in studies.csv")
    _refuse_rows(file, ~boxes["concept"].isin(concepts), boxes["concept"], "concept has no column in studies.csv")
    for corner in CORNERS:
        values = pd.to_numeric(boxes[corner], errors="coerce")
        _refuse_rows(file, ~np.isfinite(values), boxes[corner], f"{corner} must be a number")
        boxes[corner] = values.astype(np.float64)
    for low, high in (("x_min", "x_max"), ("y_min", "y_max")):
        _refuse_rows(file, boxes[high] <= boxes[low], boxes[high], f"{high} must be greater than {low}")
    return boxes


def _place_boxes(collection: Collection, placements: list[Placement], file: Path) -> pd.DataFrame:
    """Moves boxes into pixels of the prepared images, cut to them."""
    boxes = collection.boxes.copy()
    row_of = {study: row for row, study in enumerate(collection.studies["study_id"])}
    places = [placements[row_of[study]] for study in boxes["study_id"]]
    corners = boxes[CORNERS].to_numpy(np.float64)
    sizes = np.array([(place.width, place.height) for place in places], np.float64).reshape(-1, 2)
    outside = (corners[:, 2:] <= 0).any(1) | (corners[:, :2] >= sizes).any(1)
    for index in np.flatnonzero(outside):
        place = places[index]
        raise DataError(
            f"{file} row {index + 2}: the box lies outside its {place.width}×{place.height} image; "
            "coordinates are pixels of the stored image"
        )
    cut = np.clip(corners, 0, np.tile(sizes, 2))
    moved = [place.to_canvas(box) for place, box in zip(places, cut, strict=True)]
    boxes[CORNERS] = np.array(moved).reshape(-1, 4)
    return boxes
