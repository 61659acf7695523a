"""``dvc repro`` on a small phantom: what it leaves behind, what it runs the second time, and how it fails."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from csr.bundle.format import Bundle
from csr.bundle.runtime import BundleRunner
from pipelines.stage import run_stage
from tests.pipelines.conftest import Project


def finished_runs(project: Project) -> list[Run]:
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("csr")
    assert experiment is not None
    wanted = "attributes.status = 'FINISHED' AND tags.`csr.kind` = 'pass'"
    return client.search_runs([experiment.experiment_id], wanted)


def registered(project: Project) -> list[ModelVersion]:
    return MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}").search_model_versions("name = 'csr'")


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


def test_a_second_repro_only_finds_the_bundle_registered(project: Project) -> None:
    runs, versions = len(finished_runs(project)), len(registered(project))
    lock = (project.folder / "dvc.lock").read_text()
    output = project.run("dvc", "repro").stdout
    assert re.findall(r"Running stage '(.*)'", output) == ["register"]
    assert re.search(r"register: build/bundle is version \d+ of 'csr'", output)
    assert (len(finished_runs(project)), len(registered(project))) == (runs, versions)
    assert (project.folder / "dvc.lock").read_text() == lock


def append(text: str) -> Callable[[str], str]:
    return lambda content: content + text


def replace(old: str, new: str) -> Callable[[str], str]:
    def replaced(content: str) -> str:
        assert content.count(old) == 1
        return content.replace(old, new)

    return replaced


@pytest.mark.parametrize(
    ("file", "edit", "changed"),
    [
        ("params/presets/robust.yaml", replace("clip: true", "clip: false"), {"head"}),
        ("params/presets/robust.yaml", replace("sharpness: 5.0", "sharpness: 4.0"), {"concepts"}),
        ("params/presets/robust.yaml", replace("rejection: absent", "rejection: zero"), {"export"}),
        ("params/presets/paper.yaml", replace("clip: false", "clip: true"), set()),
        ("params.yaml", replace("threads: 2", "threads: 1"), set()),
        ("params.yaml", replace("max_failures: 1", "max_failures: 3"), set()),
        ("params.yaml", replace("gpu: auto", "gpu: never"), set()),
        ("params.yaml", replace("stride: 8", "stride: 16"), {"data_report", "concepts"}),
        ("csr/data/report.py", append("# edited\n"), {"data_report"}),
        ("csr/training/selection.py", append("# edited\n"), {"prototypes"}),
        ("csr/training/temperature.py", append("# edited\n"), {"head"}),
        ("csr/errors.py", append("# edited\n"), set()),
    ],
)
def test_an_edit_changes_the_stages_that_use_it_and_no_others(
    project: Project, monkeypatch: pytest.MonkeyPatch, file: str, edit: Callable[[str], str], changed: set[str]
) -> None:
    path = project.folder / file
    before = path.read_text()
    path.write_text(edit(before))
    monkeypatch.chdir(project.folder)
    try:
        with Repo() as repo:
            found = repo.status(targets=["dvc.yaml"])
    finally:
        path.write_text(before)
    assert found.pop("register") == ["always changed"]
    assert set(found) == changed


def test_another_preset_is_another_file_to_dvc(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    file = project.folder / "params.yaml"
    before = file.read_text()
    apply_overrides(file, ["preset=paper"])  # as dvc exp run -S does
    try:
        with Repo() as repo:
            found = repo.status(targets=["dvc.yaml"])
    finally:
        file.write_text(before)
    assert set(found) == {"concepts", "prototypes", "head", "evaluate", "export", "register"}


def test_a_bundle_that_comes_from_the_run_cache_is_registered_too(project: Project, tmp_path: Path) -> None:
    """Here in a registry that has never seen it, as another machine's would be."""
    file = project.folder / "params.yaml"
    before, first = file.read_text(), Bundle.open(project.folder / "build/bundle").digest
    project.params({"export": {"ask_margin": 0.24}})
    try:
        project.run("dvc", "repro")
        second = Bundle.open(project.folder / "build/bundle").digest
    finally:
        file.write_text(before)
        elsewhere = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'other.db'}"}
        output = project.run("dvc", "repro", **elsewhere).stdout
    assert "Stage 'export' is cached - skipping run" in output
    assert "register: build/bundle is version 1 of 'csr'" in output
    (other,) = MlflowClient(f"sqlite:///{tmp_path / 'other.db'}").search_model_versions("name = 'csr'")
    assert other.tags["bundle.digest"] == first != second and not other.run_id
    makers = {run.info.run_id: run.data.tags.get("bundle.digest") for run in finished_runs(project)}
    versions = {version.tags["bundle.digest"]: version for version in registered(project)}
    assert len(versions) == len(registered(project)) and {first, second} <= set(versions)
    assert all(makers[version.run_id] == digest for digest, version in versions.items())


def test_an_experiment_in_a_copy_writes_to_the_projects_own_store(project: Project) -> None:
    """DVC throws the copy away, and with it all that it has not been told of."""
    runs, versions = len(finished_runs(project)), len(registered(project))
    bundle = Bundle.open(project.folder / "build/bundle").digest
    output = project.run("dvc", "exp", "run", "--temp", "-S", "export.ask_margin=0.15").stdout
    assert set(re.findall(r"Running stage '(.*)'", output)) == {"export", "register"}
    assert Bundle.open(project.folder / "build/bundle").digest == bundle
    assert not list((project.folder / ".dvc/tmp/exps").rglob("mlflow.db"))
    newest = finished_runs(project)[0]
    assert len(finished_runs(project)) == runs + 1
    assert newest.data.params["export.ask_margin"] == "0.15"
    version = max(registered(project), key=lambda each: each.version)
    assert len(registered(project)) == versions + 1 and version.run_id == newest.info.run_id
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    for path in (newest.info.artifact_uri, model.artifact_location):
        assert Path(path).is_relative_to(project.folder / "mlruns")
    assert (Path(model.artifact_location) / "manifest.json").is_file()


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
    assert json.loads(other.run("dvc", "status", "--json", "dvc.yaml").stdout) == {"register": ["always changed"]}


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
