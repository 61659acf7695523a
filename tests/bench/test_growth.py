"""The tool that measures growth: its fit by hand, and every quantity at sizes that take no time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from scipy.stats import linregress

from serving.store import Store
from serving.store.schema import assessment, metadata
from tests.bench import growth
from tests.bench.growth_cases import CASES, Case
from tests.bench.large_store import KEY, address, build_store

FIELDS = ["name", "unit", "better", "rounds", "median", "ratio_to", "ratio", "sizes", "values", "exponent"]


def test_an_exact_power_is_found_without_error() -> None:
    exponent, error = growth.fit([10, 20, 40, 80], [3 * n**1.5 for n in (10, 20, 40, 80)])
    assert exponent == pytest.approx(1.5) and error == pytest.approx(0, abs=1e-9)


def test_exponent_and_error_are_those_of_another_library() -> None:
    rng = np.random.default_rng(0)
    sizes, values = [100, 400, 1600, 6400], [100, 400, 1600, 6400] * rng.lognormal(0, 0.3, 4)
    other = linregress(np.log(sizes), np.log(values))
    assert growth.fit(sizes, values) == pytest.approx((other.slope, other.stderr))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_quantity_can_be_measured(case: Case, tmp_path: Path) -> None:
    """In this process, at its smallest size; `test_the_command…` has processes of their own."""
    assert len(case.sizes) == len(case.quick) == 4
    steps = np.diff(np.log(case.sizes))
    assert steps == pytest.approx(np.full(3, steps[0]), rel=0.01), "not geometric"
    folder = tmp_path / "made"
    case.make(folder, case.quick[0])
    case.start(folder, case.quick[0])()


def test_names_are_each_one_quantitys() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_command_writes_two_rows_a_quantity(tmp_path: Path) -> None:
    out = tmp_path / "bench" / "growth.json"
    growth.main(["--out", str(out), "--only", "problems of a set", "--quick"])
    found = json.loads(out.read_text())
    assert found["header"]["what"] == "growth" and found["header"]["cores"] > 0
    assert [row["name"].rpartition(": ")[2] for row in found["rows"]] == ["time", "memory"]
    for row in found["rows"]:
        assert list(row) == [*FIELDS, "exponent_se"]
        assert len(row["values"]) == len(row["sizes"]) == 4 and min(row["values"]) > 0
        assert row["median"] == row["values"][-1] == np.median(row["rounds"])
        assert (row["ratio_to"], row["ratio"], row["better"]) == (None, None, "lower")
        assert (row["exponent"], row["exponent_se"]) == growth.fit(row["sizes"], row["values"])


def test_an_unknown_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        growth.main(["--out", str(tmp_path / "x.json"), "--only", "no such thing"])
    assert "there are: data check" in capsys.readouterr().err


def test_an_exponent_above_the_limit_is_said_and_written_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"name": "a: time", "unit": "s", "values": [1.0, 4.0], "exponent": 2.0, "exponent_se": 0.0}
    monkeypatch.setattr(growth, "measure", lambda *given: [row])
    growth.main(["--out", str(tmp_path / "x.json"), "--only", "problems of a set"])
    assert "above 1.1: a: time" in capsys.readouterr().out
    assert json.loads((tmp_path / "x.json").read_text())["rows"] == [row]


def test_a_large_store_is_as_a_server_would_leave_it(tmp_path: Path) -> None:
    build_store(tmp_path, 700)
    store = Store.open(address(tmp_path), KEY)
    assert store.ledger.verify().faults == ()
    store.ledger.check()
    indexes = {index.name for table in metadata.sorted_tables for index in table.indexes}
    with store.database.read() as connection:
        there = sa.inspect(connection)
        assert indexes == {each["name"] for table in metadata.tables for each in there.get_indexes(table)}
    with store.database.write() as connection:
        connection.execute(assessment.update().values(margin=0.5))
    assert store.ledger.verify().faults[-1] == "and more"
    store.database.close()
