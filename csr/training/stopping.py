"""When a training ends: one rule for everything that learns from images, the method's own stage 1 and its rivals alike.

Without ``patience`` a training takes the epochs that it is given, under a one-cycle or cosine schedule over them. With
it the rate rises to its peak, stays there, and falls once there is nothing more to gain at that rate (warm-up, stable,
decay: Hu et al. 2024, MiniCPM, arXiv 2404.06395, section 4; Hägele et al. 2024, arXiv 2405.18392), so that no length
need be known beforehand and a long run is not cut off in the middle of its schedule:

    rise    over the ``warmup`` share of the first ``patience`` epochs
    fall    begins when the validation figure has not risen by ``least_rise`` over ``patience`` epochs, is a cosine to 0
            and takes ``anneal`` times the epochs so far
    cap     the fall begins in time to end after ``epochs``

All of this follows from the figures of the epochs so far and from nothing else, so a run that is resumed, and every
process of a distributed one, decides alike. The figure is one that changes smoothly: the mean AUROC of the classes, or
of the concepts where there are no classes to learn. A phase without a validation figure takes its epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Keep = Literal["last", "best"]


@dataclass(frozen=True)
class StoppingRule:
    """See the module's docstring.

    Args:
        patience: epochs; None for no rule.
        least_rise: by which a figure must pass the best so far to count as risen.
        anneal: length of the fall as a share of the epochs before it.
        keep: whose weights are the result: the ``last`` epoch's, so that nothing is selected on the validation split,
            or those of the epoch with the ``best`` figure, of equal ones the first.
    """

    patience: int | None = None
    least_rise: float = 0.001
    anneal: float = 0.25
    keep: Keep = "last"

    def fall_after(self, figures: Sequence[float], epochs: int, earliest: int = 0) -> int | None:
        """After how many epochs the rate began to fall; None if it has not, or never does.

        Args:
            figures: of the epochs so far.
            epochs: the cap.
            earliest: epochs before which the patience does not begin, for a loss that changes by a schedule of its own.
        """
        if self.patience is None:
            return None
        best, risen = -math.inf, 0
        for done, figure in enumerate((-math.inf, *figures)):
            if figure >= best + self.least_rise:
                best, risen = figure, done
            if done - max(risen, earliest) >= self.patience or done + self.fall_length(done) >= epochs:
                return done
        return None

    def fall_length(self, done: int) -> int:
        """Epochs that the fall takes after so many."""
        return max(1, math.ceil(self.anneal * done))


class Course:
    """How far a training is, and how long it goes on.

    Args:
        rule: that it ends by.
        epochs: its cap, or its length without a patience.
        earliest: see `StoppingRule.fall_after`.
    """

    def __init__(self, rule: StoppingRule, epochs: int, earliest: int = 0) -> None:
        self.rule, self.epochs, self.earliest = rule, epochs, earliest
        self.figures: list[float] = []

    @property
    def fall(self) -> int | None:
        """After how many epochs the rate began to fall."""
        return self.rule.fall_after(self.figures, self.epochs, self.earliest)

    @property
    def end(self) -> int:
        """How many epochs there are, as far as is known by now."""
        fall = self.fall
        return self.epochs if fall is None else min(self.epochs, fall + self.rule.fall_length(fall))

    @property
    def best(self) -> int:
        """The epoch with the best figure, from 0."""
        return max(range(len(self.figures)), key=self.figures.__getitem__)

    def rate(self, step: int, steps: int, warmup: float) -> float:
        """Factor on the learning rate under a patience.

        Args:
            step: from 0, through all epochs.
            steps: an epoch has.
            warmup: share of the first ``patience`` epochs.
        """
        assert self.rule.patience is not None
        rise = warmup * steps * min(self.rule.patience, self.epochs)
        factor = min(1.0, (step + 1) / rise) if rise else 1.0
        if (fall := self.fall) is not None:
            share = (step / steps - fall) / (self.end - fall)
            factor *= (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2
        return factor


@dataclass(frozen=True)
class Curve:
    """How a phase of training learned: its validation figure against the images that it saw.

    Args:
        phase: its name.
        figure: name of the figure.
        images: seen by the end of each epoch, from the phase's start.
        values: the figure then.
        ended: ``fixed``: it took the epochs that it was given; ``risen``: the figure had stopped rising; ``cap``: it
            had not.
        fall: epochs before the rate fell; None under ``fixed``.
        kept: the epoch, from 1, whose weights are the result.
    """

    phase: str
    figure: str
    images: tuple[int, ...]
    values: tuple[float, ...]
    ended: Literal["fixed", "risen", "cap"]
    fall: int | None
    kept: int


def curve_of(course: Course, phase: str, figure: str, images: int) -> Curve:
    """The curve of a finished phase that saw so many images an epoch."""
    rule, count = course.rule, len(course.figures)
    fall = course.fall
    if fall is None:
        ended: Literal["fixed", "risen", "cap"] = "fixed"
    else:
        ended = "risen" if rule.fall_after(course.figures, 10**9, course.earliest) == fall else "cap"
    return Curve(
        phase=phase,
        figure=figure,
        images=tuple(images * epoch for epoch in range(1, count + 1)),
        values=tuple(course.figures),
        ended=ended,
        fall=fall,
        kept=1 + (course.best if rule.keep == "best" else count - 1),
    )
