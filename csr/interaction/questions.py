"""Which question a reader should be asked next: is this concept there? Torch-free.

A question's *expected effect* is the information about the classes that its answer is expected to bring, in bits:

    E_k = H(p) − c_k · H(p | k confirmed) − (1 − c_k) · H(p | k rejected)

with p the class probabilities as they are, H their entropy (where a study can have several classes, the sum of each
class's own), and c_k how likely the model thinks concept k: the greedy policy of CooP (Chauhan et al., AAAI 2023) and
of expected information in active learning. What has been answered is not asked again, and no question is worth asking
whose effect is below the bundle's ``least_effect``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Ask = Callable[[np.ndarray], np.ndarray]
Probabilities = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Said:
    """What a model says of one study.

    Args:
        contributions: K×T, of each concept to each class's logit.
        logits, probabilities: T.
    """

    contributions: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Question:
    """Whether a concept is in the image.

    Args:
        concept: its name.
        effect: see the module's docstring.
        if_confirmed, if_rejected: T class probabilities after either answer.
    """

    concept: str
    effect: float
    if_confirmed: np.ndarray
    if_rejected: np.ndarray


def entropy(probabilities: np.ndarray, multilabel: bool) -> np.ndarray:
    """In bits. …×T → …."""
    p = np.clip(probabilities.astype(np.float64), 1e-12, 1)
    own = -p * np.log2(p)
    if multilabel:
        q = np.clip(1 - probabilities.astype(np.float64), 1e-12, 1)
        own = own - q * np.log2(q)
    return own.sum(-1)


def expected_effects(
    before: np.ndarray, if_confirmed: np.ndarray, if_rejected: np.ndarray, likely: np.ndarray, multilabel: bool
) -> np.ndarray:
    """E_k of the module's docstring: …×K.

    Args:
        before: …×T class probabilities.
        if_confirmed, if_rejected: …×K×T after either answer.
        likely: …×K, c.
    """
    present, absent = entropy(if_confirmed, multilabel), entropy(if_rejected, multilabel)
    return entropy(before, multilabel)[..., None] - likely * present - (1 - likely) * absent


def questions(
    answers: np.ndarray,
    said: Said,
    likely: np.ndarray,
    concepts: Sequence[str],
    ask: Ask,
    probabilities: Probabilities,
    multilabel: bool = False,
) -> list[Question]:
    """Every question that is open, that with the largest effect first.

    An answer about one concept moves that concept's contributions alone (`csr.network.reasoner`). So two reasonings
    tell what any of the answers would do: one with every open concept confirmed, one with all of them rejected.

    Args:
        answers: K, what has been said so far, see `csr.interaction.corrections.answer_vector`.
        said: what the model says under it.
        likely: K probabilities of the concepts without any interaction.
        concepts: K names.
        ask: 2×K answers → 2×K×T contributions to the logits.
        probabilities: …×T logits → …×T class probabilities.
    """
    still = np.flatnonzero(answers == 0)
    if not len(still):
        return []
    told = np.stack([np.where(answers == 0, np.float32(one), answers) for one in (1, -1)])
    present, absent = probabilities(said.logits + (ask(told) - said.contributions)[:, still])
    effects = expected_effects(said.probabilities, present, absent, likely[still], multilabel)
    found = [
        Question(concepts[k], e, p, a)
        for k, e, p, a in zip(still.tolist(), effects.tolist(), present, absent, strict=True)
    ]
    return sorted(found, key=lambda each: -each.effect)
