"""What wrong classes cost, as a pure function: stage 3's loss. T classes."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from csr.data.records import NO_CLASS


def class_loss(logits: Tensor, truth: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """What the classes cost: cross-entropy where a study has one, else BCE, mean over a study's known ones.

    Args:
        logits: B×T.
        truth: B indices, `csr.data.records.NO_CLASS` where the class is not known, which the mean leaves out, or B×T of
            1, 0 or NaN; see `csr.data.records.Collection.truth`.
        reduction: the mean over studies, or B values, one a study.
    """
    if truth.ndim == 1:
        return F.cross_entropy(logits.float(), truth, reduction=reduction, ignore_index=NO_CLASS)
    known = ~truth.isnan()
    loss = F.binary_cross_entropy_with_logits(logits.float(), truth.nan_to_num(0), reduction="none")
    each = (loss * known).sum(1) / known.sum(1).clamp_min(1)
    return each.mean() if reduction == "mean" else each
