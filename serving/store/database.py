"""One database behind all replicas: SQLite by default, PostgreSQL by URL.

Concurrency: a `Database` is thread-safe, a transaction belongs to the thread that opened it. SQLite runs with a
write-ahead log and full sync, so that a commit that returned survives a power cut; its writers take turns from the
first statement on (``BEGIN IMMEDIATE``), so none fails half-way. Waiting is bounded everywhere: a database that is gone
is an error within seconds, never a request that hangs.

What is in it is made by `serving.store.migration`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from serving.errors import StoreError

WAIT_S = 5
_SHORT_MS = 3  # naps of 1 and 2
_WRITES = "csr_writes"
# What databases say, and what of it strangers may know.
_TOLD = (
    ("is full", "the store is full"),
    ("No space left", "the store is full"),
    ("database is locked", "the store is locked by another writer; try again in a moment"),
    ("lock timeout", "the store is locked by another writer; try again in a moment"),
    ("readonly database", "the store takes no writes"),
    ("read-only transaction", "the store takes no writes"),
)


class Database:
    """An open store.

    Args:
        url: SQLAlchemy's form: ``sqlite:///folder/file.db`` or ``postgresql+psycopg://user:password@host/name``.

    Raises:
        StoreError: it is no address of a database that this can be.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
        except ArgumentError:
            raise StoreError("store.url: is not a database's address") from None
        if parsed.drivername not in _OPEN:
            raise StoreError(f"store.url: {parsed.drivername!r} is none of {', '.join(_OPEN)}")
        self._engine = _OPEN[parsed.drivername](parsed)
        self._writer = self._engine.execution_options(**{_WRITES: True})
        postgresql = self._engine.dialect.name == "postgresql"  # SQLite's transactions are snapshots
        self._snapshots = (
            self._engine.execution_options(isolation_level="REPEATABLE READ") if postgresql else self._engine
        )
        self.name = parsed.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads.

        Raises:
            StoreError: the database does not answer.
        """
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """A transaction that reads, all of it as things stood at its first statement.

        Raises:
            StoreError: the database does not answer.
        """
        with self._translated(), self._snapshots.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that is durable when the block has ended without an error.

        Raises:
            StoreError: the database does not answer, or stayed busy for too long.
        """
        with self._translated(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Gives back all connections."""
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = str(error.orig if isinstance(error, DBAPIError) else error).strip().splitlines()[0]
            told = next((told for part, told in _TOLD if part in reason), None)
            message = f"{self.name}: the store does not answer ({reason})"
            raise (StoreError(message, told) if told else StoreError(message)) from error


def now() -> str:
    """The time as the store keeps it; fixed width, so that text sorts as time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def take_time(connection: sa.Connection) -> None:
    """Lifts the bound on statements for the rest of a transaction: of what nobody waits for, such as a migration."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL statement_timeout = 0"))


def _sqlite(url: sa.URL) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise StoreError("store.url: name a file; a database in memory would be another one for each connection")
    file = Path(url.database)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(f"{file.parent}: cannot be made ({error.strerror})") from None
    engine = sa.create_engine(url, connect_args={"timeout": WAIT_S})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: Any) -> None:
        connection.text_factory = _text
        connection.isolation_level = None  # the driver's own BEGIN would come too late, see `begin`
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get(_WRITES):
            _begin_writing(connection)
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _begin_writing(connection: sa.Connection) -> None:
    """Waits for the writer's lock. SQLite's own waiting naps longer and longer, up to a tenth of a second, in which
    others go first: behind a few busy replicas that adds up to half a second and more. So it is started anew before
    its naps are long."""
    driver: Any = connection.connection.dbapi_connection
    deadline = time.monotonic() + WAIT_S
    driver.execute(f"PRAGMA busy_timeout={_SHORT_MS}")
    try:
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except OperationalError as error:
                if "locked" not in str(error.orig) or time.monotonic() > deadline:
                    raise
    finally:
        driver.execute(f"PRAGMA busy_timeout={WAIT_S * 1000}")


def _text(data: bytes) -> str:
    """Text that is no UTF-8 was not written by us; whoever compares it must see that, not fail."""
    return data.decode(errors="surrogateescape")


def _postgresql(url: sa.URL) -> sa.Engine:
    milliseconds = WAIT_S * 1000
    # The lock's time is a little less, so that what is said is that it is locked.
    options = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds * 9 // 10}"
    wait = {"connect_timeout": WAIT_S, "options": options, "tcp_user_timeout": milliseconds}
    return sa.create_engine(url, connect_args=wait, pool_pre_ping=True, pool_size=8, pool_timeout=WAIT_S)


_OPEN = {"sqlite": _sqlite, "postgresql+psycopg": _postgresql}
