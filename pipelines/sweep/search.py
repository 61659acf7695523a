"""Runs a sweep's trials on Ray Tune, as runs below the sweep's own in MLflow, and takes up an interrupted one.

ASHA (Li et al. 2020, arXiv 1810.05934) ends trials by the validation figure of their epochs: after a quarter of the
epochs, and after a half, one goes on only if it is among the better half of those that came so far. Trial 0, which is
``params.yaml`` as it is, always goes on. What decides in the end is the figure of the trials that ran whole. No trial
can see a test study: all read copies without them.
"""

from __future__ import annotations

import fcntl
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Param, Run
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from csr.data.prepared import PreparedSet
from csr.errors import DataError, TrainingError
from pipelines.checkpoints import MadeOf, claim, forget
from pipelines.flatten import flatten
from pipelines.params import PARAMS_FILE, Params
from pipelines.runs.kinds import KIND
from pipelines.runs.passes import PROCESS, mark_dead_runs
from pipelines.runs.processes import own_process
from pipelines.runs.rows import data_inputs, source_tags
from pipelines.runs.view import save_views
from pipelines.stage import CONCEPTS, FEATURES, PREPARED, PROTOTYPES
from pipelines.sweep.data import features_without_test
from pipelines.sweep.space import Knob, Stage, settings_of, stage_of, with_settings
from pipelines.sweep.trial import ENDED, STOP_BY, Given, Judge, judge, run_trial, trial_runs
from pipelines.tracking import STATE, connect, experiment_id
from pipelines.tuning import ray_for_trials, run_trials, without_test

MADE_OF = "csr.sweep"  # tag: the digest of what a sweep is made of, by which an interrupted one is found again


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Args:
        figure: of a trial that ran whole.
        last: the figure of the last epoch by which trials are compared; of a trial that was ended early all there is.
        ended: ``whole``, ``failed`` or ``stopped``.
    """

    number: int
    settings: dict[str, Any]
    ended: str
    epochs: int
    figure: float | None = None
    last: float | None = None
    failed: str | None = None


def sweep(knobs: Sequence[Knob], trials: int, metric: str | None, params: Params) -> tuple[Judge, list[Outcome]]:
    """Runs all trials of a sweep. Returns what they were judged by, and the trials, the best first.

    Raises:
        CSRError: it cannot be done, for the reason given; a folder has one sweep at a time.
    """
    STATE.mkdir(exist_ok=True)
    with (STATE / "sweep.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError("another sweep runs in this folder; start this one when it has ended") from None
        return _sweep(knobs, trials, metric, params)


def _sweep(knobs: Sequence[Knob], trials: int, metric: str | None, params: Params) -> tuple[Judge, list[Outcome]]:
    stage, settings = stage_of(knobs), settings_of(knobs, trials, params)
    by = judge(stage, metric, bool(PreparedSet.open(PREPARED).collection.classes))
    data, features, inputs = without_test(PREPARED), None, _built(stage, params)
    if stage != "concepts":
        features = features_without_test(PREPARED, CONCEPTS / "model.pt", FEATURES)
    tried = tuple((with_settings(PARAMS_FILE, each), each) for each in settings)
    made_of = MadeOf.of("sweep", params, [data, *inputs], 0, "pipelines.sweep.trial")
    made_of.values.update({"trials": json.dumps(settings), "metric": by.figure})
    name = claim("sweep", made_of)
    with ray_for_trials(), _sweep_run(name, knobs, params) as (client, run):
        copied = None if features is None else features.resolve()
        given = Given(stage, by, data.resolve(), copied, tried, run.info.run_id)
        reports = run_trials(name, run_trial, given, len(tried), _asha([each for each, _ in tried], stage))
        outcomes = _ranked([_outcome(report, settings) for report in reports], by)
        _conclude(client, run, outcomes, by)
    forget(name)
    return by, outcomes


def _built(stage: Stage, params: Params) -> list[Path]:
    """Models of earlier stages that a trial rests on.

    Raises:
        DataError: one is missing.
    """
    if stage == "concepts":
        return []
    models = [CONCEPTS / "model.pt"]
    if stage == "head" or params.prototypes.per_concept == "auto":
        models.append(PROTOTYPES / "model.pt")
    missing = next((path for path in (*models, FEATURES / "features.npy") if not path.is_file()), None)
    if missing:
        raise DataError(f"{missing}: missing; keys of {stage} are swept on it: run dvc repro {missing.parts[1]} first")
    return models


class _ButTheFirst(AsyncHyperBandScheduler):
    """ASHA that never ends trial 0, to which all others are compared."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return str(TrialScheduler.CONTINUE if trial.config["number"] == 0 else decision)


