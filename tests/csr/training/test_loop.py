"""The training loop itself, on a model of one number: what it reports, and when it stops."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from csr.errors import TrainingError
from csr.training import runtime
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


# float16


class Halved(SilentCallbacks):
    """Keeps the last checkpoint."""

    def epoch(self, metrics, state):
        super().epoch(metrics, state)
        self.state = state()


def in_half(factor: float) -> tuple[list[float], Halved]:
    """Trains a number on factor² times what it lacks of 1, in float16; its values before each step, and its reports."""
    model, callbacks, values = Number(), Halved(), []

    def terms(rows: np.ndarray) -> dict[str, Tensor]:
        values.append(model.value.item())
        return {"own": ((model.value.half() - 1) * factor * factor).float()}

    task = Task("number", model, np.arange(STEPS), terms, lambda epoch: {}, precision="float16")
    fit(task, CONFIG, callbacks)
    return values, callbacks


@pytest.mark.filterwarnings("error")
def test_steps_whose_gradients_overflow_float16_are_skipped_until_the_scale_fits_and_the_schedule_goes_on() -> None:
    """8 × 65536, the first scale, is beyond 65504, and so it is until the fourth halving."""
    values, callbacks = in_half(8**0.5)
    assert values[:5] == [1] * 5
    assert all(later < earlier for earlier, later in itertools.pairwise(values[4:]))
    assert callbacks.state["scaler"]["scale"] == 65536 / 2**4
    assert callbacks.state["schedule"]["last_epoch"] == 2 * STEPS


def test_gradients_that_outgrow_float16_at_any_sensible_scale_end_the_run_by_naming_the_key() -> None:
    with pytest.raises(TrainingError, match=r"gradients outgrew float16 in epoch 0.*set number\.precision to float32"):
        in_half(300)


def test_in_other_formats_nothing_is_scaled_or_skipped() -> None:
    model, callbacks = Number(), Halved()
    terms = lambda rows: {"own": model.value * 1e30}  # noqa: E731
    fit(Task("number", model, np.arange(STEPS), terms, lambda epoch: {}, precision="bfloat16"), CONFIG, callbacks)
    assert callbacks.state["scaler"] == {}
    assert model.value < 1


@pytest.mark.parametrize(
    ("kind", "native", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),  # a V100 or T4, which only emulates bfloat16
        ("cpu", True, torch.float32),  # faster in bfloat16 or not: processors agree
        ("cpu", False, torch.float32),
    ],
)
def test_auto_is_the_format_that_the_hardware_computes_in(kind, native, expected, monkeypatch) -> None:
    monkeypatch.setattr(runtime, "device", lambda: torch.device(kind))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert runtime.number_format("auto") == expected
    assert runtime.number_format("float32") == torch.float32
    assert runtime.number_format("float16") == torch.float16
    assert runtime.number_format("bfloat16") == torch.bfloat16
