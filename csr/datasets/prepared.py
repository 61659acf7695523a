"""The prepared form of a data set: what stage ``prepare`` writes and everything after it reads.

A folder: ``studies.parquet`` and ``boxes.parquet`` (see `csr.records`; boxes in pixels of the prepared images),
``images.npy`` N×C×S×S uint8 for memory mapping, ``collection.json``, and for synthetic data ``masks.npy``, one
bit-packed S×S mask a row of ``boxes.parquet``. ``skipped.csv`` lists what was left out for being wrong, if anything
was.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from csr.drafts import draft_folder
from csr.errors import DataError
from csr.records import Collection


@dataclass(frozen=True)
class PreparedSet:
    """A prepared data set. ``images`` is N×C×S×S uint8, memory-mapped; ``path`` is the folder it came from."""

    collection: Collection
    images: np.ndarray
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
        for name in ("collection.json", "studies.parquet", "boxes.parquet", "images.npy"):
            if not (path / name).is_file():
                raise DataError(f"{path / name}: missing; run the stage 'prepare' (dvc repro prepare) first")
        about = json.loads((path / "collection.json").read_text())
        collection = Collection(
            name=about["name"],
            concepts=tuple(about["concepts"]),
            classes=tuple(about["classes"]),
            task=about["task"],
            studies=pd.read_parquet(path / "studies.parquet"),
            boxes=pd.read_parquet(path / "boxes.parquet"),
        )
        images = np.load(path / "images.npy", mmap_mode="r")
        return cls(collection, images, path)

    def masks(self) -> np.ndarray:
        """One S×S bool mask a row of ``collection.boxes``; only synthetic sets have them."""
        packed = np.load(self.path / "masks.npy", mmap_mode="r")
        return np.unpackbits(packed, axis=1, count=self.side**2).reshape(-1, self.side, self.side).astype(bool)

    def skipped(self) -> pd.DataFrame:
        """``where, reason`` of what was left out for being wrong; usually without a row."""
        file = self.path / "skipped.csv"
        return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["where", "reason"])

    def digest(self) -> str:
        """SHA-256 over the folder's files: the data version that manifests and MLflow runs name."""
        total = hashlib.sha256()
        for file in sorted(self.path.iterdir()):
            total.update(file.name.encode())
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


class PreparedWriter:
    """Writes a prepared folder beside its final place and moves it there once it is whole.

    Use as a context manager: an exception leaves neither a half-written folder nor a change to an existing one.

    Args:
        path: the final folder; replaced if it exists.
        count, channels, side: the shape of ``images.npy``.
    """

    def __init__(self, path: Path, count: int, channels: int, side: int) -> None:
        self._folder = draft_folder(path)
        self._shape = (count, channels, side, side)

    def __enter__(self) -> PreparedWriter:
        self._draft = self._folder.__enter__()
        self._file = (self._draft / "images.npy").open("w+b")
        self._write_header()
        self._start = self._file.tell()
        self._file.truncate(self._start + math.prod(self._shape))
        return self

    @property
    def images(self) -> np.ndarray:
        """N×C×S×S uint8 as far as it is written, memory-mapped for reading."""
        self._file.flush()
        return np.load(self._draft / "images.npy", mmap_mode="r")

    def write_image(self, row: int, canvas: np.ndarray) -> None:
        """Stores one C×S×S uint8 image. Not through a memory map, whose pages would count as this process's memory."""
        if canvas.shape != self._shape[1:] or canvas.dtype != np.uint8:
            raise ValueError(f"image {row}: {canvas.dtype} of shape {canvas.shape} is not uint8 of {self._shape[1:]}")
        self._file.seek(self._start + row * canvas.nbytes)
        self._file.write(np.ascontiguousarray(canvas).data)

    def keep_images(self, count: int) -> None:
        """Cuts ``images.npy`` to its first ``count`` images."""
        self._shape = (count, *self._shape[1:])
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._start  # numpy leaves room for the first axis to change
        self._file.truncate(self._start + math.prod(self._shape))

    def _write_header(self) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write_skipped(self, problems: pd.DataFrame) -> None:
        """Keeps the list of what was left out, if anything was."""
        if len(problems):
            problems.to_csv(self._draft / "skipped.csv", index=False)

    def write_tables(self, collection: Collection) -> None:
        about = {
            "name": collection.name,
            "task": collection.task,
            "concepts": collection.concepts,
            "classes": collection.classes,
        }
        (self._draft / "collection.json").write_text(json.dumps(about, indent=2) + "\n")
        collection.studies.to_parquet(self._draft / "studies.parquet", index=False)
        collection.boxes.to_parquet(self._draft / "boxes.parquet", index=False)

    def write_masks(self, masks: Iterable[np.ndarray]) -> None:
        """Stores S×S bool masks, one a row of the boxes table, already bit-packed along the flattened pixels."""
        np.save(self._draft / "masks.npy", np.stack(list(masks)))

    def __exit__(self, *error: Any) -> None:
        self._file.close()
        self._folder.__exit__(*error)
