"""Where maps point: the maximum of each once it is enlarged to the image's size; see `csr.evaluation.pointing`.

`csr.evaluation.upsampling` finds the same without torch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def map_peaks(maps: np.ndarray, side: int) -> np.ndarray:
    """Where maps point. ``maps`` …×h×w → …×2 (x, y) pixel centres of the maximum after bicubic enlargement."""
    shape = maps.shape[:-2]
    flat = torch.from_numpy(np.ascontiguousarray(maps, np.float32)).reshape(-1, 1, *maps.shape[-2:])
    peaks = []
    for chunk in flat.split(256):
        large = F.interpolate(chunk, size=(side, side), mode="bicubic", align_corners=False).flatten(1)
        peaks.append(large.argmax(1))
    index = torch.cat(peaks).numpy()
    return np.stack([index % side + 0.5, index // side + 0.5], -1).reshape(*shape, 2)
