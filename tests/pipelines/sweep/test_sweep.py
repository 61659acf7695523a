"""Whole sweeps on a made-up set: judged on the validation split, no test study in sight, ended early, taken up."""

from __future__ import annotations

import fcntl
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from mlflow.entities import Run
from ray import tune

from csr.data.prepared import PreparedSet
from csr.errors import ConfigError, DataError, TrainingError
from csr.network.checkpoint import write_checkpoint
from csr.network.rebuild import concept_model_checkpoint
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import train_concepts
from csr.training.features import FeatureCache, compute_features
from pipelines import prototypes
from pipelines.params import Params, load_params
from pipelines.stage import CONCEPTS, FEATURES, PREPARED, PROTOTYPES
from pipelines.sweep import search
from pipelines.sweep.__main__ import conclusion, main, table
from pipelines.sweep.data import features_without_test
from pipelines.sweep.search import Outcome, sweep
from pipelines.sweep.space import parse_knob
from pipelines.sweep.trial import STOP_BY, Judge, TuneCallbacks, judge
from pipelines.tracking import connect, experiment_id
from pipelines.tuning import run_trials, without_test
from tests.csr.synthetic import make_collection, make_prepared
from tests.pipelines.conftest import ROOT, merge

SMALL = {
    "data": {"side": 32},
    "concepts": {
        "model": {"backbone": "test_convnext", "width": 16},
        "epochs": 2,
        "batch_size": 8,
        "precision": "float32",
    },
    "prototypes": {"epochs": 1, "width": 8, "blocks": 1, "per_concept": 2, "precision": "float32"},
    "head": {"epochs": 3},
    "train": {"threads": 1},
}
JUDGE = Judge("val_auroc", "val_auroc")


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    """Of a folder with a made-up set and what rests on it built, in which the tests run, with a Ray cluster."""
    folder = tmp_path_factory.mktemp("sweeps")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(content, SMALL)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(ROOT / "params", folder / "params")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'elsewhere.db'}")  # as Ray's processes have it
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        patch.setattr(ray, "init", lambda **given: None)  # one cluster for this module
        yield built(load_params())
    ray.shutdown()


def built(params: Params) -> Params:
    """As `dvc repro prototypes` leaves it, but small."""
    data = make_prepared(PREPARED, make_collection())
    for folder in (CONCEPTS, FEATURES, PROTOTYPES):
        folder.mkdir(parents=True)
    model = train_concepts(data, params.concepts, SilentCallbacks())
    write_checkpoint(concept_model_checkpoint(model), CONCEPTS / "model.pt")
    compute_features(model, data, FEATURES, SilentCallbacks())
    state = prototypes.fit(PREPARED, FEATURES, params.prototypes, SilentCallbacks())
    write_checkpoint(state, PROTOTYPES / "model.pt")
    return params


def newest(kind: str) -> list[Run]:
    client = connect()
    return client.search_runs([experiment_id(client)], f"tags.`csr.kind` = '{kind}'", order_by=["start_time DESC"])


# what a trial is given


def test_trials_have_no_test_study_nor_its_features(params: Params) -> None:
    data = PreparedSet.open(without_test(PREPARED))
    copied = FeatureCache.open(features_without_test(PREPARED, CONCEPTS / "model.pt", FEATURES))
    whole, cache = PreparedSet.open(PREPARED), FeatureCache.open(FEATURES)
    assert len(data.collection.rows("test")) == 0 and len(copied.features) == len(copied.cam) == len(data.images)
    rows = {study: row for row, study in enumerate(whole.collection.studies["study_id"])}
    for row, study in enumerate(data.collection.studies["study_id"]):
        np.testing.assert_array_equal(copied.features[row], cache.features[rows[study]])
        np.testing.assert_array_equal(copied.cam[row], cache.cam[rows[study]])


def test_what_is_not_built_is_named(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "params", "data"):
        (tmp_path / name).symlink_to(Path(name).resolve())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"build/concepts/model\.pt: missing; .*run dvc repro concepts first"):
        sweep([parse_knob("head.epochs=2,4", params)], 2, None, params)


