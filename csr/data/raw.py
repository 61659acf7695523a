"""A data set as its publisher ships it, between the source that understands it and the prepared form.

Every source yields a `RawSet`; what follows is the same for all: splits, decoding, moving boxes with their images, and
the checks that need all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from csr.data.decoded import Decoded, DecodedImages, decode_file
from csr.data.images import Placement
from csr.data.leaks import NEAR, Fingerprints, find_leaks
from csr.data.masks import place_mask, read_mask, tight_box
from csr.data.names import StoredNames
from csr.data.prepared import PreparedWriter
from csr.data.problems import Problems
from csr.data.records import (
    BOX_COLUMNS,
    CONCEPT_PREFIX,
    CORNERS,
    SPACING,
    SPLITS,
    STORED,
    Collection,
    validation_errors,
)
from csr.data.schema import check_schema
from csr.data.shards import Images
from csr.errors import DataError, ImageError

LABELS = {
    **dict.fromkeys(("1", "1.0", "true", "present"), 1.0),
    **dict.fromkeys(("0", "0.0", "false", "absent"), 0.0),
    **dict.fromkeys(("", "unknown"), np.nan),
}

T = TypeVar("T")


@dataclass(frozen=True)
class RawSet:
    """What a source found.

    Args:
        collection: boxes are in pixels of the stored images. Both tables have one column more than `csr.data.records`
            says, ``where``: file and row. A column ``mask`` of boxes names files, "" where there is none; a box that
            has one may have NaN for corners, and gets those of its mask.
        folder: the paths in ``collection.studies["image"]`` and ``collection.boxes["mask"]`` are relative to it.
        no_classes: a sentence on why the data set has no classes, where its task is ``concepts``.
        notes: sentences on what the source decided that its user should know.
    """

    collection: Collection
    folder: Path
    no_classes: str = ""
    notes: tuple[str, ...] = ()


def named_columns(table: pd.DataFrame, prefix: str) -> tuple[str, ...]:
    """Names that a table has columns ``<prefix><name>`` for."""
    return tuple(name.removeprefix(prefix) for name in table if name.startswith(prefix))


def concept_columns(table: pd.DataFrame, file: Path) -> tuple[str, ...]:
    """Names of the concepts that a table has columns for.

    Raises:
        DataError: there is none.
    """
    names = named_columns(table, CONCEPT_PREFIX)
    if not names:
        raise DataError(f"{file}: has no column '{CONCEPT_PREFIX}<name>'; CSR needs at least one concept")
    return names


def label_values(table: pd.DataFrame, columns: list[str], problems: Problems) -> pd.DataFrame:
    """The table with given columns as float32 of 1, 0 and NaN, without the rows that hold anything else."""
    good = pd.Series(True, index=table.index)
    for column in columns:
        wrong = ~table[column].str.lower().isin(LABELS)
        problems.add_rows(table, wrong, f"column {column!r} must be 1, 0 or empty", column)
        good &= ~wrong
    table = table[good].reset_index(drop=True)
    return table.assign(**{column: table[column].str.lower().map(LABELS).astype(np.float32) for column in columns})


def no_boxes() -> pd.DataFrame:
    """A table of boxes without a row."""
    kinds = {name: object if name in BOX_COLUMNS[:2] else np.float64 for name in BOX_COLUMNS}
    return pd.DataFrame(
        {name: pd.Series(dtype=kind) for name, kind in kinds.items()} | {"where": pd.Series(dtype=object)}
    )


def check_boxes(boxes: pd.DataFrame, problems: Problems) -> pd.DataFrame:
    """Corners as numbers, without the boxes whose corners are none or whose edges are in the wrong order.

    Args:
        boxes: `BOX_COLUMNS` as text, and ``where``.
    """
    boxes = boxes.copy()
    good = pd.Series(True, index=boxes.index)
    for corner in CORNERS:
        values = pd.to_numeric(boxes[corner], errors="coerce").astype(np.float64)
        wrong = ~np.isfinite(values)
        problems.add_rows(boxes, wrong, f"{corner} must be a number", corner)
        good &= ~wrong
        boxes[corner] = values
    for low, high in (("x_min", "x_max"), ("y_min", "y_max")):
        wrong = good & (boxes[high] <= boxes[low])
        problems.add_rows(boxes, wrong, f"{high} must be greater than {low}", high)
        good &= ~wrong
    return boxes[good].reset_index(drop=True)


def prepare_raw(
    raw: RawSet,
    path: Path,
    side: int,
    channels: int,
    workers: int,
    problems: Problems,
    *,
    skip_bad: bool = False,
    lenient: bool = False,
    near_bits: int = NEAR,
    display: str | None = None,
    decoded: DecodedImages | None = None,
    pending: Container[str] = (),
    splits: Sequence[str] = SPLITS,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
    finish: Callable[[Collection, Images], Collection] = lambda collection, images: collection,
) -> Collection:
    """Decodes all images into a prepared set at ``path``; boxes move with their images.

    Args:
        problems: what the source found; what is found here is added.
        skip_bad: leave out studies, rows and boxes that are wrong, instead of refusing the set; what was left out is
            listed in ``skipped.csv`` of the prepared set.
        lenient: take names of images and masks for those of files that they fit but for capitals, backslashes or a
            missing extension, where no other file would do; the notes say so.
        near_bits: see `csr.data.leaks.find_leaks`.
        display: the orientation that DICOM images of projections are brought into, see `csr.data.orientation`.
        decoded: what an earlier run has decoded; gets what this one does.
        pending: concepts that get labels from ``finish``.
        splits: that the set must have.
        finish: gets the tables and all prepared images N×C×S×S, and returns the tables that are written.

    Raises:
        DataError: naming every problem; nothing is written.
    """
    names = StoredNames(raw.folder)
    raw = _only_learnable(raw, problems)
    raw = _only_existing_images(_with_stored_names(raw, names) if lenient else raw, names, problems)
    studies = raw.collection.studies
    placements: dict[str, Placement] = {}
    spacings: list[tuple[float, float]] = []
    stored: list[tuple[int, int, str, int]] = []
    windows: list[str] = []
    prints = Fingerprints()
    with (
        PreparedWriter(path, len(studies), channels, side) as writer,
        ThreadPoolExecutor(workers) as pool,  # Pillow and pydicom's decoders release the interpreter lock
    ):

        def load(image: str, frame: int | None, where: str) -> Decoded | ImageError:
            try:
                if decoded is not None and (known := decoded.get(image, frame)) is not None:
                    return known
                return decode_file(raw.folder / image, f"{where}, image {image!r}", side, channels, display, frame)
            except ImageError as error:
                return error

        frames = _frames(studies)
        jobs = zip(studies["image"], frames, studies["where"], strict=True)
        loaded = ordered_map(pool, load, jobs, 4 * workers)
        listed = zip(studies["study_id"], studies["image"], frames, strict=True)
        for (study, image, frame), result in zip(listed, progress(loaded, len(studies)), strict=True):
            if isinstance(result, ImageError):
                where, _, reason = str(result).partition(": ")
                problems.add(where, reason)
                continue
            if decoded is not None:
                decoded.put(image, result, frame)
            writer.write_image(len(placements), result.canvas)
            prints.add(result.canvas)
            placements[study] = result.placement
            spacings.append(result.canvas_spacing)
            stored.append((result.placement.width, result.placement.height, *result.stored))
            windows.append(result.window)
        writer.keep_images(len(placements))
        kept = studies[studies["study_id"].isin(placements)].reset_index(drop=True)
        kept = _with_spacing(kept.assign(window=pd.Series(windows, dtype=object)), spacings)
        kept = kept.assign(**dict(zip(STORED, zip(*stored, strict=True), strict=bool(stored))))
        boxes = raw.collection.boxes
        boxes = boxes[boxes["study_id"].isin(placements)].reset_index(drop=True)
        boxes, masks = _read_masks(boxes, raw.folder, names, placements, side, problems, pool, 4 * workers)
        boxes = place_boxes(boxes, placements, problems)
        boxes = _only_present(boxes, kept, problems)
        boxes, masks = _only_used(boxes, masks)
        moved = replace(raw.collection, studies=kept.drop(columns="where"), boxes=boxes.drop(columns="where"))
        moved = replace(moved, display=display)
        for reason in validation_errors(moved, pending, splits):
            problems.add(str(raw.folder), reason, skippable=False)
        for reason in find_leaks(moved, prints, near_bits):
            problems.add(str(raw.folder), reason, kind=reason.partition(": ")[0], skippable=False)
        problems.settle(skip_bad)
        finished = finish(moved, writer.images)
        check_schema(finished, side)
        writer.write_tables(finished)
        if masks:
            writer.write_masks(masks)
        writer.write_skipped(problems.table())
        writer.write_notes(raw.notes)
    return finished


def ordered_map(pool: Executor, function: Callable[..., T], jobs: Iterable[tuple], ahead: int) -> Iterator[T]:
    """Results in the order of the jobs, of which at most ``ahead`` are in work or waiting to be taken: memory stays
    the same however many there are, which it does not with `Executor.map`."""
    waiting: deque[Future[T]] = deque()
    for job in jobs:
        if len(waiting) == ahead:
            yield waiting.popleft().result()
        waiting.append(pool.submit(function, *job))
    while waiting:
        yield waiting.popleft().result()


def _frames(studies: pd.DataFrame) -> list[int | None]:
    """The frame of each study's file that is meant, None where the file has but one."""
    if "frame" not in studies:
        return [None] * len(studies)
    return [None if pd.isna(frame) else int(frame) for frame in studies["frame"]]


