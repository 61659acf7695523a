"""Decoded images, and those that an unfinished run has decoded already, so that the next one goes on where it stopped.

A folder with ``canvases.bin``, one C×S×S uint8 canvas after the other, and ``index.jsonl``, a line each: which file it
came from (path, size, time of change), where it lies on the canvas, how large its pixels are and how they were stored.
A line is written after its canvas, so whatever a killed run leaves is either whole or not there. Not for several runs
at a time.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageMode

from csr.data.images import FORMATS, Placement, fit, pixel_spacing, read_image
from csr.data.orientation import is_turned
from csr.errors import ImageError

FORMAT = 4  # to be raised when `decode_file` gives anything else for the same file


@dataclass(frozen=True)
class Decoded:
    """A file's image on its C×S×S canvas.

    Args:
        spacing: millimetres between rows and columns of the file's image.
        stored: the file's format, and the bits of a grey value in it.
        window: how black and white were decided (`csr.data.grey_values`).
    """

    canvas: np.ndarray
    placement: Placement
    spacing: tuple[float, float] | None
    stored: tuple[str, int]
    window: str

    @property
    def canvas_spacing(self) -> tuple[float, float]:
        """Millimetres between rows and columns of the canvas; NaN where they are not known."""
        height, width = self.spacing or (np.nan, np.nan)
        if is_turned(self.placement.turn):
            height, width = width, height
        return height / self.placement.scale, width / self.placement.scale


def decode_file(
    file: Path, name: str, side: int, channels: int, display: str | None = None, frame: int | None = None
) -> Decoded:
    """Reads a file.

    Args:
        name: of the file, for messages.
        display, frame: see `csr.data.images.read_image`.

    Raises:
        ImageError: it cannot be read or decoded.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror})") from None
    image = read_image(data, name, display, frame)
    canvas, placement = fit(image.pixels, side, channels, image.turn)
    return Decoded(canvas, placement, pixel_spacing(data), stored_form(data), image.window)


def stored_form(data: bytes) -> tuple[str, int]:
    """The format of a file that can be read, and the bits of a grey value (or colour) in it."""
    if data[128:132] == b"DICM":
        import pydicom

        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=["BitsStored"])
        return "DICOM", int(dataset.get("BitsStored", 0))
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        kind = np.dtype(ImageMode.getmode(image.mode).typestr)
        return str(image.format), 1 if image.mode == "1" else 8 * kind.itemsize


class DecodedImages:
    """Decoded canvases by file. Reading is safe from several threads, writing from one.

    Use as a context manager: an exception leaves everything to the next run; without one nothing is left.

    Args:
        folder: where they are kept; one for each shape, display orientation and data set is made in it.
        source: the data set's folder.
        shape: C, S, S.
        display: see `csr.data.images.read_image`.
    """

    def __init__(self, folder: Path, source: Path, shape: tuple[int, int, int], display: str | None = None) -> None:
        name = hashlib.sha256(repr((FORMAT, str(source.resolve()), shape, display)).encode()).hexdigest()[:16]
        self._folder, self._source, self._shape = folder / name, source, shape
        self._folder.mkdir(parents=True, exist_ok=True)
        self._canvases = os.open(self._folder / "canvases.bin", os.O_RDWR | os.O_CREAT)
        self._known = self._read_index()
        self._index = (self._folder / "index.jsonl").open("a")

    def get(self, image: str, frame: int | None = None) -> Decoded | None:
        """A file, or a frame of it, that has not changed since; None if it is not there."""
        found = self._known.get(self._key(image, frame))
        if found is None:
            return None
        row, placement, spacing, stored, window = found
        size = math.prod(self._shape)
        data = os.pread(self._canvases, size, row * size)
        return Decoded(np.frombuffer(data, np.uint8).reshape(self._shape), placement, spacing, stored, window)

    def put(self, image: str, decoded: Decoded, frame: int | None = None) -> None:
        """Keeps a decoded file, or a frame of it."""
        row, key = len(self._known), self._key(image, frame)
        if key in self._known:
            return
        os.pwrite(self._canvases, np.ascontiguousarray(decoded.canvas).data, row * decoded.canvas.nbytes)
        about = [key, row, astuple(decoded.placement), decoded.spacing, decoded.stored, decoded.window]
        self._index.write(json.dumps(about) + "\n")
        self._index.flush()
        self._known[key] = row, decoded.placement, decoded.spacing, decoded.stored, decoded.window

    def __enter__(self) -> DecodedImages:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._index.close()
        os.close(self._canvases)
        if kind is None:
            shutil.rmtree(self._folder)

    def _key(self, image: str, frame: int | None) -> str:
        about = (self._source / image).stat()
        return f"{image}|{about.st_size}|{about.st_mtime_ns}|{frame}"

    def _read_index(self) -> dict[str, tuple[int, Placement, tuple[float, float] | None, tuple[str, int], str]]:
        file = self._folder / "index.jsonl"
        known = {}
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # the run was killed while it wrote this line
            file.write_bytes(b"".join(lines[:-1]))
            lines.pop()
        for line in lines:
            key, row, placement, spacing, (kind, bits), window = json.loads(line)
            pixels = None if spacing is None else (spacing[0], spacing[1])
            known[key] = row, Placement(*placement), pixels, (kind, bits), window
        return known
