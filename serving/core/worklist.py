"""Which study a reader should look at next.

By *margin*: the smallest `csr.interaction.corrections.decision_margin` first, where the model is least sure of its
answer. By
*expected effect*: where a correction would do most,

    Σ_k u_k · max_t |p_t − p_t^(−k)|

with p_t the probability of class t, p_t^(−k) the same with concept k rejected, and u_k = min(c_k, 1 − c_k) for the
probability c_k of the concept: how likely it is, as far as the model knows, that a reader disagrees about it.
"""

from __future__ import annotations

import numpy as np

from csr.bundle.format import Manifest
from csr.interaction.corrections import Interaction
from serving.engines import Engine

_BATCH = 32


def expected_effect(engine: Engine, about: Manifest, patches: np.ndarray, outputs: dict[str, np.ndarray]) -> float:
    """The formula above for one study.

    Args:
        engine: runs the bundle that ``about`` describes.
        about: its manifest.
        patches: 1×D'×h×w.
        outputs: the reasoner's on them without interaction.
    """
    alone = [
        Interaction(rejected=(name,), alpha=about.default_alpha, rejection=about.rejection)  # type: ignore[arg-type]
        for name in about.concepts
    ]
    parts = [
        engine.reason(np.repeat(patches, len(some), axis=0), some, ["probabilities"])["probabilities"]
        for some in (alone[start : start + _BATCH] for start in range(0, len(alone), _BATCH))
    ]
    moved = np.abs(np.concatenate(parts) - outputs["probabilities"]).max(axis=1)
    present = outputs["concept_probabilities"][0]
    return float((np.minimum(present, 1 - present) * moved).sum())