def _with_spacing(studies: pd.DataFrame, spacings: list[tuple[float, float]]) -> pd.DataFrame:
    """The studies with how large the pixels of their canvases are, if that is known of any."""
    sizes = np.array(spacings, np.float64).reshape(-1, 2)
    return studies if np.isnan(sizes).all() else studies.assign(**dict(zip(SPACING, sizes.T, strict=True)))


def _only_learnable(raw: RawSet, problems: Problems) -> RawSet:
    """The studies but those without a class in the splits that are judged on."""
    collection = raw.collection
    if collection.task == "concepts":
        return raw
    studies = collection.studies
    wrong = ~collection.has_class() & (studies["split"] != "train")
    what = "a label" if collection.task == "multiclass" else "a target"
    reason = f"a study without a class can be in split 'train' only; move it there, or give it {what}"
    problems.add_rows(studies, wrong, reason, "split")
    return replace(raw, collection=replace(collection, studies=studies[~wrong].reset_index(drop=True)))


def _with_stored_names(raw: RawSet, names: StoredNames) -> RawSet:
    """Images and masks by the names of the files that they are taken for."""
    taken: dict[str, str] = {}

    def stored(name: str) -> str:
        if name and name not in names and (found := names.match(name)):
            taken[name] = found
        return taken.get(name, name)

    collection = raw.collection
    studies, boxes = collection.studies.assign(image=collection.studies["image"].map(stored)), collection.boxes
    if "mask" in boxes:
        boxes = boxes.assign(mask=boxes["mask"].map(stored))
    if not taken:
        return raw
    first, file = next(iter(taken.items()))
    note = f"{len(taken)} names are not quite those of files and were taken for them, as {first!r} for {file!r}"
    return replace(raw, collection=replace(collection, studies=studies, boxes=boxes), notes=(*raw.notes, note))


