"""What readers said in corrected studies, beside the labels that the data set has: how much it counts, and what of it
is not believed.

Readers err. What a network says of the same study is a second opinion, so how often readers err can be told without
anybody who knows the truth (the idea of Raykar et al. 2010, JMLR 11, with the network in the place of the classifier
that is learned beside the readers' error rates). Let a_i be the probability that the network's evidence gives to what
was said with word i, and e the share of words that are wrong:

    w_i = e · (1 − a_i) / (n − 1)  /  ( e · (1 − a_i) / (n − 1)  +  (1 − e) · a_i )      that word i is wrong
    e   = mean of w_i                                                                  the share of words that are

repeated until e stays. n is the number of things that could have been said, 2 for a concept. A word is doubted where it
is likelier wrong than right, w_i > 1/2, which takes a_i < e for a concept: the better readers are, the surer the
network must be of the opposite. A doubted word counts as unknown, and its boxes as not drawn.

a_i is a logistic regression on what the network says of the studies of split ``val``, which it has not learned: the
evidence of training studies is too sure. Both kinds of label weigh the same in it, so that a network that knows nothing
yet doubts nobody, however rare a concept is. e is kept below 1/2 for the same reason.

One e for all words of a set: who said what is no longer known once readers have come to one label. Not covered: classes
of studies that may have several, and readers and network that err together.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from csr.data.records import CONCEPT_PREFIX, SAID_PREFIX, Collection
from csr.training.features import FeatureCache

FIRST = 0.1  # e before anything is known
MOST = 0.45
ROUNDS = 100


def label_counts(said: np.ndarray, weight: float) -> Tensor | None:
    """How many times each label counts, in the shape of ``said``: ``weight`` where readers said it, else once. None
    where that makes no difference."""
    if weight == 1 or not said.any():
        return None
    return torch.from_numpy(np.where(said, np.float32(weight), np.float32(1)))


def doubted_words(agreeing: np.ndarray, others: int = 1) -> tuple[np.ndarray, float]:
    """Which words are likelier wrong than right, and the share of all that are.

    Args:
        agreeing: a, n probabilities in (0, 1).
        others: n − 1, how many other things could have been said with a word.
    """
    error = FIRST
    for _ in range(ROUNDS):
        wrong = error * (1 - agreeing) / others
        wrong = wrong / (wrong + (1 - error) * agreeing)
        error = min(float(wrong.mean()), MOST) if len(wrong) else 0.0
    return wrong > 0.5, error


def doubted_labels(
    labels: np.ndarray, said: np.ndarray, evidence: np.ndarray, judged: np.ndarray, judged_evidence: np.ndarray
) -> np.ndarray:
    """n×K bool: the concept labels that readers said and that are doubted.

    Args:
        labels: n×K of 1, 0 or NaN.
        said: n×K bool, what of them readers said.
        evidence: n×K, larger where a concept is likelier.
        judged, judged_evidence: the same of m studies that nothing was learned from.
    """
    agreeing = np.full(labels.shape, np.nan)
    for k in range(labels.shape[1]):
        known = ~np.isnan(judged[:, k])
        if not said[:, k].any() or len(np.unique(judged[known, k])) < 2:
            continue
        values = judged_evidence[known, k].astype(np.float64)
        middle, spread = values.mean(), max(float(values.std()), 1e-6)
        fit = LogisticRegression(class_weight="balanced", max_iter=1000)
        fit.fit((values[:, None] - middle) / spread, judged[known, k].astype(int))
        present = fit.predict_proba((evidence[:, k : k + 1].astype(np.float64) - middle) / spread)[:, 1]
        agreeing[:, k] = np.where(labels[:, k] == 1, present, 1 - present)
    told = said & ~np.isnan(agreeing) & ~np.isnan(labels)
    found = np.zeros(labels.shape, bool)
    found[told] = doubted_words(agreeing[told].clip(1e-6, 1 - 1e-6))[0]
    return found


def believed(collection: Collection, cache: FeatureCache) -> Collection:
    """The collection in which concept labels that readers said are unknown where they are doubted, for stages 2 and 3.

    The evidence is the maximum of a concept's map, where the readers' boxes leave it if the features are attended
    ones. Of a concept for which readers gave all the present labels, or all the absent ones, of split ``train``, these
    are kept: without them there is nothing to learn from.
    """
    said, labels = collection.said_labels(), collection.concept_labels()
    spoken, val = np.flatnonzero(said.any(1)), collection.rows("val")
    if not len(spoken):
        return collection
    evidence, judged = (np.stack([cache.cam[row].max((1, 2)) for row in rows]) for rows in (spoken, val))
    doubted = np.zeros(said.shape, bool)
    doubted[spoken] = doubted_labels(labels[spoken], said[spoken], evidence, labels[val], judged)
    train, studies = collection.rows("train"), collection.studies.copy()
    for k, name in enumerate(collection.concepts):
        for value in (0, 1):
            kind = labels[:, k] == value
            if not (kind & ~doubted[:, k])[train].any():
                doubted[kind, k] = False
        studies.loc[doubted[:, k], CONCEPT_PREFIX + name] = np.nan
        studies.loc[doubted[:, k], SAID_PREFIX + name] = False
    return replace(collection, studies=studies)
