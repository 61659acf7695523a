"""BatchNorm over the whole batch when several processes share it.

A process's share of a batch has another mean and variance than the batch, so with BatchNorm as it is the number of
workers would change what is learned. Within `shared_batch_norm` every ``torch.nn.functional.batch_norm`` in training
mode, which all BatchNorm layers of torch and timm call, takes the statistics of all processes:

    forward     μ = Σ_r n_r μ_r / N,   σ² = Σ_r n_r (σ_r² + (μ_r − μ)²) / N       (Chan et al. 1983), N = Σ_r n_r
    backward    ∂x = γ/σ · ( ∂y − Σ∂y/N − x̂ · Σ(∂y x̂)/N ),  x̂ = (x − μ)/σ,  both sums over all processes

Layers, weights and running statistics stay where and what they are, so a checkpoint is that of a single process.
`torch.nn.SyncBatchNorm` does the same on GPUs only and replaces the layers; one way for all backends is one that can be
tried without two GPUs. Layers that mix the images of a batch in another way are not covered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from csr.training.runtime import world_size


def shared_batch_norm() -> contextlib.AbstractContextManager:
    """Where BatchNorm sees the whole batch; nothing at all in a single process. Every process must run the same layers
    in it, in the same order."""
    return _SharedBatchNorm() if world_size() > 1 else contextlib.nullcontext()


class _SharedBatchNorm(TorchFunctionMode):
    """Puts `_batch_norm` in the place of torch's."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        own = _batch_norm if func is F.batch_norm else func
        return own(*args, **(kwargs or {}))


def _batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` with the statistics of all processes; B×C×… → B×C×…"""
    if not training:
        return F.batch_norm(images, running_mean, running_var, weight, bias, False, momentum, eps)
    normal, mean, variance, count = _Normalise.apply(images, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * count / (count - 1).clamp_min(1), momentum)  # torch's are without bias, too
    return normal


class _Normalise(torch.autograd.Function):
    """B×C×… → the same, normalised, and μ C, σ² C and N over all processes."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(_exact(images), _all_but_channels(images), correction=0)
        count = mean.new_full((1,), images.numel() / images.shape[1])
        pieces = [mean.new_empty(2 * len(mean) + 1) for _ in range(world_size())]
        dist.all_gather(pieces, torch.cat([mean, variance, count]))
        means, variances, counts = torch.stack(pieces).split([len(mean), len(mean), 1], 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        ctx.save_for_backward(images, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(images, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        images, weight, mean, scale, count = ctx.saved_tensors
        dims, shape = _all_but_channels(images), (1, -1) + (1,) * (images.ndim - 2)
        gradient, normal = _exact(gradient), (_exact(images) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([gradient.sum(dims), (gradient * normal).sum(dims)])
        sums = own.clone()
        dist.all_reduce(sums)
        shift, slope = (sums / count).view(2, *shape)
        factor = (scale if weight is None else scale * weight).view(shape)
        inward = (factor * (gradient - shift - normal * slope)).to(images.dtype)
        # of weight and bias each process gives its own part, as of every other parameter
        return inward, None if weight is None else own[1], None if weight is None else own[0], None


def _exact(values: Tensor) -> Tensor:
    """At least float32, whatever the precision of the network."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _all_but_channels(images: Tensor) -> list[int]:
    return [0, *range(2, images.ndim)]
