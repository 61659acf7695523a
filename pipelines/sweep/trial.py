"""One trial of a sweep, in a process of Ray's: trains from the swept stage on and judges on the validation split.

Keys of ``concepts`` train stage 1, judged by the mean AUROC of the concepts. Keys of ``prototypes`` train stages 2 and
3, keys of ``head`` stage 3, on the features (and prototypes) that are built; they are judged by the macro AUROC of the
classes, or of the concepts where there are no classes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from ray import tune

from csr.data.feedback import FeedbackSet
from csr.data.prepared import PreparedSet
from csr.errors import ConfigError, CSRError, TrainingError
from csr.evaluation.metrics import macro_auroc
from csr.network.checkpoint import read_checkpoint
from csr.network.trained import TrainedCSR
from csr.training.callbacks import State
from csr.training.concepts import train_concepts
from csr.training.features import FeatureCache
from csr.training.prediction import predict
from csr.training.runtime import use_device
from csr.training.stopping import Curve
from pipelines import head, prototypes
from pipelines.feedback_set import learned_from
from pipelines.params import Params
from pipelines.runs.kinds import KIND
from pipelines.runs.passes import PROCESS
from pipelines.runs.processes import own_process
from pipelines.runs.rows import said, source_tags
from pipelines.stage import CONCEPTS, PROTOTYPES
from pipelines.sweep.space import Stage
from pipelines.tracking import connect, log_metrics
from pipelines.training import CHECKPOINT_FILE, LocalCallbacks

ENDED = "csr.ended"  # tag: how a trial ended
NUMBER = "csr.trial"  # tag: which trial of its sweep a run is
STOP_BY = "stop_by"  # what ASHA compares: larger is better


@dataclass(frozen=True)
class Judge:
    """What a sweep's trials are judged by.

    Args:
        figure: of the validation split, which decides.
        by_epoch: the figure of each epoch, by which trials are ended early.
    """

    figure: str
    by_epoch: str

    def rank(self, value: float) -> float:
        """Larger is better."""
        return -value if self.figure.endswith("loss") else value


def judge(stage: Stage, metric: str | None, classes: bool) -> Judge:
    """The judge of a sweep.

    Args:
        metric: what a person asked for; None for the AUROC.
        classes: whether the set has classes to learn.

    Raises:
        ConfigError: the trials have no such figure.
    """
    if stage == "concepts":
        known = {"val_auroc": "val_auroc", "val_loss": "val_loss"}
    elif classes:
        known = {"val_auroc": "val_macro_f1", "val_macro_f1": "val_macro_f1", "val_loss": "val_loss"}
    else:
        known = {"val_concept_auroc": "val_concept_auroc"}
    figure = metric or next(iter(known))
    if figure not in known:
        raise ConfigError(f"--metric: trials of {stage} have {', '.join(known)}, not {figure!r}")
    return Judge(figure, known[figure])


class TuneCallbacks(LocalCallbacks):
    """Reports each epoch to MLflow and to Ray Tune, which may end the trial there and keeps the checkpoint that an
    interrupted one goes on from."""

    def __init__(self, stage: str, judge: Judge) -> None:
        super().__init__(stage, Path())
        self._judge = judge
        self.curves: list[Curve] = []

    def resume(self) -> State | None:
        stored = tune.get_checkpoint()
        if stored is None:
            return None
        with stored.as_directory() as folder:
            return self._load(Path(folder) / CHECKPOINT_FILE)

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        self._record(metrics)
        figure = float(metrics[self._judge.by_epoch])
        value = -figure if self._judge.by_epoch.endswith("loss") else figure
        said = {STOP_BY: value if math.isfinite(value) else -math.inf, "by_epoch": figure}
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder) / CHECKPOINT_FILE, state)
            tune.report(said, checkpoint=tune.Checkpoint.from_directory(folder))

    def finished(self, curve: Curve) -> None:
        self.curves.append(curve)


@dataclass(frozen=True)
class Given:
    """What every trial of a sweep is given.

    Args:
        data, features: copies without a test study; the second for stages that read features.
        trials: parameters and settings of each.
        parent: the sweep's MLflow run.
    """

    stage: Stage
    judge: Judge
    data: Path
    features: Path | None
    trials: tuple[tuple[Params, dict[str, Any]], ...]
    parent: str


def run_trial(config: dict[str, Any], given: Given) -> dict[str, Any]:
    """Trains, and returns what became of it: ``figure``, or ``failed`` with the reason."""
    number = config["number"]
    params, settings = given.trials[number]
    client = connect()
    with mlflow.start_run(run_id=_own_run(client, given, number, settings)):
        mlflow.log_params({key: str(value) for key, value in settings.items()})
        try:
            figure = train_and_judge(given, params)
            if not math.isfinite(figure):
                raise TrainingError(f"the validation split tells no {given.judge.figure}")
        except CSRError as error:  # settings that do not train are a trial, too
            mlflow.set_tag(ENDED, f"failed: {error}")
            return {"ended": "failed", "failed": str(error), STOP_BY: -math.inf}
        log_metrics("sweep", {given.judge.figure: figure})
        mlflow.set_tag(ENDED, "whole")
        return {"ended": "whole", "figure": figure, STOP_BY: given.judge.rank(figure)}


def train_and_judge(given: Given, params: Params) -> float:
    """The figure of one setting on the validation split."""
    use_device(params.train.device)
    if params.train.threads:
        torch.set_num_threads(params.train.threads)
    if given.stage == "concepts":
        callbacks = TuneCallbacks("concepts", given.judge)
        train_concepts(PreparedSet.open(given.data), params.concepts, callbacks)
        return float(callbacks.history[callbacks.curves[-1].kept - 1][given.judge.figure])
    return _judge_classes(given, params)


def _judge_classes(given: Given, params: Params) -> float:
    assert given.features is not None
    prepared, features = given.data, given.features
    stage2 = params.prototypes
    if given.stage == "head" or stage2.per_concept == "auto":
        built = read_checkpoint(PROTOTYPES / "model.pt", "prototype model")
        stage2 = replace(stage2, per_concept=built["config"]["per_concept"])  # auto: what the built ones' pilot found
    if given.stage == "prototypes":
        built = prototypes.fit(prepared, features, stage2, _Epochs("prototypes"))
    folder = learned_from(params.data)
    reviews = FeedbackSet.open(folder).reviews if folder else ()
    concepts = read_checkpoint(CONCEPTS / "model.pt", "concept model")
    stages = head.Stages(concepts, built, params.prototypes.located, params.prototypes.reader_boxes, reviews)
    callbacks = TuneCallbacks("head", given.judge)
    csr = TrainedCSR.from_checkpoint(head.fit(prepared, features, stages, params.head, callbacks))
    if given.judge.figure != "val_auroc":
        return float(callbacks.history[-1][given.judge.figure])
    data = PreparedSet.open(given.data)
    said = predict(data, FeatureCache.open(given.features), csr, "val")
    return macro_auroc(data.collection.truth()[said.rows], said.probabilities)


class _Epochs(LocalCallbacks):
    """Stage 2 of a trial that judges stage 3: MLflow hears of its epochs, Ray Tune does not."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage, Path())

    def resume(self) -> State | None:
        return None

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        self._record(metrics)


def _own_run(client: MlflowClient, given: Given, number: int, settings: dict[str, Any]) -> str:
    """The trial's run below the sweep's: that of an interrupted try, or a new one."""
    parent = client.get_run(given.parent)
    tags = {PROCESS: own_process()}
    known = trial_runs(client, parent).get(number)
    if known is not None:
        for name, value in tags.items():
            client.set_tag(known.info.run_id, name, value)
        return str(known.info.run_id)
    tags |= source_tags("pipelines/sweep") | {KIND: "trial", NUMBER: str(number), MLFLOW_PARENT_RUN_ID: given.parent}
    name = said(settings) or "params.yaml"
    return str(client.create_run(parent.info.experiment_id, run_name=name, tags=tags).info.run_id)


def trial_runs(client: MlflowClient, sweep: Run) -> dict[int, Run]:
    """The runs below a sweep's, by the number of the trial."""
    below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{sweep.info.run_id}'"
    found = client.search_runs([sweep.info.experiment_id], below)
    return {int(run.data.tags[NUMBER]): run for run in found}
