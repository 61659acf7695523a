"""PNG, JPEG, TIFF and DICOM bytes → one image → the network's input. Torch-free: training and serving share it.

Files of several pages or frames, animations among them, are refused. Not covered here: colour management beyond sRGB,
and volumes.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from csr.errors import ImageError

if TYPE_CHECKING:
    import pydicom

MAX_PIXELS = 64_000_000
MAX_INFLATED = 8 * MAX_PIXELS  # bytes that a DICOM file of the deflated transfer syntax may unpack to
MAX_ITEMS = 20_000  # of sequences in a DICOM file; fragments of compressed pixels count, too
MAX_SCANS = 100  # of a JPEG; encoders make about ten
FORMATS = ("PNG", "JPEG", "TIFF")  # no other of Pillow's plugins is exposed to strangers' bytes
_DICOM_MAGIC = slice(128, 132)
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # little endian, big endian (PS3.5 7.5)
_PHOTOMETRIC = 262  # TIFF's tag
_START_OF_SCAN = b"\xff\xda"
LEAST_SIDE = 16  # pixels of an image that is to be read
MOST_ASPECT = 10
LEAST_RANGE = 4  # grey levels of 255
_NEEDED = ("Rows", "Columns", "BitsAllocated", "PixelData")  # no parametric maps of FloatPixelData
_TABLE = 2**16  # grey values up to which they are looked up instead of computed pixel by pixel
_BAND = 64  # rows
_REDUCING_GAP = 2.0  # images are averaged to twice their final size before they are resampled, in half the time


@dataclass(frozen=True)
class Placement:
    """Where an image of ``width``×``height`` lies on the square canvas: canvas = scale · image + (left, top)."""

    width: int
    height: int
    scale: float
    left: float
    top: float

    @classmethod
    def of(cls, width: int, height: int, side: int) -> Placement:
        """In the middle of a canvas of ``side``×``side`` pixels, as large as it goes."""
        scale = side / max(height, width)
        inner_w, inner_h = _inner(width, height, scale)
        return cls(width, height, scale, (side - inner_w) // 2, (side - inner_h) // 2)

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """n×4 boxes in pixels of the image → the same boxes in pixels of the canvas."""
        return np.asarray(boxes, np.float64) * self.scale + np.array([self.left, self.top, self.left, self.top])

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """The inverse of `to_canvas`."""
        return (np.asarray(boxes, np.float64) - np.array([self.left, self.top, self.left, self.top])) / self.scale


def decode(data: bytes, name: str = "image") -> np.ndarray:
    """Decodes a file's bytes into H×W×C, C = 1 or 3, upright (EXIF orientation applied).

    What a file stores in 8 bits stays uint8; anything deeper, and DICOM, becomes float32 in [0, 1]: 16-bit images are
    scaled by their type's range, DICOM by its VOI window or LUT, else from its least to its greatest value, with
    MONOCHROME1 inverted and padding (PS3.3 C.7.5.1.1.2) black.

    Raises:
        ImageError: the bytes are not a readable image, or of several, or it has more than `MAX_PIXELS` pixels.
    """
    if data[_DICOM_MAGIC] == b"DICM":
        return _decode_dicom(data, name)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image.width, image.height, name)
        if getattr(image, "is_animated", False):  # TIFF too; to count its pages is to walk through thousands of them
            raise ImageError(f"{name}: has more than one page or frame; send one image a file")
        if image.format == "JPEG":
            _check_scans(data, name)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except (ImageError, MemoryError):
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
        grey = np.clip(pixels / top, 0, 1)[..., None]
        return 1 - grey if _white_is_zero(image) else grey
    if image.mode in ("1", "L"):
        return np.asarray(image if image.mode == "L" else image.convert("L"))[..., None]
    if "A" in image.getbands() or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "black")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def pixel_spacing(data: bytes) -> tuple[float, float] | None:
    """Millimetres between the rows and between the columns of a DICOM image; None where no file of that kind says so.

    On the patient where that is known (Pixel Spacing), else on the detector (Imager Pixel Spacing, which magnification
    makes larger than life) or the film (Nominal Scanned Pixel Spacing).
    """
    if data[_DICOM_MAGIC] != b"DICM":
        return None
    import pydicom

    sources = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=list(sources))
        for source in sources:
            spacing = dataset.get(source)
            if spacing is not None and len(spacing) == 2 and all(0 < value < np.inf for value in map(float, spacing)):
                return float(spacing[0]), float(spacing[1])
    except Exception:  # a spacing that cannot be read is not known; `decode` speaks of damaged files
        return None
    return None


def _decode_dicom(data: bytes, name: str) -> np.ndarray:
    import pydicom  # imported on use: decoding a PNG must not pay for it
    from pydicom.pixels import apply_color_lut

    try:
        check_structure(data, name)
        dataset = pydicom.dcmread(io.BytesIO(data))
        if missing := [tag for tag in _NEEDED if tag not in dataset]:
            raise ImageError(f"{name}: the DICOM file holds no image (it has no {missing[0]})")
        if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
            raise ImageError(f"{name}: multi-frame DICOM is not supported; send one frame a file")
        _check_size(int(dataset.Columns), int(dataset.Rows), name)
        pixels = dataset.pixel_array  # YBR has become RGB
        if pixels.shape not in ((size := (dataset.Rows, dataset.Columns)), (*size, 3)):
            raise ImageError(f"{name}: its pixel data is no image of {size[0]} rows and {size[1]} columns")
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)
            return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
        if pixels.ndim == 3:
            return np.clip(pixels.astype(np.float32) / (2 ** int(dataset.BitsStored) - 1), 0, 1)
        return _grey_dicom(pixels, dataset, name)[..., None]
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # pydicom and its decoders raise many types for damaged or partial files
        raise ImageError(f"{name}: the DICOM file cannot be decoded ({error})") from None


def check_structure(data: bytes, name: str) -> None:
    """Refuses a DICOM file that would fill the memory or take minutes to parse, before pydicom does.

    A deflated data set (PS3.5 A.5) may unpack to `MAX_INFLATED` bytes, and a data set may hold `MAX_ITEMS` items of
    sequences: pydicom makes objects of each, of 8 bytes in the file a microsecond and a kilobyte.
    """
    start = 144 + int.from_bytes(data[140:144], "little")  # the file meta information begins with its length (PS3.10)
    whole: Iterable[bytes] = (data,)
    if b"1.2.840.10008.1.2.1.99" in data[132:start]:
        whole = _inflated(data[start:], name)
    items = sum(part.count(tag) for part in whole for tag in _ITEM_TAGS)
    if items > MAX_ITEMS:
        raise ImageError(f"{name}: holds more than {MAX_ITEMS:,} items of sequences, the limit")


def _inflated(rest: bytes, name: str) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    while rest:
        part = inflate.decompress(rest, 2**24)
        rest = inflate.unconsumed_tail
        size += len(part)
        if size > MAX_INFLATED:
            raise ImageError(f"{name}: unpacks to more than {MAX_INFLATED:,} bytes, the limit")
        yield part


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF's grey values run from white to black; Pillow turns them round in 8 bits and no others."""
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]


