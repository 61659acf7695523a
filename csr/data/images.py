"""PNG, JPEG, TIFF, BMP, WebP and DICOM bytes → one image → the network's input. Torch-free: training and serving share
it.

Of a file of several pages or frames one is read, by its number. A JPEG is decoded whole, however small the canvas:
libjpeg's decoding at a half or less is three times as fast, but gives other pixels, and so another study than the same
file gave before. Not covered here: colour management beyond sRGB, and
volumes.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from csr.data.grey_values import LEAST_RANGE, grey_image
from csr.data.limits import MAX_FRAME, MAX_PIXELS, check_scans, check_size, check_webp
from csr.data.orientation import AS_STORED, is_turned, turn_boxes, turn_boxes_back, turn_image
from csr.errors import ImageError, cause_of

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")  # no other of Pillow's plugins is exposed to strangers' bytes
KINDS = "PNG, JPEG, TIFF, BMP, WebP or DICOM image"
_DICOM_MAGIC = slice(128, 132)
_WEBP_MAGIC = slice(8, 12)
_BITS, _PHOTOMETRIC, _MOST, _MOST_ANY = 258, 262, 281, 341  # TIFF's tags
LEAST_SIDE = 16  # pixels of an image that is to be read
MOST_ASPECT = 10
_REDUCING_GAP = 2.0  # images are averaged to twice their final size before they are resampled, in half the time


@dataclass(frozen=True)
class Placement:
    """Where a stored image of ``width``×``height`` lies on the square canvas: turned, and then
    canvas = scale · image + (left, top).

    The one way between the two: whoever moves boxes, places or pictures from one to the other asks it.

    Args:
        turn: see `csr.data.orientation`.
    """

    width: int
    height: int
    scale: float
    left: float
    top: float
    turn: int = AS_STORED

    @classmethod
    def of(cls, width: int, height: int, side: int, turn: int = AS_STORED) -> Placement:
        """In the middle of a canvas of ``side``×``side`` pixels, as large as it goes."""
        scale = side / max(height, width)
        inner_w, inner_h = _inner(width, height, scale, turn)
        return cls(width, height, scale, (side - inner_w) // 2, (side - inner_h) // 2, turn)

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """…×4 boxes in pixels of the stored image → the same boxes in pixels of the canvas."""
        boxes = turn_boxes(boxes, self.turn, self.width, self.height)
        return boxes * self.scale + np.array([self.left, self.top, self.left, self.top])

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """The inverse of `to_canvas`."""
        upright = (np.asarray(boxes, np.float64) - np.array([self.left, self.top, self.left, self.top])) / self.scale
        return turn_boxes_back(upright, self.turn, self.width, self.height)


class ReadImage(NamedTuple):
    """A file's image as it is stored.

    ``pixels``: H×W×C, C = 1 or 3, uint8 or float32 in [0, 1]; ``window``: how black and white were decided; ``turn``:
    what brings it into the display orientation that was asked for, see `csr.data.orientation`.
    """

    pixels: np.ndarray
    window: str
    turn: int = AS_STORED


def decode(data: bytes, name: str = "image") -> np.ndarray:
    """The pixels alone of `read_image`, as they are stored."""
    return read_image(data, name).pixels


def read_image(data: bytes, name: str = "image", display: str | None = None, frame: int | None = None) -> ReadImage:
    """Decodes a file's bytes.

    What a file stores in 8 bits stays uint8; anything deeper, and DICOM, becomes float32 in [0, 1], by
    `csr.data.grey_values` and `csr.data.dicom`, with padding (PS3.3 C.7.5.1.1.2) black. An orientation by EXIF is
    applied: such an image's pixels are counted as every viewer shows them.

    Args:
        display: the orientation that DICOM images of projections are to be brought into, such as ``L\\F``; None: none.
        frame: which page or frame, from 1; needed where there are several.

    Raises:
        ImageError: the bytes are not a readable image, or of several, or it has more than `MAX_PIXELS` pixels, or it
            cannot be brought into the display orientation.
    """
    if frame is not None and not 1 <= frame <= MAX_FRAME:
        raise ImageError(f"{name}: frames are numbered from 1 to {MAX_FRAME:,} at the most, not {frame}")
    if data[_DICOM_MAGIC] == b"DICM":
        from csr.data.dicom import read_dicom  # imported on use: decoding a PNG must not pay for it

        return ReadImage(*read_dicom(data, name, display, frame))
    image = _open(data, name, frame)
    bits, how = _significant(image, data)
    if image.mode.startswith("I") or image.mode == "F":
        grey, how = grey_image(np.asarray(image), bits, how, name, _white_is_zero(image))
        return ReadImage(grey[..., None], how)
    if image.mode in ("1", "L"):
        pixels = np.asarray(image if image.mode == "L" else image.convert("L"))[..., None]
        _check_depth(pixels, bits, name)
        return ReadImage(pixels, "8 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "black")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    _check_depth(pixels, bits, name)
    return ReadImage(pixels, "8 bits")


def pixel_spacing(data: bytes) -> tuple[float, float] | None:
    """See `csr.data.dicom.dicom_spacing`; None for other files."""
    if data[_DICOM_MAGIC] != b"DICM":
        return None
    from csr.data.dicom import dicom_spacing

    return dicom_spacing(data)


def _open(data: bytes, name: str, frame: int | None) -> Image.Image:
    """One page or frame, decoded and upright."""
    try:
        if data[_WEBP_MAGIC] == b"WEBP":
            check_webp(data, name)
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(image.width, image.height, name)
        several = getattr(image, "is_animated", False)  # TIFF too; to count its pages is to walk through all of them
        if several and frame is None:
            raise ImageError(f"{name}: has more than one page or frame; say which one is meant by its number, from 1")
        if frame is not None and (several or frame > 1):
            _seek(image, frame, name)
            check_size(image.width, image.height, name)
        if image.format == "JPEG":
            check_scans(data, name)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: is over the limit of {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a {KINDS}") from None
    except Exception as error:  # Pillow's plugins raise many types for damaged files
        raise ImageError(f"{name}: the image is damaged and cannot be decoded ({cause_of(error)})") from None


def _seek(image: Image.Image, frame: int, name: str) -> None:
    try:
        image.seek(frame - 1)
    except EOFError:
        raise ImageError(f"{name}: has no page or frame of number {frame}") from None


def _significant(image: Image.Image, data: bytes) -> tuple[int | None, str]:
    """How many bits of a sample the file says to be significant, None where it says nothing, and what says so.

    PNG (ISO/IEC 15948, 11.3.2.4) wants samples spread over the whole container, whatever sBIT says; those that are not,
    because they do not reach beyond it, are taken as they are. TIFF's MaxSampleValue is not to be used for display, but
    it does bound the bits.
    """
    if image.format == "PNG":
        depth = data[24]
        stated = _png_bits(data) if depth == 16 else None
        if stated is not None and image.mode.startswith("I") and np.asarray(image).max() < 2**stated:
            return stated, f"sBIT {stated}"
        return depth, f"{depth} bits"
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        depth = max(tags.get(_BITS, (8,)))
        most = tags.get(_MOST_ANY, tags.get(_MOST))
        most = max(most) if isinstance(most, tuple) else most
        if image.mode == "F" or depth > 16:
            return None, ""
        if isinstance(most, int) and 8 <= most.bit_length() < depth:
            return most.bit_length(), f"MaxSampleValue {most}"
        return depth, f"{depth} bits"
    return 8, "8 bits"


def _png_bits(data: bytes) -> int | None:
    """What the chunk sBIT says, which comes before the pixels."""
    place = 8
    for _ in range(64):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if kind == b"sBIT" and 0 < size <= 4:
            return max(data[place + 8 : place + 8 + size])
        if kind in (b"IDAT", b""):
            return None
        place += 12 + size
    return None


def _check_depth(pixels: np.ndarray, bits: int | None, name: str) -> None:
    """Refuses what was stored in 16 bits a channel, which Pillow cuts to the upper 8, if that leaves few of them."""
    if bits is not None and bits > 8 and pixels.max(initial=0) < 64:
        raise ImageError(f"{name}: uses only the lower bits of its 16 a channel; save it with 8 bits, or as one grey")


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF's grey values run from white to black; Pillow turns them round in 8 bits and no others."""
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]