def test_a_folder_has_one_sweep_at_a_time(params: Params) -> None:
    Path(".state").mkdir(exist_ok=True)
    with Path(".state/sweep.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match="another sweep runs in this folder"):
            sweep([parse_knob("head.epochs=2,4", params)], 2, None, params)


# whole sweeps


def below(row: Run) -> dict[str, Run]:
    """The runs of a sweep's trials, by what ended them."""
    trials = [run for run in newest("trial") if run.data.tags["mlflow.parentRunId"] == row.info.run_id]
    assert {run.info.status for run in trials} == {"FINISHED"}
    return {run.data.tags["csr.ended"].partition(":")[0]: run for run in trials}


def test_stage_1_is_trained_and_settings_that_do_not_train_are_a_trial_that_failed(
    params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("build").rglob("model.pt")}
    main(["-S", "concepts.model.stride=8,3", "--trials", "5"])
    heading, whole, failed, _, told = capsys.readouterr().out.strip().splitlines()[-5:]
    assert heading.split() == ["trial", "concepts.model.stride", "val_auroc", "epochs", "ended"]
    assert whole.startswith("0 ") and whole.endswith("  2       whole")
    assert failed.startswith("1 ") and "regnetx" not in failed and "has levels of stride" in failed
    assert told.startswith("params.yaml as it is has the best val_auroc")
    assert {path: path.stat().st_mtime_ns for path in Path("build").rglob("model.pt")} == before

    row = newest("sweep")[0]
    assert row.info.status == "FINISHED" and row.info.run_name == "sweep concepts.model.stride"
    assert {each.dataset.name for each in row.inputs.dataset_inputs} == {"made-up train", "made-up val"}
    trials = below(row)
    assert trials.keys() == {"whole", "failed"} and trials["failed"].data.params == {"concepts.model.stride": "3"}
    client = connect()
    steps = client.get_metric_history(trials["whole"].info.run_id, "concepts.val_auroc")
    assert len(steps) == 2 and steps[-1].value == row.data.metrics["sweep.val_auroc"]


def test_what_rests_on_it_is_trained_on_what_is_built_and_an_interrupted_sweep_goes_on_in_its_row(
    params: Params, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> list[dict[str, Any]]:
        raise KeyboardInterrupt

    command = ["-S", "prototypes.gamma=uniform:2:20", "-S", "head.epochs=2,4", "--trials", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(search, "run_trials", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    cut = newest("sweep")[0]
    assert cut.info.status == "FAILED"
    main(command)
    row = newest("sweep")[0]
    assert row.info.run_id == cut.info.run_id and row.info.status == "FINISHED"
    trials = [run for run in newest("trial") if run.data.tags["mlflow.parentRunId"] == row.info.run_id]
    assert len(trials) == 2 and {run.info.status for run in trials} == {"FINISHED"}
    for run in trials:
        ended = run.data.tags["csr.ended"]
        assert ended == "whole" or re.fullmatch(r"stopped after \d epochs", ended)
        assert {"prototypes.accuracy", "head.val_loss", "head.val_macro_f1"} <= set(run.data.metrics)
        assert not any(name.startswith(("iid.", "shifted.", "test.")) for name in run.data.metrics)
    best = max(trials, key=lambda run: run.data.metrics.get("sweep.val_auroc", 0.0))
    assert row.data.metrics["sweep.val_auroc"] == best.data.metrics["sweep.val_auroc"]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    if best.data.params:
        said = " ".join(f"-S {key}={value}" for key, value in best.data.params.items())
        assert last == f"dvc exp run {said}" and last in row.data.tags["mlflow.note.content"]
    else:
        assert "nothing to change" in last
    with monkeypatch.context() as patch:
        patch.setattr(search, "run_trials", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    assert newest("sweep")[0].info.run_id != row.info.run_id  # a finished one is over


# early ends and interruptions


def scripted(config: dict[str, Any], given: dict[str, list[float]]) -> dict[str, Any]:
    figures = given[str(config["number"])]
    for figure in figures:
        tune.report({STOP_BY: figure, "by_epoch": figure})
    return {"ended": "whole", "figure": figures[-1], STOP_BY: figures[-1]}


def test_bad_trials_are_ended_by_the_figures_of_their_epochs(params: Params) -> None:
    epochs = 8
    given = {"0": [0.1] * epochs, "1": [0.9] * epochs, "2": [0.05] * epochs}
    tried = [load_params()] * 3
    tried = [with_epochs(each, epochs) for each in tried]
    reports = run_trials("sweep-scripted", scripted, given, 3, search._asha(tried, "concepts"))
    outcomes = search._ranked([search._outcome(each, [{}, {"a": 1}, {"a": 2}]) for each in reports], JUDGE)
    ended = {outcome.number: outcome for outcome in outcomes}
    assert [ended[number].ended for number in (0, 1)] == ["whole", "whole"]  # trial 0 is never ended early
    assert ended[0].epochs == ended[1].epochs == epochs and outcomes[0].number == 1
    assert ended[2].ended == "stopped" and ended[2].epochs in (2, 4) and ended[2].figure is None
    assert "stopped at val_auroc 0.0500" in table(JUDGE, outcomes)[-1]


def with_epochs(params: Params, epochs: int) -> Params:
    return replace(params, concepts=replace(params.concepts, epochs=epochs))


def test_an_interrupted_trial_goes_on_from_its_last_epoch(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"

    def report(metrics: dict[str, Any], checkpoint: tune.Checkpoint) -> None:
        with checkpoint.as_directory() as folder:
            shutil.copytree(folder, kept, dirs_exist_ok=True)
        if metrics[STOP_BY] == seen[0]:
            raise KeyboardInterrupt

    seen = [math.nan]
    monkeypatch.setattr(tune, "report", report)
    monkeypatch.setattr(tune, "get_checkpoint", lambda: tune.Checkpoint.from_directory(kept) if kept.is_dir() else None)
    data, config = PreparedSet.open(without_test(PREPARED)), with_epochs(params, 3).concepts
    whole = TuneCallbacks("concepts", JUDGE)
    train_concepts(data, config, whole)
    shutil.rmtree(kept)
    seen = [whole.history[1]["val_auroc"]]
    with pytest.raises(KeyboardInterrupt):
        train_concepts(data, config, TuneCallbacks("concepts", JUDGE))
    seen = [math.nan]
    again = TuneCallbacks("concepts", JUDGE)
    train_concepts(data, config, again)
    assert again.history == whole.history and again.curves == whole.curves


# what is judged and said


@pytest.mark.parametrize(
    ("stage", "metric", "classes", "expected"),
    [
        ("concepts", None, True, ("val_auroc", "val_auroc")),
        ("concepts", "val_loss", True, ("val_loss", "val_loss")),
        ("head", None, True, ("val_auroc", "val_macro_f1")),
        ("prototypes", "val_macro_f1", True, ("val_macro_f1", "val_macro_f1")),
        ("head", None, False, ("val_concept_auroc", "val_concept_auroc")),
    ],
)
def test_trials_are_judged_on_the_validation_split(
    stage: Any, metric: str | None, classes: bool, expected: tuple[str, str]
) -> None:
    by = judge(stage, metric, classes)
    assert (by.figure, by.by_epoch) == expected
    assert by.rank(0.2) == (-0.2 if metric == "val_loss" else 0.2)


@pytest.mark.parametrize("metric", ["iid.macro_f1", "train_loss", "val_macro_f1"])
def test_no_other_figure_decides(metric: str) -> None:
    with pytest.raises(ConfigError, match="--metric: trials of concepts have val_auroc, val_loss, not"):
        judge("concepts", metric, True)


def test_the_conclusion_is_a_command_or_that_nothing_is_better() -> None:
    usual = Outcome(0, {}, "whole", 4, figure=0.8)
    better = Outcome(1, {"concepts.learning_rate": 0.002, "concepts.model.context": None}, "whole", 4, figure=0.9)
    assert conclusion(JUDGE, [better, usual]) == [
        "best: val_auroc 0.9000 (params.yaml as it is has 0.8000)",
        "dvc exp run -S concepts.learning_rate=0.002 -S concepts.model.context=null",
    ]
    assert "nothing to change" in conclusion(JUDGE, [usual, better])[0]
    with pytest.raises(TrainingError, match="all 1 trials failed; trial 1: too high"):
        conclusion(JUDGE, [Outcome(1, {"a": 1}, "failed", 0, failed="too high")])
    worse = Outcome(2, {"a": 2}, "whole", 4, figure=math.nextafter(0.8, 0))
    assert search._ranked([worse, usual], JUDGE)[0] is usual