def _check_scans(data: bytes, name: str) -> None:
    """Refuses a progressive JPEG of very many scans: each goes over the whole image again."""
    if data.count(_START_OF_SCAN) > MAX_SCANS:
        raise ImageError(f"{name}: the JPEG file has more than {MAX_SCANS} scans, the limit")


def _grey_dicom(pixels: np.ndarray, dataset: pydicom.Dataset, name: str) -> np.ndarray:
    """Stored H×W values → float32 in [0, 1], white is 1."""
    padding = _padding(pixels, dataset)
    shown = pixels if padding is None else pixels[~padding]
    if not shown.size:
        return np.zeros(pixels.shape, np.float32)
    low, high = shown.min(), shown.max()
    if pixels.dtype.kind in "iu" and int(high) - int(low) < _TABLE:
        table = _tones(np.arange(int(low), int(high) + 1).astype(pixels.dtype), dataset, name)
        image = np.empty(pixels.shape, np.float32)
        for top in range(0, len(pixels), _BAND):  # a few rows at a time stay in the processor's cache
            rows = slice(top, top + _BAND)
            np.take(table, np.subtract(pixels[rows], int(low), dtype=np.intp), out=image[rows], mode="clip")
    else:
        image = _tones(pixels, dataset, name)
    if padding is not None:
        image[padding] = 0
    return image