def fit(image: np.ndarray, side: int, channels: int, turn: int = AS_STORED) -> tuple[np.ndarray, Placement]:
    """Scales an image into the middle of a square canvas, keeping its aspect; margins are 0.

    Args:
        image: H×W×C as stored, C = 1 or 3, of uint8 or of floats in [0, 1].
        turn: what brings it upright, see `csr.data.orientation`.

    Returns:
        canvas: channels×side×side uint8.
        placement: how boxes move between image and canvas.
    """
    height, width, depth = image.shape
    if channels == 1 and depth == 3:
        image = _unit(image) @ np.array([[0.299], [0.587], [0.114]], np.float32)
    place = Placement.of(width, height, side, turn)
    inner_w, inner_h = _inner(width, height, place.scale, turn)
    image = turn_image(image, turn)
    left, top = int(place.left), int(place.top)
    canvas = np.zeros((channels, side, side), np.uint8)
    inner = canvas[:, top : top + inner_h, left : left + inner_w]
    for channel in range(image.shape[2]):
        plane = image[..., channel]
        if plane.dtype == np.uint8 and plane.shape == (inner_h, inner_w):
            inner[channel] = plane
        else:
            inner[channel] = (np.clip(_resampled(plane, inner_w, inner_h), 0, 1) * 255 + 0.5).astype(np.uint8)
    inner[image.shape[2] :] = inner[0]  # grey, where colour is asked for
    return canvas, place


def _inner(width: int, height: int, scale: float, turn: int) -> tuple[int, int]:
    """Width and height of the turned image on the canvas."""
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    return inner[::-1] if is_turned(turn) else inner


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
    left, top = int(placement.left), int(placement.top)
    inner_w, inner_h = _inner(placement.width, placement.height, placement.scale, placement.turn)
    inner = canvas[:, top : top + inner_h, left : left + inner_w]
    if max(_spread(plane) for plane in inner) < LEAST_RANGE:
        raise ImageError(f"{name}: shows nothing, nearly all of its pixels have the same value")


def _spread(plane: np.ndarray) -> float:
    """Grey levels between the percentiles 0.5 and 99.5 of H×W uint8, as `np.percentile` finds them, by counting."""
    below = np.cumsum(Image.fromarray(plane).histogram())
    places = np.array([0.005, 0.995]) * (plane.size - 1)
    lower, upper = (np.searchsorted(below, rounded(places), "right") for rounded in (np.floor, np.ceil))
    low, high = lower + (upper - lower) * (places % 1)
    return float(high - low)


def to_png(canvas: np.ndarray) -> bytes:
    """C×H×W uint8 (C = 1 or 3) → PNG bytes."""
    pixels = canvas[0] if canvas.shape[0] == 1 else np.moveaxis(canvas, 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def pixel_digest(canvas: np.ndarray) -> str:
    """SHA-256 of a canvas's shape and pixels: the address of a study, the same for every file that decodes to it."""
    return hashlib.sha256(repr(canvas.shape).encode() + np.ascontiguousarray(canvas).tobytes()).hexdigest()
