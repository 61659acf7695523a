"""Intervention curves: what simulated clinicians' interactions do to accuracy and macro F1, against their number.

Clinicians work on cached features: the patches of every study are projected once, and after each interaction only the
studies that got one are reasoned about again. The answer that a clinician sees is recomputed after each interaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.evaluation.metrics import correct, decide, macro_f1
from csr.interaction.clinicians import Answer, Clinician, ClinicianConfig, Mode, Order, Truth
from csr.interaction.corrections import Interaction, interaction_tensors, wants_help
from csr.network.reasoner import Reasoning
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.runtime import device

Rejection = Literal["zero", "absent"]
_BATCH = 32  # small, so that a batch of similarity maps stays in the processor's cache


@dataclass(frozen=True)
class InterventionConfig:
    """Which curves.

    Args:
        budget: B, the most interactions a study; the curves have B + 1 points.
        errors: error rates of the clinicians.
        modes, orders: kinds of clinicians; see `csr.interaction.clinicians`.
        rejections: what a rejected score becomes, where a mode has rejections at all.
        alpha: weight outside focus boxes; None for each concept's own.
        margin: of the trigger: ``uncertain`` clinicians only touch studies whose decision margin
            (`csr.interaction.corrections.decision_margin`) is below it at first.
        seed: of the clinicians.
    """

    budget: int = 6
    errors: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    modes: tuple[Mode, ...] = ("spatial", "concept", "both")
    orders: tuple[Order, ...] = ("uncertainty", "random")
    rejections: tuple[Rejection, ...] = ("zero", "absent")
    alpha: float | None = None
    margin: float = 0.3
    seed: int = 0


@torch.no_grad()
def intervention_curves(
    data: PreparedSet, cache: FeatureCache, csr: TrainedCSR, config: InterventionConfig, split: str = "test"
) -> pd.DataFrame:
    """Lets every kind of clinician correct every study of a split.

    Returns:
        One row a part, kind of clinician and number of interactions: ``part, mode, order, rejection`` (``none`` where a
        mode has none), ``error, trigger`` (``all`` or ``uncertain``), ``budget`` (at most so many interactions a
        study), ``macro_f1, accuracy, fixed, broken`` (studies wrong before and right now, and the reverse) and
        ``interactions``, the mean number used a study of the part.
    """
    collection = data.collection
    rows = collection.rows(split)
    runner = InterventionRunner(data, cache, csr, rows)
    truth, multilabel = collection.truth()[rows], collection.task == "multilabel"
    parts = collection.studies["part"].to_numpy()[rows]
    table: list[dict[str, Any]] = []
    for mode, order, rejection, error in _kinds(config):
        clinician = ClinicianConfig(mode, order, error, seed=config.seed, multilabel=multilabel)
        probabilities, used = runner.read(clinician, rejection, config.alpha, config.budget)
        uncertain = wants_help(probabilities[0], config.margin, multilabel)
        decided = decide(probabilities, multilabel)
        for (trigger, touched), part in product(
            (("all", np.ones_like(uncertain)), ("uncertain", uncertain)), dict.fromkeys(parts)
        ):
            own = parts == part
            helped = touched[:, None] if multilabel else touched
            predicted = np.where(helped, decided, decided[0])[:, own]
            right = correct(truth[own], predicted)
            for budget in range(config.budget + 1):
                table.append(
                    {
                        "part": part,
                        "mode": mode,
                        "order": order,
                        "rejection": "none" if mode == "spatial" else rejection,
                        "error": error,
                        "trigger": trigger,
                        "budget": budget,
                        "macro_f1": macro_f1(truth[own], predicted[budget], len(collection.classes)),
                        "accuracy": float(right[budget].mean()),
                        "fixed": int((right[budget] & ~right[0]).sum()),
                        "broken": int((right[0] & ~right[budget]).sum()),
                        "interactions": float((used[budget] * touched)[own].mean()),
                    }
                )
    return pd.DataFrame(table)


def _kinds(config: InterventionConfig) -> Iterator[tuple[Mode, Order, Rejection, float]]:
    for mode, order, error in product(config.modes, config.orders, config.errors):
        for rejection in config.rejections[:1] if mode == "spatial" else config.rejections:
            yield mode, order, rejection, error


class InterventionRunner:
    """The studies of some rows, projected, with all that clinicians and the reasoner need."""

    def __init__(self, data: PreparedSet, cache: FeatureCache, csr: TrainedCSR, rows: np.ndarray) -> None:
        csr = csr.to(device()).eval()
        collection = data.collection
        self._place = csr.place
        self._rows, self._side, self._concepts = rows, data.side, collection.concepts
        self._reasoner = csr.reasoner
        pieces = [csr.project(cache.batch(rows[start : start + 64], csr.place)[0]) for start in range(0, len(rows), 64)]
        self._patches = torch.cat(pieces)
        labels, boxes = collection.concept_labels(), collection.boxes_by_pair()
        by_row: dict[int, dict[int, np.ndarray]] = {}
        for (row, k), found in boxes.items():
            by_row.setdefault(row, {})[k] = found
        self._truths = [Truth(labels[row], by_row.get(int(row), {})) for row in rows]
        self._first = self._ask(np.arange(len(rows)), [Interaction()] * len(rows))

    def read(
        self, config: ClinicianConfig, rejection: Rejection, alpha: float | None, budget: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities (B+1)×n×T after 0..B interactions, and the numbers of interactions used (B+1)×n."""
        cell = self._side / min(self._patches.shape[2:])
        clinicians = [
            Clinician(config, truth, int(row), self._side, cell)
            for truth, row in zip(self._truths, self._rows, strict=True)
        ]
        answers = list(self._first)
        probabilities, used = [np.stack([each.probabilities for each in answers])], [np.zeros(len(clinicians), int)]
        busy = np.arange(len(clinicians))
        for _ in range(budget):
            busy = np.array([index for index in busy if clinicians[index].act(answers[index]) is not None], int)
            said = [clinicians[index].interaction(self._concepts, rejection, alpha) for index in busy]
            for index, answer in zip(busy, self._ask(busy, said), strict=True):
                answers[index] = answer
            probabilities.append(np.stack([each.probabilities for each in answers]))
            used.append(used[-1].copy())
            used[-1][busy] += 1
        return np.stack(probabilities), np.stack(used)

    def _ask(self, chosen: np.ndarray, interactions: list[Interaction]) -> list[Answer]:
        answers: list[Answer] = []
        height, width = self._patches.shape[2:]
        for start in range(0, len(chosen), _BATCH):
            part = slice(start, start + _BATCH)
            tensors = interaction_tensors(interactions[part], self._concepts, self._side, height, width)
            inputs = [torch.from_numpy(value).to(self._place) for value in tensors.values()]
            answers += _answers(self._reasoner(self._patches[chosen[part]], *inputs), self._side)
        return answers


def _answers(reasoning: Reasoning, side: int) -> list[Answer]:
    """A batch's answers, one a study. Peaks are centres of cells: quick, and finer than a clinician's hand."""
    columns = (
        reasoning.probabilities,
        reasoning.concept_probabilities,
        reasoning.contributions,
        _cell_peaks(reasoning.concept_maps, side),
    )
    return [Answer(*each) for each in zip(*(value.cpu().numpy() for value in columns), strict=True)]


def _cell_peaks(maps: Tensor, side: int) -> Tensor:
    """Centres (x, y) in pixels of the largest cells. B×K×h×w → B×K×2."""
    height, width = maps.shape[2:]
    index = maps.flatten(2).argmax(-1)
    return torch.stack([(index % width + 0.5) * side / width, (index // width + 0.5) * side / height], -1)
