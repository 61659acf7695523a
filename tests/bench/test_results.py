"""What several runs come to, what is asked of it, and how two commits compare."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from csr.bench.rows import row
from tests.bench import __main__ as command
from tests.bench import report
from tests.bench.difference import difference, verdict
from tests.bench.report import Limit, digits, limits, page
from tests.bench.results import Grown, Spread, combine, read, save, write


def one_run(folder: Path, number: int, seconds: list[float], size: float = 2.0) -> dict:
    echo = row("echo", "s", "lower", [1.0, 1.0, 4.0])
    ours = row("ours", "s", "lower", seconds, echo)
    grown = Grown("store", "s", "lower", [1.0], sizes=[1, 10, 100], values=[1, size, size**2], exponent=0.3)
    file = folder / f"{number}.json"
    save([echo, ours, grown], file, device="cpu")
    return json.loads(file.read_text())


@pytest.fixture
def runs(tmp_path: Path) -> list[dict]:
    return [one_run(tmp_path, n, [second, second]) for n, second in enumerate([3.0, 2.0, 2.5])]


def test_runs_come_to_the_median_of_their_medians_and_its_spread(runs, tmp_path):
    echo, ours, grown = combine(runs)
    assert (echo.median, echo.ratio) == (Spread(1.0, 1.0, 1.0), None)
    assert (ours.median, ours.ratio) == (Spread(2.5, 2.0, 3.0), Spread(2.5, 2.0, 3.0))
    assert (grown.exponent, grown.sizes) == (Spread(0.3, 0.3, 0.3), [1, 10, 100])
    write({"runs": 3}, [echo, ours, grown], tmp_path / "bench/x.json")
    assert read((tmp_path / "bench/x.json").read_text()) == ({"runs": 3}, [echo, ours, grown])


def test_runs_with_other_rows_are_refused(runs):
    runs[1]["rows"].pop()
    with pytest.raises(ValueError, match="different rows"):
        combine(runs)


@pytest.mark.parametrize(("bound", "words"), [(3.0, "≤ 3: held"), (2.4, r"≤ 2.4: \*\*missed\*\*")])
def test_the_page_says_what_is_asked_and_whether_it_holds(runs, tmp_path, monkeypatch, bound, words):
    monkeypatch.setattr(report, "LIMITS", tmp_path / "limits.yaml")
    report.LIMITS.write_text(yaml.safe_dump({"serving": {"ours": {"ratio": {"at_most": bound}}}}))
    rows = combine(runs)
    write({"runs": 3}, rows, tmp_path / "serving.json")
    report.draw("serving", rows, tmp_path / "serving.png")
    assert (tmp_path / "serving.png").stat().st_size > 5000
    text = page(tmp_path)
    assert "| ours | 2.5 (2 to 3) s | echo | 2.5 (2 to 3) |" in text
    assert words.replace("\\", "") in text
    report.LIMITS.write_text(yaml.safe_dump({"serving": {"theirs": {"ratio": {"at_most": 1}}}}))
    with pytest.raises(ValueError, match="serving has no row 'theirs'"):
        page(tmp_path)


def test_one_limit_for_all_rows_that_have_no_other(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LIMITS", tmp_path / "limits.yaml")
    content = {"growth": {"*": {"exponent": {"at_most": 1.1}}, "ours": {"ratio": {"at_least": 2}}}}
    report.LIMITS.write_text(yaml.safe_dump(content))
    asked = limits("growth", combine(runs))
    assert asked["store"] == asked["echo"] == Limit("exponent", "at_most", 1.1)
    assert asked["ours"] == Limit("ratio", "at_least", 2)
    assert limits("serving", combine(runs)) == {}


def test_limits_that_cannot_be_read_are_refused():
    for suite in yaml.safe_load(report.LIMITS.read_text()).values():
        assert all(Limit.parse(each) for each in suite.values())
    with pytest.raises(ValueError, match="a limit is"):
        Limit.parse({"ratio": {"below": 2}})


def test_a_change_is_one_where_the_spreads_do_not_overlap(tmp_path):
    was = combine([one_run(tmp_path, n, [second]) for n, second in enumerate([3.0, 3.2])])
    now = combine([one_run(tmp_path, n, [second], 3.0) for n, second in enumerate([2.0, 2.2])])
    header = {"cores": 2, "processor": "x"}
    said = "\n".join(difference((header, was), (header, now)))
    assert "ours, s: 3.1 (3 to 3.2) → 2.1 (2 to 2.2), 0.68 ×, better" in said
    assert "echo, s: 1 → 1, within the spread" in said
    assert "ours, ratio" in said
    elsewhere = "\n".join(difference((header | {"cores": 64}, was), (header, now[1:])))
    assert "only ratios" in elsewhere and "ours, s" not in elsewhere and "ours, ratio" in elsewhere
    assert "echo: gone" in elsewhere


@pytest.mark.parametrize(
    ("new", "way", "words"),
    [
        (Spread(2, 2, 2), "higher", "2.00 ×, better"),
        (Spread(2, 2, 2), "lower", "2.00 ×, WORSE"),
        (Spread(1.05, 0.9, 2), "lower", "within the spread"),
    ],
)
def test_verdicts(new, way, words):
    assert verdict(Spread(1, 0.9, 1.1), new, way) == words


def test_seconds_below_one_are_milliseconds(runs):
    quick = replace(combine(runs)[0], median=Spread(0.002, 0.001, 0.0035))
    assert report.quantity(quick) == "2 (1 to 3.5) ms"
    assert report.quantity(replace(quick, unit="images/s")) == "0.002 (0.001 to 0.0035) images/s"


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1,234"), (0.012345, "0.0123"), (99.96, "100"), (0, "0")])
def test_three_digits_count(value, text):
    assert digits(value) == text


def test_a_commit_that_git_does_not_know_is_said():
    ended = subprocess.run(
        [sys.executable, "-m", "tests.bench.difference", "no-such-commit"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "git knows no commit 'no-such-commit'" in ended.stderr


SUITE = """
import json, sys, pathlib
from csr.bench.rows import row
from tests.bench.results import save
calls = pathlib.Path({calls!r})
calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
if calls.read_text() == {fails!r}:
    sys.exit(1)
save([row("echo", "s", "lower", [1.0])], pathlib.Path(sys.argv[2]))
"""


def test_a_suite_that_fails_leaves_its_file_and_the_other_suites(tmp_path, monkeypatch, capsys):
    for name, fails in {"growth": "never", "training": "xx"}.items():  # one fails the second time
        (tmp_path / f"{name}_suite.py").write_text(SUITE.format(calls=str(tmp_path / f"{name}.calls"), fails=fails))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    monkeypatch.setattr(command, "SUITES", {"growth": "growth_suite", "training": "training_suite"})
    monkeypatch.setattr(report, "LIMITS", tmp_path / "limits.yaml")
    report.LIMITS.write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    write({"runs": 1}, combine([one_run(tmp_path, 0, [1.0])]), out / "training.json")
    before = (out / "training.json").read_text()
    monkeypatch.setattr(sys, "argv", ["bench", "--runs", "3", "--only", "growth", "training", "--out", str(out)])
    with pytest.raises(SystemExit, match="left as it was: training"):
        command.main()
    assert (tmp_path / "training.calls").read_text() == "xx" and (tmp_path / "growth.calls").read_text() == "xxx"
    assert (out / "training.json").read_text() == before
    assert read((out / "growth.json").read_text())[0]["runs"] == 3
    assert "## Growth" in (out / "README.md").read_text()
