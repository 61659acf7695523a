"""The alias ``champion``, the only pointer that serving follows: moved, walked back, and every move on record.

MLflow keeps no history of an alias, so each move is a run of the experiment ``csr-promotions`` with the tags ``kind``,
``from``, ``to``, ``reason`` and ``by``. The record is opened before the alias moves and closed after, so that a process
that dies in between leaves an open one behind. `Champion.settle` finds it and closes it by what the alias is now: at
the version that it names the move was made, anywhere else it was not. Whatever moves the alias settles first.

Moves are made one at a time, under a lock in the registry's store (`csr.bundle.registry_lock`), and so are records
settled. Where the alias was moved by other means, in MLflow's own page for example, the next command finds that the
last record names another version, and writes the move down as one by nobody known: the record never disagrees with the
alias for longer than until somebody asks.

The pipeline and the server move it by these same rules. Neither knows the other and csr knows no MLflow, so whoever
calls brings MLflow's client.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol

from csr.bundle.registry_lock import LockClient, RegistryLock
from csr.errors import BundleError, ConfigError

CHAMPION = "champion"
PROMOTIONS = "csr-promotions"
_MADE, _NOT_MADE, _OPEN = "FINISHED", "FAILED", "RUNNING"
WAIT = 5.0  # seconds for another move to end
SILENCE = 60.0  # seconds after which who moves the alias is taken for dead; a move takes less than one
NOBODY_KNOWN = "unknown"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
Kind = Literal["promotion", "rollback"]


class RegistryError(BundleError):
    """MLflow does not answer."""


class RegistryClient(LockClient, Protocol):
    """What is asked of ``mlflow.tracking.MlflowClient``; its exceptions have an ``error_code``."""

    def get_model_version_by_alias(self, name: str, alias: str) -> Any: ...
    def get_model_version(self, name: str, version: str) -> Any: ...
    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None: ...
    def get_experiment_by_name(self, name: str) -> Any: ...
    def create_experiment(self, name: str) -> str: ...
    def create_run(self, experiment_id: str, start_time: int, tags: dict[str, Any], run_name: str) -> Any: ...
    def set_terminated(self, run_id: str, status: str) -> None: ...
    def search_runs(
        self, experiment_ids: list[str], filter_string: str, *, order_by: list[str], page_token: str | None
    ) -> Any: ...


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


@dataclass(frozen=True)
class Champion:
    """The alias of one registered model.

    Args:
        client: MLflow's.
        model: the registered model's name.
    """

    client: RegistryClient
    model: str

    def version(self) -> str | None:
        """The version that ``champion`` points at, or None before the first promotion.

        Raises:
            RegistryError: MLflow does not answer.
        """
        try:
            return str(self.client.get_model_version_by_alias(self.model, CHAMPION).version)
        except Exception as error:
            if _code(error) in _MISSING:
                return None
            _raise_no_answer(error)

    def promote(self, version: str, reason: str, by: str) -> Move | None:
        """Points ``champion`` at a version. None: it stands there already, so nothing is written.

        Raises:
            ConfigError: there is no reason given.
            BundleError: there is no such version.
            RegistryError: MLflow does not answer.
        """
        with self._moving() as lock:
            return self._move(lock, "promotion", version, reason, by)

    def rollback(self, reason: str, by: str) -> Move:
        """Points ``champion`` back at the last different version before, and each time it is called one further back.

        What was rolled back does not come again: after 1 → 2 → 3 it goes to 2, then to 1, and after a promotion of 4
        from there to 1 again.

        Raises:
            ConfigError: there is no reason given.
            BundleError: there is nothing to go back to, or it does not exist any more.
            RegistryError: MLflow does not answer.
        """
        with self._moving() as lock:
            current = self.version()
            if current is None:
                raise BundleError(f"{CHAMPION!r} points at no version; promote one")
            path = _path(self.history(), current)
            if len(path) < 2:
                raise BundleError(f"{CHAMPION!r} has no version before {current} to go back to")
            move = self._move(lock, "rollback", path[-2], reason, by)
            assert move is not None  # versions that follow one another on the path differ
            return move

    def history(self) -> list[Move]:
        """All moves that were made, oldest first."""
        return [_read(run) for run in self._records(_MADE)]

    def settle(self) -> list[str]:
        """Closes the records of moves that were cut short, writes down a move that has none, and says what was found.

        Raises:
            RegistryError: MLflow does not answer.
            LockedError: another process is moving the alias and does not end.
        """
        with self._alone():
            return self._settle()

    @contextmanager
    def _moving(self) -> Iterator[RegistryLock]:
        with self._alone() as lock:
            self._settle()
            yield lock

    def _alone(self) -> RegistryLock:
        self.version()  # says by itself that MLflow does not answer
        return RegistryLock(self.client, self.model, "moving", WAIT, SILENCE)

    def _settle(self) -> list[str]:
        told = []
        for run in list(self._records(_OPEN)):
            move = _read(run)
            made = self.version() == move.target
            self.client.set_terminated(run.info.run_id, _MADE if made else _NOT_MADE)
            told.append(f"{CHAMPION}: the {move.kind} {move} was cut short; it {'was' if made else 'was not'} made")
        moves, current = self.history(), self.version() or ""
        last = moves[-1].target if moves else ""
        if current != last:
            move = Move("promotion", last, current, "found where no command of csr put it", NOBODY_KNOWN)
            self.client.set_terminated(self._open_record(move), _MADE)
            told.append(f"{CHAMPION}: moved {move} by other means than csr's; it is on record now")
        return told

    def _move(self, lock: RegistryLock, kind: Kind, version: str, reason: str, by: str) -> Move | None:
        if not reason.strip():
            raise ConfigError(f"--reason: is empty; say why {CHAMPION!r} moves, the record keeps it")
        try:
            version = str(self.client.get_model_version(self.model, version).version)
        except Exception as error:
            if _code(error) not in _MISSING:
                _raise_no_answer(error)
            raise BundleError(f"version {version!r} of {self.model!r} does not exist in MLflow") from None
        source = self.version() or ""
        if source == version:
            return None
        move = Move(kind, source, version, reason.strip(), by)
        record = self._open_record(move)
        lock.check()
        self.client.set_registered_model_alias(self.model, CHAMPION, version)
        self.client.set_terminated(record, _MADE)
        return move

    def _open_record(self, move: Move) -> str:
        found = self.client.get_experiment_by_name(PROMOTIONS)
        experiment = self.client.create_experiment(PROMOTIONS) if found is None else found.experiment_id
        tags = {"kind": move.kind, "from": move.source, "to": move.target, "reason": move.reason, "by": move.by}
        last = max((run.info.start_time for run in self._records(_MADE)), default=0)
        now = max(int(time.time() * 1000), last + 1)  # records are read in this order, whatever becomes of the clock
        return str(self.client.create_run(experiment, now, tags=tags, run_name=str(move)).info.run_id)

    def _records(self, status: str) -> Iterator[Any]:
        """Runs, oldest first."""
        experiment = self.client.get_experiment_by_name(PROMOTIONS)
        token: str | None = None
        while experiment is not None:
            page = self.client.search_runs(
                [experiment.experiment_id],
                f"attributes.status = '{status}'",
                order_by=["start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return


def _read(run: Any) -> Move:
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


def _code(error: Exception) -> str | None:
    """Of MLflow's exceptions; others are raised again."""
    code: str | None = getattr(error, "error_code", None)
    if code is None:
        raise error
    return code


def _raise_no_answer(error: Exception) -> NoReturn:
    raise RegistryError(f"MLflow does not answer ({str(error).splitlines()[0]})") from None
