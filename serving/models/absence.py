"""What a concept scores in images that lack it, asked of the reasoner, whose constants are in its graph alone."""

from __future__ import annotations

import numpy as np

from csr.bundle.format import Manifest
from serving.engines import Engine

_CELLS = 256  # so many random directions leave no prototype without one that is near it
_STRENGTH = 1e3


def absent_levels(engine: Engine, manifest: Manifest, alive: np.ndarray) -> list[float]:
    """K similarities: the largest that any live prototype of a concept has, typically, in training images without it
    (max over m of a_km, `csr.network.reasoner`). What a map shows below is no sign of the concept.

    A rejected prototype scores min(s, a), so one that everything resembles scores a once it is rejected.

    Args:
        engine: of the bundle.
        manifest: its manifest.
        alive: K×M; a concept without a live prototype has the level −1, as its map is.
    """
    about = manifest
    cells = (about.height, about.width)
    studies = -(-_CELLS // (about.height * about.width))
    directions = np.random.default_rng(0).standard_normal((studies, about.patch_width, *cells))
    scores = engine.run_reasoner(
        (_STRENGTH * directions).astype(np.float32),
        ["scores"],
        importance=np.ones((studies, *cells), np.float32),
        answers=np.full((studies, len(about.concepts)), -1, np.float32),
        places=np.zeros((studies, len(about.concepts), *cells), np.float32),
        absent_weight=np.ones(studies, np.float32),
    )["scores"]
    levels: list[float] = np.where(alive, scores.max(0), -1.0).max(1).tolist()
    return levels
