"""MLflow glue, once: one run a pipeline pass, to which every stage logs, so that two passes compare in MLflow's UI.

A pass is open from the first stage that runs until ``export`` has written its bundle. A stage that finds an open
pass with the same parameters and git revision joins it (also after a crash: no second run appears), otherwise it opens
a new one. Which pass is open is kept in ``.state/run.json``, which is not tracked: outputs hold no run id, so that
``dvc repro`` stays a no-op.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from csr.data.digests import file_digest
from csr.errors import ConfigError
from pipelines.flatten import flatten
from pipelines.revision import revision

if TYPE_CHECKING:
    from pipelines.params import Params

EXPERIMENT = "csr"
MODEL_NAME = "csr"
BUNDLE_DIGEST = "bundle.digest"  # tag of the run that made a bundle, and of the version that holds it
STATE = Path(".state")
_SQLITE = "sqlite:///"
DEFAULT_STORE = f"{_SQLITE}mlflow.db"


def project_folder() -> Path:
    """The project's folder. DVC runs some experiments (``--temp``, ``--queue``) in copies that it throws away, and says
    in ``DVC_ROOT`` where the project is."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def connect() -> MlflowClient:
    """Points MLflow at ``MLFLOW_TRACKING_URI`` (SQLite in the project's folder by default) and returns its client."""
    mlflow.set_tracking_uri(_tracking_uri())
    open_experiment(EXPERIMENT)
    return MlflowClient()


def open_experiment(name: str) -> str:
    """Makes an experiment active, and makes it at all if there is none. Returns its id.

    The files of a store that is a SQLite file lie in the project's folder too, in ``mlruns``.
    """
    if _tracking_uri().startswith(_SQLITE) and mlflow.get_experiment_by_name(name) is None:
        try:
            mlflow.create_experiment(name, artifact_location=str(project_folder() / "mlruns" / name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another stage was quicker
                raise
    return mlflow.set_experiment(name).experiment_id


def _tracking_uri() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_STORE)
    if uri.startswith(_SQLITE):  # Ray's workers run in folders of their own
        uri = _SQLITE + str(project_folder() / uri.removeprefix(_SQLITE))
    return uri


def experiment_id(client: MlflowClient, name: str = EXPERIMENT) -> str:
    """The id of an experiment that `connect` (or an earlier run) has made."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise ConfigError(f"MLflow has no experiment {name!r}; run dvc repro first")
    return experiment.experiment_id


@contextmanager
def stage_run(stage: str, params: Params, last: bool = False) -> Iterator[str]:
    """Joins or opens the pass's run for one stage. Yields the run id.

    An exception, SIGINT or SIGTERM marks the run failed; runs whose process died without a word are marked failed when
    the next stage starts.

    Args:
        stage: name of the stage; its metrics are logged as ``<stage>.<name>``.
        params: all parameters; logged flattened when the run is opened.
        last: whether the pass is over once this stage succeeds.
    """
    client = connect()
    run_id = _open_pass(client, params)
    _mark_dead_runs(client, run_id)
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, "csr.stage", stage)
    client.set_tag(run_id, "csr.process", _this_process())
    lock = Path("dvc.lock")
    client.set_tag(run_id, "dvc.lock", file_digest(lock) if lock.is_file() else "none")
    try:
        with mlflow.start_run(run_id=run_id):
            yield run_id
    except BaseException:
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.FAILED))
        raise
    client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))
    if last:
        (STATE / "run.json").unlink(missing_ok=True)


def log_metrics(stage: str, metrics: Mapping[str, float], step: int | None = None, run_id: str | None = None) -> None:
    """Logs finite numbers as ``<stage>.<name>`` to a run, by default to the active one."""
    finite = {f"{stage}.{name}": float(value) for name, value in metrics.items() if value == value}
    mlflow.log_metrics(finite, step=step, run_id=run_id)


def log_tag(name: str, value: str) -> None:
    """Tags the active run."""
    mlflow.set_tag(name, value)


def log_file(file: Path, folder: str) -> None:
    """Keeps a figure or report with the active run."""
    mlflow.log_artifact(str(file), artifact_path=folder)


def log_table(rows: Sequence[Mapping[str, Any]], file: str) -> None:
    """Keeps rows of one form as a JSON table with the active run."""
    mlflow.log_dict({"rows": [dict(row) for row in rows]}, file)


def _open_pass(client: MlflowClient, params: Params) -> str:
    key = hashlib.sha256(json.dumps([flatten(params), revision()], default=str).encode()).hexdigest()
    state_file = STATE / "run.json"
    if state_file.is_file():
        state = json.loads(state_file.read_text())
        if state["key"] == key and _exists(client, state["run_id"]):
            return state["run_id"]
    name = f"{params.preset}-{params.data.source}"
    run = client.create_run(experiment_id(client), run_name=name, tags={"git.revision": revision()})
    for names in _chunks(list(flatten(params).items()), 100):
        client.log_batch(run.info.run_id, params=[mlflow.entities.Param(key, str(value)) for key, value in names])
    STATE.mkdir(exist_ok=True)
    state_file.write_text(json.dumps({"key": key, "run_id": run.info.run_id}))
    return run.info.run_id


def _mark_dead_runs(client: MlflowClient, own: str) -> None:
    """Marks runs of this machine failed that claim to run although their process is gone (killed, power cut)."""
    for run in client.search_runs([experiment_id(client)], "attributes.status = 'RUNNING'"):
        host, _, pid = run.data.tags.get("csr.process", "").rpartition(":")
        if run.info.run_id != own and host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.FAILED))


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
