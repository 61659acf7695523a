"""What GitHub is to be told, on disk until it was told: a SQLite file that one process at a time holds.

An event is written down before its sender gets an answer, and once: the same webhook again, the same alert still
firing, or the same readings after a restart change nothing. It is told at least once. If the process dies between
GitHub's answer and the note of it, GitHub is told again; the workflows are made for that (one at a time, and a
retraining with nothing new does nothing).
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from csr.errors import ConfigError, CSRError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS dispatch (
    id INTEGER PRIMARY KEY, event TEXT NOT NULL, payload TEXT NOT NULL, made_at TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, refused TEXT, sent_at TEXT);
CREATE TABLE IF NOT EXISTS known (key TEXT PRIMARY KEY, dispatch INTEGER NOT NULL REFERENCES dispatch (id));
CREATE TABLE IF NOT EXISTS counted (id INTEGER PRIMARY KEY CHECK (id = 1), through INTEGER NOT NULL);
"""
_COLUMNS = "id, event, payload, made_at, tries, refused, sent_at"


class OutboxError(CSRError):
    """The outbox cannot be read or written; nothing was taken."""


@dataclass(frozen=True)
class Dispatch:
    """One event that GitHub is told, or was: ``sent_at`` says when.

    ``refused`` is why the last of so many ``tries`` failed.
    """

    number: int
    event: str
    payload: dict[str, Any]
    made_at: str
    tries: int
    refused: str | None
    sent_at: str | None


class Outbox:
    """Thread-safe. Every method may raise an `OutboxError`.

    Args:
        file: is made if it is missing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with self._writing() as connection:
            connection.executescript(_SCHEMA)

    def put(self, keys: Iterable[str], event: str, payload: Mapping[str, Any]) -> bool:
        """Takes an event on, unless all its keys are known. Returns whether it was new.

        Args:
            keys: of what happened; one that is new suffices.
        """
        with self._writing() as connection:
            new = [key for key in dict.fromkeys(keys) if not _known(connection, key)]
            if not new:
                return False
            number = _insert(connection, event, payload)
            connection.executemany("INSERT INTO known VALUES (?, ?)", [(key, number) for key in new])
        return True

    def counted(self) -> int | None:
        """The ledger's entry up to which readings were counted; None before the first look."""
        with self._writing() as connection:
            row = connection.execute("SELECT through FROM counted").fetchone()
        return None if row is None else row[0]

    def count(
        self, before: int | None, through: int, event: str | None = None, payload: Mapping[str, Any] | None = None
    ) -> bool:
        """Moves `counted` from ``before`` to ``through`` and takes on the event of that, both or neither.

        Returns:
            Whether ``before`` was where it stood; else nothing happened.
        """
        with self._writing() as connection:
            row = connection.execute("SELECT through FROM counted").fetchone()
            if (None if row is None else row[0]) != before:
                return False
            connection.execute("INSERT OR REPLACE INTO counted VALUES (1, ?)", (through,))
            if event is not None:
                _insert(connection, event, payload or {})
        return True

    def unsent(self) -> list[Dispatch]:
        """What GitHub was not told yet, oldest first."""
        with self._writing() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM dispatch WHERE sent_at IS NULL ORDER BY id").fetchall()
        return [_dispatch(row) for row in rows]

    def all(self) -> list[Dispatch]:
        """Everything, oldest first."""
        with self._writing() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM dispatch ORDER BY id").fetchall()
        return [_dispatch(row) for row in rows]

    def tried(self, number: int, refused: str | None) -> None:
        """Notes that GitHub was told (``refused`` is None), or why not."""
        sent = None if refused else _now()
        with self._writing() as connection:
            connection.execute(
                "UPDATE dispatch SET tries = tries + 1, refused = ?, sent_at = ? WHERE id = ?", (refused, sent, number)
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """For as long as the block runs no other process holds this outbox.

        Raises:
            ConfigError: another one does.
        """
        with self._file.with_name(f"{self._file.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"{self._file}: another process holds this outbox; end it, or name another") from None
            yield

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with closing(sqlite3.connect(self._file, timeout=10, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                if connection.in_transaction:  # a script has committed by itself
                    connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise OutboxError(f"{self._file}: cannot be used ({error})") from None


def _known(connection: sqlite3.Connection, key: str) -> bool:
    return connection.execute("SELECT 1 FROM known WHERE key = ?", (key,)).fetchone() is not None


def _insert(connection: sqlite3.Connection, event: str, payload: Mapping[str, Any]) -> int:
    values = event, json.dumps(payload), _now()
    number = connection.execute("INSERT INTO dispatch (event, payload, made_at) VALUES (?, ?, ?)", values).lastrowid
    assert number is not None
    return number


def _dispatch(row: tuple[Any, ...]) -> Dispatch:
    number, event, payload, *rest = row
    return Dispatch(number, event, json.loads(payload), *rest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
