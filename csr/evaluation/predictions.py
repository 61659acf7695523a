"""What any system says about studies: CSR, its exported bundle and the baselines all end in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """What a system says about n rows: T classes (0 where only concepts are predicted), K concepts, image side S.

    Args:
        rows: the judged rows of the collection.
        probabilities: n×T.
        concepts: n×K concept scores, any monotone scale, or None if the system has none.
        peaks: n×K×2 (x, y) where the system's map for each concept points, or None if it has no maps.
        explanations: n, how many items explain each prediction, or None if nobody counted.
    """

    rows: np.ndarray
    probabilities: np.ndarray
    concepts: np.ndarray | None
    peaks: np.ndarray | None
    explanations: np.ndarray | None = None