def _padding(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Which pixels are no part of the picture (PS3.3 C.7.5.1.1.2)."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    first = int(dataset.PixelPaddingValue)
    last = int(dataset.get("PixelPaddingRangeLimit", first))
    return (pixels >= min(first, last)) & (pixels <= max(first, last))


def _tones(values: np.ndarray, dataset: pydicom.Dataset, name: str) -> np.ndarray:
    """Stored values → float32 in [0, 1] through the modality and VOI transforms (PS3.3 C.11.1 and C.11.2)."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    tones = np.asarray(apply_voi_lut(apply_modality_lut(values, dataset), dataset), np.float32)
    _check_finite(tones, name)
    low, high = _dicom_range(dataset, tones)
    tones = np.subtract(tones, low, dtype=np.float32)
    np.divide(tones, max(high - low, 1e-6), out=tones)
    np.clip(tones, 0, 1, out=tones)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        np.subtract(1, tones, out=tones)
    return tones


def _dicom_range(dataset: pydicom.Dataset, values: np.ndarray) -> tuple[float, float]:
    """What is black and what is white: the range that a VOI LUT or window maps to (PS3.3 C.11.2.1), else that of the
    values."""
    if luts := dataset.get("VOILUTSequence"):
        return 0.0, float(2 ** int(luts[0].LUTDescriptor[2]) - 1)
    if dataset.get("WindowWidth") is None:
        return float(values.min()), float(values.max())
    bits = int(dataset.BitsStored)
    if luts := dataset.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(luts[0].LUTDescriptor[2]) - 1)
    signed = int(dataset.get("PixelRepresentation", 0))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return low * slope + intercept, high * slope + intercept


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}×{height} pixels is over the limit of {MAX_PIXELS:,}")


def _check_finite(pixels: np.ndarray, name: str) -> None:
    if not np.isfinite(pixels).all():
        raise ImageError(f"{name}: has pixels that are not finite numbers")


def fit(image: np.ndarray, side: int, channels: int) -> tuple[np.ndarray, Placement]:
    """Scales an image into the middle of a square canvas, keeping its aspect; margins are 0.

    Args:
        image: H×W×C, C = 1 or 3, of uint8 or of floats in [0, 1].

    Returns:
        canvas: channels×side×side uint8.
        placement: how boxes move between image and canvas.
    """
    height, width, depth = image.shape
    if channels == 1 and depth == 3:
        image = _unit(image) @ np.array([[0.299], [0.587], [0.114]], np.float32)
    place = Placement.of(width, height, side)
    inner_w, inner_h = _inner(width, height, place.scale)
    left, top = int(place.left), int(place.top)
    canvas = np.zeros((channels, side, side), np.uint8)
    inner = canvas[:, top : top + inner_h, left : left + inner_w]
    for channel in range(image.shape[2]):
        values = np.clip(_resampled(image[..., channel], inner_w, inner_h), 0, 1)
        inner[channel] = (values * 255 + 0.5).astype(np.uint8)
    inner[image.shape[2] :] = inner[0]  # grey, where colour is asked for
    return canvas, place


def _inner(width: int, height: int, scale: float) -> tuple[int, int]:
    """Width and height of the image on the canvas."""
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resampled(plane: np.ndarray, width: int, height: int) -> np.ndarray:
    """H×W → float32 of another size, in about [0, 1]: averaged over whole pixels as far as `_REDUCING_GAP` lets it, and
    bicubic from there."""
    given = plane.shape[1], plane.shape[0]
    if given == (width, height):
        return _unit(plane)
    factors = max(1, int(given[0] / width / _REDUCING_GAP)), max(1, int(given[1] / height / _REDUCING_GAP))
    if plane.dtype != np.uint8:
        plane = plane.astype(np.float32, copy=False)
    if factors != (1, 1):
        plane = np.asarray(Image.fromarray(np.ascontiguousarray(plane)).reduce(factors))
    box = (0.0, 0.0, given[0] / factors[0], given[1] / factors[1])
    picture = Image.fromarray(np.ascontiguousarray(_unit(plane)))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box))


def _unit(values: np.ndarray) -> np.ndarray:
    """As float32 in [0, 1]."""
    floats = values.astype(np.float32)
    return np.divide(floats, 255, out=floats) if values.dtype == np.uint8 else floats


def check_content(canvas: np.ndarray, placement: Placement, name: str) -> None:
    """Refuses what shows nothing that could be read: an image too small or narrow, or of one shade.

    Args:
        canvas, placement: what `fit` made of it.

    Raises:
        ImageError: one of its sides is shorter than `LEAST_SIDE` pixels, or one is more than `MOST_ASPECT` times the
            other, or all but a hundredth of its values lie within `LEAST_RANGE` grey levels.
    """
    short, long = sorted((placement.width, placement.height))
    if short < LEAST_SIDE:
        size = f"{placement.width}×{placement.height}"
        raise ImageError(f"{name}: {size} pixels are too few; at least {LEAST_SIDE} a side are needed")
    if long > MOST_ASPECT * short:
        raise ImageError(f"{name}: is more than {MOST_ASPECT} times as long as wide, which is no picture of a study")
    left, top, right, bottom = placement.to_canvas(np.array([[0, 0, placement.width, placement.height]]))[0]
    inner = canvas[:, round(top) : round(bottom), round(left) : round(right)]
    low, high = np.percentile(inner, (0.5, 99.5), axis=(1, 2))
    if (high - low).max() < LEAST_RANGE:
        raise ImageError(f"{name}: shows nothing, nearly all of its pixels have the same value")


def to_png(canvas: np.ndarray) -> bytes:
    """C×H×W uint8 (C = 1 or 3) → PNG bytes."""
    pixels = canvas[0] if canvas.shape[0] == 1 else np.moveaxis(canvas, 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def pixel_digest(canvas: np.ndarray) -> str:
    """SHA-256 of a canvas's shape and pixels: the address of a study, the same for every file that decodes to it."""
    return hashlib.sha256(repr(canvas.shape).encode() + np.ascontiguousarray(canvas).tobytes()).hexdigest()
