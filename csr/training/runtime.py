"""Where a training function runs: device, precision, seeds, and its share of a distributed run.

Uses torch.distributed when somebody (Ray Train, torchrun) has set it up, and is a no-op otherwise. Processes share each
batch: the batch size, the order of the images and what an epoch learns are the same however many they are, but for
rounding.
"""

from __future__ import annotations

import contextlib
import math
import random
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from csr.errors import ConfigError, TrainingError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
DeviceChoice = Literal["auto", "cpu", "cuda"]
TF32 = Literal["none", "convolutions", "all"]

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


def tune_gpu(tf32: TF32 = "convolutions", autotune: bool = True) -> None:
    """Says, for all of this process from now on, how a GPU computes; nothing on a CPU.

    Args:
        tf32: what float32 is multiplied in with 10 bits of mantissa in place of 23, about eight times as fast since
            Ampere. ``convolutions``, torch's default, leaves out what stages 2 and 3 do, whose γ magnifies rounding.
        autotune: cuDNN tries all its algorithms for each new shape of a convolution and goes on with the fastest. The
            choice may differ from run to run, and with it the last bits.
    """
    torch.backends.cudnn.allow_tf32 = tf32 != "none"
    torch.backends.cuda.matmul.allow_tf32 = tf32 == "all"
    torch.backends.cudnn.benchmark = autotune


def device() -> torch.device:
    """Where this process computes: its GPU if there is one, else the CPU, unless `use_device` said otherwise."""
    if _device_choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def pinned(values: Tensor) -> Tensor:
    """A CPU tensor in memory that a GPU fetches from by itself, if this process computes on one; else as it is."""
    return values.pin_memory() if device().type == "cuda" else values


def send(values: Tensor, place: torch.device) -> Tensor:
    """A CPU tensor on ``place``. Other than after `torch.Tensor.to` as it is, nobody waits for the GPU to finish what
    it was told before; CUDA copies what is not `pinned` aside first, so the tensor may change as soon as this
    returns. One that is pinned must not, until the GPU is waited for or torch frees it."""
    return values.to(place, non_blocking=True)


def number_format(precision: Precision) -> torch.dtype:
    """What networks compute in while they train; weights and losses are float32 whatever it is.

    ``auto`` is bfloat16 on GPUs that compute in it, those since Ampere; older ones (V100, T4) only emulate it, slower
    than float32, but are fast in float16. On a CPU it is float32, so that processors agree; those with avx512_bf16 take
    half the time in bfloat16.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32


def autocast(precision: Precision) -> contextlib.AbstractContextManager:
    """Mixed precision in `number_format`; nothing at all if that is float32."""
    kind = number_format(precision)
    return contextlib.nullcontext() if kind == torch.float32 else torch.autocast(device().type, kind)


def gradient_scaler(precision: Precision) -> torch.amp.GradScaler:
    """Keeps gradients within the range of float16; passes everything through if `number_format` is another."""
    return torch.amp.GradScaler(device().type, enabled=number_format(precision) == torch.float16)


def seeds(seed: int, purpose: str, epoch: int = 0, process: int = 0) -> np.random.SeedSequence:
    """Where the random numbers of one purpose, epoch and process of a run come from.

    Sums such as seed + epoch + process are the same for many of them; the words of a seed sequence are mixed, so that
    numbers of different words have nothing to do with each other (O'Neill 2015; numpy's documentation of SeedSequence).
    There are always four words, since a sequence takes words that are missing for 0.
    """
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), epoch, process])


def torch_seed(sequence: np.random.SeedSequence) -> int:
    """A seed for a generator of torch's."""
    return int(sequence.generate_state(1, np.uint64)[0])


def seed_everything(sequence: np.random.SeedSequence) -> None:
    """Seeds the global generators of Python, numpy and torch, each with its own numbers."""
    own = sequence.spawn(3)
    random.seed(torch_seed(own[0]))
    np.random.seed(own[1].generate_state(4))
    torch.manual_seed(torch_seed(own[2]))


def rank() -> int:
    """This process's number in a distributed run, else 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def distribute(model: nn.Module, partly: bool = False) -> nn.Module:
    """Wraps a model for gradient averaging if the run is distributed.

    Args:
        partly: some parameters take part in some steps only.
    """
    if world_size() == 1:
        return model
    place = device()
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[place] if place.type == "cuda" else None, find_unused_parameters=partly
    )


def check_share(batch_size: int, workers: int, section: str) -> None:
    """Refuses a batch with fewer images than workers. What is learned is the same if their parts differ by an image.

    Raises:
        ConfigError: somebody would have none.
    """
    if batch_size < workers:
        raise ConfigError(
            f"{section}.batch_size: {batch_size} images, of all workers together, are fewer than the {workers} workers "
            "(train.workers); take more images or fewer workers"
        )


def own_part(count: int) -> slice:
    """Which of ``count`` items are this process's: the parts of all processes, in the order of their ranks, are all."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def share_of_mean(counted: Tensor, part: slice) -> float:
    """Factor on a mean over this process's items, such that the average over processes is the mean over all items.

    Without it a process with few items that count, such as known labels, would weigh as much as one with many.

    Args:
        counted: of the whole batch, what the mean is over: bool, or how many times each item counts.
        part: of the batch, this process's.
    """
    total = float(counted.sum())
    return world_size() * float(counted[part].sum()) / total if total else 0.0


def gather(values: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks and in every process."""
    if world_size() == 1:
        return values
    pieces: list[Any] = [None] * world_size()
    dist.all_gather_object(pieces, values.cpu())
    return torch.cat(pieces).to(values.device)


def average(values: Tensor) -> Tensor:
    """Mean of each number over all processes; a new tensor."""
    total = values.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total / world_size()


def agreed(value: float) -> float:
    """A number that all processes go by: that of the first."""
    if world_size() == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def batches(
    rows: np.ndarray, batch_size: int, order: np.random.SeedSequence, chances: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Shuffles rows for an epoch and yields its batches, the same in every process; a short rest is cut.

    Args:
        chances: of each row; as many are then drawn with replacement.
    """
    random = np.random.default_rng(order)
    shuffled = random.permutation(rows) if chances is None else random.choice(rows, len(rows), p=chances)
    for start in range(0, count_batches(len(rows), batch_size) * batch_size, batch_size):
        yield np.sort(shuffled[start : start + batch_size])


def count_batches(rows: int, batch_size: int) -> int:
    """Batches in an epoch: whole ones, at least one."""
    return max(1, rows // batch_size)


def check_finite(loss: Tensor, section: str, epoch: int) -> None:
    """Refuses a loss that is no number; in a distributed run every process does, if the loss of any is none.

    Args:
        loss: of this process, one number.
        section: of ``params.yaml`` that holds the learning rate.

    Raises:
        TrainingError: the loss is NaN or infinite.
    """
    value = float(average(loss))
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss became {value} in epoch {epoch}; lower {section}.learning_rate, "
            "or check the images and labels for extreme values"
        )
