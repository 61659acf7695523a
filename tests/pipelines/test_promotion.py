"""The gates: what passes, what fails, and that a file of another form is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from csr.errors import BundleError, ConfigError
from pipelines.promotion import Gate, Gates, apply_gates, judge_bundle, load_gates
from tests.conftest import TinyRun

ROOT = Path(__file__).parents[2]


def report(f1: float, pair: float | None = 0.6) -> dict[str, Any]:
    return {"iid": {"macro_f1": f1, "pointing_game": {"pair": pair}}}


GATES = Gates(
    gates=[Gate(metric="macro_f1", minimum=0.5, max_drop=0.01), Gate(metric="pointing_game.pair", max_drop=0.1)]
)


@pytest.mark.parametrize(
    ("candidate", "champion", "golden", "failed"),
    [
        (report(0.8), None, 0.0, []),
        (report(0.8), report(0.8), 0.0, []),
        (report(0.795), report(0.8), 0.0, []),
        (report(0.78), report(0.8), 0.0, ["macro_f1"]),
        (report(0.4), None, 0.0, ["macro_f1"]),
        (report(0.9, 0.4), report(0.8, 0.6), 0.0, ["pointing_game.pair"]),
        (report(0.9, None), report(0.8), 0.0, ["pointing_game.pair"]),
        (report(0.9), report(0.8), 0.01, ["golden_case"]),
        (report(0.9), report(0.8), float("nan"), ["golden_case"]),
    ],
)
def test_gates(candidate: dict, champion: dict | None, golden: float, failed: list[str]) -> None:
    verdicts = apply_gates(GATES, candidate, champion, golden)
    assert [verdict.metric for verdict in verdicts if not verdict.passed] == failed


def test_a_gate_on_an_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="part 'shifted' is none of iid"):
        apply_gates(Gates(gates=[Gate(metric="auroc", part="shifted")]), report(0.5), None, 0.0)


def test_the_shipped_gates_load_and_an_unknown_key_does_not(tmp_path: Path) -> None:
    assert load_gates(ROOT / "infra" / "promotion.yaml").gates
    (tmp_path / "gates.yaml").write_text("gates: [{metric: auroc, floor: 1}]")
    with pytest.raises(ConfigError, match=r"gates\.0\.floor"):
        load_gates(tmp_path / "gates.yaml")
    with pytest.raises(ConfigError, match="missing"):
        load_gates(tmp_path / "none.yaml")


def test_a_bundle_is_judged_as_torch_judges_it(tiny_run: TinyRun) -> None:
    from csr.evaluation.evaluate import evaluate_predictions
    from csr.training.prediction import predict

    run = tiny_run
    report, golden = judge_bundle(run.bundle, run.data)
    predictions = predict(run.data, run.cache, run.csr)
    expected = evaluate_predictions(run.data.collection, predictions, run.data.side)
    assert golden < 1e-3
    assert set(report) == {"iid", "shifted"}
    for part in report:  # the cache holds features in float16, the bundle computes them in float32
        assert report[part]["auroc"] == pytest.approx(expected[part]["auroc"], abs=0.02)


def test_a_bundle_of_another_task_is_refused(tiny_run: TinyRun) -> None:
    from dataclasses import replace

    other = replace(tiny_run.bundle, manifest=replace(tiny_run.bundle.manifest, classes=("a", "b")))
    with pytest.raises(BundleError, match="promote it by hand"):
        judge_bundle(other, tiny_run.data)
