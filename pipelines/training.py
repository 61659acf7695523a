"""Ray Train and checkpoints, once: runs a training function of csr in this process or on Ray's workers.

With ``train.workers: 0`` Ray Train calls the function here and starts no cluster; it keeps no checkpoints then, so the
last one lies in ``.state/checkpoints``. With workers, Ray stores them under the same folder and resumes a run of the
same name. The name holds a digest of all that the training is made of, so a changed one never resumes an old run; see
`pipelines.checkpoints`. The folder is removed once the stage has its result.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import ray
import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from csr.errors import CSRError, TrainingError
from csr.training.callbacks import Callbacks, State
from csr.training.runtime import rank, use_device
from pipelines.checkpoints import CHECKPOINTS, MadeOf, claim, forget
from pipelines.params import TrainParams
from pipelines.progress import ProgressBars
from pipelines.stage import cores
from pipelines.tracking import connect, log_metrics

CHECKPOINT_FILE = "state.pt"

TrainingFunction = Callable[[Callbacks], State]


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
        if rank() == 0 and mlflow.active_run() is not None:
            numbers = {name: value for name, value in metrics.items() if name != "epoch"}
            log_metrics(self._stage, numbers, step=int(metrics["epoch"]))

    def _save(self, file: Path, state: Callable[[], State]) -> None:
        torch.save({"state": state(), "history": self.history}, file)

    def _load(self, file: Path) -> State:
        content = torch.load(file, map_location="cpu", weights_only=True)
        self.history = content["history"]
        return content["state"]


class RayCallbacks(LocalCallbacks):
    """The same on Ray's workers: Ray Train keeps the checkpoints, wherever the cluster's storage is."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage, CHECKPOINTS)

    def resume(self) -> State | None:
        stored = ray.train.get_checkpoint()
        if stored is None:
            return None
        with stored.as_directory() as folder:
            return self._load(Path(folder) / CHECKPOINT_FILE)

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        self._record(metrics)
        if rank() != 0:
            ray.train.report(dict(metrics))  # a barrier: every worker calls it equally often
            return
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder) / CHECKPOINT_FILE, state)
            ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))


def train(
    stage: str,
    function: TrainingFunction,
    config: Any,
    inputs: Iterable[Path],
    params: TrainParams,
    code: str | None = None,
) -> tuple[State, list[dict[str, float]]]:
    """Runs ``function`` under Ray Train.

    Args:
        stage: names the run, its metrics and its checkpoints.
        function: picklable; takes a callbacks, returns a checkpoint (on rank 0).
        config: the stage's parameters.
        inputs: files and folders that the function reads.
        params: where to run.
        code: the module whose imports are the training's code; the stage's own by default. With these four an
            interrupted run is told from one that was made of anything else.

    Returns:
        What the function returned, and the history of epochs.

    Raises:
        TrainingError: the function failed on every attempt.
    """
    name = claim(stage, MadeOf.of(stage, config, inputs, params.workers, code or f"pipelines.{stage}"))
    folder = (CHECKPOINTS / name).resolve()
    active = mlflow.active_run()
    settings = {
        "stage": stage,
        "function": function,
        "folder": None if params.workers else str(folder),
        "tracking_uri": mlflow.get_tracking_uri(),
        "run_id": active.info.run_id if active else None,
        "threads": params.threads,
        "device": params.device,
    }
    use_device(params.device)  # of this process too: it looks at what was trained
    gpu = params.gpu == "auto" and torch.cuda.is_available()
    if params.workers:
        _start_ray(params.workers)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=params.workers, use_gpu=gpu),
        run_config=RunConfig(
            name=name,
            storage_path=str(CHECKPOINTS.resolve()),
            failure_config=FailureConfig(max_failures=params.max_failures),
        ),
    )
    try:
        result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _first_cause(error) from error
    finally:
        if params.workers:
            ray.shutdown()
    forget(name)
    answer = torch.load(io.BytesIO(result.return_value), map_location="cpu", weights_only=True)
    return answer["checkpoint"], answer["history"]


def _train_worker(settings: dict[str, Any]) -> Any:
    """What one worker does; runs in this process when there are none.

    Returns:
        From rank 0 the function's checkpoint and the history as bytes: Ray Train refuses to carry tensors.
    """
    use_device(settings["device"])
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    if settings["run_id"] and rank() == 0 and mlflow.active_run() is None:
        os.environ["MLFLOW_TRACKING_URI"] = settings["tracking_uri"]
        connect()
        mlflow.start_run(run_id=settings["run_id"])
    stage, folder = settings["stage"], settings["folder"]
    callbacks = LocalCallbacks(stage, Path(folder)) if folder else RayCallbacks(stage)
    checkpoint = settings["function"](callbacks)
    answer = io.BytesIO()
    if rank() == 0:
        torch.save({"checkpoint": checkpoint, "history": callbacks.history}, answer)
    return answer.getvalue()


def _start_ray(workers: int) -> None:
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address)
    else:
        ray.init(num_cpus=max(workers + 1, cores()), include_dashboard=False)


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
