"""Prepared images in files of a fixed number each: ``00000.npy``, ``00001.npy``, …, n×C×S×S uint8; the last is shorter.

Storage that goes by content (DVC's) then keeps what a grown data set had before, instead of all of it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from csr.errors import DataError

PER_SHARD = 1024  # images
MAX_OPEN = 256  # shards that a reader keeps open; each takes one of the process's file descriptors


def shard_name(number: int) -> str:
    """The file of one shard."""
    return f"{number:05d}.npy"


class ImageShards:
    """The images of a folder as one N×C×S×S uint8 array, read from disk when they are asked for.

    Indexed by row: an integer, a slice, or a list or array of integers in any order; negative ones count from the end.
    What comes back is an array in memory.

    Args:
        folder: what `ShardWriter` wrote.

    Raises:
        DataError: a shard is missing, damaged, or not like the first; now or when it is first read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = {file.name for file in folder.glob("*.npy")}
        if missing := [name for name in map(shard_name, range(len(names) or 1)) if name not in names]:
            raise DataError(f"{folder / missing[0]}: missing; run the stage 'prepare' (dvc repro prepare) first")
        self._last = len(names) - 1
        self._open: dict[int, np.ndarray] = {}
        first, last = self._read(0), self._read(self._last)
        self._per_shard, self._image_shape = len(first), first.shape[1:]
        self._count = self._last * self._per_shard + len(last)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._count, *self._image_shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            return self._gather(range(*rows.indices(self._count)))
        if isinstance(rows, tuple):
            raise IndexError(f"images are indexed by row only, not {rows!r}; index what comes back by the other axes")
        numbers = np.asarray(rows, np.intp if isinstance(rows, list) and not rows else None)
        if numbers.dtype.kind not in "iu" or numbers.ndim > 1:
            raise IndexError(f"images are indexed by an integer, a slice, or a list or array of integers, not {rows!r}")
        images = self._gather(numbers.reshape(-1).tolist())
        return images if numbers.ndim else images[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(self._count))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("images in shards cannot be an array without a copy")
        return self[:].astype(dtype or np.uint8, copy=False)

    def _gather(self, rows: Sequence[int]) -> np.ndarray:
        """Copies images one by one: numpy lets other threads run meanwhile, also while it waits for the disk."""
        count = self._count
        images = np.empty((len(rows), *self._image_shape), np.uint8)
        for image, row in zip(images, rows, strict=True):
            if not -count <= row < count:
                raise IndexError(f"image {row} is none of the {count}")
            number, place = divmod(row if row >= 0 else row + count, self._per_shard)
            shard = self._open.get(number)
            image[...] = (self._shard(number) if shard is None else shard)[place]
        return images

    def _shard(self, number: int) -> np.ndarray:
        """Opens a shard, and lets go of the one that was opened first if there are too many."""
        shard = self._read(number)
        count = self._per_shard if number < self._last else self._count - self._last * self._per_shard
        if shard.shape != (count, *self._image_shape):
            raise self._damaged(number, f"its shape is {shard.shape} instead of {(count, *self._image_shape)}")
        if len(self._open) >= MAX_OPEN:
            self._open.pop(next(iter(self._open)), None)
        self._open[number] = np.asarray(shard)  # plain arrays are indexed faster than memory maps
        return self._open[number]

    def _read(self, number: int) -> np.ndarray:
        """Maps a shard into memory."""
        try:
            shard = np.load(self._folder / shard_name(number), mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise self._damaged(number, str(error)) from None
        if shard.dtype != np.uint8 or shard.ndim != 4:
            raise self._damaged(number, f"{shard.dtype} of shape {shard.shape} is not uint8 of four axes")
        return shard

    def _damaged(self, number: int, reason: str) -> DataError:
        file = self._folder / shard_name(number)
        return DataError(f"{file}: is damaged ({reason}); run the stage 'prepare' (dvc repro prepare) again")


class ShardWriter:
    """Writes the images that `ImageShards` reads.

    Not through a memory map, whose pages would count as this process's memory.

    Args:
        folder: an empty folder.
        count: images; those that are never written are 0.
        image_shape: C, S, S.
    """

    def __init__(self, folder: Path, count: int, image_shape: tuple[int, ...]) -> None:
        self._folder, self._image_shape, self._shards = folder, image_shape, _shards(count)
        for number in range(self._shards):
            with self._path(number).open("wb") as file:
                self._set_length(file, min(PER_SHARD, count - number * PER_SHARD))
        self._number, self._file = 0, self._path(0).open("r+b")

    def write(self, row: int, image: np.ndarray) -> None:
        """Stores one C×S×S uint8 image. Any order will do; that of the rows is the fastest."""
        if image.shape != self._image_shape or image.dtype != np.uint8:
            raise ValueError(f"image {row}: {image.dtype} of shape {image.shape} is not uint8 of {self._image_shape}")
        number, place = divmod(row, PER_SHARD)
        if number != self._number:
            self._file.close()
            self._number, self._file = number, self._path(number).open("r+b")
        self._file.seek(self._start + place * image.nbytes)
        self._file.write(np.ascontiguousarray(image).data)

    def keep(self, count: int) -> None:
        """Keeps the first ``count`` images."""
        self._file.flush()  # else what is buffered could lengthen the file again
        kept = _shards(count)
        for number in range(kept, self._shards):
            self._path(number).unlink()
        self._shards = kept
        with self._path(kept - 1).open("r+b") as file:
            self._set_length(file, count - (kept - 1) * PER_SHARD)

    def read(self) -> ImageShards:
        """The images as far as they are written."""
        self._file.flush()
        return ImageShards(self._folder)

    def close(self) -> None:
        self._file.close()

    def _path(self, number: int) -> Path:
        return self._folder / shard_name(number)

    def _set_length(self, file: BinaryIO, count: int) -> None:
        """Writes the header for so many images and makes room for them."""
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *self._image_shape)}
        np.lib.format.write_array_header_1_0(file, header)
        self._start = file.tell()  # the same for every count: numpy leaves room for the first axis to change
        file.truncate(self._start + count * math.prod(self._image_shape))


Images = np.ndarray | ImageShards  # N×C×S×S uint8


def _shards(count: int) -> int:
    """Files of so many images; one that is empty for none."""
    return max(1, -(-count // PER_SHARD))
