"""The one training loop: epochs, checkpoints, schedules and the loss check, for every stage and baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from csr.errors import TrainingError
from csr.training.callbacks import Callbacks, State
from csr.training.runtime import (
    Precision,
    average,
    batches,
    check_finite,
    count_batches,
    gradient_scaler,
    rank,
    seed_everything,
    seeds,
    torch_seed,
)

CHECK_EVERY = 50  # steps between two looks at the loss; each makes a GPU's queue run empty


class OptimizerConfig(Protocol):
    """What every stage's configuration has."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Task:
    """What is trained.

    Args:
        stage: name of the stage or phase, for progress bars and for random numbers of its own.
        model: whose state is checkpointed; its parameters that require a gradient are trained by AdamW.
        rows: training rows to draw batches from.
        terms: rows of a batch → the loss terms, already weighted; their sum is minimised. Where processes share the
            batch, each is given all of its rows and computes its part of the terms, such that the average over
            processes is the term of the batch (`csr.training.runtime.share_of_mean`).
        after_epoch: epoch → numbers to report beside the mean of each term.
        warmup: share of steps of a one-cycle schedule's rise; 0 decays from the start by a cosine.
        rates: prefix of parameter names → factor on the learning rate; the first prefix that fits counts.
        section: of ``params.yaml`` that holds the configuration, for messages; the stage's own by default.
        precision: that ``terms`` computes in, since gradients of float16 need a scaler.
        spared: names of parameters that weight decay leaves alone.
        before_epoch: called with each epoch's number, once the model is in training mode.
        draws: random numbers that are to be the same in every process; seeded anew each epoch.
    """

    stage: str
    model: nn.Module
    rows: np.ndarray
    terms: Callable[[np.ndarray], Mapping[str, Tensor]]
    after_epoch: Callable[[int], Mapping[str, float]]
    warmup: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)
    section: str = ""
    precision: Precision = "float32"
    spared: Set[str] = frozenset()
    before_epoch: Callable[[int], None] = lambda epoch: None
    draws: torch.Generator = field(default_factory=torch.Generator)


def fit(task: Task, config: OptimizerConfig, callbacks: Callbacks) -> None:
    """Trains in place, from the callbacks' checkpoint if they have one, and reports each epoch.

    Random numbers are seeded anew each epoch, so a resumed run continues as the uninterrupted one would have. Those of
    different stages, epochs and processes, of the order of the batches and of what changes in them are unrelated.

    The loss and its terms stay on the device: they are added up there in float64 and read once an epoch. Whether the
    loss is a number is looked up every `CHECK_EVERY` steps and before the epoch is reported, so no weights that are not
    numbers are ever validated or kept.

    Under float16 the loss is scaled so that its gradients fit (Micikevicius et al. 2017, arXiv 1710.03740, section
    3.2). A step whose gradients still overflow is skipped, on the device, and the scale is halved; the schedule goes on
    with every batch, skipped or not, so that it ends where it should.

    Raises:
        TrainingError: the loss became NaN or infinite, or no scale makes the gradients fit float16.
    """
    section = task.section or task.stage
    steps = count_batches(len(task.rows), config.batch_size)
    groups = _parameter_groups(task, config.learning_rate)
    optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if task.warmup * steps * config.epochs > 1:  # too short a run has no step to warm up in
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, [group["lr"] for group in groups], total_steps=steps * config.epochs, pct_start=task.warmup
        )
    else:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * config.epochs)
    scaler = gradient_scaler(task.precision)

    first = 0
    if (state := callbacks.resume()) is not None:
        task.model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        scaler.load_state_dict(state["scaler"])
        first = state["epoch"] + 1

    for epoch in range(first, config.epochs):
        seed_everything(seeds(config.seed, f"{task.stage}: steps", epoch, rank()))
        task.draws.manual_seed(torch_seed(seeds(config.seed, f"{task.stage}: draws", epoch)))
        task.model.train()
        task.before_epoch(epoch)
        totals: dict[str, Tensor] = {}
        seen: Tensor | None = None
        chosen = batches(task.rows, config.batch_size, seeds(config.seed, f"{task.stage}: order", epoch))
        shown = callbacks.track(chosen, steps, f"{task.stage} {epoch + 1}/{config.epochs}")
        for step, rows in enumerate(shown, 1):
            terms = task.terms(rows)
            loss = torch.stack(list(terms.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            schedule.step()
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value.detach().double() / steps
            # the last loss, or the first that was no number
            seen = loss.detach() if seen is None else torch.where(seen.isfinite(), loss.detach(), seen)
            if step % CHECK_EVERY == 0 or step == steps:
                check_finite(seen, section, epoch)
        _check_scale(scaler, section, epoch)
        task.model.eval()
        means = average(torch.stack(list(totals.values()))).tolist()
        metrics = {"epoch": epoch} | {f"train_{name}": mean for name, mean in zip(totals, means, strict=True)}
        metrics |= task.after_epoch(epoch)

        def snapshot(epoch: int = epoch) -> State:
            return {
                "epoch": epoch,
                "model": task.model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": scaler.state_dict(),
            }

        callbacks.epoch(metrics, snapshot)
    task.model.eval()


def _check_scale(scaler: torch.amp.GradScaler, section: str, epoch: int) -> None:
    """Refuses to go on where float16 skips one step after another: below 1 it is the gradients that are too large."""
    if scaler.is_enabled() and scaler.get_scale() < 1:
        raise TrainingError(
            f"the gradients outgrew float16 in epoch {epoch}, so steps were skipped; set {section}.precision to "
            f"float32, or lower {section}.learning_rate"
        )


def _parameter_groups(task: Task, learning_rate: float) -> list[dict[str, Any]]:
    """The trained parameters, grouped by learning rate and by whether weight decay spares them."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in task.model.named_parameters():
        if parameter.requires_grad:
            factor = next((factor for prefix, factor in task.rates.items() if name.startswith(prefix)), 1.0)
            groups.setdefault((learning_rate * factor, name in task.spared), []).append(parameter)
    return [
        {"params": parameters, "lr": rate} | ({"weight_decay": 0.0} if spared else {})
        for (rate, spared), parameters in groups.items()
    ]
