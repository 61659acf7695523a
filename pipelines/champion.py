"""The alias ``champion``, the only pointer that serving follows: moved, walked back, and every move on record.

MLflow keeps no history of an alias, so each move is a run of the experiment ``csr-promotions`` with the tags ``kind``,
``from``, ``to``, ``reason`` and ``by``. The record is opened before the alias moves and closed after, so that a process
that dies in between leaves an open one behind. `settle` finds it and closes it by what the alias is now: at the
version that it names the move was made, anywhere else it was not. Whatever moves the alias settles first.

Moves are made one at a time. Settling a move that is under way on another machine may call it not made; it closes its
own record when it is done, which says the truth again.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from csr.errors import BundleError, ConfigError
from pipelines.tracking import MODEL_NAME

CHAMPION = "champion"
PROMOTIONS = "csr-promotions"
_MADE, _NOT_MADE, _OPEN = "FINISHED", "FAILED", "RUNNING"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
Kind = Literal["promotion", "rollback"]


@dataclass(frozen=True)
class Move:
    """One move of the alias; ``source`` is empty for the first."""

    kind: str
    source: str
    target: str
    reason: str
    by: str

    def __str__(self) -> str:
        return f"{self.source or 'none'} → {self.target}"


def champion(client: MlflowClient) -> str | None:
    """The version that ``champion`` points at, or None before the first promotion.

    Raises:
        BundleError: MLflow does not answer.
    """
    try:
        return str(client.get_model_version_by_alias(MODEL_NAME, CHAMPION).version)
    except MlflowException as error:
        if error.error_code in _MISSING:
            return None
        raise _no_answer(error) from None


def promote(client: MlflowClient, version: str, reason: str) -> Move | None:
    """Points ``champion`` at a version. None: it stands there already, so nothing is written.

    Raises:
        ConfigError: there is no reason given.
        BundleError: there is no such version, or MLflow does not answer.
    """
    return _move(client, "promotion", version, reason)


def rollback(client: MlflowClient, reason: str) -> Move:
    """Points ``champion`` back at the last different version before, and each time it is called one further back.

    What was rolled back does not come again: after 1 → 2 → 3 it goes to 2, then to 1, and after a promotion of 4 from
    there to 1 again.

    Raises:
        ConfigError: there is no reason given.
        BundleError: there is nothing to go back to, it does not exist any more, or MLflow does not answer.
    """
    settle(client)
    current = champion(client)
    if current is None:
        raise BundleError(f"{CHAMPION!r} points at no version; promote one")
    path = _path(history(client), current)
    if len(path) < 2:
        raise BundleError(f"{CHAMPION!r} has no version before {current} to go back to")
    move = _move(client, "rollback", path[-2], reason)
    assert move is not None  # versions that follow one another on the path differ
    return move


def history(client: MlflowClient) -> list[Move]:
    """All moves that were made, oldest first."""
    return [_read(run) for run in _records(client, _MADE)]


def settle(client: MlflowClient) -> list[str]:
    """Closes the records of moves that were cut short, and says of each what became of it.

    Raises:
        BundleError: MLflow does not answer.
    """
    told = []
    for run in list(_records(client, _OPEN)):
        move = _read(run)
        made = champion(client) == move.target
        client.set_terminated(run.info.run_id, _MADE if made else _NOT_MADE)
        told.append(f"{CHAMPION}: the {move.kind} {move} was cut short; it {'was' if made else 'was not'} made")
    return told


def _move(client: MlflowClient, kind: Kind, version: str, reason: str) -> Move | None:
    if not reason.strip():
        raise ConfigError(f"--reason: is empty; say why {CHAMPION!r} moves, the record keeps it")
    try:
        version = str(client.get_model_version(MODEL_NAME, version).version)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise _no_answer(error) from None
        raise BundleError(f"version {version!r} of {MODEL_NAME!r} does not exist in MLflow") from None
    settle(client)
    source = champion(client) or ""
    if source == version:
        return None
    move = Move(kind, source, version, reason.strip(), getpass.getuser())
    record = _open_record(client, move)
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, version)
    client.set_terminated(record, _MADE)
    return move


def _open_record(client: MlflowClient, move: Move) -> str:
    found = client.get_experiment_by_name(PROMOTIONS)
    experiment = client.create_experiment(PROMOTIONS) if found is None else found.experiment_id
    tags = {"kind": move.kind, "from": move.source, "to": move.target, "reason": move.reason, "by": move.by}
    last = max((run.info.start_time for run in _records(client, _MADE)), default=0)
    now = max(int(time.time() * 1000), last + 1)  # records are read in this order, whatever becomes of the clock
    return str(client.create_run(experiment, now, tags=tags, run_name=str(move)).info.run_id)


def _records(client: MlflowClient, status: str) -> Iterator[Run]:
    """Oldest first."""
    experiment = client.get_experiment_by_name(PROMOTIONS)
    token: str | None = None
    while experiment is not None:
        page = client.search_runs(
            [experiment.experiment_id],
            f"attributes.status = '{status}'",
            order_by=["start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _read(run: Run) -> Move:
    kind, *rest = (run.data.tags.get(name, "") for name in ("kind", "from", "to", "reason", "by"))
    return Move(kind or "promotion", *rest)


def _path(moves: Sequence[Move], current: str) -> list[str]:
    """The versions that lead to the current one, without those that were rolled back; no two in a row are the same."""
    path: list[str] = []
    for move in moves:
        if move.source and path[-1:] != [move.source]:  # moved by other means
            path.append(move.source)
        if move.kind == "rollback":
            while path and path[-1] != move.target:
                path.pop()
        if path[-1:] != [move.target]:
            path.append(move.target)
    return path if path[-1:] == [current] else [*path, current]


def _no_answer(error: MlflowException) -> BundleError:
    return BundleError(f"MLflow does not answer ({str(error).splitlines()[0]})")
