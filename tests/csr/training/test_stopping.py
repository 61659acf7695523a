"""The rule by which trainings end: when the rate falls, how far, and that a run cut off decides as a whole one."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from csr.errors import TrainingError
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.loop import Task, fit
from csr.training.stopping import Course, Curve, StoppingRule, curve_of

RULE = StoppingRule(patience=3, least_rise=0.01, anneal=0.25)
FIGURES = st.lists(st.floats(0, 1), max_size=80)


# the decision


def test_the_fall_begins_once_the_figure_has_not_risen_enough_over_the_patience() -> None:
    rising = [0.5, 0.6, 0.7, 0.705, 0.709, 0.709]  # 0.7 in epoch 3 is the last rise by 0.01
    assert [RULE.fall_after(rising[:count], 60) for count in range(7)] == [None] * 6 + [6]
    assert RULE.fall_after([0.5, 0.6, 0.7, 0.705, 0.711, 0.711, 0.7], 60) is None  # epoch 5 rose, two epochs ago


def test_it_takes_a_share_of_the_epochs_before_it_and_never_passes_the_cap() -> None:
    course = Course(RULE, 60)
    course.figures = [0.9] * 4  # epoch 1 is the last rise
    assert (course.fall, course.end) == (4, 5)
    course = Course(RULE, 60)
    course.figures = [epoch / 50 for epoch in range(48)]  # never stops rising: 48 + 12 = 60
    assert (course.fall, course.end) == (48, 60)
    course.figures.pop()
    assert (course.fall, course.end) == (None, 60)


@given(FIGURES, st.integers(1, 60), st.integers(1, 10), st.floats(0.05, 1), st.integers(0, 20))
def test_a_decision_stands_and_needs_only_the_past(figures, epochs, patience, anneal, earliest) -> None:
    rule = StoppingRule(patience, 0.01, anneal)
    decided = [rule.fall_after(figures[:count], epochs, earliest) for count in range(len(figures) + 1)]
    known = [each for each in decided if each is not None]
    assert decided == [None] * (len(decided) - len(known)) + known and len(set(known)) <= 1
    course = Course(rule, epochs, earliest)
    course.figures = figures
    assert 1 <= course.end <= epochs
    if course.fall is not None and course.fall < epochs - rule.fall_length(course.fall):
        assert course.fall >= earliest + patience or course.fall + 1 >= epochs


def test_epochs_before_the_earliest_do_not_count() -> None:
    assert RULE.fall_after([0.9] * 4, 60) == 4
    assert RULE.fall_after([0.9] * 12, 60, earliest=10) is None
    assert RULE.fall_after([0.9] * 13, 60, earliest=10) == 13


def test_without_a_patience_nothing_is_decided() -> None:
    course = Course(StoppingRule(), 7)
    course.figures = [0.5] * 6
    assert (course.fall, course.end) == (None, 7)


def test_the_rate_rises_stays_and_falls_by_a_cosine() -> None:
    course, steps = Course(StoppingRule(4, 0.01, 0.5), 60), 10
    rise = [course.rate(step, steps, 0.5) for step in range(60)]
    assert rise[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])  # half of the first four epochs
    assert rise[20:] == [1] * 40
    course.figures = [0.9] * 5
    assert (course.fall, course.end) == (5, 8)
    fall = [course.rate(step, steps, 0.5) for step in range(50, 80)]
    assert fall == pytest.approx([(1 + math.cos(math.pi * part / 30)) / 2 for part in range(30)])
    assert Course(RULE, 60).rate(0, 10, 0.0) == 1


# the loop


class Number(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(()))


class Interruption(Exception):
    """Stands for a machine that is taken away."""


class Kept(SilentCallbacks):
    """Keeps the last checkpoint, and every curve; may go away after an epoch."""

    def __init__(self, state: bytes | None = None, leave_after: int | None = None) -> None:
        super().__init__()
        self.state, self.leave_after = state, leave_after
        self.curves: list[Curve] = []

    def resume(self):
        return None if self.state is None else torch.load(io.BytesIO(self.state), weights_only=True)

    def epoch(self, metrics, state):
        super().epoch(metrics, state)
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        self.state = buffer.getvalue()
        if metrics["epoch"] == self.leave_after:
            raise Interruption

    def finished(self, curve):
        self.curves.append(curve)


FOLLOWED = [0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.8, 0.75]  # by the rule 6 epochs, then 2


def train(callbacks, rule=RULE, figures=FOLLOWED, epochs=60, figure="val"):
    """A number that is pulled to the row's, on figures given beforehand."""
    model, values = Number(), []

    def terms(rows):
        values.append(model.value.item())
        return {"own": (model.value - float(rows[0])).square()}

    task = Task(
        "number", model, np.arange(5), terms, lambda epoch: {"val": figures[epoch]}, 0.5, figure=figure, stopping=rule
    )
    fit(task, ConceptTrainingConfig(epochs=epochs, batch_size=1, learning_rate=0.1), callbacks)
    return model.value.item(), values


