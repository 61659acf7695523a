"""What a trained CSR says about a split, from cached features."""

from __future__ import annotations

import numpy as np
import torch

from csr.data.prepared import PreparedSet
from csr.evaluation.peaks import map_peaks
from csr.evaluation.predictions import Predictions
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.runtime import device


@torch.no_grad()
def predict(data: PreparedSet, cache: FeatureCache, csr: TrainedCSR, split: str = "test") -> Predictions:
    """Predicts a whole split from cached features."""
    csr = csr.to(device()).eval()
    rows = data.collection.rows(split)
    probabilities, concepts, peaks = [], [], []
    for start in range(0, len(rows), 64):
        features, _ = cache.batch(rows[start : start + 64], csr.place)
        answer = csr.reasoner(csr.project(features))
        probabilities.append(answer.probabilities.cpu().numpy())
        concepts.append(answer.concept_probabilities.cpu().numpy())
        peaks.append(map_peaks(answer.concept_maps.cpu().numpy(), data.side))
    return Predictions(rows, np.concatenate(probabilities), np.concatenate(concepts), np.concatenate(peaks))
