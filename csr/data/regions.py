"""Boxes around what a mask outlines."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

TOUCHING = np.ones((3, 3))  # pixels that touch at a corner are connected


def region_boxes(mask: np.ndarray) -> np.ndarray:
    """Boxes n×4 (x_min, y_min, x_max, y_max) around the connected regions of a bool mask."""
    labelled, _ = ndimage.label(mask, TOUCHING)
    slices = ndimage.find_objects(labelled)
    return np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices], np.float64).reshape(-1, 4)
