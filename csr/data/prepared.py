"""The prepared form of a data set: what stage ``prepare`` writes and everything after it reads.

A folder:

- ``collection.json``: name, task, concepts, classes and display orientation;
- ``studies.parquet`` and ``boxes.parquet``: see `csr.data.records` and `csr.data.schema`; boxes are in pixels of the
  prepared images;
- ``images/00000.npy``, ``00001.npy``, …: the images, N×C×S×S uint8 in shards, rows as in ``studies.parquet``; see
  `csr.data.shards`;
- ``masks.npy``, where findings are outlined by pixel: bit-packed S×S masks, M×⌈S²/8⌉ uint8. ``boxes.parquet`` then has
  a column ``mask``, the row of ``masks.npy`` that a box belongs to, or −1;
- ``skipped.csv``: what was left out for being wrong, if anything was;
- ``notes.json``: what the data set's reader has to say, if anything;
- ``reader_boxes.parquet``, where readers' feedback was learned from (`csr.data.feedback`) and any of them drew a box:
  ``study_id, kind, concept`` and corners. ``kind`` is ``focus``, ``ignore`` or ``finding``; the finding boxes are in
  ``boxes.parquet`` too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from csr.data.atomic_folder import atomic_folder
from csr.data.digests import folder_digest
from csr.data.records import BOX_COLUMNS, CORNERS, Collection
from csr.data.schema import study_columns
from csr.data.shards import Images, ImageShards, ShardWriter
from csr.errors import DataError

READER_BOX_COLUMNS = ("study_id", "kind", "concept", *CORNERS)
AGAIN = "run the stage 'prepare' (dvc repro prepare) again"


@dataclass(frozen=True)
class PreparedSet:
    """A prepared data set. ``images`` is N×C×S×S uint8, on disk; ``path`` is the folder it came from."""

    collection: Collection
    images: Images
    path: Path

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def side(self) -> int:
        return self.images.shape[2]

    @classmethod
    def open(cls, path: Path) -> PreparedSet:
        """Opens the folder that `PreparedWriter` wrote.

        Raises:
            DataError: the folder is missing or incomplete.
        """
        for name in ("collection.json", "studies.parquet", "boxes.parquet", "images"):
            if not (path / name).exists():
                raise DataError(f"{path / name}: missing; run the stage 'prepare' (dvc repro prepare) first")
        about = json.loads((path / "collection.json").read_text())
        collection = Collection(
            name=about["name"],
            concepts=tuple(about["concepts"]),
            classes=tuple(about["classes"]),
            task=about["task"],
            studies=pd.read_parquet(path / "studies.parquet"),
            boxes=pd.read_parquet(path / "boxes.parquet"),
            display=about.get("display"),
        )
        for name, table, needed in (
            ("studies.parquet", collection.studies, study_columns(collection)),
            ("boxes.parquet", collection.boxes, BOX_COLUMNS),
        ):
            if missing := [column for column in needed if column not in table]:
                raise DataError(f"{path / name}: column {missing[0]!r} is missing; {AGAIN}")
        images = ImageShards(path / "images")
        if len(images) != len(collection.studies):
            raise DataError(f"{path}: has {len(images)} images for {len(collection.studies)} studies; {AGAIN}")
        return cls(collection, images, path)

    def mask_of(self, box: int) -> np.ndarray | None:
        """The S×S bool mask of a row of ``collection.boxes``, None if it has none."""
        number = self.collection.boxes["mask"].iat[box] if "mask" in self.collection.boxes else -1
        if number < 0:
            return None
        packed = np.load(self.path / "masks.npy", mmap_mode="r")[number]
        return np.unpackbits(packed, count=self.side**2).reshape(self.side, self.side).astype(bool)

    def skipped(self) -> pd.DataFrame:
        """``where, reason, kind`` of what was left out for being wrong; usually without a row."""
        file = self.path / "skipped.csv"
        return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["where", "reason", "kind"])

    def notes(self) -> tuple[str, ...]:
        """Sentences on what the data set's reader decided that its user should know; usually none."""
        file = self.path / "notes.json"
        return tuple(json.loads(file.read_text())) if file.exists() else ()

    def reader_boxes(self) -> pd.DataFrame:
        """``study_id, kind, concept`` and corners of what readers drew in studies of split ``train``; usually without a
        row."""
        file = self.path / "reader_boxes.parquet"
        return pd.read_parquet(file) if file.exists() else pd.DataFrame(columns=list(READER_BOX_COLUMNS))

    def digest(self) -> str:
        """SHA-256 over the folder's files: the data version that manifests and MLflow runs name."""
        return folder_digest(self.path)


