"""Ray Tune, once, for the comparison's trials and for sweeps: numbered trials on a copy of the data that has no test
study, taken up where an interruption left them."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from csr.data.prepared import PreparedSet, copy_without
from csr.errors import TrainingError
from pipelines.checkpoints import CHECKPOINTS
from pipelines.digests import path_digest

TRIALS_DATA = Path("build/trials_data")

Trial = Callable[..., dict[str, Any]]


@contextmanager
def ray_for_trials() -> Iterator[None]:
    """The cluster that ``RAY_ADDRESS`` names, or one of this machine's for as long as it lasts."""
    address = os.environ.get("RAY_ADDRESS")
    ray.init(address=address, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        if address is None:
            ray.shutdown()


@dataclass(frozen=True)
class Home:
    """Where a trial finds what whoever started it finds: Ray's processes have folders and environments of their own."""

    folder: Path
    store: str


def _at_home(config: dict[str, Any], trial: Trial, home: Home, given: Any) -> dict[str, Any]:
    os.chdir(home.folder)
    os.environ["MLFLOW_TRACKING_URI"] = home.store
    return trial(config, given=given)


def run_trials(
    run_name: str, trial: Trial, given: Any, count: int, scheduler: TrialScheduler | None = None
) -> list[dict[str, Any]]:
    """Runs ``trial({"number": n}, given=given)`` for n below ``count``, one CPU each, or one GPU where there is any.

    Trials that had ended before an interruption are not run again; one that was cut off goes on from the last
    checkpoint that it reported, if it did.

    Args:
        run_name: names the folder in `CHECKPOINTS` by which an interrupted search is known.
        given: what all trials are given; each runs in this process's folder, on its MLflow store.
        scheduler: may end trials before they are done.

    Returns:
        What each trial reported last.

    Raises:
        TrainingError: a trial ended with an error that is no setting's fault.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # it misses these loggers' files
    gpu = 1 if ray.cluster_resources().get("GPU") else 0
    home = Home(Path.cwd(), mlflow.get_tracking_uri())
    function = tune.with_parameters(_at_home, trial=trial, home=home, given=given)
    function = tune.with_resources(function, {"cpu": 1, "gpu": gpu})
    space = {"number": tune.grid_search(list(range(count)))}
    folder = (CHECKPOINTS / run_name).resolve()
    if tune.Tuner.can_restore(str(folder)):
        tuner = tune.Tuner.restore(str(folder), function, restart_errored=True, param_space=space)
    else:
        kept = tune.CheckpointConfig(num_to_keep=1)
        config = tune.RunConfig(name=run_name, storage_path=str(folder.parent), verbose=0, checkpoint_config=kept)
        tuner = tune.Tuner(
            function, param_space=space, run_config=config, tune_config=tune.TuneConfig(scheduler=scheduler)
        )
    results = tuner.fit()
    if results.errors:
        raise TrainingError(f"{run_name}: a trial ended with {str(results.errors[0]).strip().splitlines()[-1]}")
    return [metrics for index in range(len(results)) if (metrics := results[index].metrics) is not None]


def without_test(prepared: Path) -> Path:
    """The prepared set without its test split, copied once, by whoever comes first."""
    data = PreparedSet.open(prepared)
    folder = TRIALS_DATA / path_digest(prepared)[:16]
    with copied_once():
        if not folder.is_dir():
            copy_without(data, "test", folder)
    return folder


@contextmanager
def copied_once() -> Iterator[None]:
    """Holds back others that copy data for trials."""
    TRIALS_DATA.mkdir(parents=True, exist_ok=True)
    with (TRIALS_DATA / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
