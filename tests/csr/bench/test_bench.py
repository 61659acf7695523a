"""What ``python -m csr.bench`` writes, and that it measures what it says."""

from __future__ import annotations

import json
import statistics
import time

import pytest

from csr.bench.__main__ import main
from csr.bench.protocol import in_turns
from csr.bench.rows import row
from csr.bench.training import PARTS, WARM_UP, _EnoughError, _Timed


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("bench") / "reports" / "training.json"
    main(["--tiny", "--device", "cpu", "--rounds", "2", "--peer-epochs", "2", "--out", str(file)])
    return json.loads(file.read_text())


def test_a_row_has_its_rounds_their_median_and_a_ratio_of_medians(document):
    assert set(document) == {"header", "rows"}
    assert set(document["header"]) == {"device", "cores", "torch", "commit"}
    by_name = {each["name"]: each for each in document["rows"]}
    assert len(by_name) == len(document["rows"])
    for each in document["rows"]:
        assert set(each) == {"name", "unit", "better", "rounds", "median", "ratio_to", "ratio"}
        assert each["better"] in ("higher", "lower") and min(each["rounds"]) > 0
        assert each["median"] == pytest.approx(statistics.median(each["rounds"]))
        assert (each["ratio"] is None) == (each["ratio_to"] is None)
        if each["ratio_to"] is not None:
            assert each["ratio"] == pytest.approx(each["median"] / by_name[each["ratio_to"]]["median"])


def test_all_that_is_promised_is_measured(document):
    names = [each["name"] for each in document["rows"]]
    assert names[:2] == ["stage 1, tensors in memory", "stage 1, loop"]
    assert {"stage 1", "features", "stage 2", "stage 3", "stages 2 and 3", "peak memory of training"} <= set(names)
    for system in ("CSR stage 1", "their backbone", "ProtoPNet", "PIP-Net"):
        assert f"{system}, seconds" in names and f"{system}, images/s" in names


def test_bodies_take_turns_and_none_is_always_first():
    order = []
    found = in_turns({"a": lambda: order.append("a") or 1.0, "b": lambda: order.append("b") or 2.0}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"] and found == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_a_ratio_is_that_of_medians():
    floor = row("floor", "s", "lower", [9.0, 1.0, 2.0])
    assert row("own", "s", "lower", [4.0, 5.0, 100.0], floor).ratio == 2.5


@pytest.mark.timed
def test_only_steps_after_the_warm_up_are_timed():
    timed, seen = _Timed(4), []
    with pytest.raises(_EnoughError):
        for item in timed.track(iter(range(50)), 50, ""):
            seen.append(item)
            time.sleep(0.2 if item < WARM_UP else 0.01)
    assert seen == list(range(WARM_UP + 4)) and 0.04 <= timed.seconds < 0.15


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--parts", "accuracy"])
    said = capsys.readouterr().err
    assert all(name in said for name in PARTS)
