"""Problems are gathered once each, in order, and in linear time."""

from __future__ import annotations

import pytest

from csr.data.problems import SHOWN, Problem, Problems
from csr.errors import DataError


def test_the_same_problem_is_added_once_and_the_order_is_kept() -> None:
    problems = Problems()
    for where in ("b", "a", "b", "c", "a"):
        problems.add(where, "is wrong")
    problems.add("a", "is wrong", skippable=False)  # another problem: this one blocks
    assert [(each.where, each.skippable) for each in problems.found] == [
        ("b", True),
        ("a", True),
        ("c", True),
        ("a", False),
    ]
    assert problems.table()["where"].tolist() == ["b", "a", "c", "a"]


def test_a_problem_is_compared_with_those_of_its_hash_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 000 problems, half of them twice: comparisons grow with their number, not with its square."""
    compared, plain = 0, Problem.__eq__

    def counted(self: Problem, other: object) -> bool:
        nonlocal compared
        compared += 1
        return plain(self, other)

    monkeypatch.setattr(Problem, "__eq__", counted)
    problems, many = Problems(), 200_000
    for row in range(many):
        problems.add(f"labels.csv row {row // 2}", "is wrong")
    assert len(problems.found) == many // 2
    assert compared <= many
    with pytest.raises(DataError, match=f"{many // 2} problems:") as caught:
        problems.settle(skip_bad=False)
    assert f"and {many // 2 - SHOWN} more" in str(caught.value)
    problems.settle(skip_bad=True)
