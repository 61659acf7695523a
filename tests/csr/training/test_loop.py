"""The training loop itself, on a model of one number: what it reports, and when it stops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from csr.errors import TrainingError
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.loop import CHECK_EVERY, Task, fit

STEPS = 2 * CHECK_EVERY + 20
CONFIG = ConceptTrainingConfig(epochs=2, batch_size=1)


class Number(nn.Module):
    """One number, at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(()))


def run(term: Callable[[int, Tensor], Tensor], section: str = "") -> SilentCallbacks:
    """Trains a number on a loss that is told the step, counted from 0 through all epochs."""
    model, callbacks, step = Number(), SilentCallbacks(), iter(range(10**6))
    terms = lambda rows: {"own": term(next(step), model.value)}  # noqa: E731
    fit(Task("number", model, np.arange(STEPS), terms, lambda epoch: {}, section=section), CONFIG, callbacks)
    return callbacks


def test_what_is_reported_is_the_mean_of_the_loss_in_double_precision() -> None:
    losses: list[float] = []

    def term(step: int, value: Tensor) -> Tensor:
        loss = value.square() + step
        losses.append(loss.item())
        return loss

    history = run(term).history
    for epoch in range(2):
        expected = 0.0
        for loss in losses[epoch * STEPS : (epoch + 1) * STEPS]:
            expected += loss / STEPS
        assert history[epoch]["train_own"] == expected


@pytest.mark.parametrize("first", [10, CHECK_EVERY - 1, CHECK_EVERY, STEPS - 1, STEPS + 3])
def test_a_loss_that_is_no_number_is_found_within_so_many_steps_and_before_the_epoch_is_reported(first: int) -> None:
    """It is the first such loss that is told, though all that follow are NaN."""
    seen = []

    def term(step: int, value: Tensor) -> Tensor:
        seen.append(step)
        return value * torch.inf if step == first else value * torch.nan if step > first else value

    with pytest.raises(TrainingError, match=rf"the loss became inf in epoch {first // STEPS}; lower number\.learning"):
        run(term)
    in_epoch = first % STEPS
    looked = min((in_epoch // CHECK_EVERY + 1) * CHECK_EVERY, STEPS)
    assert len(seen) == first - in_epoch + looked


def test_a_phase_is_told_by_the_section_that_holds_its_learning_rate() -> None:
    with pytest.raises(TrainingError, match=r"lower concepts\.learning_rate"):
        run(lambda step, value: value * torch.nan, section="concepts")


def test_the_loss_is_not_read_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read makes a GPU wait: the checks, and one for all means."""
    reads = []
    for name in ("item", "tolist", "__float__", "__bool__"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self, of=original: reads.append(1) or of(self))
    run(lambda step, value: value.square())
    assert len(reads) == 2 * (3 + 1)
