"""From which probability on is a class there? Where a study can have several, each has a threshold of its own, chosen
on split ``val``.

A label's threshold is the one of the whole percents from 1 to 99 with the largest F1 on the validation studies whose
label is known; of equally good ones that nearest a half, and of two as near the larger. Whole percents, for people read
them beside probabilities, and finer steps would follow single studies.

F1 is easily deceived: of a score that says nothing it is largest where everything is called present (Lipton et al.
2014, arXiv 1402.1892). So a label keeps a half

- if fewer than `LEAST` validation studies are known to have it, or to lack it: there is nothing to choose by;
- if no threshold has a larger F1 than calling every study present, which is 2π / (1 + π) with π its prevalence there.
"""

from __future__ import annotations

import numpy as np

from csr.data.decisions import HALF, decide
from csr.data.records import Collection
from csr.evaluation.metrics import macro_f1
from csr.evaluation.predictions import Predictions

GRID = np.arange(1, 100) / 100
LEAST = 5
_SAME = 1e-12  # F1 that differ by less are equal


def choose_thresholds(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """T thresholds by the rule of the module's docstring.

    Args:
        truth: n×T of 1, 0 or NaN (unknown, left out), of validation studies.
        probabilities: n×T.
    """
    return np.array([_threshold(own, said) for own, said in zip(truth.T, probabilities.T, strict=True)])


def validation_thresholds(collection: Collection, validation: Predictions) -> np.ndarray | None:
    """The thresholds of a system by its predictions on split ``val``; None unless a study can have several classes."""
    if collection.task != "multilabel":
        return None
    return choose_thresholds(collection.truth()[validation.rows], validation.probabilities)


def validation_f1(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """The figure that settings are chosen by on split ``val``: macro F1, where a study can have several classes at the
    thresholds that the split itself chooses, for a half would call hardly any rare finding present.

    Args:
        truth: n class indices, or n×T of 1, 0 or NaN.
        probabilities: n×T.
    """
    several = truth.ndim == 2
    thresholds = choose_thresholds(truth, probabilities) if several else None
    return macro_f1(truth, decide(probabilities, several, thresholds), probabilities.shape[1])


def _threshold(truth: np.ndarray, probabilities: np.ndarray) -> float:
    known = ~np.isnan(truth)
    present, said = truth[known] == 1, probabilities[known].astype(np.float64)
    positives = int(present.sum())
    if min(positives, len(present) - positives) < LEAST:
        return HALF
    claimed = said[:, None] >= GRID
    f1 = 2 * claimed[present].sum(0) / (claimed.sum(0) + positives)
    everything = 2 * positives / (len(present) + positives)
    if f1.max() <= everything + _SAME:
        return HALF
    best = GRID[f1 >= f1.max() - _SAME]
    return float(best[np.lexsort((-best, np.abs(best - HALF).round(2)))[0]])
