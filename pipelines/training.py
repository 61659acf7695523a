"""Ray Train and checkpoints, once: runs a training function of csr in this process or on Ray's workers.

With ``train.workers: 0`` Ray Train calls the function here and starts no cluster; it keeps no checkpoints then, so the
last one lies in ``.state/checkpoints``. With workers, Ray stores them under the same folder and resumes a run of the
same name. The name holds a digest of all that the training is made of, so a changed one never resumes an old run; see
`pipelines.checkpoints`. The folder is removed once the stage has its result.

Workers on other machines see none of this one's files. With ``train.storage`` (`pipelines.storage`) what a training
reads is brought there, each machine fetches it once, and checkpoints go there too. To machines of a cluster that
``RAY_ADDRESS`` names, Ray brings the code of this process, so that all run the same. MLflow hears from this one only.
"""

from __future__ import annotations

import io
import json
import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from csr.errors import CSRError, TrainingError
from csr.training.callbacks import State
from csr.training.runtime import rank, tune_gpu, use_device
from pipelines.checkpoints import CHECKPOINTS, MadeOf, claim, forget
from pipelines.imports import PACKAGES, ROOT
from pipelines.params import TrainParams
from pipelines.progress import ProgressBars
from pipelines.stage import cores
from pipelines.storage import Storage
from pipelines.tracking import log_metrics

CHECKPOINT_FILE = "state.pt"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what `ray job submit` tells a job of itself

TrainingFunction = Callable[..., State]  # (*places of the inputs, callbacks=…)


class LocalCallbacks(ProgressBars):
    """Reports to MLflow's active run and the terminal, from rank 0; the last checkpoint lies in ``folder``."""

    def __init__(self, stage: str, folder: Path) -> None:
        super().__init__()
        self._stage = stage
        self._folder = folder

    def resume(self) -> State | None:
        file = self._folder / CHECKPOINT_FILE
        return self._load(file) if file.is_file() else None

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        self._record(metrics)
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / "draft.pt"
        self._save(draft, state)
        draft.rename(self._folder / CHECKPOINT_FILE)

    def _record(self, metrics: Mapping[str, float]) -> None:
        self.history.append(dict(metrics))
        active = mlflow.active_run()
        if rank() == 0 and active is not None:
            _log_epoch(self._stage, metrics, active.info.run_id)

    def _save(self, file: Path, state: Callable[[], State]) -> None:
        torch.save({"state": state(), "history": self.history}, file)

    def _load(self, file: Path) -> State:
        content = torch.load(file, map_location="cpu", weights_only=True)
        self.history = content["history"]
        return content["state"]


