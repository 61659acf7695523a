"""Times the steps of a request."""

from __future__ import annotations

from time import perf_counter


class Steps:
    """Milliseconds between laps, by step; a step that happens more than once counts in sum."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._started = self._last = perf_counter()

    def lap(self, step: str) -> None:
        """What went by since the last lap was this step."""
        now = perf_counter()
        self.milliseconds[step] = round(self.milliseconds.get(step, 0.0) + (now - self._last) * 1000, 3)
        self._last = now

    @property
    def total(self) -> float:
        """Milliseconds up to the last lap."""
        return round((self._last - self._started) * 1000, 3)
