"""Where maps point: the maximum of each once it is enlarged to the image's size; see `csr.evaluation.pointing`.

`csr.evaluation.upsampling` finds the same without torch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 256  # maps


def map_peaks(maps: np.ndarray | Tensor, side: int) -> np.ndarray:
    """Where maps point. ``maps`` …×h×w → …×2 (x, y) pixel centres of the maximum after bicubic enlargement.

    A tensor's are found on its own device, and nothing else is read from there.
    """
    if isinstance(maps, np.ndarray):
        maps = torch.from_numpy(np.ascontiguousarray(maps, np.float32))
    return pixel_centres(peak_pixels(maps, side).cpu().numpy(), side)


def peak_pixels(maps: Tensor, side: int) -> Tensor:
    """…×h×w → …, int64, on the same device: the pixel, counted row by row, that each map points to once it is enlarged
    to side×side."""
    flat = maps.float().reshape(-1, 1, *maps.shape[-2:])
    peaks = []
    for chunk in flat.split(_AT_ONCE):
        large = F.interpolate(chunk, size=(side, side), mode="bicubic", align_corners=False).flatten(1)
        peaks.append(large.argmax(1))
    return torch.cat(peaks).reshape(maps.shape[:-2])


def pixel_centres(pixels: np.ndarray, side: int) -> np.ndarray:
    """What `peak_pixels` found, … → …×2 (x, y)."""
    return np.stack([pixels % side + 0.5, pixels // side + 0.5], -1)
