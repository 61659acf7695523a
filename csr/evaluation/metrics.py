"""Macro F1, AUROC and average precision as METHOD defines them: numpy arrays in, numbers out, by scikit-learn.

What is true comes in scikit-learn's two forms (`csr.data.records.Collection.truth`): N class indices, where each study
has one class, or N×T of 1, 0 or NaN (unknown, left out), where it can have any number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score


def correct(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """… bool: which decisions (`csr.data.decisions.decide`) are right; of several classes, in all that are known."""
    if truth.ndim == 1:
        return predicted == truth
    return ((predicted == truth) | np.isnan(truth)).all(-1)


def macro_f1(truth: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Unweighted mean over ``classes`` of the per-class F1; a class neither present nor predicted counts 0.

    Args:
        truth, predicted: both N indices, or both N×T. NaN without a class.
    """
    if truth.ndim == 1:
        return float(f1_score(truth, predicted, labels=list(range(classes)), average="macro", zero_division=0))
    return float(np.mean(class_f1(truth, predicted))) if classes else float("nan")


def f1_by_class(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """T: each class's F1, whose mean is `macro_f1`; arguments as there."""
    if truth.ndim == 1:
        return np.asarray(f1_score(truth, predicted, labels=list(range(classes)), average=None, zero_division=0))
    return class_f1(truth, predicted)


def class_f1(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """T: the F1 of each column of N×T decisions, over the rows where the truth is known."""
    known = [~np.isnan(own) for own in truth.T]
    return np.array(
        [
            f1_score(own[rows], said[rows], zero_division=0) if rows.any() else 0.0
            for own, said, rows in zip(truth.T, predicted.T, known, strict=True)
        ]
    )


def macro_auroc(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """One-against-rest AUROC, averaged over the classes that have both positives and negatives."""
    return mean_auroc(np.eye(probabilities.shape[1])[truth] if truth.ndim == 1 else truth, probabilities)


def mean_auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean AUROC over the columns of N×K labels (1, 0 or NaN) that have both kinds; NaN if none has."""
    return _mean_over_columns(roc_auc_score, labels, scores)


def mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean average precision, the area under the precision-recall curve by steps, over the same columns."""
    return _mean_over_columns(average_precision_score, labels, scores)


def _mean_over_columns(
    measure: Callable[[np.ndarray, np.ndarray], float], labels: np.ndarray, scores: np.ndarray
) -> float:
    values = []
    for truth, score in zip(labels.T, scores.T, strict=True):
        known = ~np.isnan(truth)
        if len(np.unique(truth[known])) == 2:
            values.append(measure(truth[known], score[known]))
    return float(np.mean(values)) if values else float("nan")
