"""Passes and their stages as rows of MLflow's table: when one is over, what a row says, what it has from others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from csr.data.prepared import PreparedSet
from csr.errors import TrainingError
from pipelines.params import Params, parse_params
from pipelines.revision import revision
from pipelines.runs import passes, rows
from pipelines.runs.inheritance import MADE_BY, UNKNOWN
from pipelines.runs.passes import children, stage_run
from pipelines.runs.processes import command, is_alive
from pipelines.runs.rows import differences, run_name, source_tags
from pipelines.stage import OUTPUTS
from pipelines.tracking import experiment_id, log_file, log_metrics, log_tag
from tests.csr.synthetic import make_collection, make_prepared
from tests.pipelines.conftest import PRESETS, ROOT

PARAMS = parse_params({"preset": "robust"}, presets=PRESETS)
ENDED = subprocess.run(
    [sys.executable, "-c", "from pipelines.runs.processes import own_process; print(own_process())"],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
).stdout.strip()


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says which process calls the stages: a living one, or one that is over."""
    return lambda name: monkeypatch.setattr(passes, "command", lambda: name)


@contextmanager
def stage(name: str, params: Params = PARAMS, **figures: float) -> Iterator[str]:
    """A stage that writes its name and logs figures; ``prepare`` writes a set."""
    with stage_run(name, params, outputs=OUTPUTS) as run_id:
        output = OUTPUTS[name]
        if name == "prepare":
            make_prepared(output, make_collection())
            log_tag("data.digest", "abc")
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(f"{name} {figures}")
        log_metrics(name, figures)
        yield run_id


def run_stages(*names: str, params: Params = PARAMS) -> str:
    for name in names:
        with stage(name, params, seconds=float(len(name))) as run_id:
            if name == "evaluate":
                log_metrics("iid", {"macro_f1": 0.75, "concept_auroc": 0.9, "pointing_pair": 0.5})
                log_metrics("shifted", {"macro_f1": 0.5, "concept_auroc": 0.8, "pointing_pair": 0.4})
    return run_id  # of the last, which is that of all that joined it


def inputs(run: Run) -> dict[str, str]:
    return {each.dataset.name: each.tags[0].value for each in run.inputs.dataset_inputs}


# when a pass is over


def test_a_pass_is_over_with_its_command_whatever_its_last_stage(client: MlflowClient, commands: Any) -> None:
    commands(ENDED)
    first = run_stages("prepare")
    assert client.get_run(first).info.status == "FINISHED"
    commands(command())
    second = run_stages("concepts")
    assert run_stages("features") == second != first


def test_a_stage_that_ran_already_opens_the_next_pass(client: MlflowClient) -> None:
    first = run_stages("prepare", "concepts")
    assert run_stages("concepts") != first


def test_a_failed_stage_keeps_its_pass_open_for_the_command_that_runs_it_again(
    client: MlflowClient, commands: Any
) -> None:
    commands(ENDED)
    first = run_stages("prepare")
    commands(command())
    with pytest.raises(TrainingError), stage("concepts") as second:
        raise TrainingError("boom")
    commands(ENDED)
    with stage("concepts") as third:
        assert [child.info.status for child in children(client, client.get_run(second))] == ["RUNNING"]
    assert third == second != first
    assert [child.info.status for child in children(client, client.get_run(second))] == ["FINISHED"]


def test_processes_are_told_from_others_of_the_same_number() -> None:
    assert is_alive(command())
    assert not is_alive(ENDED)
    host, pid, start = command().split(":")
    assert not is_alive(f"{host}:{pid}:{float(start) - 60:.2f}")
    assert not is_alive(f"elsewhere:{pid}:{start}") and not is_alive("")


# what a row says


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "robust-phantom"),
        ({"preset": "paper"}, "paper-phantom"),
        ({"data": {"side": 128}, "head": {"epochs": 24}}, "robust-phantom side=128 head.epochs=24"),
        ({"data": {"source": "table", "path": "data/mine"}}, "robust-table path=data/mine"),
        ({"concepts": {"learning_rate": 0.002, "model": {"context": None}}}, "robust-phantom context=null "),
        ({"train": {"workers": 2}, "comparison": {"trials": 3}, "data": {"workers": 5}}, "robust-phantom"),
        ({"data": {"phantom": {"train": 1, "val": 2, "test": 3, "seed": 4, "contrast": 5.0}}}, "+1 more"),
        ({"concepts": {"model": {"pretrained": True}}}, "robust-phantom pretrained=true"),
    ],
)
def test_a_runs_name_is_what_differs_from_the_default(changes: dict[str, Any], name: str) -> None:
    params = parse_params({"preset": "robust"} | changes, presets=PRESETS)
    found = run_name(params)
    assert found == name or (name.endswith((" ", "more")) and name in found)


