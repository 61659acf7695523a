"""The one training loop: epochs, checkpoints, schedules and the loss check, for every stage and baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from csr.errors import TrainingError
from csr.training.callbacks import Callbacks, State
from csr.training.read_ahead import read_ahead
from csr.training.runtime import (
    Precision,
    agreed,
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
from csr.training.stopping import Course, StoppingRule, curve_of

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
        terms: rows of a batch, and what ``read`` made of them if there is one → the loss terms, already weighted; their
            sum is minimised. Where processes share the batch, each is given all of its rows and computes its part of
            the terms, such that the average over processes is the term of the batch
            (`csr.training.runtime.share_of_mean`).
        after_epoch: epoch → numbers to report beside the mean of each term.
        warmup: share of steps of a one-cycle schedule's rise; 0 decays from the start by a cosine.
        rates: prefix of parameter names → factor on the learning rate; the first prefix that fits counts.
        section: of ``params.yaml`` that holds the configuration, for messages; the stage's own by default.
        precision: that ``terms`` computes in, since gradients of float16 need a scaler.
        spared: names of parameters that weight decay leaves alone.
        before_epoch: called with each epoch's number, once the model is in training mode.
        draws: random numbers that are to be the same in every process; seeded anew each epoch.
        figure: name of the number of ``after_epoch`` that ``stopping`` goes by, the greater the better; none by
            default: the phase takes its epochs and keeps its last weights.
        stopping: when it ends and which weights are kept.
        earliest: see `csr.training.stopping.StoppingRule.fall_after`.
        clip: the gradients' norm over all parameters is brought down to it; None for no limit.
        accumulate: batches whose gradients make one step; each is given to ``terms`` on its own.
        chances: of each row to be drawn; None: each comes once an epoch.
        read: rows of a batch → what of them is on disk. It is called ahead of the step, in a thread of its own
            (`csr.training.read_ahead`), and draws no random numbers.
    """

    stage: str
    model: nn.Module
    rows: np.ndarray
    terms: Callable[..., Mapping[str, Tensor]]
    after_epoch: Callable[[int], Mapping[str, float]]
    warmup: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)
    section: str = ""
    precision: Precision = "float32"
    spared: Set[str] = frozenset()
    before_epoch: Callable[[int], None] = lambda epoch: None
    draws: torch.Generator = field(default_factory=torch.Generator)
    figure: str = ""
    stopping: StoppingRule = field(default_factory=StoppingRule)
    earliest: int = 0
    clip: float | None = None
    accumulate: int = 1
    chances: np.ndarray | None = None
    read: Callable[[np.ndarray], Any] | None = None


