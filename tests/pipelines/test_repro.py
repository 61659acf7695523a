"""``dvc repro`` on a small phantom: what it leaves behind, that it is a no-op the second time, and how it fails."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from csr.bundle.format import Bundle
from csr.bundle.runtime import BundleRunner
from pipelines.stage import run_stage
from tests.pipelines.conftest import Project


def finished_runs(project: Project) -> list[Run]:
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("csr")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")


def test_metrics_have_the_documented_form(project: Project) -> None:
    metrics = json.loads((project.folder / "reports/metrics.json").read_text())
    assert metrics["preset"] == "robust"
    for part in ("iid", "shifted"):
        numbers = metrics[part]
        assert 0 <= numbers["macro_f1"] <= 1 and 0 <= numbers["auroc"] <= 1
        pointing = numbers["pointing_game"]
        assert {"pair", "image", "chance", "centre"} <= set(pointing)
        assert all(0 <= pointing[name] <= 1 for name in ("pair", "image", "chance", "centre"))
    assert 0 < metrics["prototypes"]["alive"] <= 1


def test_the_risk_coverage_curve_of_every_part_is_written(project: Project) -> None:
    metrics = json.loads((project.folder / "reports/metrics.json").read_text())
    table = pd.read_csv(project.folder / "reports/plots/risk_coverage.csv")
    assert list(table) == ["part", "coverage", "risk", "threshold"]
    assert list(table["part"].unique()) == ["iid", "shifted"]
    for part, curve in table.groupby("part"):
        numbers, confusion = metrics[part], pd.read_csv(project.folder / f"reports/plots/confusion_{part}.csv")
        assert 0 <= numbers["ece"] <= 1
        assert curve["threshold"].is_monotonic_decreasing and curve["coverage"].is_monotonic_increasing
        assert curve["coverage"].iloc[-1] == 1
        wrong = (confusion["true"] != confusion["predicted"]).mean()
        assert curve["risk"].iloc[-1] == pytest.approx(wrong, abs=1e-6)
        area = (curve["risk"] * curve["coverage"].diff().fillna(curve["coverage"])).sum()
        assert numbers["aurc"] == pytest.approx(area, abs=1e-4)
    assert (project.folder / "reports/plots/risk_coverage.png").stat().st_size > 5_000


def test_a_second_repro_does_nothing(project: Project) -> None:
    before = len(finished_runs(project))
    output = project.run("dvc", "repro").stdout
    assert "Data and pipelines are up to date" in output
    assert "Running stage" not in output
    assert len(finished_runs(project)) == before


def test_a_remote_brings_data_and_models_to_another_copy(project: Project, tmp_path: Path) -> None:
    config = project.folder / ".dvc/config"
    before = config.read_text()
    project.run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    try:
        project.run("dvc", "push", "dvc.yaml")
        without = shutil.ignore_patterns("cache", "tmp", "build", "prepared", "mlartifacts", "mlflow.db")
        other = Project(Path(shutil.copytree(project.folder, tmp_path / "other", ignore=without)))
    finally:
        config.write_text(before)
    other.run("dvc", "pull", "dvc.yaml")
    assert Bundle.open(other.folder / "build/bundle").digest == Bundle.open(project.folder / "build/bundle").digest
    assert "Data and pipelines are up to date" in other.run("dvc", "status", "dvc.yaml").stdout


def test_dvc_shows_metrics_plots_and_parameters(project: Project) -> None:
    shown = json.loads(project.run("dvc", "metrics", "show", "--json").stdout)
    assert "macro_f1" in json.dumps(shown)
    page = project.run("dvc", "plots", "show", "-o", "plots").stdout
    assert "Risk of error" in (project.folder / "plots/index.html").read_text()
    assert "index.html" in page and (project.folder / "plots/index.html").stat().st_size > 10_000
    file = project.folder / "params.yaml"
    before = file.read_text()
    project.params({"head": {"epochs": 11}})
    try:
        difference = project.run("dvc", "params", "diff", "--json").stdout
        assert json.loads(difference)["params.yaml"]["head.epochs"]["new"] == 11
        assert "head" in project.run("dvc", "status").stdout
    finally:
        file.write_text(before)


def test_one_mlflow_run_holds_every_stage(project: Project) -> None:
    (run,) = finished_runs(project)[-1:]
    assert run.data.params["prototypes.gamma"] == "10.0"
    assert run.data.params["data.phantom.train"] == "160"
    assert len(run.data.tags["data.digest"]) == 64
    assert run.data.tags["git.revision"] and len(run.data.tags["dvc.lock"]) == 64
    for stage in ("prepare", "concepts", "features", "prototypes", "head", "evaluate", "atlas", "export"):
        assert run.data.metrics[f"{stage}.seconds"] > 0
        assert run.data.metrics[f"{stage}.peak_rss_mb"] > 50
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "concepts.val_auroc")]
    assert steps == [0, 1]
    assert math.isclose(run.data.metrics["export.parity"], 0, abs_tol=1e-4)


def test_the_bundle_is_whole_registered_and_passes_its_golden_case(project: Project) -> None:
    bundle = Bundle.open(project.folder / "build/bundle")
    assert BundleRunner(bundle).golden_error() < 1e-3
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    versions = client.search_model_versions("name = 'csr'")
    assert bundle.digest in {version.tags["bundle.digest"] for version in versions}


def test_the_registered_bundle_comes_back_whole(project: Project, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.registry import fetch

    monkeypatch.chdir(project.folder)  # artifacts of the default store lie beside it
    monkeypatch.setattr(mlflow, "_tracking_uri", None, raising=False)
    mlflow.set_tracking_uri(f"sqlite:///{project.folder / 'mlflow.db'}")
    assert fetch("1", tmp_path).manifest.preset == "robust"


def test_the_table_is_printed(project: Project) -> None:
    output = project.run("pipelines.table").stdout
    assert "iid" in output and "shifted" in output and "peak memory" in output


@pytest.mark.parametrize(
    ("stage", "changes", "sentence"),
    [
        ("prepare", {"data": {"sidee": 3}}, "unknown key 'data.sidee'; did you mean 'data.side'"),
        ("prepare", {"data": {"source": "table", "path": "nowhere"}}, "nowhere/studies.csv: missing"),
        ("prepare", {"data": {"phantom": {"val": 2}}}, "no study in split 'val'"),
        (
            "concepts",
            {"concepts": {"learning_rate": 1e30}},
            "concepts: the loss became nan in epoch 0; lower concepts.learning_rate",
        ),
        ("concepts", {"concepts": {"model": {"backbone": "resnet10x"}}}, "concepts.model.backbone: Unknown model"),
        ("concepts", {"concepts": {"model": {"stride": 3}}}, "concepts.model.stride: regnetx_002 has levels of stride"),
        ("concepts", {"concepts": {"model": {"checkpoint": "no.pt"}}}, "concepts.model.checkpoint: no file 'no.pt'"),
    ],
)
def test_a_mistake_ends_a_stage_with_one_sentence_and_leaves_outputs_alone(
    project: Project, stage: str, changes: dict, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project.folder / "params.yaml"
    before, kept = file.read_text(), outputs(project)
    monkeypatch.chdir(project.folder)
    module = importlib.import_module(f"pipelines.{stage}")
    project.params(changes)
    try:
        with pytest.raises(SystemExit) as caught:
            run_stage(stage, getattr(module, stage))
    finally:
        file.write_text(before)
    message = str(caught.value.code)
    assert message.startswith(f"{stage}: ") and sentence in message
    assert "\n" not in message
    assert outputs(project) == kept


def test_a_mistake_is_what_the_command_prints_last_and_its_status_is_1(project: Project) -> None:
    file = project.folder / "params.yaml"
    before = file.read_text()
    project.params({"data": {"sidee": 3}})
    try:
        done = project.run("pipelines.prepare", check=False)
    finally:
        file.write_text(before)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("prepare: params.yaml: unknown key 'data.sidee'")
    assert "Traceback" not in done.stderr


def outputs(project: Project) -> dict[Path, int]:
    """Everything the pipeline made, with its time of change."""
    return {path: path.stat().st_mtime_ns for name in ("data", "build") for path in (project.folder / name).rglob("*")}
