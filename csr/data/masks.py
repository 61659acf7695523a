"""Masks of findings as PNG files of their image's size, and how they move onto the prepared image's canvas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from csr.data.images import Placement
from csr.data.orientation import AS_STORED, is_turned, turn_image
from csr.errors import ImageError


def read_mask(file: Path, width: int, height: int) -> np.ndarray:
    """Reads a mask as H×W bool: True where any colour (or a palette's index) is not 0; transparency says nothing.

    Args:
        width, height: of the image that it belongs to.

    Raises:
        ImageError: saying what is wrong with it: not there, not a PNG image, of another size, or empty.
    """
    try:
        with Image.open(file, formats=("PNG",)) as image:
            size = image.size  # known before the pixels are unpacked
            frames = getattr(image, "n_frames", 1)
            values = np.asarray(image) if size == (width, height) else np.zeros(0)
            bands = image.getbands()
    except FileNotFoundError:
        raise ImageError("there is no such file") from None
    except Exception as error:  # Pillow raises many types for damaged files
        raise ImageError(f"cannot be read as a PNG image ({error})") from None
    if frames > 1:
        raise ImageError(f"is an animation of {frames} frames; save one picture a file")
    if size != (width, height):
        raise ImageError(f"is of {size[0]}×{size[1]} pixels and its image of {width}×{height} when it is upright")
    values = values.reshape(height, width, len(bands))[..., : len(bands) - ("A" in bands)]
    mask = (values != 0).any(axis=2)
    if not mask.any():
        raise ImageError("is 0 everywhere; remove the row, or mark the finding")
    return mask


def tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The smallest box (x_min, y_min, x_max, y_max) around a mask that is not empty; pixel edges."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def place_mask(mask: np.ndarray, placement: Placement, side: int) -> np.ndarray:
    """Moves a mask to where its image lies on the canvas, S×S bool, each pixel as the nearest of the mask.

    A finding so small that no pixel of the canvas is nearest to it keeps the pixels that it lies in.
    """
    if placement.turn != AS_STORED:
        mask, sides = turn_image(mask, placement.turn), (placement.width, placement.height)
        width, height = sides[::-1] if is_turned(placement.turn) else sides
        placement = replace(placement, width=width, height=height, turn=AS_STORED)
    middles = np.arange(side) + 0.5
    columns, rows = np.floor(placement.to_image(np.stack([middles] * 4, axis=1))).astype(int).T[:2]
    across, down = (columns >= 0) & (columns < placement.width), (rows >= 0) & (rows < placement.height)
    canvas = np.zeros((side, side), bool)
    canvas[np.ix_(down, across)] = mask[np.ix_(rows[down], columns[across])]
    if not canvas.any():
        y, x = np.nonzero(mask)
        found = np.floor(placement.to_canvas(np.stack([x, y, x, y], axis=1) + 0.5)).astype(int)
        canvas[found[:, 1], found[:, 0]] = True
    return canvas
