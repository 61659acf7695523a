"""What unknown concept labels of training studies probably are, by what else is known of the studies; pure functions.

A logistic regression a concept, fitted to the labels that people gave, from a study's classes and one number that a
network makes of its image. So the known labels say how much a class or a number is worth. n studies, K concepts, T
classes.

Not covered: labels that are missing for what they would say (the known ones must be a fair sample).
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from csr.data.records import Collection
from csr.training.features import FeatureCache


def soft_labels(labels: np.ndarray, indicators: np.ndarray | None, evidence: np.ndarray | None) -> np.ndarray:
    """n×K probabilities of concepts.

    Each regression is held back by L2 (scikit-learn's C = 1), so a concept with few known labels gets probabilities
    near its base rate.

    Args:
        labels: n×K of 1, 0 or NaN.
        indicators: n×T of 1, 0 or NaN, what is known of the studies' classes; None: they do not count.
        evidence: n×K, larger where a concept is likelier, of which a concept's own counts; None: there is none yet.

    Returns:
        NaN for concepts of which no label, or only one kind of label, is known.
    """
    found = np.full(labels.shape, np.nan, np.float32)
    shared = np.zeros((len(labels), 1))  # a constant says nothing
    if indicators is not None and (some := ~np.isnan(indicators).all(0)).any():
        own = indicators[:, some].astype(np.float64)
        shared = np.where(np.isnan(own), np.nanmean(own, 0), own)
    for k, column in enumerate(labels.T):
        known = ~np.isnan(column)
        if len(np.unique(column[known])) < 2:
            continue
        inputs = shared
        if evidence is not None:
            values = evidence[:, k : k + 1].astype(np.float64)
            inputs = np.hstack([shared, (values - values.mean()) / max(float(values.std()), 1e-6)])
        fit = LogisticRegression(max_iter=1000).fit(inputs[known], column[known].astype(int))
        found[:, k] = fit.predict_proba(inputs)[:, 1]
    return found


def fitted_labels(collection: Collection, rows: np.ndarray) -> np.ndarray:
    """n×K labels that the regressions are fitted to: those that people gave, or, of a concept of which they gave none
    or one kind only, all that are known. What an image-text encoder filled was chosen for being certain, so it is no
    fair sample."""
    judged, known = collection.judged_labels()[rows], collection.concept_labels()[rows]
    enough = (judged == 1).any(0) & (judged == 0).any(0)
    return np.where(enough, judged, known)


def with_pseudo_labels(collection: Collection, cache: FeatureCache, confidence: float) -> np.ndarray:
    """N×K concept labels in which unknown ones of training studies are 1 or 0 where `soft_labels` are that sure.

    The evidence is the maximum of a concept's map. Known labels, those of other splits and of studies without any label
    stay as they are.

    Args:
        confidence: probability that a guess needs, above 0.5; at 1 unknown labels stay unknown.
    """
    labels, rows = collection.concept_labels(), collection.labelled_rows("train")
    unknown = np.isnan(labels[rows])
    if confidence == 1 or not unknown.any():
        return labels
    peaks = np.stack([cache.cam[row].max((1, 2)) for row in rows])
    soft = soft_labels(fitted_labels(collection, rows), collection.class_indicators()[rows], peaks)
    with np.errstate(invalid="ignore"):
        guesses = np.where(soft >= confidence, 1, np.where(soft <= 1 - confidence, 0, np.nan))
    labels[rows] = np.where(unknown, guesses, labels[rows])
    return labels
