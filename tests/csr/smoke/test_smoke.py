"""The smoke run: all of it on the CPU, its table, and where it computes on a claimed GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from csr.comparison.systems import systems
from csr.smoke import __main__ as command
from csr.smoke import steps
from csr.smoke.steps import LETTER, SMALL
from csr.smoke.table import Outcome, Table
from csr.training.runtime import use_device
from tests.csr.device.claimed import Accelerator

STRANGERS = ("ray", "mlflow", "dvc", "fastapi", "pydantic", "pipelines", "serving")
PROGRAM = f"""
import runpy, sys
runpy.run_module("csr.smoke", run_name="__main__", alter_sys=True)
found = sorted({{name.partition(".")[0] for name in sys.modules}} & set({STRANGERS!r}))
print("strangers:", found)
"""


@pytest.fixture
def undone():
    yield
    use_device("auto")


def rows(lines: list[str]) -> dict[str, str]:
    """The state of each step in a table."""
    states = (re.match(r"(.+?) +(ok|FAILED|not run)\b", line) for line in lines)
    return {found[1]: found[2] for found in states if found}


def test_the_small_run_does_all_there_is_and_needs_no_pipeline():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--device", "cpu", "--small"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # models as small spend their time waiting for threads
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    states = rows(lines)
    assert set(states.values()) == {"ok"}
    assert set(states) >= set(systems({"robust": LETTER, "paper": LETTER}, encoder=False)) - {"csr_robust"}
    assert {"stage 1, concepts", "stage 3, head", "interaction curves", "refinement", "export", "parity"} <= set(states)
    rates = [float(re.split(r" {2,}", line)[3]) for line in lines if line.startswith(("stage 1", "features"))]
    assert len(rates) == 2 and min(rates) > 0
    assert lines[0].startswith("csr.smoke on cpu (") and lines[-2].startswith("ok in ")
    assert lines[-1] == "strangers: []"


def test_a_step_that_fails_stops_those_that_need_it_and_no_other():
    lines: list[str] = []
    table = Table(torch.device("cpu"), lines.append)

    def fail() -> Outcome:
        raise ValueError("first line\nsecond line")

    table.step("one", lambda: Outcome("fine", 12.3))
    table.step("two", fail)
    table.step("three", lambda: Outcome(), needs=("one", "two"))
    table.step("four", lambda: Outcome(), needs=("three",))
    table.step("five", lambda: Outcome(), needs=("one",))
    assert rows(lines) == {"one": "ok", "two": "FAILED", "three": "not run", "four": "not run", "five": "ok"}
    assert table.failed == ["two", "three", "four"]
    assert lines[1].endswith("  fine") and " 12 " in lines[1]
    assert lines[2].endswith("  ValueError: first line") and lines[3].endswith("  needs two")


@pytest.fixture
def few_systems(monkeypatch):
    """Of the systems, whose own tests run them on a GPU, too, only the quickest."""
    monkeypatch.setattr(steps, "systems", lambda recipes, encoder: {"black_box": systems(recipes)["black_box"]})


def test_a_failure_is_the_exit_status(undone, few_systems, monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("no atlas today")

    monkeypatch.setattr(steps, "build_atlas", fail)
    monkeypatch.setattr(steps, "write_bundle", fail)
    with pytest.raises(SystemExit) as caught:
        command.main(["--device", "cpu", "--small", "--epochs", "1"])
    assert caught.value.code == "smoke: failed: atlas, export, parity"
    lines = capsys.readouterr().out.splitlines()
    states = rows(lines)
    assert states["atlas"] == "FAILED" and states["export"] == states["parity"] == "not run"
    assert states["refinement"] == states["black_box"] == "ok"
    assert "epochs 1" in lines[1] and lines[-1].startswith("FAILED in ")


def test_a_gpu_that_is_not_there_ends_it_with_a_sentence(undone):
    with pytest.raises(SystemExit, match="smoke: device: 'cuda' is asked for, but torch finds no GPU here"):
        command.main(["--device", "cuda"])


def test_it_computes_on_the_gpu(undone, few_systems):
    lines: list[str] = []
    with Accelerator() as accelerator:
        use_device("cuda")
        assert command.smoke(SMALL, lines.append) == []
        assert accelerator.operations > 1000
    assert lines[0].startswith("csr.smoke on cuda:0 (claimed)")
    assert any(line.startswith("parity ") and line.endswith(" on cuda:0") for line in lines)