def test_what_the_committed_file_does_not_say_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("preset: robust\ndata: {side: 64}\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "params.yaml"], ["commit", "-q", "-m", "mine"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    rows._committed.cache_clear()
    changes = {"preset": "robust", "data": {"side": 64}, "head": {"epochs": 24}}
    assert run_name(parse_params(changes, presets=PRESETS)) == "robust-phantom head.epochs=24 side=64"
    rows._committed.cache_clear()


def test_the_default_is_params_yaml_as_it_comes() -> None:
    assert differences(parse_params(yaml.safe_load((ROOT / "params.yaml").read_text()), presets=PRESETS)) == {}


def test_a_pass_says_who_made_it_of_what_and_how_good_it_is(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_tags.cache_clear()
    monkeypatch.setattr("pipelines.runs.rows.revision", lambda: "0123abcd-dirty")
    params = parse_params({"preset": "robust", "data": {"side": 128}}, presets=PRESETS)
    run = client.get_run(run_stages("prepare", "concepts", params=params))
    source_tags.cache_clear()
    tags = run.data.tags
    assert tags["mlflow.source.name"] == "dvc.yaml" and tags["mlflow.user"]
    assert (tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]) == ("0123abcd", "true")
    assert tags["git.revision"] == "0123abcd-dirty"
    assert tags["mlflow.runName"] == run.info.run_name == "robust-phantom side=128"
    assert inputs(run) == {"made-up train": "training", "made-up val": "validation"}
    (digest,) = {each.dataset.digest for each in run.inputs.dataset_inputs}
    assert PreparedSet.open(OUTPUTS["prepare"]).digest().startswith(digest) and len(digest) == 12
    source = json.loads(run.inputs.dataset_inputs[0].dataset.source)
    assert source["tags"]["seed"] == 7
    assert tags["mlflow.note.content"].startswith("Data: made-up ")

    run = client.get_run(run_stages("features", "prototypes", "head", "evaluate", params=params))
    assert inputs(run)["made-up test"] == "evaluation"
    note = run.data.tags["mlflow.note.content"].splitlines()
    assert note[0] == (
        "**Macro F1 0.750 on iid and 0.500 on shifted, concept AUROC 0.900 on iid and 0.800 on shifted, "
        "pointing game 0.500 on iid and 0.400 on shifted.**"
    )
    assert note[-1] == "Differs from the default in: side=128."


def test_a_stage_has_its_own_figures_and_time_and_its_files_are_the_passs(client: MlflowClient) -> None:
    with stage("prepare", boxes=3.0) as run_id:
        Path("figure.txt").write_text("x")
        log_file(Path("figure.txt"), "figures")
        for step in range(3):
            log_metrics("prepare", {"loss": 1.0 - step}, step)
    (own,) = children(client, client.get_run(run_id))
    for each in (own.info.run_id, run_id):
        assert [point.step for point in client.get_metric_history(each, "prepare.loss")] == [0, 1, 2]
        assert client.get_run(each).data.metrics["prepare.boxes"] == 3
    assert own.info.end_time >= own.info.start_time and own.data.tags["mlflow.source.name"] == "pipelines/prepare.py"
    assert [file.path for file in client.list_artifacts(run_id)] == ["figures"]
    assert not client.list_artifacts(own.info.run_id) and "data.digest" not in own.data.tags


# stages that ran in other passes


def test_a_stage_alone_has_the_figures_of_the_stages_before_it(client: MlflowClient, commands: Any) -> None:
    commands(ENDED)
    first = run_stages("prepare", "concepts")
    commands(command())
    whole = run_stages("prepare", "concepts", "features", "prototypes", "head", "evaluate")
    commands(ENDED)
    again = run_stages("head")
    run = client.get_run(again)
    assert again not in (first, whole)
    assert [child.info.run_name for child in children(client, run)] == ["head"]
    assert run.data.metrics["concepts.seconds"] == len("concepts") and "iid.macro_f1" not in run.data.metrics
    made_by = {tag.removeprefix(MADE_BY): origin for tag, origin in run.data.tags.items() if tag.startswith(MADE_BY)}
    assert made_by == dict.fromkeys(("prepare", "concepts", "features", "prototypes"), whole)
    assert run.data.tags["data.digest"] == "abc"
    assert f"runs/{whole}), figures taken from there: prepare, concepts," in run.data.tags["mlflow.note.content"]

    last = client.get_run(run_stages("atlas"))  # does not read what evaluate wrote of another head
    assert "iid.macro_f1" not in last.data.metrics
    exported = client.get_run(run_stages("export"))
    assert exported.data.metrics["iid.macro_f1"] == 0.75 and inputs(exported)["made-up test"] == "evaluation"


def test_outputs_of_no_known_run_are_said_to_be_such(client: MlflowClient) -> None:
    make_prepared(OUTPUTS["prepare"], make_collection())
    run = client.get_run(run_stages("concepts"))
    assert run.data.tags[f"{MADE_BY}prepare"] == UNKNOWN
    assert "this store does not have: prepare" in run.data.tags["mlflow.note.content"]


def test_a_pass_that_was_deleted_is_none_to_take_figures_from(client: MlflowClient) -> None:
    first = run_stages("prepare", "concepts")
    client.delete_run(first)
    run = client.get_run(run_stages("features"))
    assert run.info.run_id != first and run.data.tags[f"{MADE_BY}concepts"] == UNKNOWN


def test_what_a_stage_rests_on_is_what_dvc_says() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    kinds = ("outs", "metrics", "plots")
    written = {name: [_path(out) for kind in kinds for out in body.get(kind, [])] for name, body in stages.items()}
    for name, output in OUTPUTS.items():
        assert output.as_posix() in written[name]
        before, todo = set[str](), [name]
        while todo:
            deps = stages[todo.pop()].get("deps", [])
            found = {other for other in OUTPUTS if set(written[other]) & set(deps)} - before
            before, todo = before | found, todo + sorted(found)
        assert before == set(passes.before(name, OUTPUTS))


def _path(out: Any) -> str:
    return next(iter(out)) if isinstance(out, dict) else out


def test_the_tag_of_the_code_is_the_one_that_manifests_have(client: MlflowClient) -> None:
    run = client.get_run(run_stages("prepare"))
    assert run.data.tags["git.revision"] == revision()
    assert experiment_id(client) == run.info.experiment_id and mlflow.active_run() is None