class RayCallbacks(LocalCallbacks):
    """The same on Ray's workers: Ray Train keeps the checkpoints, wherever the cluster's storage is, and tells
    `EpochLog`."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage, CHECKPOINTS)

    def resume(self) -> State | None:
        stored = ray.train.get_checkpoint()
        if stored is None:
            return None
        with stored.as_directory() as folder:
            return self._load(Path(folder) / CHECKPOINT_FILE)

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        self.history.append(dict(metrics))
        if rank() != 0:
            ray.train.report(dict(metrics))  # a barrier: every worker calls it equally often
            return
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder) / CHECKPOINT_FILE, state)
            ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))


class EpochLog(UserCallback):
    """Logs to MLflow what workers report, from the machine of the stage: its store may be a file there.

    Args:
        stage: that the metrics are named after.
        uri: of MLflow's store. run_id: of the stage's run.
    """

    def __init__(self, stage: str, uri: str, run_id: str) -> None:
        self._stage, self._uri, self._run_id = stage, uri, run_id

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        mlflow.set_tracking_uri(self._uri)
        _log_epoch(self._stage, metrics[0], self._run_id)


def _log_epoch(stage: str, metrics: Mapping[str, float], run_id: str) -> None:
    numbers = {name: value for name, value in metrics.items() if name != "epoch"}
    log_metrics(stage, numbers, int(metrics["epoch"]), run_id)


def train(
    stage: str,
    function: TrainingFunction,
    config: Any,
    inputs: Sequence[Path],
    params: TrainParams,
    code: str | None = None,
    rests_on: Sequence[Path] = (),
) -> tuple[State, list[dict[str, float]]]:
    """Runs ``function`` under Ray Train.

    Args:
        stage: names the run, its metrics and its checkpoints.
        function: picklable; takes where each of ``inputs`` lies on the machine it runs on, and ``callbacks``; returns a
            checkpoint (on rank 0).
        config: the stage's parameters.
        inputs: files and folders that the function reads.
        params: where to run.
        code: the module whose imports are the training's code; the stage's own by default. With these and
            ``rests_on`` an interrupted run is told from one that was made of anything else.
        rests_on: files and folders that the inputs were made from.

    Returns:
        What the function returned, and the history of epochs.

    Raises:
        TrainingError: the function failed on every attempt.
        ConfigError: ``params.storage`` cannot be used.
    """
    storage = Storage.open(params.storage) if params.storage is not None and params.workers else None
    if storage is not None:
        storage.check()
    made_of = MadeOf.of(stage, config, [*inputs, *rests_on], params.range, code or f"pipelines.{stage}")
    name = claim(stage, made_of, storage)
    folder = (CHECKPOINTS / name).resolve()
    active = mlflow.active_run()
    settings = {
        "stage": stage,
        "function": function,
        "inputs": [storage.publish(path) if storage else str(path.resolve()) for path in inputs],
        "storage": params.storage,
        "folder": None if params.workers else str(folder),
        "threads": params.threads,
        "device": params.device,
        "gpu": (params.tf32, params.autotune),
    }
    use_device(params.device)  # of this process too: it looks at what was trained
    gpu = params.gpu == "auto" and torch.cuda.is_available()
    log: Any = [EpochLog(stage, mlflow.get_tracking_uri(), active.info.run_id)] if active else None
    if params.workers:
        _start_ray(params.workers)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=params.range, use_gpu=gpu),  # type: ignore[arg-type] # stubs are old
        run_config=RunConfig(
            name=name,
            storage_path=storage.checkpoints if storage else str(CHECKPOINTS.resolve()),
            storage_filesystem=storage.system if storage else None,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=params.max_failures),
            callbacks=log,
        ),
    )
    try:
        result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _first_cause(error) from error
    finally:
        if params.workers:
            ray.shutdown()
    forget(name, storage)
    answer = torch.load(io.BytesIO(result.return_value), map_location="cpu", weights_only=True)
    return answer["checkpoint"], answer["history"]


def _train_worker(settings: dict[str, Any]) -> Any:
    """What one worker does; runs in this process when there are none.

    Returns:
        From rank 0 the function's checkpoint and the history as bytes: Ray Train refuses to carry tensors.
    """
    use_device(settings["device"])
    tune_gpu(*settings["gpu"])
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    stage, folder = settings["stage"], settings["folder"]
    callbacks = LocalCallbacks(stage, Path(folder)) if folder else RayCallbacks(stage)
    checkpoint = settings["function"](*_places(settings["inputs"], settings["storage"]), callbacks=callbacks)
    answer = io.BytesIO()
    if rank() == 0:
        torch.save({"checkpoint": checkpoint, "history": callbacks.history}, answer)
    return answer.getvalue()


def _places(inputs: Sequence[Any], url: str | None) -> list[Path]:
    """Where the inputs lie on this machine.

    Raises:
        TrainingError: they do not, or cannot be fetched.
    """
    if not all(isinstance(each, str) for each in inputs):
        assert url is not None
        storage = Storage.open(url)
        return [storage.fetch(listing) for listing in inputs]
    places = [Path(each) for each in inputs]
    if missing := [place for place in places if not place.exists()]:
        raise TrainingError(
            f"{socket.gethostname()}: {missing[0]} is not on this machine; let every machine of the cluster see the "
            "project's folder at the same path, or name an address that all of them reach in train.storage"
        )
    return places


def _start_ray(workers: int) -> None:
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, runtime_env=_own_code())
    else:
        ray.init(num_cpus=max(workers + 1, cores()), include_dashboard=False)


def _own_code() -> dict[str, Any]:
    """What Ray must bring to other machines so that they run the code that runs here."""
    job = json.loads(os.environ.get(_JOB, "{}")).get("runtime_env", {})
    if job.keys() & {"working_dir", "py_modules"}:  # `ray job submit` has said it
        return {}
    return {"py_modules": [str(ROOT / package) for package in PACKAGES]}


def _first_cause(error: BaseException) -> CSRError:
    """The sentence of csr's own error inside Ray's wrapping, or Ray's last line."""
    worker_failures = getattr(error, "worker_failures", {})
    for failure in worker_failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, CSRError):
                return cause
            cause = cause.__cause__ or getattr(cause, "cause", None)
    return TrainingError(str(error).strip().splitlines()[-1])
