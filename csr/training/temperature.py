"""The temperature of the class probabilities (Guo et al. 2017), chosen on split ``val`` once a head is trained."""

from __future__ import annotations

import numpy as np
import torch

from csr.data.decisions import decide
from csr.data.prepared import PreparedSet
from csr.evaluation.calibration import fit_temperature
from csr.evaluation.metrics import correct
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.head import all_scores, class_logits
from csr.training.runtime import device


@torch.no_grad()
def calibrate_temperature(data: PreparedSet, cache: FeatureCache, csr: TrainedCSR) -> None:
    """Sets ``csr.reasoner.temperature`` to the one with the least cross-entropy on split ``val``, without interaction.

    It is 1, no calibration, where ``val`` cannot tell: if it is empty or has one class only, or if every decision is
    right, for then the cross-entropy falls for ever as the temperature does, and the probabilities would all be 1. See
    `csr.evaluation.calibration.fit_temperature` (Guo et al. 2017).

    Args:
        csr: with its head trained.
    """
    csr = csr.to(device()).eval()
    collection, reasoner = data.collection, csr.reasoner
    reasoner.temperature.fill_(1.0)
    rows = collection.rows("val")
    truth = collection.truth()[rows]
    if len(np.unique(truth[~np.isnan(truth)])) < 2:
        return
    logits = class_logits(reasoner, all_scores(reasoner, csr.prototype_model, cache, rows))
    predicted = decide(reasoner.probabilities(logits).cpu().numpy(), reasoner.multilabel)
    if not correct(truth, predicted).all():
        reasoner.temperature.fill_(fit_temperature(logits.cpu().numpy(), truth))
