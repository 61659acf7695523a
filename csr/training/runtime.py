"""Where a training function runs: device, precision, seeds, and its share of a distributed run.

Uses torch.distributed when somebody (Ray Train, torchrun) has set it up, and is a no-op otherwise.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from csr.errors import ConfigError, TrainingError

Precision = Literal["auto", "float32", "bfloat16"]
DeviceChoice = Literal["auto", "cpu", "cuda"]

_device_choice: DeviceChoice = "auto"  # of this process; see `use_device`


def use_device(choice: DeviceChoice) -> None:
    """Says, for all of this process from now on, what `device` answers: ``auto`` is the GPU if there is one.

    Whoever starts a program calls it once, before anything computes; until then it is ``auto``.

    Raises:
        ConfigError: ``cuda`` is asked for and there is no GPU that torch can use.
    """
    global _device_choice
    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' is asked for, but torch finds no GPU here; give 'cpu', or 'auto' for either")
    _device_choice = choice


def device() -> torch.device:
    """Where this process computes: its GPU if there is one, else the CPU, unless `use_device` said otherwise."""
    if _device_choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def autocast(precision: Precision) -> contextlib.AbstractContextManager:
    """Mixed precision: ``auto`` is bfloat16 where the hardware computes in it (GPU, avx512_bf16), else float32."""
    kind = device().type
    if precision == "auto":
        native = (
            torch.cuda.is_bf16_supported() if kind == "cuda" else torch.cpu.get_capabilities().get("avx512_bf16", False)
        )
        precision = "bfloat16" if native else "float32"
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(kind, torch.bfloat16)


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch alike; a distributed rank adds itself so that augmentation differs by rank."""
    random.seed(seed + rank())
    np.random.seed(seed + rank())
    torch.manual_seed(seed + rank())


def rank() -> int:
    """This process's number in a distributed run, else 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def distribute(model: nn.Module) -> nn.Module:
    """Wraps a model for gradient averaging if the run is distributed."""
    if world_size() == 1:
        return model
    place = device()
    return nn.parallel.DistributedDataParallel(model, device_ids=[place] if place.type == "cuda" else None)


def average(value: float) -> float:
    """Mean of a number over all processes."""
    if world_size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device())
    dist.all_reduce(total)
    return float(total) / world_size()


def batches(rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Shuffles rows for an epoch and yields this rank's batches; every rank gets equally many, a short rest is cut."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    share = order[rank() :: world_size()][: len(order) // world_size()]
    for start in range(0, count_batches(len(rows), batch_size) * batch_size, batch_size):
        yield np.sort(share[start : start + batch_size])


def count_batches(rows: int, batch_size: int) -> int:
    """Batches a rank sees in an epoch: whole ones, at least one."""
    return max(1, (rows // world_size()) // batch_size)


def check_finite(loss: Tensor, stage: str, epoch: int) -> None:
    """Raises:
    TrainingError: the loss is NaN or infinite.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss became {value} in epoch {epoch}; lower {stage}.learning_rate, "
            "or check the images and labels for extreme values"
        )
