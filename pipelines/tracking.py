"""MLflow glue, once: where its store is, and what stages log.

What a stage logs is its pass's: figures are logged to both runs, so that passes compare in MLflow's table and a stage
has its own curves; tags and files to the pass alone. `pipelines.runs.passes` opens these runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from csr.errors import ConfigError
from pipelines.runs.kinds import KIND

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


def log_metrics(stage: str, metrics: Mapping[str, float], step: int | None = None, run_id: str | None = None) -> None:
    """Logs finite numbers as ``<stage>.<name>`` to a run, by default the active one, and if it is a stage's to its pass
    too."""
    finite = {f"{stage}.{name}": float(value) for name, value in metrics.items() if value == value}
    own, whole = _runs(run_id)
    mlflow.log_metrics(finite, step=step, run_id=own)
    if whole != own:
        mlflow.log_metrics(finite, step=step, run_id=whole)


def log_tag(name: str, value: str) -> None:
    """Tags the active run, or a stage's pass."""
    MlflowClient().set_tag(_runs()[1], name, value)


def log_file(file: Path, folder: str) -> None:
    """Keeps a figure or report with the active run, or a stage's pass."""
    mlflow.log_artifact(str(file), artifact_path=folder, run_id=_runs()[1])


def log_table(rows: Sequence[Mapping[str, Any]], file: str) -> None:
    """Keeps rows of one form as a JSON table with the active run, or a stage's pass."""
    mlflow.log_dict({"rows": [dict(row) for row in rows]}, file, run_id=_runs()[1])


def _runs(run_id: str | None = None) -> tuple[str, str]:
    """A run, by default the active one, and if it is a stage's the pass above it; otherwise itself again."""
    run = mlflow.active_run() if run_id is None else MlflowClient().get_run(run_id)
    assert run is not None, "what is logged belongs to a run"
    own, tags = run.info.run_id, run.data.tags
    return own, tags[MLFLOW_PARENT_RUN_ID] if tags.get(KIND) == "stage" else own
