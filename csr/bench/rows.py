"""What a measurement is written as. No torch: what measures serving writes the same."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """One measurement in one run.

    Args:
        name: what was measured, unlike any other's of the run.
        unit: of its values.
        better: whether ``higher`` or ``lower`` values are.
        rounds: the value of each round.
        ratio_to: name of the row that ``ratio`` is to.
        ratio: this one's median over that one's, or the median of the rounds' ratios.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    rounds: list[float]
    ratio_to: str | None = None
    ratio: float | None = None

    @property
    def median(self) -> float:
        """Of the rounds."""
        return float(statistics.median(self.rounds))

    def to_json(self) -> dict[str, Any]:
        """All fields and the median."""
        return asdict(self) | {"median": self.median}


def row(
    name: str,
    unit: str,
    better: Literal["higher", "lower"],
    rounds: Sequence[float],
    against: Row | None = None,
) -> Row:
    """A row of its rounds, and the ratio of its median to another row's, if one is given."""
    made = Row(name, unit, better, [float(value) for value in rounds])
    if against is None:
        return made
    return Row(name, unit, better, made.rounds, against.name, made.median / against.median)
