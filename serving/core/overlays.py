"""Pictures for people: a concept's map as a layer to lay over the image, and both with the reader's boxes as one."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from csr.data.images import to_png
from serving.interfaces.schemas import Box, ImageSize

THUMBNAIL_SIDE = 96
LEAST_SIDE = 768  # pixels of a picture's longer side, so that a viewer need not enlarge what the network saw
_COLOURS = {"focus": (124, 196, 255), "ignore": (255, 143, 143), "finding": (111, 220, 154)}  # as on the page
# Nine stops of matplotlib's inferno without its blacks: lightness rises evenly, and stays apart from grey tissue.
_PALETTE = np.array(
    [
        [66, 10, 104], [105, 22, 110], [143, 36, 105], [180, 51, 89], [213, 74, 65],
        [238, 106, 36], [250, 148, 7], [250, 194, 40], [241, 239, 117],
    ],
    np.float32,
)  # fmt: skip
_CLEAR_BELOW, _FULL_ABOVE = 0.3, 0.8  # shares of the scale between which the overlay fades in


def overlay_png(enlarged: np.ndarray, limit: float) -> bytes:
    """Colours an enlarged H×W map as an RGBA PNG: clear where low, opaque where it nears ``limit``."""
    share = np.clip(enlarged / max(limit, 1e-6), 0, 1)
    position = share * (len(_PALETTE) - 1)
    lower = np.minimum(position.astype(int), len(_PALETTE) - 2)
    rest = (position - lower)[..., None]
    colour = _PALETTE[lower] * (1 - rest) + _PALETTE[lower + 1] * rest
    fade = np.clip((share - _CLEAR_BELOW) / (_FULL_ABOVE - _CLEAR_BELOW), 0, 1)
    alpha = 255 * fade * fade * (3 - 2 * fade)  # smoothstep: no visible edge where it begins
    pixels = np.dstack([colour, alpha]).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def thumbnail_png(image: np.ndarray) -> bytes:
    """A C×H×W uint8 image as a PNG of at most `THUMBNAIL_SIDE` pixels a side; a smaller one stays as it is."""
    small = Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)))
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


def crop_with_map(crop: np.ndarray, similar: np.ndarray, limit: float) -> bytes:
    """A crop C×c×c uint8 with a map c×c coloured over it (`overlay_png`), as an RGB PNG."""
    image = Image.open(io.BytesIO(to_png(crop))).convert("RGBA")
    image.alpha_composite(Image.open(io.BytesIO(overlay_png(similar, limit))))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def picture(image_png: bytes, overlay_png: bytes, boxes: Sequence[Box], size: ImageSize) -> np.ndarray:
    """Draws one over the other.

    Args:
        image_png: the image as the network saw it, without margins.
        overlay_png: RGBA of the same size.
        boxes: in pixels of the uploaded image.
        size: of the uploaded image.

    Returns:
        H×W×3 uint8.
    """
    image = Image.open(io.BytesIO(image_png)).convert("RGBA")
    image.alpha_composite(Image.open(io.BytesIO(overlay_png)).convert("RGBA"))
    factor = max(1.0, LEAST_SIDE / max(image.size))
    image = image.convert("RGB").resize([round(side * factor) for side in image.size], Image.Resampling.BICUBIC)
    across, down = image.width / size.width, image.height / size.height
    pen = ImageDraw.Draw(image)
    for box in boxes:
        corners = (box.x_min * across, box.y_min * down, box.x_max * across - 1, box.y_max * down - 1)
        left, top, right, bottom = np.clip(corners, 0, [image.width - 1, image.height - 1] * 2).tolist()
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=_COLOURS[box.kind], width=3)
    return np.asarray(image)
