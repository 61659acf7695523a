"""Images that an unfinished run has decoded already, so that the next one goes on where it stopped.

A folder with ``canvases.bin``, one C×S×S uint8 canvas after the other, and ``index.jsonl``, a line each: which file it
came from (path, size, time of change) and where it lies on the canvas. A line is written after its canvas, so whatever
a killed run leaves is either whole or not there. Not for several runs at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import astuple
from pathlib import Path

import numpy as np

from csr.images import Placement

FORMAT = 1  # to be raised when `csr.images.decode` or `fit` gives other pixels for the same file


class DecodedImages:
    """Decoded canvases by file. Reading is safe from several threads, writing from one.

    Use as a context manager: an exception leaves everything to the next run; without one nothing is left.

    Args:
        folder: where they are kept; one for each shape and data set is made in it.
        source: the data set's folder.
        shape: C, S, S.
    """

    def __init__(self, folder: Path, source: Path, shape: tuple[int, int, int]) -> None:
        name = hashlib.sha256(repr((FORMAT, str(source.resolve()), shape)).encode()).hexdigest()[:16]
        self._folder, self._source, self._shape = folder / name, source, shape
        self._folder.mkdir(parents=True, exist_ok=True)
        self._canvases = os.open(self._folder / "canvases.bin", os.O_RDWR | os.O_CREAT)
        self._known = self._read_index()
        self._index = (self._folder / "index.jsonl").open("a")

    def get(self, image: str) -> tuple[np.ndarray, Placement] | None:
        """The canvas and placement of a file that has not changed since; None if it is not there."""
        found = self._known.get(self._key(image))
        if found is None:
            return None
        row, placement = found
        size = math.prod(self._shape)
        data = os.pread(self._canvases, size, row * size)
        return np.frombuffer(data, np.uint8).reshape(self._shape), placement

    def put(self, image: str, canvas: np.ndarray, placement: Placement) -> None:
        """Keeps a decoded file."""
        row, key = len(self._known), self._key(image)
        if key in self._known:
            return
        os.pwrite(self._canvases, np.ascontiguousarray(canvas).data, row * canvas.nbytes)
        self._index.write(json.dumps([key, row, astuple(placement)]) + "\n")
        self._index.flush()
        self._known[key] = row, placement

    def __enter__(self) -> DecodedImages:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._index.close()
        os.close(self._canvases)
        if kind is None:
            shutil.rmtree(self._folder)

    def _key(self, image: str) -> str:
        about = (self._source / image).stat()
        return f"{image}|{about.st_size}|{about.st_mtime_ns}"

    def _read_index(self) -> dict[str, tuple[int, Placement]]:
        file = self._folder / "index.jsonl"
        known: dict[str, tuple[int, Placement]] = {}
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # the run was killed while it wrote this line
            file.write_bytes(b"".join(lines[:-1]))
            lines.pop()
        for line in lines:
            key, row, placement = json.loads(line)
            known[key] = row, Placement(*placement)
        return known
