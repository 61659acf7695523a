"""The model registry: bundles as versions of ``csr``, the alias ``champion``, and the record of what it pointed at.

MLflow keeps no history of an alias, so every move is a run of the experiment ``csr-promotions`` with the tags
``from``, ``to``, ``reason`` and ``by``. The alias is the only pointer that serving follows.

    python -m pipelines.registry history
    python -m pipelines.registry promote VERSION --reason "..."
    python -m pipelines.registry rollback --reason "..."
"""

from __future__ import annotations

import argparse
import getpass
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from csr.bundle import Bundle
from csr.errors import BundleError, CSRError
from pipelines.tracking import MODEL_NAME, connect, experiment_id

CHAMPION = "champion"
PROMOTIONS = "csr-promotions"
_DIGEST = "bundle.digest"


@dataclass(frozen=True)
class Move:
    """One move of the alias; ``source`` is empty for the first."""

    source: str
    target: str
    reason: str
    by: str


def register(bundle: Bundle) -> str:
    """Registers a bundle as a new version of ``csr`` in the active run's experiment; a known one keeps its version."""
    client = connect()
    known = version_of(client, bundle.digest)
    if known is not None:
        return known
    run = mlflow.active_run()
    run_id = run.info.run_id if run else None
    experiment = run.info.experiment_id if run else experiment_id(client)
    logged = client.create_logged_model(experiment, name=MODEL_NAME, source_run_id=run_id, model_type="csr-bundle")
    client.log_model_artifacts(logged.model_id, str(bundle.path))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    _ensure_registered_model(client)
    about = bundle.manifest
    tags = {_DIGEST: bundle.digest, "data.digest": about.data_digest, "git.revision": about.code_revision}
    source = f"models:/{logged.model_id}"
    version = client.create_model_version(MODEL_NAME, source, run_id=run_id, tags=tags, model_id=logged.model_id)
    return str(version.version)


def version_of(client: MlflowClient, digest: str) -> str | None:
    """The version that holds the bundle with this digest."""
    for version in client.search_model_versions(f"name = '{MODEL_NAME}'"):
        if version.tags.get(_DIGEST) == digest:
            return str(version.version)
    return None


def champion(client: MlflowClient) -> str | None:
    """The version that ``champion`` points at, or None before the first promotion."""
    try:
        return str(client.get_model_version_by_alias(MODEL_NAME, CHAMPION).version)
    except MlflowException:
        return None


def fetch(version: str, folder: Path) -> Bundle:
    """Downloads a version into ``folder`` and opens it, verifying its digests.

    Raises:
        BundleError: MLflow has no such version, or what it holds was altered.
    """
    try:
        path = mlflow.artifacts.download_artifacts(f"models:/{MODEL_NAME}/{version}", dst_path=str(folder))
    except MlflowException as error:
        raise BundleError(
            f"version {version} of {MODEL_NAME!r} cannot be fetched from MLflow ({error.message})"
        ) from None
    # MLflow adds a note of its own beside what was logged
    (Path(path) / "registered_model_meta").unlink(missing_ok=True)
    return Bundle.open(Path(path))


def move_champion(client: MlflowClient, version: str, reason: str) -> Move:
    """Points ``champion`` at a version and puts the move on the record.

    Raises:
        BundleError: there is no such version.
    """
    try:
        client.get_model_version(MODEL_NAME, version)
    except MlflowException:
        raise BundleError(f"version {version!r} of {MODEL_NAME!r} does not exist in MLflow") from None
    move = Move(champion(client) or "", version, reason, getpass.getuser())
    experiment = mlflow.set_experiment(PROMOTIONS).experiment_id
    tags = {"from": move.source, "to": move.target, "reason": move.reason, "by": move.by}
    run = client.create_run(experiment, run_name=f"{move.source or 'none'} to {version}", tags=tags)
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, version)
    client.set_terminated(run.info.run_id)
    return move


def history(client: MlflowClient) -> list[Move]:
    """All moves of ``champion``, oldest first."""
    experiment = client.get_experiment_by_name(PROMOTIONS)
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'", order_by=["start_time ASC"])
    return [Move(*(run.data.tags.get(name, "") for name in ("from", "to", "reason", "by"))) for run in runs]


def rollback(client: MlflowClient, reason: str) -> Move:
    """Points ``champion`` back at what it pointed at before its last move.

    Raises:
        BundleError: there is nothing to go back to.
    """
    moves = history(client)
    if not moves or not moves[-1].source:
        raise BundleError(f"{CHAMPION!r} has no earlier version to go back to")
    return move_champion(client, moves[-1].source, reason)


def _ensure_registered_model(client: MlflowClient) -> None:
    try:
        client.create_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.registry", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("history")
    promote = commands.add_parser("promote")
    promote.add_argument("version")
    for command in (promote, commands.add_parser("rollback")):
        command.add_argument("--reason", required=True)
    given = parser.parse_args()
    client = connect()
    try:
        if given.command == "history":
            for move in history(client):
                print(f"{move.source or 'none'} → {move.target}  {move.reason}  ({move.by})")
            return
        if given.command == "promote":
            move = move_champion(client, given.version, given.reason)
        else:
            move = rollback(client, given.reason)
    except CSRError as error:
        sys.exit(f"registry: {error}")
    print(f"{CHAMPION}: {move.source or 'none'} → {move.target}")


if __name__ == "__main__":
    main()
