"""What a step of training costs at least: its arithmetic at the rate of one large product of matrices, or its memory
traffic at the rate of one large copy, both measured on the same device, whichever takes longer.

Counted as traffic is what cannot be spared: what the forward pass keeps for the backward pass is written and read once,
and AdamW reads and writes weights and both moments and reads gradients, which were written before. What kernels hand to
each other within a pass is not: a perfect compiler would keep it from memory. So the floor is one that eager PyTorch
cannot reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from csr.bench.protocol import now

PASSES_OF_ADAMW = (
    9  # weights, gradients and two moments read; weights and moments written; gradients written and zeroed
)


@dataclass(frozen=True)
class Rates:
    """What the device does at best.

    Args:
        flops: multiplications and additions a second, in the number format of the training.
        bytes: read and written a second.
    """

    flops: float
    bytes: float

    def seconds(self, flops: float, moved: float) -> float:
        """That so much takes at least."""
        return max(flops / self.flops, moved / self.bytes)


def measure_rates(place: torch.device, kind: torch.dtype, side: int, numbers: int, repeats: int = 10) -> Rates:
    """The rates of a product of side×side matrices and of a copy of so many float32 numbers; the best of three."""
    left, right = (torch.randn(side, side, device=place).to(kind) for _ in range(2))
    product, source = torch.empty_like(left), torch.randn(numbers, device=place)
    target = torch.empty_like(source)
    multiply = min(seconds_of(lambda: torch.mm(left, right, out=product), repeats) for _ in range(3))
    copy = min(seconds_of(lambda: target.copy_(source), repeats) for _ in range(3))
    return Rates(2 * side**3 / multiply, 2 * 4 * numbers / copy)


def seconds_of(body: Callable[[], object], repeats: int) -> float:
    """Mean seconds of one call, after two that warm up."""
    for _ in range(2):
        body()
    start = now()
    for _ in range(repeats):
        body()
    return (now() - start) / repeats


def count_step(model: nn.Module, step: Callable[[], object]) -> tuple[float, float]:
    """FLOPs, and bytes that must be moved, of one step of training: forward, backward and the optimiser's."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(value: Tensor) -> Tensor:
        if (storage := value.untyped_storage()).data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _flops_back})
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        step()
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return float(counter.get_total_flops()), 2.0 * sum(kept.values()) + PASSES_OF_ADAMW * size


def _flops_back(back: Sequence[int], images: Sequence[int], weight: Sequence[int], *others: Any, **more: Any) -> int:
    """Of a convolution's backward pass, by shapes: for each gradient that is wanted as many as forward.

    torch's own count takes a convolution of groups for one without: a depthwise one of C channels counts C times.
    """
    wanted = others[-1]  # of the images', the weights' and the bias's gradients
    return 2 * math.prod(back) * math.prod(weight[1:]) * (wanted[0] + wanted[1])
