"""Times the steps of a request, for whoever asked and for telemetry."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

from serving.telemetry import Telemetry
from serving.telemetry.metrics import Step


class Timing:
    """Milliseconds between laps, by step; a step that happens more than once counts in sum.

    Args:
        telemetry: is told of every lap.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self.milliseconds: dict[str, float] = {}
        self._telemetry = telemetry
        self._started = self._last = perf_counter()

    def lap(self, step: Step) -> float:
        """What went by since the last lap was this step; returns it in seconds."""
        now = perf_counter()
        seconds = now - self._last
        self.milliseconds[step] = round(self.milliseconds.get(step, 0.0) + seconds * 1000, 3)
        self._last = now
        self._telemetry.metrics.step(step, seconds)
        self._telemetry.tracing.step_ended(step, seconds)
        return seconds

    def include(self, parts: Iterable[Timing]) -> None:
        """What went by since the last lap were these, which have told telemetry; of several at once, their sums."""
        for part in parts:
            for step, milliseconds in part.milliseconds.items():
                self.milliseconds[step] = round(self.milliseconds.get(step, 0.0) + milliseconds, 3)
        self._last = perf_counter()

    @property
    def total(self) -> float:
        """Milliseconds up to the last lap."""
        return round((self._last - self._started) * 1000, 3)
