"""The two frames: pixels of the uploaded image, which clients speak, and the square canvas, which the network sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csr.data.images import Placement
from csr.data.orientation import turn_image_back
from csr.interaction.corrections import Interaction, InteractionError


def on_canvas(interaction: Interaction, placement: Placement) -> Interaction:
    """Moves boxes from pixels of the uploaded image to pixels of the canvas, cut to the image.

    Raises:
        InteractionError: a box lies outside the image.
    """
    width, height = placement.width, placement.height
    boxes = []
    for index, box in enumerate(interaction.boxes):
        if box.x_max <= 0 or box.y_max <= 0 or box.x_min >= width or box.y_min >= height:
            raise InteractionError(f"boxes[{index}]: lies outside the {width}×{height} image")
        cut = [max(box.x_min, 0), max(box.y_min, 0), min(box.x_max, width), min(box.y_max, height)]
        x_min, y_min, x_max, y_max = placement.to_canvas(np.array([cut]))[0].tolist()
        boxes.append(replace(box, x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
    return replace(interaction, boxes=tuple(boxes))


def image_part(canvas: np.ndarray, placement: Placement) -> np.ndarray:
    """The part of a …×side×side canvas that the image covers, without the margins and turned back as it is stored."""
    side = canvas.shape[-1]
    corners = placement.to_canvas(np.array([[0, 0, placement.width, placement.height]]))[0]
    left, top, right, bottom = np.clip(np.round(corners), 0, side).astype(int)
    left, top = min(left, side - 1), min(top, side - 1)
    part = canvas[..., top : max(bottom, top + 1), left : max(right, left + 1)]
    stored = turn_image_back(np.moveaxis(part, (-2, -1), (0, 1)), placement.turn)
    return np.moveaxis(stored, (0, 1), (-2, -1))
