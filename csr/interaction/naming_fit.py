"""Fits `csr.interaction.naming.BoxNaming` to the boxes of split ``val``."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from csr.data.prepared import PreparedSet
from csr.interaction.corrections import RegionBox
from csr.interaction.naming import BoxNaming, box_features
from csr.network.reasoner import concept_maps
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache

FALSE_ALARMS = 0.08  # share of rightly named boxes that may be questioned
_FOLDS = 5
_RIDGE = 0.3  # inverse strength of the regression's L2 penalty


def fit_naming(data: PreparedSet, cache: FeatureCache, csr: TrainedCSR) -> BoxNaming | None:
    """The regression, on one box a row of split ``val``; None if its boxes are of fewer than two concepts.

    A concept without a box there is never guessed: its bias is −∞ for all purposes.

    Args:
        cache: the backbone's features of every study.
    """
    features, concept = labelled_boxes(data, cache, csr, data.collection.rows("val"))
    seen = np.unique(concept)
    if len(seen) < 2:
        return None
    mean, scale = features.mean(0), features.std(0).clip(1e-6)
    standard = (features - mean) / scale
    fitted = LogisticRegression(C=_RIDGE, max_iter=2000).fit(standard, concept)
    weights = np.zeros((len(csr.concepts), features.shape[1]))
    bias = np.full(len(csr.concepts), -1e3)
    if len(seen) == 2:  # scikit-learn keeps one row then, that of the second
        weights[seen[1]], bias[seen] = fitted.coef_[0], (0.0, fitted.intercept_[0])
    else:
        weights[seen], bias[seen] = fitted.coef_, fitted.intercept_
    return BoxNaming(mean, scale, weights, bias, _doubt(standard, concept, seen))


def _doubt(standard: np.ndarray, concept: np.ndarray, seen: np.ndarray) -> float:
    """The probability that `FALSE_ALARMS` of the true names have less of, by regressions that have not seen their box.

    0 where a concept has too few boxes to leave some out: nothing is questioned then.
    """
    folds = min(_FOLDS, int(np.bincount(concept)[seen].min()))
    if folds < 2:
        return 0.0
    regression = LogisticRegression(C=_RIDGE, max_iter=2000)
    unseen = cross_val_predict(regression, standard, concept, cv=folds, method="predict_proba")
    named = unseen[np.arange(len(concept)), np.searchsorted(seen, concept)]
    return float(np.quantile(named, FALSE_ALARMS))


@torch.no_grad()
def labelled_boxes(
    data: PreparedSet, cache: FeatureCache, csr: TrainedCSR, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The features n×F of every box of the rows' concepts, and the concepts' indices n."""
    boxes: dict[int, list[tuple[int, RegionBox]]] = {}
    for (row, k), found in data.collection.boxes_by_pair().items():
        boxes.setdefault(row, []).extend((k, _box(corners)) for corners in found.tolist())
    features: list[np.ndarray] = []
    concepts: list[int] = []
    for row in (int(each) for each in rows if int(each) in boxes):
        patches = csr.project(cache.batch(np.array([row]), csr.place)[0])
        maps = concept_maps(csr.reasoner.maps(patches), csr.reasoner.alive)[0].cpu().numpy()
        for k, box in boxes[row]:
            features.append(box_features(maps, box, data.side))
            concepts.append(k)
    width = len(csr.concepts) + 2
    return np.array(features).reshape(-1, width), np.array(concepts, int)


def _box(corners: list[float]) -> RegionBox:
    x_min, y_min, x_max, y_max = corners
    return RegionBox(x_min, y_min, x_max, y_max)