def _only_existing_images(raw: RawSet, names: StoredNames, problems: Problems) -> RawSet:
    studies = raw.collection.studies
    there, kind = np.array([name in names for name in studies["image"]], bool), f"no such file in {raw.folder}"
    for where, image in zip(studies.loc[~there, "where"], studies.loc[~there, "image"], strict=True):
        problems.add(where, f"{kind}, got {image!r}{names.hint(image)}", kind=kind)
    return replace(raw, collection=replace(raw.collection, studies=studies[there].reset_index(drop=True)))


def _only_present(boxes: pd.DataFrame, studies: pd.DataFrame, problems: Problems) -> pd.DataFrame:
    """Boxes but those of concepts that their study is said to lack: one of the two must be wrong."""
    labels = studies.set_index("study_id")
    absent = np.array([labels.at[box.study_id, CONCEPT_PREFIX + box.concept] == 0 for box in boxes.itertuples()], bool)
    problems.add_rows(boxes, absent, "there is a box, but the study's label says that the concept is absent", "concept")
    return boxes[~absent].reset_index(drop=True)


def _read_masks(
    boxes: pd.DataFrame,
    folder: Path,
    names: StoredNames,
    placements: dict[str, Placement],
    side: int,
    problems: Problems,
    pool: Executor,
    ahead: int,
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Masks on their canvases, bit-packed, and the boxes without those whose mask is wrong.

    In column ``mask`` the number of a mask replaces its file, −1 stands for none, and corners that were left to a mask
    are filled.
    """
    if "mask" not in boxes:
        return boxes, []

    def read(name: str, place: Placement) -> tuple[np.ndarray, tuple[float, ...]] | ImageError:
        try:
            mask = read_mask(folder / name, place.width, place.height)
        except ImageError as error:
            return error
        return np.packbits(place_mask(mask, place, side)), tight_box(mask)

    named, corners = np.flatnonzero(boxes["mask"] != ""), boxes[CORNERS].to_numpy(np.float64, copy=True)
    files = boxes["mask"].iloc[named].tolist()
    jobs = zip(files, (placements[study] for study in boxes["study_id"].iloc[named]), strict=True)
    numbers, good = np.full(len(boxes), -1), np.ones(len(boxes), bool)
    masks: list[np.ndarray] = []
    for row, name, result in zip(named, files, ordered_map(pool, read, jobs, ahead), strict=True):
        if isinstance(result, ImageError):
            hint = "" if name in names else names.hint(name)
            problems.add(boxes["where"].iat[row], f"mask {name!r} {result}{hint}", kind=f"its mask {result}")
            good[row] = False
            continue
        packed, tight = result
        if np.isnan(corners[row]).all():
            corners[row] = tight
        numbers[row] = len(masks)
        masks.append(packed)
    boxes = boxes.assign(mask=numbers, **dict(zip(CORNERS, corners.T, strict=True)))
    return boxes[good].reset_index(drop=True), masks


def _only_used(boxes: pd.DataFrame, masks: list[np.ndarray]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The masks of the boxes that are left, numbered anew; without any, boxes have no column for them."""
    if "mask" not in boxes:
        return boxes, []
    used = boxes["mask"] >= 0
    if not used.any():
        return boxes.drop(columns="mask"), []
    numbers = np.where(used, used.cumsum() - 1, -1)
    return boxes.assign(mask=numbers), [masks[number] for number in boxes.loc[used, "mask"]]


def place_boxes(boxes: pd.DataFrame, placements: dict[str, Placement], problems: Problems) -> pd.DataFrame:
    """Moves boxes into pixels of the prepared images, cut to them; those that lie outside are problems."""
    boxes = boxes.copy()
    places = [placements[study] for study in boxes["study_id"]]
    corners = boxes[CORNERS].to_numpy(np.float64)
    sizes = np.array([(place.width, place.height) for place in places], np.float64).reshape(-1, 2)
    outside = (corners[:, 2:] <= 0).any(1) | (corners[:, :2] >= sizes).any(1)
    for index in np.flatnonzero(outside):
        place = places[index]
        problems.add(
            boxes["where"].iat[index],
            f"the box lies outside its {place.width}×{place.height} image; coordinates are pixels of the stored image",
            kind="the box lies outside its image; coordinates are pixels of the stored image",
        )
    cut = np.clip(corners, 0, np.tile(sizes, 2))
    moved = [place.to_canvas(box) for place, box in zip(places, cut, strict=True)]
    boxes[CORNERS] = np.array(moved).reshape(-1, 4)
    return boxes[~outside].reset_index(drop=True)
