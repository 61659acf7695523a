"""Measures as functions of study weights: what a resample of a bootstrap is judged by, many resamples at once.

A resample draws studies with replacement; how often each was drawn is its weight. All take b×N weights, one row a
resample, and with weights of 1 give what `csr.evaluation.metrics`, `csr.evaluation.calibration` and
`csr.evaluation.pointing` give.
"""

from __future__ import annotations

import numpy as np

from csr.evaluation.calibration import bin_of, single_decisions


def macro_f1(truth: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """b×S macro F1 of S×N decisions, or S×N×T: F1_t = 2·hits_t / (present_t + predicted_t), 0 where that is 0/0."""
    return class_f1(truth, predicted, classes, weights).mean(-1).T


def class_f1(truth: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """S×b×T, the F1 of each class; arguments as for `macro_f1`."""
    if truth.ndim == 2:  # what is not known counts nowhere
        present, claimed = (truth == 1).astype(np.float64), ((predicted == 1) & ~np.isnan(truth)).astype(np.float64)
    else:
        present = (truth[:, None] == np.arange(classes)).astype(np.float64)
        claimed = (predicted[..., None] == np.arange(classes)).astype(np.float64)
    hits = weights @ (claimed * present)  # S×b×T
    total = weights @ claimed + weights @ present
    return np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)


def auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """b, the mean over R runs of the AUROC of R×N scores: the weighted share of (positive, negative) pairs in which the
    positive has the larger score, ties counting a half."""
    return auroc_by_run(labels, scores, weights).mean(0)


def macro_auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """b, the mean AUROC over the columns of N×T labels (1, 0 or NaN) that have both kinds in the resample, NaN if none
    has."""
    values = auroc_by_run(labels.T, scores.T, weights)
    known = ~np.isnan(values)
    count = known.sum(0)
    return np.divide(np.nansum(values, 0), count, out=np.full(len(weights), np.nan), where=count > 0)


def auroc_by_run(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """R×b, as `auroc`; labels may be NaN, which counts nowhere. NaN where a resample lacks one kind."""
    found = []
    for label, score in zip(labels, scores, strict=True):
        order = np.argsort(score, kind="stable")
        starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
        positive, negative = (np.add.reduceat(weights[:, order] * (label[order] == v), starts, 1) for v in (1, 0))
        below = negative.cumsum(1) - negative / 2
        pairs = positive.sum(1) * negative.sum(1)
        found.append(np.divide((positive * below).sum(1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0))
    return np.stack(found)


def calibration_error(truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, bins: int = 15) -> np.ndarray:
    """b, the expected calibration error (`csr.evaluation.calibration.expected_calibration_error`) of N×T."""
    confidence, right = single_decisions(truth, probabilities)
    study = np.arange(len(truth)) if truth.ndim == 1 else np.nonzero(~np.isnan(truth))[0]
    gaps = np.zeros((len(truth), bins))
    np.add.at(gaps, (study, bin_of(confidence, bins)), right - confidence)
    decided = np.bincount(study, minlength=len(truth))
    return np.abs(weights @ gaps).sum(1) / (weights @ decided)


def ratio(hits: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """b, Σ hits / Σ counts of N each, such as the pointing game by pair; NaN where nothing is counted."""
    total = weights @ counts
    return np.divide(weights @ hits, total, out=np.full(len(weights), np.nan), where=total > 0)
