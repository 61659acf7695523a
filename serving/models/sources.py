"""Where bundles come from: a folder, or an alias of MLflow's model registry."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from csr.bundle.format import MANIFEST, Bundle
from csr.data.digests import file_digest
from csr.errors import BundleError


@dataclass(frozen=True)
class Target:
    """What should be in service: ``mark`` changes whenever it does."""

    version: str
    mark: str


class Source(Protocol):
    """Where bundles come from."""

    def target(self) -> Target | None:
        """What should be in service; None: nothing.

        Raises:
            CSRError: it cannot be said.
        """

    def open(self, target: Target) -> Bundle:
        """Brings it here and verifies its digests.

        Raises:
            BundleError: it is not there, incomplete or altered.
        """


class FolderSource:
    """A bundle's folder; one that is replaced there, whole, takes over."""

    def __init__(self, folder: Path, version: int) -> None:
        self._folder = folder
        self._version = str(version)

    def target(self) -> Target:
        try:
            return Target(self._version, file_digest(self._folder / MANIFEST))
        except OSError:
            return Target(self._version, "")  # `open` says what is wrong

    def open(self, target: Target) -> Bundle:
        return Bundle.open(self._folder)


class AliasSource:
    """An alias of a registered model in MLflow.

    Args:
        uri: of MLflow's tracking server or database.
        name, alias: of the model.
        folder: where bundles are kept, one a version; shared by replicas of a machine.
    """

    def __init__(self, uri: str, name: str, alias: str, folder: Path) -> None:
        self._uri = uri
        self._name = name
        self._alias = alias
        self._folder = folder

    def target(self) -> Target | None:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        try:
            version = client.get_model_version_by_alias(self._name, self._alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise BundleError(f"MLflow does not answer ({first_line(error)})") from None
        except Exception as error:  # whatever its HTTP or SQL client raises
            raise BundleError(f"MLflow does not answer ({first_line(error)})") from None
        return Target(str(version.version), str(version.version))

    def open(self, target: Target) -> Bundle:
        folder = self._folder / self._name / target.version
        if not folder.is_dir():
            self._fetch(target.version, folder)
        try:
            return Bundle.open(folder)
        except BundleError:
            shutil.rmtree(folder, ignore_errors=True)  # so that the next try fetches it anew
            raise

    def _fetch(self, version: str, folder: Path) -> None:
        import mlflow

        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            uri = f"models:/{self._name}/{version}"
            try:
                path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=draft, tracking_uri=self._uri))
            except Exception as error:
                raise BundleError(f"{uri}: cannot be fetched from MLflow ({first_line(error)})") from None
            # MLflow adds a note of its own beside what was logged.
            (path / "registered_model_meta").unlink(missing_ok=True)
            try:
                path.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another replica was faster
                    raise


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
