"""What happens to a picture between a detector and this server: the transformations of `tests.bench.inputs`.

Each turns the grey values H×W uint8 of a test study into the bytes of a file. A *lossless* one keeps every grey value,
or puts each where another grey value was; the others lose something. Nothing here says what a reader should make of it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from PIL import Image, ImageDraw, ImageFilter
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

Pixels = np.ndarray
_BITS = 12


@dataclass(frozen=True)
class Transformation:
    """One kind of change.

    Args:
        name: what a person calls it.
        lossless: whether the picture can be had back from it.
        make: grey values H×W uint8 → a file's bytes.
    """

    name: str
    lossless: bool
    make: Callable[[Pixels], bytes]


def transformations() -> list[Transformation]:
    """All of them, the unchanged picture first."""
    return [
        Transformation("PNG, 8 bits (unchanged)", True, _png),
        Transformation("PNG, 16 bits", True, lambda grey: _png(grey.astype(np.uint16) * 257)),
        Transformation("PNG, 12 bits in 16", True, lambda grey: _png(grey.astype(np.uint16) * 16)),
        Transformation("PNG, 10 bits in 16", True, lambda grey: _png(grey.astype(np.uint16) * 4)),
        Transformation("PNG, grey in three channels", True, lambda grey: _png(np.stack([grey] * 3, -1))),
        Transformation("TIFF, 16 bits", True, lambda grey: _saved(grey.astype(np.uint16) * 257, "TIFF")),
        Transformation("TIFF, white is zero", True, _white_is_zero),
        Transformation("DICOM, 8 bits", True, lambda grey: dicom(grey)),
        Transformation("DICOM, 12 bits", True, lambda grey: dicom(_deep(grey))),
        Transformation("DICOM, 12 bits with a window", True, _windowed),
        Transformation("DICOM, MONOCHROME1", True, lambda grey: _monochrome1(grey)),
        Transformation("DICOM, PresentationLUTShape INVERSE", True, _inverse_shape),
        Transformation("DICOM, turned by 90°, PatientOrientation F\\R", True, _turned_and_said),
        Transformation("DICOM, turned by 180°, PatientOrientation R\\H", True, _upside_down_and_said),
        Transformation("inverted", True, lambda grey: _png(255 - grey)),
        Transformation("turned by 90°", True, lambda grey: _png(np.rot90(grey))),
        Transformation("turned by 180°", True, lambda grey: _png(np.rot90(grey, 2))),
        Transformation("turned by 270°", True, lambda grey: _png(np.rot90(grey, 3))),
        Transformation("mirrored left to right", True, lambda grey: _png(grey[:, ::-1])),
        Transformation("mirrored upside down", True, lambda grey: _png(grey[::-1])),
        Transformation("enlarged to twice the size", True, lambda grey: _png(grey.repeat(2, 0).repeat(2, 1))),
        Transformation("black border of 5 %", True, lambda grey: _png(np.pad(grey, _share(grey, 0.05)))),
        Transformation(
            "white border of 5 %", True, lambda grey: _png(np.pad(grey, _share(grey, 0.05), constant_values=255))
        ),
        Transformation("wide black border at the sides (4:3)", True, _landscape),
        Transformation("turned by 5°", False, lambda grey: _rotated(grey, 5)),
        Transformation("turned by 15°", False, lambda grey: _rotated(grey, 15)),
        Transformation("cropped by 5 % a side", False, lambda grey: _cropped(grey, 0.05)),
        Transformation("cropped by 15 % a side", False, lambda grey: _cropped(grey, 0.15)),
        Transformation("half of the picture", False, lambda grey: _png(grey[:, : grey.shape[1] // 2])),
        Transformation("stretched to 4:3", False, lambda grey: _resized(grey, 4 / 3, 1)),
        Transformation("half the size", False, lambda grey: _resized(grey, 0.5, 0.5)),
        Transformation("a quarter of the size", False, lambda grey: _resized(grey, 0.25, 0.25)),
        Transformation("text burned in", False, _text),
        Transformation("JPEG, quality 90", False, lambda grey: _jpeg(grey, 90)),
        Transformation("JPEG, quality 50", False, lambda grey: _jpeg(grey, 50)),
        Transformation("JPEG, quality 10", False, lambda grey: _jpeg(grey, 10)),
        Transformation("gamma 0.5", False, lambda grey: _toned(grey, lambda tone: tone**0.5)),
        Transformation("gamma 2", False, lambda grey: _toned(grey, lambda tone: tone**2)),
        Transformation("half the contrast", False, lambda grey: _toned(grey, lambda tone: 0.5 + (tone - 0.5) / 2)),
        Transformation("twice the contrast", False, lambda grey: _toned(grey, lambda tone: 0.5 + (tone - 0.5) * 2)),
        Transformation("brighter by a fifth", False, lambda grey: _toned(grey, lambda tone: tone + 0.2)),
        Transformation("histogram equalised", False, _equalised),
        Transformation("blurred, σ 1 %", False, lambda grey: _blurred(grey, 0.01)),
        Transformation("blurred, σ 3 %", False, lambda grey: _blurred(grey, 0.03)),
        Transformation("sharpened", False, _sharpened),
        Transformation("noise, σ 5 %", False, lambda grey: _noisy(grey, 0.05)),
        Transformation("noise, σ 15 %", False, lambda grey: _noisy(grey, 0.15)),
        Transformation("photo of a screen", False, _photographed),
    ]


def dicom(stored: Pixels, bits: int | None = None, **attributes: Any) -> bytes:
    """A digital radiograph of the chest that stores these values, with attributes changed, or left out where None."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    bits = bits or (8 if stored.dtype == np.uint8 else _BITS)
    known = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": generate_uid(entropy_srcs=["instance"]),
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series"]),
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": stored.dtype.itemsize * 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "PixelData": np.ascontiguousarray(stored).tobytes(),
    }
    for name, value in (known | attributes).items():
        if value is not None:
            setattr(made, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def _deep(grey: Pixels) -> Pixels:
    """8 bits as 12."""
    return np.round(grey * (4095 / 255)).astype(np.uint16)


def _windowed(grey: Pixels) -> bytes:
    """The picture in the middle third of the range; the window says so."""
    stored = (1365 + _deep(grey) // 3).astype(np.uint16)
    return dicom(stored, WindowCenter=1365 + 683, WindowWidth=1366)


def _monochrome1(grey: Pixels) -> bytes:
    return dicom(4095 - _deep(grey), PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")


def _inverse_shape(grey: Pixels) -> bytes:
    return dicom(4095 - _deep(grey), PresentationLUTShape="INVERSE")


def _turned_and_said(grey: Pixels) -> bytes:
    # Turned anticlockwise: a row was a column, which runs to the feet, and a column a row from its end, to the right.
    return dicom(np.rot90(_deep(grey)), PatientOrientation=["F", "R"])


def _upside_down_and_said(grey: Pixels) -> bytes:
    return dicom(np.rot90(_deep(grey), 2), PatientOrientation=["R", "H"])


def _share(grey: Pixels, share: float) -> int:
    return round(share * max(grey.shape))


def _landscape(grey: Pixels) -> bytes:
    return _png(np.pad(grey, ((0, 0), (_share(grey, 1 / 6),) * 2)))


def _rotated(grey: Pixels, degrees: float) -> bytes:
    return _saved(np.asarray(Image.fromarray(grey).rotate(degrees, Image.Resampling.BICUBIC)))


def _cropped(grey: Pixels, share: float) -> bytes:
    cut = _share(grey, share)
    return _png(grey[cut:-cut, cut:-cut])


def _resized(grey: Pixels, wide: float, high: float) -> bytes:
    size = round(grey.shape[1] * wide), round(grey.shape[0] * high)
    return _saved(np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)))


def _text(grey: Pixels) -> bytes:
    picture = Image.fromarray(grey)
    draw = ImageDraw.Draw(picture)
    size = grey.shape[0] // 16
    draw.text((size // 2, size // 2), "DOE^JANE 1970-01-01", fill=255, font_size=size)
    draw.text((size // 2, grey.shape[0] - 2 * size), "PORTABLE AP", fill=255, font_size=size)
    return _saved(np.asarray(picture))


def _jpeg(grey: Pixels, quality: int) -> bytes:
    return _saved(grey, "JPEG", quality=quality)


def _toned(grey: Pixels, curve: Callable[[Pixels], Pixels]) -> bytes:
    return _png(np.round(np.clip(curve(grey / 255), 0, 1) * 255).astype(np.uint8))


def _equalised(grey: Pixels) -> bytes:
    ranks = np.cumsum(np.bincount(grey.ravel(), minlength=256)) / grey.size
    return _png(np.round(ranks[grey] * 255).astype(np.uint8))


def _blurred(grey: Pixels, share: float) -> bytes:
    return _saved(np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(share * max(grey.shape)))))


def _sharpened(grey: Pixels) -> bytes:
    return _saved(np.asarray(Image.fromarray(grey).filter(ImageFilter.UnsharpMask(2, 200, 0))))


def _noisy(grey: Pixels, deviation: float) -> bytes:
    noise = np.random.default_rng(int(grey.sum())).normal(0, deviation * 255, grey.shape)
    return _png(np.clip(grey + noise, 0, 255).astype(np.uint8))


def _photographed(grey: Pixels) -> bytes:
    """Smaller in a dark frame, a little turned, with a moiré of the screen's rows, a glare and a blue tint."""
    side = max(grey.shape)
    picture = Image.fromarray(np.pad(grey, _share(grey, 0.12), constant_values=20)).rotate(3, fillcolor=20)
    pixels = np.asarray(picture.resize((2 * side, 2 * side)), np.float64)
    rows, columns = np.mgrid[: 2 * side, : 2 * side] / (2 * side)
    pixels = pixels * (1 + 0.08 * np.sin(rows * side * 2.2)) + 70 * np.exp(
        -8 * ((rows - 0.3) ** 2 + (columns - 0.7) ** 2)
    )
    colours = np.stack([pixels * 0.9, pixels * 0.97, pixels * 1.05], -1)
    return _saved(np.clip(colours, 0, 255).astype(np.uint8), "JPEG", quality=80)


def _white_is_zero(grey: Pixels) -> bytes:
    return _saved(grey, "TIFF", tiffinfo={262: 0})  # Pillow stores the values inverted then, as it must


def _png(pixels: Pixels) -> bytes:
    return _saved(pixels)


def _saved(pixels: Pixels, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()
