"""A concept bottleneck model that takes a reader's answers, beside CSR: Koh et al.'s intervention, both ways."""

from __future__ import annotations

import numpy as np
import torch

from csr.baselines.cbm import CBM, concept_logits
from csr.baselines.classes import class_probabilities
from csr.baselines.protocol import TrainedBackbone
from csr.training.runtime import device


class AnswerableCBM:
    """A CBM on a shared backbone, and some studies; see `csr.interaction.answering.Answerable`.

    Args:
        system: trained, on ``shared``.
        shared: the backbone and its cached maps.
        rows: of the studies.
    """

    @torch.no_grad()
    def __init__(self, system: CBM, shared: TrainedBackbone, rows: np.ndarray) -> None:
        self._system = system.to(device()).eval()
        self._logits = concept_logits(shared, rows)
        self.likely = self._logits.sigmoid().cpu().numpy()

    @torch.no_grad()
    def ask(self, answers: np.ndarray) -> np.ndarray:
        told = torch.from_numpy(answers.astype(np.float32)).to(self._logits.device)
        concepts = self._system.intervene(self._logits, (told > 0).float(), told != 0)
        return class_probabilities(self._system.classify(concepts), self._system.multilabel).cpu().numpy()
