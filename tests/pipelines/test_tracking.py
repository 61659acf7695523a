"""MLflow runs across failures: one run a pass, failed when it dies, joined by the restart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from csr.errors import TrainingError
from pipelines.params import parse_params
from pipelines.runs.passes import children, stage_run
from pipelines.tracking import connect, experiment_id, log_metrics
from tests.pipelines.conftest import PRESETS, Project, copy_project

PARAMS = parse_params({"preset": "robust"}, presets=PRESETS)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return connect()


def runs(client: MlflowClient) -> list[Run]:
    """The rows of the table: passes."""
    return client.search_runs([experiment_id(client)], "tags.`csr.kind` = 'pass'", order_by=["start_time ASC"])


def test_stages_of_a_pass_share_a_run_and_the_next_pass_has_its_own(client: MlflowClient) -> None:
    with stage_run("prepare", PARAMS) as first:
        log_metrics("prepare", {"boxes": 3, "nothing": float("nan")})
    with stage_run("export", PARAMS, last=True) as second:
        pass
    with stage_run("prepare", PARAMS) as third:
        pass
    assert first == second != third
    run = client.get_run(first)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"prepare.boxes": 3.0}
    assert run.data.params["concepts.model.backbone"] == PARAMS.concepts.model.backbone
    stages = children(client, run)
    assert [(stage.info.run_name, stage.info.status) for stage in stages] == [
        ("prepare", "FINISHED"),
        ("export", "FINISHED"),
    ]
    assert stages[0].data.metrics == {"prepare.boxes": 3.0} and stages[1].data.metrics == {}


def test_other_parameters_open_another_run(client: MlflowClient) -> None:
    with stage_run("prepare", PARAMS) as first:
        pass
    with stage_run("prepare", parse_params({"preset": "paper"}, presets=PRESETS)) as second:
        pass
    assert first != second


def test_a_failure_marks_the_run_and_the_restart_joins_it(client: MlflowClient) -> None:
    with pytest.raises(TrainingError), stage_run("concepts", PARAMS) as first:
        raise TrainingError("boom")
    assert client.get_run(first).info.status == "FAILED"
    with stage_run("concepts", PARAMS) as second:
        assert client.get_run(first).info.status == "RUNNING"
    assert first == second and len(runs(client)) == 1
    assert client.get_run(first).info.status == "FINISHED"


def test_a_run_whose_process_is_gone_is_marked_failed(client: MlflowClient) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    tags = {"csr.process": f"{socket.gethostname()}:{gone.stdout.strip()}"}
    dead = client.create_run(experiment_id(client), tags=tags).info.run_id
    elsewhere = client.create_run(experiment_id(client), tags={"csr.process": "another-host:1"}).info.run_id
    with stage_run("prepare", PARAMS):
        pass
    assert client.get_run(dead).info.status == "FAILED"
    assert client.get_run(elsewhere).info.status == "RUNNING"


def test_the_store_is_the_projects_where_dvc_runs_a_copy_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project/.dvc/tmp/exps/copy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project/.dvc/tmp/exps/copy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    client = connect()
    assert (tmp_path / "project/mlflow.db").is_file() and not Path("mlflow.db").exists()
    experiment = client.get_experiment_by_name("csr")
    assert experiment is not None
    assert experiment.artifact_location == str(tmp_path / "project/mlruns/csr")


def kill_stage_1(project: Project, folder: Path, number: int) -> Project:
    """A copy whose stage 1, of 6 epochs, was killed after its first."""
    copy = copy_project(folder)
    (copy.folder / "params.yaml").write_text((project.folder / "params.yaml").read_text())
    copy.params({"concepts": {"epochs": 6}})
    (copy.folder / "data").mkdir(exist_ok=True)
    (copy.folder / "data/prepared").symlink_to(project.folder / "data/prepared")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.concepts"],
        cwd=copy.folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 180
    while not list((copy.folder / ".state/checkpoints").glob("concepts-*/state.pt")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline, "no checkpoint after 180 s"
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) != 0
    return copy


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_stage_resumes_from_its_checkpoint_in_the_same_run(
    project: Project, tmp_path: Path, number: int
) -> None:
    """The restart goes on from there and adds no run."""
    copy = kill_stage_1(project, tmp_path / "copy", number)
    client = MlflowClient(f"sqlite:///{copy.folder / 'mlflow.db'}")
    (dead,) = runs(client)
    if number == signal.SIGTERM:
        assert dead.info.status == "FAILED"
    before = len(client.get_metric_history(dead.info.run_id, "concepts.train_loss"))
    assert 1 <= before < 6

    assert "an interrupted training" not in copy.run("pipelines.concepts").stdout
    (run,) = runs(client)
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "concepts.train_loss")]
    assert run.info.run_id == dead.info.run_id and run.info.status == "FINISHED"
    assert sorted(set(steps)) == list(range(6))
    assert len(steps) <= 7  # at most the epoch that was under way ran twice
    assert len((copy.folder / "reports/curves/concepts.csv").read_text().splitlines()) == 7
    assert not list((copy.folder / ".state/checkpoints").glob("concepts-*"))


def test_an_edit_to_the_code_between_kill_and_restart_starts_anew_and_says_so(project: Project, tmp_path: Path) -> None:
    copy = kill_stage_1(project, tmp_path / "copy", signal.SIGKILL)
    (old,) = (copy.folder / ".state/checkpoints").glob("concepts-*/state.pt")
    losses = copy.folder / "csr/training/losses.py"
    losses.write_text(losses.read_text() + "# edited\n")
    copy.params({"concepts": {"epochs": 1}})
    output = copy.run("pipelines.concepts").stdout
    (sentence,) = (line for line in output.splitlines() if line.startswith("concepts: an interrupted training is not"))
    assert sentence.endswith(": concepts.epochs is 1 and was 6, csr/training/losses.py has changed")
    assert not old.exists()
    assert len((copy.folder / "reports/curves/concepts.csv").read_text().splitlines()) == 2