class PreparedWriter:
    """Writes a prepared folder beside its final place and moves it there once it is whole.

    Use as a context manager: an exception leaves neither a half-written folder nor a change to an existing one.

    Args:
        path: the final folder; replaced if it exists.
        count, channels, side: the shape of the images.
    """

    def __init__(self, path: Path, count: int, channels: int, side: int) -> None:
        self._folder = atomic_folder(path)
        self._shape = (count, channels, side, side)

    def __enter__(self) -> PreparedWriter:
        self._draft = self._folder.__enter__()
        (self._draft / "images").mkdir()
        self._shards = ShardWriter(self._draft / "images", self._shape[0], self._shape[1:])
        return self

    @property
    def images(self) -> ImageShards:
        """N×C×S×S uint8 as far as it is written."""
        return self._shards.read()

    def write_image(self, row: int, canvas: np.ndarray) -> None:
        """Stores one C×S×S uint8 image."""
        self._shards.write(row, canvas)

    def keep_images(self, count: int) -> None:
        """Keeps the first ``count`` images."""
        self._shards.keep(count)

    def write_skipped(self, problems: pd.DataFrame) -> None:
        """Keeps the list of what was left out, if anything was."""
        if len(problems):
            problems.to_csv(self._draft / "skipped.csv", index=False)

    def write_notes(self, notes: Sequence[str]) -> None:
        """Keeps what the reader has to say, if anything."""
        if notes:
            (self._draft / "notes.json").write_text(json.dumps(list(notes), indent=2, ensure_ascii=False) + "\n")

    def write_tables(self, collection: Collection) -> None:
        """Stores the tables."""
        about = {
            "name": collection.name,
            "task": collection.task,
            "concepts": collection.concepts,
            "classes": collection.classes,
            "display": collection.display,
        }
        (self._draft / "collection.json").write_text(json.dumps(about, indent=2) + "\n")
        collection.studies.to_parquet(self._draft / "studies.parquet", index=False)
        collection.boxes.to_parquet(self._draft / "boxes.parquet", index=False)

    def write_reader_boxes(self, boxes: pd.DataFrame) -> None:
        """Keeps what readers drew, if anything."""
        if len(boxes):
            boxes[list(READER_BOX_COLUMNS)].to_parquet(self._draft / "reader_boxes.parquet", index=False)

    def write_masks(self, masks: Iterable[np.ndarray]) -> None:
        """Stores S×S bool masks, bit-packed along the flattened pixels, in the order that column ``mask`` counts."""
        np.save(self._draft / "masks.npy", np.stack(list(masks)))

    def __exit__(self, *error: Any) -> None:
        self._shards.close()
        self._folder.__exit__(*error)


def copy_without(data: PreparedSet, split: str, path: Path) -> None:
    """Writes the set to ``path`` without a split: no image, label, box or mask of its studies is there."""
    copy_rows(data, np.flatnonzero((data.collection.studies["split"] != split).to_numpy()), path)


def copy_rows(data: PreparedSet, kept: np.ndarray, path: Path) -> None:
    """Writes the studies of some rows, ascending, to ``path``, with nothing of the others."""
    collection = data.collection
    studies = collection.studies.iloc[kept].reset_index(drop=True)
    boxes = collection.boxes[collection.boxes["study_id"].isin(studies["study_id"])].reset_index(drop=True)
    with PreparedWriter(path, len(kept), data.channels, data.side) as writer:
        for row, original in enumerate(kept):
            writer.write_image(row, data.images[original])
        if "mask" in boxes:
            outlined = boxes["mask"] >= 0
            masks = boxes.loc[outlined, "mask"].to_numpy()
            boxes.loc[outlined, "mask"] = np.arange(len(masks))
            if len(masks):
                writer.write_masks(np.load(data.path / "masks.npy", mmap_mode="r")[masks])
        drawn = data.reader_boxes()
        writer.write_reader_boxes(drawn[drawn["study_id"].isin(studies["study_id"])])
        writer.write_tables(replace(collection, studies=studies, boxes=boxes))
