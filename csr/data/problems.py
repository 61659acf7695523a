"""What is wrong with a data set, gathered so that one report names all of it.

Sources add what they find and go on with the rest; nothing is written before `Problems.settle` has been asked. A
problem that concerns single studies or rows can be skipped, one that concerns the whole set cannot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from csr.errors import DataError

SHOWN = 50  # problems that a message lists; the others are counted


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        where: file and row, or the set.
        reason: what is wrong and what to do.
        skippable: the source can go on without the row, box or study.
    """

    where: str
    reason: str
    skippable: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Problems:
    """Gathers problems in the order in which they are found."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self._known: set[Problem] = set()

    def add(self, where: str, reason: str, *, skippable: bool = True) -> None:
        """Adds one problem; the same one is not added twice."""
        problem = Problem(where, reason, skippable)
        if problem not in self._known:
            self._known.add(problem)
            self.found.append(problem)

    def add_rows(self, table: pd.DataFrame, wrong: pd.Series | np.ndarray, reason: str, column: str) -> None:
        """Adds one problem a row of a table that `csr.data.files.read_rows` read, and says what the row holds."""
        for where, value in zip(table.loc[wrong, "where"], table.loc[wrong, column], strict=True):
            self.add(where, f"{reason}, got {value!r}")

    def settle(self, skip_bad: bool) -> None:
        """Refuses the data set if anything is wrong with it that must not or cannot be skipped.

        Raises:
            DataError: naming every such problem.
        """
        blocking = [problem for problem in self.found if not (skip_bad and problem.skippable)]
        if blocking:
            raise DataError(describe(blocking))

    def table(self) -> pd.DataFrame:
        """``where, reason``, one row a problem."""
        rows = [(problem.where, problem.reason) for problem in self.found]
        return pd.DataFrame(rows, columns=["where", "reason"])


def describe(problems: Iterable[Problem]) -> str:
    """A sentence for one problem, a list for several."""
    lines = [str(problem) for problem in problems]
    if len(lines) == 1:
        return lines[0]
    more = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"{len(lines)} problems:", *lines[:SHOWN], *more])