def test_a_run_ends_by_the_rule_and_tells_its_curve() -> None:
    callbacks = Kept()
    train(callbacks)
    assert [row["epoch"] for row in callbacks.history] == list(range(8))
    (curve,) = callbacks.curves
    assert curve == Curve("number", "val", tuple(range(5, 45, 5)), tuple(FOLLOWED), "risen", 6, 8)


def test_a_figure_that_rises_on_ends_at_the_cap_and_says_so() -> None:
    callbacks = Kept()
    train(callbacks, figures=[epoch / 20 for epoch in range(20)], epochs=10)
    assert len(callbacks.history) == 10
    assert (callbacks.curves[0].ended, callbacks.curves[0].fall) == ("cap", 8)


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("leave_after", range(8))
def test_a_run_cut_off_after_any_epoch_goes_on_as_it_would_have(keep, leave_after) -> None:
    rule = StoppingRule(3, 0.01, 0.25, keep)
    whole = Kept()
    expected, _ = train(whole, rule)
    cut = Kept(leave_after=leave_after)
    with pytest.raises(Interruption):
        train(cut, rule)
    rest = Kept(cut.state)
    found, _ = train(rest, rule)
    assert found == expected
    assert rest.curves == whole.curves
    assert len(rest.history) == 7 - leave_after


def test_the_best_epochs_weights_are_kept_if_asked_for() -> None:
    last, values = train(Kept())
    callbacks = Kept()
    best, _ = train(callbacks, StoppingRule(3, 0.01, 0.25, "best"))
    assert best == values[5 * 7] != last  # the value with which the eighth epoch began
    assert callbacks.curves[0].kept == 7
    fixed, values = train(Kept(), StoppingRule(keep="best"), epochs=8)
    assert fixed == values[5 * 7]


def test_without_a_rule_or_a_figure_the_schedule_is_that_of_the_epochs_given() -> None:
    plain = train(Kept(), StoppingRule(), epochs=5)
    callbacks = Kept()
    assert train(callbacks, RULE, epochs=5, figure="") == plain
    assert callbacks.curves == []
    assert len(set(plain[1])) == 25


def test_a_figure_that_is_none_is_refused_where_it_is_needed() -> None:
    nothing = [math.nan] * 5
    for rule in (RULE, StoppingRule(keep="best")):
        with pytest.raises(TrainingError, match=r"number\.patience and number\.keep go by val, which the validation"):
            train(Kept(), rule, nothing, epochs=5)
    train(Kept(), StoppingRule(), nothing, epochs=5)


def test_of_a_curve_the_end_is_told_from_the_cap_even_where_both_fall_together() -> None:
    course = Course(RULE, 8)
    course.figures = [0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    assert curve_of(course, "phase", "val", 3).ended == "risen"


# gradients


def moves(clip=None, accumulate=1, batch_size=4, precision="float32"):
    """A number's values, before each step and at last, when the loss is the mean over a batch of value × row."""
    model, values, parts = Number(), [], []

    def terms(rows):
        values.append(model.value.item())
        parts.append(rows)
        value = model.value.half().float() if precision == "float16" else model.value
        return {"own": value * float(rows.mean())}

    task = Task(
        "number",
        model,
        np.arange(1, 17),
        terms,
        lambda epoch: {},
        precision=precision,
        clip=clip,
        accumulate=accumulate,
    )
    callbacks = Kept()
    fit(task, ConceptTrainingConfig(epochs=2, batch_size=batch_size, learning_rate=0.1), callbacks)
    return [*values, model.value.item()], parts, callbacks


def test_batches_that_make_one_step_are_worth_one_large_batch() -> None:
    large, whole, first = moves(batch_size=8)
    small, parts, second = moves(batch_size=4, accumulate=2)
    assert small[::2] == pytest.approx(large, abs=1e-6)
    assert [sorted(np.concatenate(pair)) for pair in zip(parts[::2], parts[1::2], strict=True)] == [
        sorted(rows) for rows in whole
    ]
    assert first.history[0]["train_own"] == pytest.approx(second.history[0]["train_own"])


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_gradients_are_clipped_by_their_true_norm(precision, monkeypatch) -> None:
    """AdamW does not see a gradient's size, so what it is given is looked at; under float16 the scale is taken off."""
    norms = []
    original = torch.optim.AdamW.step

    def step(self, *given, **named):
        norms.append(abs(self.param_groups[0]["params"][0].grad.item()))
        return original(self, *given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    values, _, _ = moves(clip=5.0, precision=precision, batch_size=2)
    applied = [norm for norm in norms if math.isfinite(norm)]  # a step that overflows is skipped, clipped or not
    assert np.isfinite(values).all()
    assert max(applied) == pytest.approx(5, rel=1e-2) and min(applied) < 4.9
    norms.clear()
    moves(precision="float32", batch_size=2)
    assert max(norms) > 6
