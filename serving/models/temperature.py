"""The temperature of a bundle's probabilities, asked of the reasoner, whose constants are in its graph alone.

p_t = softmax_t(logit / τ), or sigmoid(logit_t / τ) where a study can have several classes
"""

from __future__ import annotations

import numpy as np

from csr.bundle.format import Manifest
from serving.engines import Engine

_ROWS = 16  # of chance answers: some of them leave the classes open, and those tell τ


def temperature(engine: Engine, manifest: Manifest) -> float:
    """τ by least squares, to about six digits: float32 has no more.

    Where probabilities are 0 or 1 to the last digit they tell nothing, so each counts by how far it is from that; 1
    where none tells anything, as nothing depends on it then.
    """
    cells, concepts = (manifest.height, manifest.width), len(manifest.concepts)
    said = engine.run_reasoner(
        np.zeros((_ROWS, manifest.patch_width, *cells), np.float32),
        ["logits", "probabilities"],
        importance=np.ones((_ROWS, *cells), np.float32),
        answers=np.random.default_rng(0).integers(-1, 2, (_ROWS, concepts)).astype(np.float32),
        places=np.zeros((_ROWS, concepts, *cells), np.float32),
        absent_weight=np.ones(_ROWS, np.float32),
    )
    logits, p = (said[name].astype(np.float64) for name in ("logits", "probabilities"))
    shown = np.log(np.clip(p, 1e-300, 1))
    if manifest.task == "multilabel":
        shown, weight = shown - np.log(np.clip(1 - p, 1e-300, 1)), p * (1 - p)
    else:
        first = p.argmax(1)[:, None]
        logits = logits - np.take_along_axis(logits, first, 1)
        shown, weight = shown - np.take_along_axis(shown, first, 1), p
    told = float((weight * logits * shown).sum())
    return float((weight * logits**2).sum()) / told if told > 0 else 1.0


def class_probabilities(logits: np.ndarray, temperature: float, multilabel: bool) -> np.ndarray:
    """…×T logits → …×T probabilities."""
    scaled = logits / temperature
    if multilabel:
        return np.asarray(np.exp(-np.logaddexp(0, -scaled)))
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
