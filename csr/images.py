"""PNG, JPEG, TIFF and DICOM bytes → one float image → the network's input. Torch-free: training and serving share it.

Not covered here: multi-frame DICOM, colour management beyond sRGB, and volumes.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from csr.errors import ImageError

if TYPE_CHECKING:
    import pydicom

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "TIFF")  # no other of Pillow's plugins is exposed to strangers' bytes
_DICOM_MAGIC = slice(128, 132)


@dataclass(frozen=True)
class Placement:
    """Where an image of ``width``×``height`` lies on the square canvas: canvas = scale · image + (left, top)."""

    width: int
    height: int
    scale: float
    left: float
    top: float

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """n×4 boxes in pixels of the image → the same boxes in pixels of the canvas."""
        return np.asarray(boxes, np.float64) * self.scale + np.array([self.left, self.top, self.left, self.top])

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """The inverse of `to_canvas`."""
        return (np.asarray(boxes, np.float64) - np.array([self.left, self.top, self.left, self.top])) / self.scale


def decode(data: bytes, name: str = "image") -> np.ndarray:
    """Decodes a file's bytes into H×W×C float32 in [0, 1], C = 1 or 3, upright (EXIF orientation applied).

    16-bit images are scaled by their type's range, DICOM by its VOI window with MONOCHROME1 inverted.

    Raises:
        ImageError: the bytes are not a readable image, or it has more than `MAX_PIXELS` pixels.
    """
    if data[_DICOM_MAGIC] == b"DICM":
        return _decode_dicom(data, name)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image.width, image.height, name)
        image.load()
        image = ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: is over the limit of {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a PNG, JPEG, TIFF or DICOM image") from None
    except Exception as error:  # Pillow's plugins raise many types for damaged files
        raise ImageError(f"{name}: the image is damaged and cannot be decoded ({error})") from None
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, np.float32)
        _check_finite(pixels, name)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(pixels.max(initial=0)))
        return np.clip(pixels / top, 0, 1)[..., None]
    if image.mode in ("1", "L"):
        return _by_255(image.convert("L"))[..., None]
    if "A" in image.getbands() or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "black")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return _by_255(image.convert("RGB"))


def _by_255(image: Image.Image) -> np.ndarray:
    """8-bit pixels as float32 in [0, 1]; in place, since these arrays are most of the work of preparing a data set."""
    pixels = np.array(image, np.float32)
    return np.divide(pixels, 255, out=pixels)


def _decode_dicom(data: bytes, name: str) -> np.ndarray:
    import pydicom  # imported on use: decoding a PNG must not pay for it
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
            raise ImageError(f"{name}: multi-frame DICOM is not supported; send one frame a file")
        _check_size(int(dataset.Columns), int(dataset.Rows), name)
        pixels = dataset.pixel_array
        if pixels.ndim == 3:
            return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
        values = np.asarray(apply_voi_lut(apply_modality_lut(pixels, dataset), dataset), np.float32)
        _check_finite(values, name)
        low, high = _dicom_range(dataset, values)
    except ImageError:
        raise
    except Exception as error:  # pydicom and its decoders raise many types for damaged or partial files
        raise ImageError(f"{name}: the DICOM file cannot be decoded ({error})") from None
    values = np.subtract(values, low, dtype=np.float32)
    np.divide(values, max(high - low, 1e-6), out=values)
    np.clip(values, 0, 1, out=values)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        np.subtract(1, values, out=values)
    return values[..., None]


def _dicom_range(dataset: pydicom.Dataset, values: np.ndarray) -> tuple[float, float]:
    """What is black and what is white: the range a VOI window maps to (PS3.3 C.11.2.1), else that of the pixels."""
    if "WindowWidth" in dataset and "VOILUTSequence" not in dataset:
        bits = int(dataset.BitsStored)
        signed = int(dataset.get("PixelRepresentation", 0))
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        return low * slope + intercept, high * slope + intercept
    return float(values.min()), float(values.max())


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}×{height} pixels is over the limit of {MAX_PIXELS:,}")


def _check_finite(pixels: np.ndarray, name: str) -> None:
    if not np.isfinite(pixels).all():
        raise ImageError(f"{name}: has pixels that are not finite numbers")


def fit(image: np.ndarray, side: int, channels: int) -> tuple[np.ndarray, Placement]:
    """Scales an H×W×C float image into the middle of a square canvas, keeping its aspect; margins are 0.

    Returns:
        canvas: channels×side×side uint8.
        placement: how boxes move between image and canvas.
    """
    height, width, depth = image.shape
    if channels == 1 and depth == 3:
        image = image @ np.array([[0.299], [0.587], [0.114]], np.float32)
    elif channels == 3 and depth == 1:
        image = np.repeat(image, 3, axis=2)
    scale = side / max(height, width)
    inner_w, inner_h = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (side - inner_w) // 2, (side - inner_h) // 2
    canvas = np.zeros((channels, side, side), np.uint8)
    for channel in range(channels):
        plane = Image.fromarray(np.ascontiguousarray(image[..., channel], dtype=np.float32))
        if plane.size != (inner_w, inner_h):
            plane = plane.resize((inner_w, inner_h), Image.Resampling.BICUBIC)
        values = np.clip(np.asarray(plane), 0, 1)
        canvas[channel, top : top + inner_h, left : left + inner_w] = (values * 255 + 0.5).astype(np.uint8)
    return canvas, Placement(width, height, scale, left, top)


def to_png(canvas: np.ndarray) -> bytes:
    """C×H×W uint8 (C = 1 or 3) → PNG bytes."""
    pixels = canvas[0] if canvas.shape[0] == 1 else np.moveaxis(canvas, 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def pixel_digest(canvas: np.ndarray) -> str:
    """SHA-256 of a canvas's shape and pixels: the address of a study, the same for every file that decodes to it."""
    return hashlib.sha256(repr(canvas.shape).encode() + np.ascontiguousarray(canvas).tobytes()).hexdigest()
