"""Concept maps of h×w cells → points and pictures at the image's size.

A map is enlarged by bicubic interpolation (Keys' kernel with a = −0.75 and replicated borders), the same that
`csr.evaluation.metrics` uses for the pointing game, so the peak a reader sees is the peak that was evaluated.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

_KEYS_A = -0.75
# Nine stops of matplotlib's inferno without its blacks: lightness rises evenly, and stays apart from grey tissue.
_PALETTE = np.array(
    [
        [66, 10, 104], [105, 22, 110], [143, 36, 105], [180, 51, 89], [213, 74, 65],
        [238, 106, 36], [250, 148, 7], [250, 194, 40], [241, 239, 117],
    ],
    np.float32,
)  # fmt: skip
_CLEAR_BELOW, _FULL_ABOVE = 0.3, 0.8  # shares of the scale between which the overlay fades in


def bicubic_matrix(cells: int, size: int) -> np.ndarray:
    """size×cells float32 matrix that enlarges a line of ``cells`` values to ``size`` (half-pixel centres)."""
    centre = (np.arange(size) + 0.5) * cells / size - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((size, cells))
    for tap in range(-1, 3):
        distance = np.abs(centre - (first + tap))
        near = ((_KEYS_A + 2) * distance - (_KEYS_A + 3)) * distance**2 + 1
        far = _KEYS_A * (((distance - 5) * distance + 8) * distance - 4)
        np.add.at(matrix, (np.arange(size), np.clip(first + tap, 0, cells - 1)), np.where(distance <= 1, near, far))
    return matrix.astype(np.float32)


class Upsampler:
    """Enlarges h×w maps to a side×side canvas."""

    def __init__(self, height: int, width: int, side: int) -> None:
        self.side = side
        self._down, self._across = bicubic_matrix(height, side), bicubic_matrix(width, side).T

    def enlarge(self, maps: np.ndarray) -> np.ndarray:
        """…×h×w → …×side×side."""
        return self._down @ maps @ self._across

    def peaks(self, maps: np.ndarray) -> np.ndarray:
        """K×h×w → K×2: (x, y) in pixels of the canvas, the centre of the pixel where each enlarged map is largest."""
        index = self.enlarge(maps).reshape(len(maps), -1).argmax(1)
        return np.stack([index % self.side, index // self.side], -1) + 0.5


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
