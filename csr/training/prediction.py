"""What a trained CSR says about the test split, from cached features."""

from __future__ import annotations

import numpy as np
import torch

from csr.data.records import Collection
from csr.evaluation.pointing import map_peaks
from csr.evaluation.predictions import Predictions
from csr.network.reasoner import Reasoner
from csr.training.features import FeatureCache
from csr.training.prototypes import PrototypeModel
from csr.training.runtime import device


@torch.no_grad()
def predict(
    collection: Collection, cache: FeatureCache, model: PrototypeModel, reasoner: Reasoner, side: int
) -> Predictions:
    """Predicts the whole test split from cached features."""
    place = device()
    model, reasoner = model.to(place).eval(), reasoner.to(place).eval()
    rows = collection.rows("test")
    probabilities, concepts, peaks = [], [], []
    for start in range(0, len(rows), 64):
        features, _ = cache.batch(rows[start : start + 64], place)
        answer = reasoner(model.projector.project_maps(features))
        probabilities.append(answer.probabilities.cpu().numpy())
        concepts.append(answer.concept_probabilities.cpu().numpy())
        peaks.append(map_peaks(answer.concept_maps.cpu().numpy(), side))
    return Predictions(rows, np.concatenate(probabilities), np.concatenate(concepts), np.concatenate(peaks))
