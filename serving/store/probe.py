"""Whether the store takes writes, found out by writing.

A store whose disk is full, or whose lock somebody holds, still answers every question, while nothing that must be
recorded can be done. So a check takes its turn among the writers and keeps as much as a study takes, in place of what
the check before it kept: that needs room beside the old, as an upload would, and nothing grows.

Concurrency: one write at a time and one in `EVERY_S`, in a thread of its own, whoever asks how often; in between its
outcome is told again. Nobody waits longer than `WITHIN_S`.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import uuid4

import sqlalchemy as sa

from serving.errors import StoreError
from serving.store.database import Database
from serving.store.schema import ledger_head, write_probe

EVERY_S = 5.0
WITHIN_S = 3.0
ROOM = 1 << 16  # bytes; about a study's picture, and random, since PostgreSQL compresses
_TAKE_TURN = sa.select(ledger_head).with_for_update()


class WriteProbe:
    """Thread-safe.

    Args:
        database: the store.
        every_s: the least time between two writes.
        within_s: in which a write must be done.
    """

    def __init__(self, database: Database, every_s: float = EVERY_S, within_s: float = WITHIN_S) -> None:
        self._database = database
        self._every_s = every_s
        self._within_s = within_s
        self._began = 0.0
        self._writing: Future[None] | None = None
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "probe")

    def check(self) -> None:
        """Raises:
        StoreError: the store does not take writes, or not in time.
        """
        with self._lock:
            now = time.monotonic()
            if self._writing is None or (self._writing.done() and now - self._began >= self._every_s):
                self._writing, self._began = self._thread.submit(self._write), now
            writing, left = self._writing, self._began + self._within_s - now
        try:
            writing.result(max(left, 0))
        except TimeoutError:
            reason = f"took no write within {self._within_s:g} s"
            raise StoreError(f"{self._database.name}: {reason}", f"the store {reason}") from None
        except StoreError as error:  # the next who asks gets one of their own
            raise StoreError(str(error), error.told) from None

    def close(self) -> None:
        """Ends the thread; a write under way ends within the store's time limits."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _write(self) -> None:
        own = uuid4().hex
        with self._database.write() as connection:
            connection.execute(_TAKE_TURN)
            connection.execute(write_probe.insert().values(id=own, filler=os.urandom(ROOM)))
            connection.execute(write_probe.delete().where(write_probe.c.id != own))
