"""Concept maps of h×w cells → the size of the canvas.

A map is enlarged by bicubic interpolation (Keys' kernel with a = −0.75 and replicated borders), the same that
`csr.evaluation.peaks` uses for the pointing game, so the peak a reader sees is the peak that was evaluated.
"""

from __future__ import annotations

import numpy as np

_KEYS_A = -0.75


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
