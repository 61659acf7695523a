"""The alias ``champion`` of the model ``csr``, moved by who runs the pipeline; `csr.bundle.champion` has the rules."""

from __future__ import annotations

import getpass

from mlflow.tracking import MlflowClient

from csr.bundle.champion import CHAMPION, PROMOTIONS, Champion, Move
from pipelines.tracking import MODEL_NAME

__all__ = ["CHAMPION", "PROMOTIONS", "Move", "champion", "history", "promote", "rollback", "settle"]


def champion(client: MlflowClient) -> str | None:
    """See `Champion.version`."""
    return Champion(client, MODEL_NAME).version()


def promote(client: MlflowClient, version: str, reason: str) -> Move | None:
    """See `Champion.promote`."""
    return Champion(client, MODEL_NAME).promote(version, reason, getpass.getuser())


def rollback(client: MlflowClient, reason: str) -> Move:
    """See `Champion.rollback`."""
    return Champion(client, MODEL_NAME).rollback(reason, getpass.getuser())


def history(client: MlflowClient) -> list[Move]:
    """See `Champion.history`."""
    return Champion(client, MODEL_NAME).history()


def settle(client: MlflowClient) -> list[str]:
    """See `Champion.settle`."""
    return Champion(client, MODEL_NAME).settle()
