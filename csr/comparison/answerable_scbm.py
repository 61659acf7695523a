"""A stochastic CBM that takes a reader's answers, beside CSR: what is told moves what correlates with it."""

from __future__ import annotations

import numpy as np
import torch

from csr.baselines.cbm import concept_logits
from csr.baselines.classes import class_probabilities
from csr.baselines.last_layer import pooled_features
from csr.baselines.protocol import TrainedBackbone
from csr.baselines.scbm import SCBM
from csr.training.runtime import device


class AnswerableSCBM:
    """An SCBM on a shared backbone, and some studies; see `csr.interaction.answering.Answerable`.

    Args:
        system: trained, on ``shared``.
        shared: the backbone and its cached maps and features.
        rows: of the studies.
    """

    @torch.no_grad()
    def __init__(self, system: SCBM, shared: TrainedBackbone, rows: np.ndarray) -> None:
        self._bottleneck = system.bottleneck.to(device()).eval()
        features = torch.from_numpy(pooled_features(shared, rows)).to(device())
        self._normal = self._bottleneck.normal(concept_logits(shared, rows), features)
        nobody = torch.zeros_like(self._normal.mean)
        self.likely = self._bottleneck.answer(self._normal, nobody, nobody)[0].cpu().numpy()

    @torch.no_grad()
    def ask(self, answers: np.ndarray) -> np.ndarray:
        said = torch.from_numpy(answers.astype(np.float32)).to(self._normal.mean.device)
        _, logits = self._bottleneck.answer(self._normal, (said > 0).float(), (said != 0).float())
        return class_probabilities(logits, self._bottleneck.multilabel).cpu().numpy()
