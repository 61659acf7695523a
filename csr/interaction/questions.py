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
from dataclasses import dataclass, replace

import numpy as np

from csr.interaction.corrections import Interaction

Ask = Callable[[Sequence[Interaction]], np.ndarray]


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
    interaction: Interaction,
    before: np.ndarray,
    likely: np.ndarray,
    concepts: Sequence[str],
    ask: Ask,
    multilabel: bool = False,
) -> list[Question]:
    """Every question that is open, that with the largest effect first.

    Args:
        interaction: what has been said so far.
        before: T class probabilities under it.
        likely: K probabilities of the concepts without any interaction.
        ask: n interactions → n×T class probabilities.
    """
    known = {*interaction.present, *interaction.rejected}
    still = [k for k, name in enumerate(concepts) if name not in known]
    if not still:
        return []
    asked = [replace(interaction, confirmed=(*interaction.confirmed, concepts[k])) for k in still]
    asked += [replace(interaction, rejected=(*interaction.rejected, concepts[k])) for k in still]
    present, absent = np.split(ask(asked), 2)
    effects = expected_effects(before, present, absent, likely[still], multilabel)
    found = [Question(concepts[k], float(e), p, a) for k, e, p, a in zip(still, effects, present, absent, strict=True)]
    return sorted(found, key=lambda each: -each.effect)
