"""Stage ``prototypes`` with a number and with ``auto``: the curve is there either way, and ``auto`` follows it."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch

from csr.training.selection import PILOT
from pipelines.params import parse_params
from pipelines.prototypes import prototypes
from pipelines.tracking import connect
from tests.conftest import TinyRun
from tests.pipelines.conftest import PRESETS

CURVES = Path("reports/curves")


@pytest.fixture
def workplace(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which stages up to ``features`` are done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "build/concepts").mkdir(parents=True)
    (tmp_path / "build/concepts/model.pt").write_bytes(b"only its digest is asked for")
    for name, source in (("data/prepared", "prepared"), ("build/features", "features")):
        (tmp_path / name).symlink_to(tiny_run.folder / source)
    connect()


def train(per_concept: object) -> tuple[int, pd.DataFrame]:
    """Runs the stage; the number of prototypes a concept that it trained, and the curve it wrote."""
    settings = {"per_concept": per_concept, "width": 16, "epochs": 1}
    with mlflow.start_run() as run:
        prototypes(parse_params({"preset": "robust", "prototypes": settings}, presets=PRESETS))
    state = torch.load("build/prototypes/model.pt", weights_only=True)
    count = state["weights"]["prototypes.raw"].shape[1]
    assert state["config"]["per_concept"] == count
    logged = mlflow.MlflowClient().get_run(run.info.run_id).data.metrics
    assert logged["prototypes.per_concept"] == count
    assert ("pilot.accuracy" in logged) == (per_concept == "auto")
    assert (CURVES / "per_concept.png").stat().st_size > 1000
    assert len(pd.read_csv(CURVES / "prototypes.csv")) == 1
    return count, pd.read_csv(CURVES / "per_concept.csv")


def test_auto_trains_the_smallest_number_that_falls_short_by_one_standard_error_at_most(workplace: None) -> None:
    count, curve = train("auto")
    assert curve["per_concept"].tolist() == list(range(1, PILOT + 1))
    assert count == curve.loc[curve["shortfall"] <= 1, "per_concept"].min()
    concepts = curve.filter(regex="^shortfall:")
    assert len(concepts.columns) == 10
    pd.testing.assert_series_equal(concepts.max(axis=1), curve["shortfall"], check_names=False)
    assert curve["within"].is_monotonic_increasing


def test_a_number_is_trained_as_it_is_and_the_curve_shows_what_fewer_would_explain(workplace: None) -> None:
    count, curve = train(3)
    assert count == 3
    assert curve["per_concept"].tolist() == [1, 2, 3]
    assert curve["shortfall"].iloc[-1] == 0
