"""What class probabilities say of a study, and how sure that is; whoever decides anything decides it here. Torch-free.

Where a study has one class, it is said to have the most probable one. Where it can have several, each is decided on its
own: it is there from its threshold on (`csr.evaluation.thresholds` chooses it; a half, if nobody did). A probability is
*centred* on its threshold θ by the two straight lines that take 0, θ and 1 to 0, a half and 1, so that what is known of
decisions at a half holds at θ:

    c(p) = p / 2θ   if p < θ,   1/2 + (p − θ) / 2(1 − θ)   else
"""

from __future__ import annotations

import numpy as np

HALF = 0.5  # the threshold of a class that has none of its own


def decide(probabilities: np.ndarray, multilabel: bool, thresholds: np.ndarray | None = None) -> np.ndarray:
    """What …×T probabilities say: … indices of the largest, or …×T of 1 and 0.

    Args:
        multilabel: a study can have several classes.
        thresholds: T in (0, 1) from which on a class is there; None: a half for all. Without meaning where a study has
            one class.
    """
    if not multilabel:
        return probabilities.argmax(-1)
    return (probabilities >= (HALF if thresholds is None else thresholds)).astype(np.int64)


def centred(probabilities: np.ndarray, thresholds: np.ndarray | None) -> np.ndarray:
    """c of the module's docstring: …×T, at least a half where the class is said to be there. As they are, if the
    thresholds are a half."""
    if thresholds is None:
        return probabilities
    below = HALF * probabilities / thresholds
    return np.where(probabilities < thresholds, below, HALF + HALF * (probabilities - thresholds) / (1 - thresholds))


def study_confidence(probabilities: np.ndarray, multilabel: bool, thresholds: np.ndarray | None = None) -> np.ndarray:
    """…×T → …, in [0, 1]: how sure the answer is. That is the largest probability, or, where a study can have several
    classes, the smallest of max(c, 1 − c) with c the centred ones: it is as sure as its least certain decision."""
    if not multilabel:
        return np.asarray(probabilities, np.float64).max(-1)
    sure = centred(np.asarray(probabilities, np.float64), thresholds)
    return np.maximum(sure, 1 - sure).min(-1)


def decision_margin(
    probabilities: np.ndarray, multilabel: bool = False, thresholds: np.ndarray | None = None
) -> np.ndarray:
    """How far an answer is from another: p(top-1) − p(top-2), or, where a study can have several classes, the smallest
    |c − (1 − c)| of the centred probabilities, which is the same for every class against its absence. …×T → …; 1 for a
    single class."""
    if multilabel:
        return np.abs(2 * centred(probabilities, thresholds) - 1).min(-1)
    if probabilities.shape[-1] == 1:
        return np.ones(probabilities.shape[:-1])
    top = np.sort(probabilities, axis=-1)
    return top[..., -1] - top[..., -2]


def wants_help(
    probabilities: np.ndarray, margin: float = 0.3, multilabel: bool = False, thresholds: np.ndarray | None = None
) -> np.ndarray:
    """The paper's trigger: True where the `decision_margin` is below ``margin``. …×T → …."""
    return decision_margin(probabilities, multilabel, thresholds) < margin
