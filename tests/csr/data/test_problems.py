"""Problems are gathered once each, in order, and in linear time, and told by kind."""

from __future__ import annotations

import pandas as pd
import pytest

from csr.data.problems import SHOWN, Problem, Problems, describe, grouped
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
    assert str(caught.value).splitlines()[1:] == [f"labels.csv: {many // 2} rows: is wrong, first row 0"]
    problems.settle(skip_bad=True)


def test_rows_with_the_same_problem_are_told_once_with_their_number_and_the_first() -> None:
    problems, table = Problems(), pd.DataFrame({"where": [f"a/studies.csv row {row}" for row in range(2, 45)]})
    table["label"] = ["", *["x"] * 2, *[""] * 40]
    problems.add_rows(table, table["label"] == "", "label is empty", "label")
    problems.add_rows(table, table["label"] == "x", "label must be one of a, b", "label")
    problems.add("a/boxes.csv row 7", "label is empty")  # in another file
    problems.add("a/studies.csv row 9, image 'x.png'", "not a PNG")
    problems.add("a/studies.csv row 12, image 'y.png'", "not a PNG")
    problems.add("a", "a patient is in several splits: 'p' with b, c", kind="a patient is in several splits")
    problems.add("a", "a patient is in several splits: 'q' with d, e", kind="a patient is in several splits")
    problems.add("a/c.csv row 3", "3×4 is too small", kind="it is too small")
    problems.add("a/c.csv row 4", "2×4 is too small", kind="it is too small")
    assert [str(each) for each in grouped(problems.found)] == [
        "a/studies.csv: 41 rows: label is empty, first row 2, got ''",
        "a/studies.csv: 2 rows: label must be one of a, b, first row 3, got 'x'",
        "a/boxes.csv row 7: label is empty",
        "a/studies.csv: 2 rows: not a PNG, first row 9, image 'x.png'",
        "2 times: a patient is in several splits, first a: 'p' with b, c",
        "a/c.csv: 2 rows: it is too small, first row 3: 3×4 is too small",
    ]
    assert len(problems.table()) == len(problems.found) == 50


def test_kinds_beyond_those_that_are_shown_are_counted_by_their_problems() -> None:
    found = [Problem(f"a.csv row {row}", f"wrong in its way {row // 2}") for row in range(2 * SHOWN + 7)]
    lines = describe(found).splitlines()
    assert lines[0] == f"{2 * SHOWN + 7} problems:"
    assert len(lines) == SHOWN + 2 and lines[-1] == "… and 7 more"
