"""The way back: the registry's alias ``champion``, moved by an administrator of the server."""

from __future__ import annotations

import logging

from csr.bundle.champion import CHAMPION, Champion, Move, RegistryError
from csr.bundle.registry_lock import LockedError
from csr.errors import BundleError, ConfigError
from serving.errors import NoRollbackError, RegistryUnavailableError
from serving.models.sources import first_line

_logger = logging.getLogger(__name__)


class WayBack:
    """Rolls back by the same rules, and on the same record, as ``csr models rollback``.

    Args:
        uri: of MLflow's tracking server or database.
        name: of the registered model.
        alias: that this server follows; None: it serves a folder.
    """

    def __init__(self, uri: str, name: str, alias: str | None) -> None:
        self._uri = uri
        self._name = name
        self._alias = alias

    def rollback(self, reason: str, by: str) -> Move:
        """Points the alias at the version before.

        Raises:
            NoRollbackError: a folder is served, or an alias whose moves are not on record; or there is nothing to go
                back to; or somebody else is moving it at this moment.
            RegistryUnavailableError: MLflow does not answer.
        """
        if self._alias is None:
            raise NoRollbackError(
                "this server serves a folder and follows no alias; put the bundle before it there instead"
            )
        if self._alias != CHAMPION:
            raise NoRollbackError(
                f"this server follows the alias {self._alias!r}, of whose moves there is no record; move it in MLflow"
            )
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        try:
            return Champion(client, self._name).rollback(reason, by)
        except RegistryError as error:
            raise RegistryUnavailableError(str(error)) from None
        except (BundleError, ConfigError, LockedError) as error:
            raise NoRollbackError(str(error)) from None
        except Exception as error:  # whatever its HTTP or SQL client raises
            _logger.exception("rollback failed")
            raise RegistryUnavailableError(f"MLflow does not answer ({first_line(error)})") from None
