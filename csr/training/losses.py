"""What wrong concept labels cost, as a pure function: stage 1's loss. K concepts.

Each stage's losses are in a module of their own, so that an edit to a later stage's trains no earlier one again: stage
2's in `csr.training.prototype_losses`, stage 3's in `csr.training.class_losses`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def masked_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label BCE, averaged over known labels. Both B×K; unknown labels are NaN. 0 if none is known."""
    known = ~labels.isnan()
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels.nan_to_num(0), reduction="none")
    return (loss * known).sum() / known.sum().clamp_min(1)
