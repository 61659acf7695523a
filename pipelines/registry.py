"""The model registry: bundles as versions of ``csr``, and which of them serving answers with.

On the command line:

    csr models list
    csr models history
    csr models promote VERSION --reason "..."
    csr models rollback --reason "..."          (again: one version further back)
    csr models challenge VERSION                (or none, to end the trial)
    csr models fetch VERSION FOLDER             (its bundle, verified; champion: of whichever that is)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from csr.bundle.format import Bundle
from csr.errors import BundleError, CSRError
from pipelines.champion import CHAMPION, history, promote, rollback, settle
from pipelines.tracking import BUNDLE_DIGEST, MODEL_NAME, connect, experiment_id

CHALLENGER = "challenger"  # serving may let it answer too, see `serving.models.in_service.Challenge`


def register(bundle: Bundle) -> str:
    """Registers a bundle as a new version of ``csr``; a known one keeps its version. Returns the version.

    The version names the run that made the bundle, if this store has it.
    """
    client = connect()
    known = version_of(client, bundle.digest)
    if known is not None:
        return known
    experiment = experiment_id(client)
    runs = client.search_runs([experiment], f"tags.`{BUNDLE_DIGEST}` = '{bundle.digest}'", max_results=1)
    run_id = runs[0].info.run_id if runs else None
    logged = client.create_logged_model(experiment, name=MODEL_NAME, source_run_id=run_id, model_type="csr-bundle")
    client.log_model_artifacts(logged.model_id, str(bundle.path))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    _ensure_registered_model(client)
    about = bundle.manifest
    tags = {BUNDLE_DIGEST: bundle.digest, "data.digest": about.data_digest, "git.revision": about.code_revision}
    source = f"models:/{logged.model_id}"
    version = client.create_model_version(MODEL_NAME, source, run_id=run_id, tags=tags, model_id=logged.model_id)
    return str(version.version)


def version_of(client: MlflowClient, digest: str) -> str | None:
    """The version that holds the bundle with this digest."""
    for version in client.search_model_versions(f"name = '{MODEL_NAME}'"):
        if version.tags.get(BUNDLE_DIGEST) == digest:
            return str(version.version)
    return None


def fetch(version: str, folder: Path) -> Bundle:
    """Downloads a version into ``folder`` and opens it, verifying its digests.

    Args:
        version: its number, or an alias such as ``champion``.

    Raises:
        BundleError: MLflow has no such version, or what it holds was altered.
    """
    named = f"{MODEL_NAME}/{version}" if version.isdecimal() else f"{MODEL_NAME}@{version}"
    try:
        path = mlflow.artifacts.download_artifacts(f"models:/{named}", dst_path=str(folder))
    except MlflowException as error:
        raise BundleError(
            f"version {version} of {MODEL_NAME!r} cannot be fetched from MLflow ({error.message})"
        ) from None
    # MLflow adds a note of its own beside what was logged
    (Path(path) / "registered_model_meta").unlink(missing_ok=True)
    return Bundle.open(Path(path))


def fetch_into(version: str, folder: Path) -> Bundle:
    """The same into a folder of this name, whole or not at all.

    Raises:
        BundleError: see `fetch`; or the folder is there already.
    """
    if folder.exists():
        raise BundleError(f"{folder} is there already; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        fetch(version, Path(draft) / "bundle").path.rename(folder)
    return Bundle.open(folder)


def _ensure_registered_model(client: MlflowClient) -> None:
    try:
        client.create_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def challenge(client: MlflowClient, version: str | None) -> None:
    """Points ``challenger`` at a version, or at none.

    Raises:
        BundleError: there is no such version.
    """
    try:
        if version is None:
            client.delete_registered_model_alias(MODEL_NAME, CHALLENGER)
        else:
            client.set_registered_model_alias(MODEL_NAME, CHALLENGER, version)
    except MlflowException:
        raise BundleError(f"version {version!r} of {MODEL_NAME!r} does not exist in MLflow") from None


def listing(client: MlflowClient) -> list[str]:
    """A line for each version, newest first: its number, bundle, code revision and aliases."""
    lines = []
    for found in client.search_model_versions(f"name = '{MODEL_NAME}'"):
        version = client.get_model_version(MODEL_NAME, found.version)  # a search does not say the aliases
        digest, revision = version.tags.get(BUNDLE_DIGEST, "")[:12], version.tags.get("git.revision", "")[:12]
        aliases = ", ".join(version.aliases)
        lines.append(f"version {version.version}  bundle {digest}  code {revision}  {aliases}".rstrip())
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring.

    Raises:
        CSRError: it cannot be done, for the reason given.
    """
    parser = argparse.ArgumentParser(prog="csr models", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all versions and their aliases")
    commands.add_parser("history", help="every move of the champion")
    forward = commands.add_parser("promote", help="make a version the champion")
    forward.add_argument("version")
    back = commands.add_parser("rollback", help="make the version before it the champion again")
    trial = commands.add_parser("challenge", help="put a version on trial beside the champion")
    trial.add_argument("version", help="or none")
    bundle = commands.add_parser("fetch", help="put a version's bundle into a new folder, verified")
    bundle.add_argument("version", help="or an alias, such as champion")
    bundle.add_argument("folder", type=Path)
    for command in (forward, back):
        command.add_argument("--reason", required=True, help="kept on record")
    given = parser.parse_args(arguments)
    client = connect()
    for told in settle(client):
        print(told, file=sys.stderr)
    if given.command == "list":
        print(*listing(client), sep="\n")
    elif given.command == "history":
        moves = [f"{move}  {move.reason}  ({move.kind} by {move.by})" for move in history(client)]
        print(*moves or [f"{CHAMPION} has never moved"], sep="\n")
    elif given.command == "fetch":
        print(f"{fetch_into(given.version, given.folder).digest}  {given.folder}")
    elif given.command == "challenge":
        challenge(client, None if given.version == "none" else given.version)
        print(f"{CHALLENGER}: {given.version}")
    elif given.command == "rollback":
        print(f"{CHAMPION}: {rollback(client, given.reason)}")
    else:
        move = promote(client, given.version, given.reason)
        print(f"{CHAMPION}: {move or f'stands at version {given.version} already; nothing was moved'}")


if __name__ == "__main__":
    try:
        main()
    except CSRError as error:
        sys.exit(f"registry: {error}")
