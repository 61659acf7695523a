"""Curves of answers: a simulated reader is asked whether concepts are there, the most telling question first.

The model asks, the reader says yes or no, and the next question knows the answer (`csr.interaction.questions`). A
reader errs in a share e of the answers and then says the opposite. A concept whose label is unknown is not asked about.
Readers that differ in e alone draw the same random numbers, so the mistakes of the better are among those of the worse.

Nothing here is CSR's own: whatever is `Answerable` can be asked, a concept bottleneck model too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch

from csr.data.records import Collection
from csr.evaluation.metrics import correct, decide, macro_f1
from csr.interaction.corrections import wants_help
from csr.interaction.questions import expected_effects
from csr.network.reasoner import concept_evidence
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.head import all_scores, class_logits
from csr.training.runtime import device

Policy = Literal["effect", "random"]
ANSWER_S = 4.0  # what an answer costs a reader, in seconds: to find the place on the image and to press a key


class Answerable(Protocol):
    """n studies and a model that takes answers about their K concepts."""

    likely: np.ndarray  # n×K, how likely the model thinks each concept without any answer

    def ask(self, answers: np.ndarray) -> np.ndarray:
        """n×K of 1 (confirmed), −1 (rejected) or 0 → n×T class probabilities."""


class AnswerableCSR:
    """A trained CSR and some studies.

    Args:
        cache: the backbone's features.
        csr: trained.
        rows: of the studies.
    """

    @torch.no_grad()
    def __init__(self, cache: FeatureCache, csr: TrainedCSR, rows: np.ndarray) -> None:
        csr = csr.to(device()).eval()
        self._reasoner = csr.reasoner
        self._scores = all_scores(csr.reasoner, csr.prototype_model, cache, rows)
        evidence = concept_evidence(self._scores, csr.reasoner.alive)
        likely = torch.sigmoid(csr.reasoner.concept_scale * evidence + csr.reasoner.concept_shift)
        self.likely = likely.cpu().numpy()

    @torch.no_grad()
    def ask(self, answers: np.ndarray) -> np.ndarray:
        told = torch.from_numpy(answers.astype(np.float32)).to(self._scores.device)
        logits = class_logits(self._reasoner, self._reasoner.answered(self._scores, told))
        return self._reasoner.probabilities(logits).cpu().numpy()


@dataclass(frozen=True)
class AnswerConfig:
    """Which curves.

    Args:
        budget: B, the most answers a study; the curves have B + 1 points.
        errors: shares of wrong answers.
        policies: ``effect``: the question with the largest expected effect; ``random``: any that is open.
        margin: of the trigger: ``uncertain`` readers only touch studies whose decision margin
            (`csr.interaction.corrections.decision_margin`) is below it at first.
        least_effect: no question is asked whose expected effect, in bits, is below it; not for ``random``.
        seed: of the readers.
    """

    budget: int = 5
    errors: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    policies: tuple[Policy, ...] = ("effect", "random")
    margin: float = 0.3
    least_effect: float = 0.0
    seed: int = 0


def answer_curves(model: Answerable, collection: Collection, rows: np.ndarray, config: AnswerConfig) -> pd.DataFrame:
    """Lets every kind of reader answer about every study.

    Args:
        model: whose studies are ``rows``.

    Returns:
        One row a part, kind of reader and number of answers: ``part, policy, error, trigger`` (``all`` or
        ``uncertain``), ``budget`` (at most so many answers a study), ``macro_f1, accuracy``, ``answers`` (the mean
        number given a study of the part) and ``seconds`` (what they cost a reader, `ANSWER_S` each).
    """
    truth, multilabel = collection.truth()[rows], collection.task == "multilabel"
    labels = collection.concept_labels()[rows]
    parts = collection.studies["part"].to_numpy()[rows]
    table: list[dict[str, Any]] = []
    for policy, error in product(config.policies, config.errors):
        probabilities, used = read(model, labels, config, policy, error, multilabel)
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
                answers = float((used[budget] * touched)[own].mean())
                table.append(
                    {
                        "part": part,
                        "policy": policy,
                        "error": error,
                        "trigger": trigger,
                        "budget": budget,
                        "macro_f1": macro_f1(truth[own], predicted[budget], len(collection.classes)),
                        "accuracy": float(right[budget].mean()),
                        "answers": answers,
                        "seconds": answers * ANSWER_S,
                    }
                )
    return pd.DataFrame(table)


def read(
    model: Answerable, labels: np.ndarray, config: AnswerConfig, policy: Policy, error: float, multilabel: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities (B+1)×n×T after 0..B answers, and how many answers were given by then (B+1)×n.

    Args:
        labels: n×K of 1, 0 or NaN.
    """
    count, concepts = labels.shape
    rng = np.random.default_rng(config.seed)
    slips, order = rng.random((config.budget, count)), rng.random((count, concepts))
    answers = np.zeros((count, concepts))
    probabilities, used = [model.ask(answers)], [np.zeros(count, int)]
    for turn in range(config.budget):
        worth = order if policy == "random" else effects(model, answers, multilabel)
        worth = np.where(np.isnan(labels) | (answers != 0), -np.inf, worth)
        chosen, study = worth.argmax(1), np.arange(count)
        asked = worth[study, chosen] >= (0.0 if policy == "random" else config.least_effect)
        said = np.where(labels[study, chosen] == 1, 1, -1) * np.where(slips[turn] < error, -1, 1)
        answers[study[asked], chosen[asked]] = said[asked]
        probabilities.append(model.ask(answers))
        used.append(used[-1] + asked)
    return np.stack(probabilities), np.stack(used)


def effects(model: Answerable, answers: np.ndarray, multilabel: bool) -> np.ndarray:
    """Expected effects n×K of a question about each concept; see `csr.interaction.questions`."""

    def after(said: int) -> np.ndarray:
        told = np.repeat(answers[None], answers.shape[1], axis=0)
        told[np.arange(len(told)), :, np.arange(len(told))] = said
        return np.stack([model.ask(each) for each in told], axis=1)

    return expected_effects(model.ask(answers), after(1), after(-1), model.likely, multilabel)
