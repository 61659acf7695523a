"""The thresholds of a trained CSR's classes, chosen on split ``val`` once its temperature is."""

from __future__ import annotations

import numpy as np
import torch

from csr.data.prepared import PreparedSet
from csr.evaluation.thresholds import choose_thresholds
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.runtime import device


@torch.no_grad()
def own_thresholds(data: PreparedSet, cache: FeatureCache, csr: TrainedCSR) -> np.ndarray | None:
    """T, from which probability on each class is there (`csr.evaluation.thresholds`), without interaction; None unless
    a study can have several classes.

    Args:
        csr: with its head trained and its temperature chosen.
    """
    if data.collection.task != "multilabel":
        return None
    csr, rows = csr.to(device()).eval(), data.collection.rows("val")
    pieces = []
    for start in range(0, len(rows), 64):
        features, _ = cache.batch(rows[start : start + 64], csr.place)
        pieces.append(csr.reasoner(csr.project(features)).probabilities.cpu().numpy())
    return choose_thresholds(data.collection.truth()[rows], np.concatenate(pieces))
