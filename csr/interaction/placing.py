"""Boxes as simulated readers place them: on the finding, beside it, or elsewhere. Torch-free.

Boxes are (x_min, y_min, x_max, y_max) in pixels of the network's square input.
"""

from __future__ import annotations

import numpy as np

_TRIES = 20  # places to draw for a box that is to be elsewhere; the one that covers least is taken


def shifted(box: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """The box, moved by half its size in a random direction, as far as the image goes: a careless hand."""
    turn = rng.uniform(0, 2 * np.pi)
    extent = box[2:] - box[:2]
    corner = np.clip(box[:2] + extent / 2 * np.array([np.cos(turn), np.sin(turn)]), 0, np.maximum(side - extent, 0))
    return np.concatenate([corner, corner + extent])


def elsewhere(box: np.ndarray, others: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """The box, in its size, at the place inside the image that covers least of the n×4 ``others``, of a few drawn."""
    extent = box[2:] - box[:2]
    corners = rng.random((_TRIES, 2)) * np.maximum(side - extent, 0)
    places = np.concatenate([corners, corners + extent], 1)
    low = np.maximum(places[:, None, :2], others[None, :, :2])
    high = np.minimum(places[:, None, 2:], others[None, :, 2:])
    covered = np.maximum(high - low, 0).prod(-1).sum(1)
    return places[covered.argmin()]
