"""Runs steps one after another and prints a row for each as it ends: whether it worked, how fast, in how much memory.

A step that fails does not stop those that do not need it. On a GPU memory is what torch had allocated at most during
the step; on the CPU it is the most that the process had until then.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

_ROW = "{:<28} {:<8} {:>8} {:>9} {:>9}  {}"


@dataclass(frozen=True)
class Outcome:
    """What a step has to say.

    Args:
        note: a few words.
        rate: images a second, where that is measured.
    """

    note: str = ""
    rate: float | None = None


class Table:
    """The table; ``failed`` names the steps that failed or could not run.

    Args:
        place: where steps compute.
        say: takes the lines.
    """

    def __init__(self, place: torch.device, say: Callable[[str], None]) -> None:
        self._place, self._say = place, say
        self._done: set[str] = set()
        self.failed: list[str] = []
        say(_ROW.format("step", "state", "seconds", "images/s", "peak MiB", "").rstrip())

    def step(self, name: str, body: Callable[[], Outcome], needs: Sequence[str] = ()) -> None:
        """Runs ``body`` unless a step that it needs is missing, and prints its row."""
        missing = [each for each in needs if each not in self._done]
        if missing:
            self.failed.append(name)
            self._say(_ROW.format(name, "not run", "", "", "", f"needs {missing[0]}"))
            return
        if self._place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._place)
        start = time.perf_counter()
        try:
            outcome, state = body(), "ok"
            self._done.add(name)
        except Exception as error:  # whatever it is, it is what this step has to say
            lines = str(error).splitlines() or [""]
            outcome, state = Outcome(f"{type(error).__name__}: {lines[0]}"), "FAILED"
            self.failed.append(name)
        seconds = time.perf_counter() - start
        rate = "" if outcome.rate is None else f"{outcome.rate:.0f}"
        self._say(_ROW.format(name, state, f"{seconds:.1f}", rate, f"{self._peak():.0f}", outcome.note).rstrip())

    def _peak(self) -> float:
        if self._place.type == "cuda":
            return torch.cuda.max_memory_allocated(self._place) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