def fit(task: Task, config: OptimizerConfig, callbacks: Callbacks) -> None:
    """Trains in place, from the callbacks' checkpoint if they have one, and reports each epoch.

    `csr.training.stopping` says when it ends.

    Random numbers are seeded anew each epoch, so a resumed run continues as the uninterrupted one would have. Those of
    different stages, epochs and processes, of the order of the batches and of what changes in them are unrelated.

    The loss and its terms stay on the device: they are added up there in float64 and read once an epoch. Whether the
    loss is a number is looked up every `CHECK_EVERY` steps and before the epoch is reported, so no weights that are not
    numbers are ever validated or kept.

    Under float16 the loss is scaled so that its gradients fit (Micikevicius et al. 2017, arXiv 1710.03740, section
    3.2). A step whose gradients still overflow is skipped, on the device, and the scale is halved; the schedule goes on
    with every batch, skipped or not, so that it ends where it should.

    Raises:
        TrainingError: the loss became NaN or infinite, no scale makes the gradients fit float16, or there is no figure
            to stop by.
    """
    section = task.section or task.stage
    batch = config.batch_size * task.accumulate
    steps = count_batches(len(task.rows), batch)
    groups = _parameter_groups(task, config.learning_rate)
    optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    course = Course(task.stopping if task.figure else StoppingRule(), config.epochs, task.earliest)
    schedule = _schedule(task, optimiser, steps, course)
    scaler = gradient_scaler(task.precision)
    trained = [parameter for group in groups for parameter in group["params"]]

    done = 0
    best: dict[str, Tensor] | None = None
    if (state := callbacks.resume()) is not None:
        task.model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        scaler.load_state_dict(state["scaler"])
        course.figures, best = state["figures"], state["best"]
        done = state["epoch"] + 1

    while done < course.end:
        epoch = done
        seed_everything(seeds(config.seed, f"{task.stage}: steps", epoch, rank()))
        task.draws.manual_seed(torch_seed(seeds(config.seed, f"{task.stage}: draws", epoch)))
        task.model.train()
        task.before_epoch(epoch)
        totals: dict[str, Tensor] = {}
        seen: Tensor | None = None
        chosen = batches(task.rows, batch, seeds(config.seed, f"{task.stage}: order", epoch), task.chances)
        with _read(task, chosen) as given:
            shown = callbacks.track(given, steps, f"{task.stage} {epoch + 1}/{config.epochs}")
            for step, (rows, parts) in enumerate(shown, 1):
                optimiser.zero_grad(set_to_none=True)
                for part in parts:
                    terms = task.terms(*part)
                    loss = torch.stack(list(terms.values())).sum()
                    share = len(part[0]) / len(rows)
                    scaler.scale(loss if share == 1 else loss * share).backward()
                    for name, value in terms.items():
                        totals[name] = totals.get(name, 0.0) + value.detach().double() * share / steps
                    # the last loss, or the first that was no number
                    seen = loss.detach() if seen is None else torch.where(seen.isfinite(), loss.detach(), seen)
                if task.clip is not None:
                    scaler.unscale_(optimiser)
                    nn.utils.clip_grad_norm_(trained, task.clip)
                scaler.step(optimiser)
                scaler.update()
                schedule.step()
                if step % CHECK_EVERY == 0 or step == steps:
                    assert seen is not None
                    check_finite(seen, section, epoch)
        _check_scale(scaler, section, epoch)
        task.model.eval()
        means = average(torch.stack(list(totals.values()))).tolist()
        metrics = {"epoch": epoch} | {f"train_{name}": mean for name, mean in zip(totals, means, strict=True)}
        metrics |= task.after_epoch(epoch)
        if task.figure:
            course.figures.append(_figure(task, metrics, section))
            if task.stopping.keep == "best" and course.best == epoch:
                best = {name: value.detach().clone() for name, value in task.model.state_dict().items()}
        done += 1

        def snapshot(epoch: int = epoch, best: dict[str, Tensor] | None = best) -> State:
            return {
                "epoch": epoch,
                "model": task.model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": scaler.state_dict(),
                "figures": course.figures,
                "best": best,
            }

        callbacks.epoch(metrics, snapshot)
    if best is not None:
        task.model.load_state_dict(best)
    task.model.eval()
    if task.figure:
        callbacks.finished(curve_of(course, task.stage, task.figure, min(steps * batch, len(task.rows))))


def _schedule(
    task: Task, optimiser: torch.optim.Optimizer, steps: int, course: Course
) -> torch.optim.lr_scheduler.LRScheduler:
    """How the rate changes from step to step."""
    total = steps * course.epochs
    if course.rule.patience is not None:
        return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: course.rate(step, steps, task.warmup))
    if task.warmup * total > 1:  # too short a run has no step to warm up in
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, [group["lr"] for group in optimiser.param_groups], total_steps=total, pct_start=task.warmup
        )
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)


def _read(
    task: Task, chosen: Iterator[np.ndarray]
) -> AbstractContextManager[Iterator[tuple[np.ndarray, list[tuple[Any, ...]]]]]:
    """Batches, and of each the arguments of ``terms`` for each of its parts."""
    read = task.read
    if read is None:
        return nullcontext((rows, [(part,) for part in _parts(rows, task.accumulate)]) for rows in chosen)
    return read_ahead(chosen, lambda rows: [(part, read(part)) for part in _parts(rows, task.accumulate)])


def _parts(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """The batches that make one step. Rows come sorted, so each takes some from everywhere; few rows make fewer."""
    return [part for part in (rows[first::count] for first in range(count)) if len(part)]


def _figure(task: Task, metrics: Mapping[str, float], section: str) -> float:
    """The number that the rule goes by."""
    value = agreed(metrics[task.figure])
    if not math.isfinite(value) and (task.stopping.patience is not None or task.stopping.keep == "best"):
        raise TrainingError(
            f"{section}.patience and {section}.keep go by {task.figure}, which the validation split does not tell "
            f"({value}): nothing there is both present in some studies and absent in others; set them to null and last"
        )
    return value


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
