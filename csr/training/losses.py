"""What wrong concept labels cost, as a pure function: stage 1's loss. K concepts.

Each stage's losses are in a module of their own, so that an edit to a later stage's trains no earlier one again: stage
2's in `csr.training.prototype_losses`, stage 3's in `csr.training.class_losses`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

MOST = 20.0  # times that a present concept counts


def masked_bce(logits: Tensor, labels: Tensor, positive: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
    """Multi-label BCE, averaged over known labels; 0 if none is known.

    Args:
        logits, labels: B×K; unknown labels are NaN.
        positive: K, how many times a present concept counts; see `positive_weights`. None: once.
        counts: B×K, how many times a label counts, in the sum and in the number that it is divided by; None: once.
    """
    known = ~labels.isnan() if counts is None else counts * ~labels.isnan()
    loss = F.binary_cross_entropy_with_logits(
        logits.float(), labels.nan_to_num(0), reduction="none", pos_weight=positive
    )
    total = known.sum()
    return (loss * known).sum() / (total.clamp_min(1) if counts is None else total.clamp_min(1e-9))


def positive_weights(labels: Tensor) -> Tensor:
    """K: absent labels over present ones of N×K, between 1 and `MOST`, so that a rare concept is not learned as absent.

    As the official code of Koh et al. 2020 weighs them, but bounded: a concept that is seen a few times would outweigh
    all others, and one that most studies have is left alone.
    """
    present, absent = (labels == 1).sum(0), (labels == 0).sum(0)
    return (absent / present.clamp_min(1)).clamp(1, MOST).float()
