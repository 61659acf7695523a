"""What every system that CSR is compared with looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from csr.datasets.prepared import PreparedSet
from csr.evaluation import Predictions
from csr.training.concepts import ConceptTrainingConfig
from csr.training.reporter import Reporter


@dataclass(frozen=True)
class Outcome:
    """What a comparison needs of a trained system.

    Args:
        predictions: on the whole test split, with the system's pointing-game peaks.
        parameters: trained numbers.
        explanations: items shown a prediction: concepts, prototypes, or 0 for none.
    """

    predictions: Predictions
    parameters: int
    explanations: int


class Baseline(Protocol):
    """Trains on split ``train`` with the shared budget and predicts split ``test``.

    ``config`` is stage 1's configuration: backbone, augmentation, epochs, optimiser and seed are the same for every
    system.
    """

    def __call__(self, data: PreparedSet, config: ConceptTrainingConfig, reporter: Reporter) -> Outcome: ...
