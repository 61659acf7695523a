"""What a trained CSR says about a split, from cached features."""

from __future__ import annotations

import torch

from csr.data.prepared import PreparedSet
from csr.evaluation.peaks import peak_pixels, pixel_centres
from csr.evaluation.predictions import Predictions
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.read_ahead import read_ahead
from csr.training.runtime import device


@torch.no_grad()
def predict(data: PreparedSet, cache: FeatureCache, csr: TrainedCSR, split: str = "test") -> Predictions:
    """Predicts a whole split from cached features."""
    csr = csr.to(device()).eval()
    rows = data.collection.rows(split)
    found = []
    with read_ahead((rows[start : start + 64] for start in range(0, len(rows), 64)), cache.read) as batches:
        for _, cached in batches:
            answer = csr.reasoner(csr.project(cache.sent(cached, csr.place)[0]))
            pixels = peak_pixels(answer.concept_maps, data.side)
            found.append((answer.probabilities, answer.concept_probabilities, pixels))
    probabilities, concepts, peaks = (torch.cat(each).cpu().numpy() for each in zip(*found, strict=True))
    return Predictions(rows, probabilities, concepts, pixel_centres(peaks, data.side))
