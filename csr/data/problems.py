"""What is wrong with a data set, gathered so that one report names all of it.

Sources add what they find and go on with the rest; nothing is written before `Problems.settle` has been asked. A
problem that concerns single studies or rows can be skipped, one that concerns the whole set cannot. Where many rows
have the same problem people are told once, with their number and the first of them; ``skipped.csv`` keeps every one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from csr.errors import DataError

SHOWN = 50  # kinds of problems that a message lists; the others are counted
_PLACE = re.compile(r"(?P<file>.+?) (?P<place>(?P<unit>row|line) \d+\b.*)", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        where: file and row, or the set.
        reason: what is wrong and what to do.
        skippable: the source can go on without the row, box or study.
        kind: the reason without what differs from row to row; "" where all of it is the same.
    """

    where: str
    reason: str
    skippable: bool = True
    kind: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Group:
    """Problems that are equal but for their row.

    Args:
        where: the file that their rows are in; "" if they are not rows of one file.
        reason: what is wrong with all of them.
        count: how many they are.
        unit: what is counted: rows, lines or times.
        first: place of the first, and what it holds.
    """

    where: str
    reason: str
    count: int
    unit: str
    first: str

    def __str__(self) -> str:
        return f"{self.where}{': ' * bool(self.where)}{self.count} {self.unit}: {self.reason}, first {self.first}"


class Problems:
    """Gathers problems in the order in which they are found."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self._known: set[Problem] = set()

    def add(self, where: str, reason: str, *, kind: str = "", skippable: bool = True) -> None:
        """Adds one problem; the same one is not added twice."""
        problem = Problem(where, reason, skippable, kind)
        if problem not in self._known:
            self._known.add(problem)
            self.found.append(problem)

    def add_rows(self, table: pd.DataFrame, wrong: pd.Series | np.ndarray, reason: str, column: str) -> None:
        """Adds one problem a row of a table that `csr.data.files.read_rows` read, and says what the row holds."""
        for where, value in zip(table.loc[wrong, "where"], table.loc[wrong, column], strict=True):
            self.add(where, f"{reason}, got {value!r}", kind=reason)

    def settle(self, skip_bad: bool) -> None:
        """Refuses the data set if anything is wrong with it that must not or cannot be skipped.

        Raises:
            DataError: naming every kind of such problems.
        """
        blocking = [problem for problem in self.found if not (skip_bad and problem.skippable)]
        if blocking:
            raise DataError(describe(blocking))

    def table(self) -> pd.DataFrame:
        """``where, reason, kind``, one row a problem."""
        rows = [(problem.where, problem.reason, problem.kind or problem.reason) for problem in self.found]
        return pd.DataFrame(rows, columns=["where", "reason", "kind"])


def grouped(problems: Iterable[Problem]) -> list[Problem | Group]:
    """Problems of one kind as one, in the order of the first of each; a problem of which there is but one stays."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        place = _PLACE.fullmatch(problem.where)
        kinds.setdefault((place["file"] if place else "", problem.kind or problem.reason), []).append(problem)
    return [own[0] if len(own) == 1 else _group(where, kind, own) for (where, kind), own in kinds.items()]


def describe(problems: Iterable[Problem]) -> str:
    """A sentence for one problem, a list for several."""
    problems = list(problems)
    groups = grouped(problems)
    if len(problems) == 1:
        return str(problems[0])
    more = sum(1 if isinstance(each, Problem) else each.count for each in groups[SHOWN:])
    lines = [*map(str, groups[:SHOWN]), *([f"… and {more} more"] if more else [])]
    return "\n".join([f"{len(problems)} problems:", *lines])


def _group(where: str, kind: str, problems: list[Problem]) -> Group:
    first = problems[0]
    detail = first.reason.removeprefix(kind) if first.reason.startswith(kind) else f": {first.reason}"
    place = _PLACE.fullmatch(first.where)
    unit, name = (f"{place['unit']}s", place["place"]) if place else ("times", first.where)
    return Group(where, kind, len(problems), unit, name + detail)
