"""An IntCEM that takes a reader's answers, beside CSR; it has learned what to ask, too."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from csr.baselines.cbm import concept_logits
from csr.baselines.classes import class_probabilities
from csr.baselines.intcem import IntCEM, concept_vectors
from csr.baselines.protocol import TrainedBackbone
from csr.training.runtime import device


class AnswerableIntCEM:
    """An IntCEM on a shared backbone, and some studies; see `csr.interaction.answering.Answerable`.

    Args:
        system: trained, on ``shared``.
        shared: the backbone and its cached maps.
        rows: of the studies.
    """

    @torch.no_grad()
    def __init__(self, system: IntCEM, shared: TrainedBackbone, rows: np.ndarray) -> None:
        self._multilabel = system.multilabel
        self._bottleneck = system.bottleneck.to(device()).eval()
        likely = concept_logits(shared, rows).sigmoid()
        self._embedded = self._bottleneck.embed(concept_vectors(shared, rows), likely)
        self.likely = likely.cpu().numpy()

    @torch.no_grad()
    def ask(self, answers: np.ndarray) -> np.ndarray:
        mixed, _ = self._told(answers)
        return class_probabilities(self._bottleneck.classify(mixed), self._multilabel).cpu().numpy()

    @torch.no_grad()
    def worth(self, answers: np.ndarray) -> np.ndarray:
        """The learned policy: how likely it asks about each concept next, n×K; 0 for those that are answered.

        Args:
            answers: n×K of 1 (confirmed), −1 (rejected) or 0.
        """
        mixed, told = self._told(answers)
        scores = self._bottleneck.rank(mixed, told, told == 0)
        return (scores.softmax(-1) * (told == 0)).cpu().numpy()

    def _told(self, answers: np.ndarray) -> tuple[Tensor, Tensor]:
        """ĉ n×K×E and μ n×K."""
        said = torch.from_numpy(answers.astype(np.float32)).to(self._embedded.likely.device)
        told = (said != 0).float()
        return self._embedded.mix((said > 0).float(), told), told
