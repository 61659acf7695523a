"""A study as a picture for people: the image, a concept's map over it, and the reader's boxes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from serving.interfaces.schemas import Box, ImageSize

LEAST_SIDE = 768  # pixels of the longer side, so that a viewer need not enlarge what the network saw
_COLOURS = {"positive": (111, 220, 154), "negative": (255, 143, 143)}


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