def _asha(tried: Sequence[Params], stage: Stage) -> AsyncHyperBandScheduler | None:
    section = "concepts" if stage == "concepts" else "head"
    epochs = max(getattr(params, section).epochs for params in tried)
    if epochs < 2:
        return None
    return _ButTheFirst(
        metric=STOP_BY,
        mode="max",
        max_t=epochs - 1,  # none is ended at its last epoch
        grace_period=max(1, epochs // 4),
        reduction_factor=2,
        stop_last_trials=False,
    )


@contextmanager
def _sweep_run(name: str, knobs: Sequence[Knob], params: Params) -> Iterator[tuple[MlflowClient, Run]]:
    """The sweep's row: that of its interrupted try, or a new one."""
    client = connect()
    experiment = experiment_id(client)
    found = client.search_runs([experiment], f"tags.`{MADE_OF}` = '{name}' AND attributes.status != 'FINISHED'")
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        save_views(client, experiment)
        tags = source_tags("pipelines/sweep") | {KIND: "sweep", MADE_OF: name}
        title = f"sweep {' '.join(knob.key for knob in knobs)}"
        run = client.create_run(experiment, run_name=title, tags=tags)
        listed = {f"sweep.{knob.key}": f"{knob.kind}: {', '.join(map(str, knob.values))}" for knob in knobs}
        logged = [Param(key, str(value)) for key, value in (listed | flatten(params)).items()]
        for start in range(0, len(logged), 100):
            client.log_batch(run.info.run_id, params=logged[start : start + 100])
        client.log_inputs(run.info.run_id, data_inputs(params.data, PREPARED, ("train", "val")))
    client.set_tag(run.info.run_id, PROCESS, own_process())
    mark_dead_runs(client, (run.info.run_id,))
    try:
        yield client, run
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id, "FINISHED")


def _outcome(report: dict[str, Any], settings: Sequence[dict[str, Any]]) -> Outcome:
    number = report["config"]["number"]
    ended = report.get("ended", "stopped")
    epochs = report["training_iteration"] - (0 if ended == "stopped" else 1)  # what a trial returns counts as one
    figures = {name: report.get(name) for name in ("figure", "failed")}
    return Outcome(number, settings[number], ended, epochs, last=report.get("by_epoch"), **figures)


def _ranked(outcomes: list[Outcome], by: Judge) -> list[Outcome]:
    """Whole trials by their figure, of equal ones the earlier first; then those ended early, the longest first."""
    order = {"whole": 0, "stopped": 1, "failed": 2}

    def place(each: Outcome) -> tuple[int, float, int]:
        better = by.rank(each.figure) if each.figure is not None else float(each.epochs)
        return order[each.ended], -better, each.number

    return sorted(outcomes, key=place)


def _conclude(client: MlflowClient, sweep_run: Run, outcomes: Sequence[Outcome], by: Judge) -> None:
    """Closes the trials' runs, of which those that ASHA ended could not do so themselves, and notes the result."""
    ended = {each.number: each for each in outcomes}
    for number, run in trial_runs(client, sweep_run).items():
        if ENDED not in run.data.tags:
            client.set_tag(run.info.run_id, ENDED, f"{ended[number].ended} after {ended[number].epochs} epochs")
            client.set_terminated(run.info.run_id, "FINISHED")
    best = outcomes[0]
    if best.figure is None:
        client.set_tag(sweep_run.info.run_id, MLFLOW_RUN_NOTE, f"All {len(outcomes)} trials failed.")
        return
    client.log_metric(sweep_run.info.run_id, f"sweep.{by.figure}", best.figure)
    said = f"**{by.figure} {best.figure:.4f} on the validation split** in trial {best.number} of {len(outcomes)}"
    client.set_tag(sweep_run.info.run_id, MLFLOW_RUN_NOTE, f"{said}:\n\n    {best_command(best)}")


def best_command(best: Outcome) -> str:
    """What runs the pipeline with a trial's settings."""
    words = ["dvc", "exp", "run"]
    for key, value in best.settings.items():
        words += ["-S", f"{key}={json.dumps(value)}" if not isinstance(value, str) else f"{key}={value}"]
    return shlex.join(words) if best.settings else "dvc repro"
