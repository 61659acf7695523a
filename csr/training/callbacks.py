"""How a training function talks to whoever runs it, without knowing whether that is Ray, MLflow or a bare script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from csr.training.stopping import Curve

State = dict[str, Any]
Item = TypeVar("Item")


class Callbacks(Protocol):
    """Receives progress and keeps checkpoints. Every process of a distributed run calls it equally often."""

    def resume(self) -> State | None:
        """The last state given to `epoch`, or None on a fresh start."""

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        """Reports one finished epoch; ``metrics`` holds ``epoch``, ``state()`` all that is needed to go on from it."""

    def track(self, items: Iterable[Item], total: int, description: str) -> Iterable[Item]:
        """Wraps a loop of ``total`` steps, for a progress bar."""

    def finished(self, curve: Curve) -> None:
        """Is told how a phase learned that has a validation figure, once it is over."""


class SilentCallbacks:
    """Reports to nobody and resumes nothing; keeps the history for tests and scripts."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []

    def resume(self) -> State | None:
        return None

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        self.history.append(dict(metrics))

    def track(self, items: Iterable[Item], total: int, description: str) -> Iterable[Item]:
        return items

    def finished(self, curve: Curve) -> None:
        pass


class PrintedCallbacks(SilentCallbacks):
    """Prints each epoch's metrics as a line."""

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        super().epoch(metrics, state)
        print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)
