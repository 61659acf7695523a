"""Opening a store: refused where it is newer; where it is older see `test_migration`."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path

import pytest

from serving.errors import StoreError
from serving.store import Store
from serving.store.schema import VERSION, schema_version
from tests.serving.store.test_ledger import KEY, server, store

__all__ = ["server", "store"]


def url(store: Store) -> str:
    return store.database._engine.url.render_as_string(hide_password=False)


def test_a_newer_store_is_refused(store: Store) -> None:
    with store.database.write() as connection:
        connection.execute(schema_version.insert().values(version=VERSION + 1))
    with pytest.raises(StoreError, match=f"has tables of version {VERSION + 1}, this server needs {VERSION}"):
        Store.open(url(store), KEY)


def test_who_gives_up_waiting_for_sqlites_lock_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.store.database.WAIT_S", 0.2)
    one, other = (Store.open(f"sqlite:///{tmp_path}/store.db", KEY) for _ in range(2))
    with one.database.write(), pytest.raises(StoreError) as refused, other.database.write():
        pass
    assert refused.value.told is not None and refused.value.told.startswith("the store is locked by another writer")
    with other.database.write():
        pass  # and once it is free, it is had


@pytest.mark.timed
def test_sqlites_lock_is_had_soon_after_it_is_free(tmp_path: Path) -> None:
    """SQLite itself would sleep a tenth of a second by then."""
    one, other = (Store.open(f"sqlite:///{tmp_path}/store.db", KEY) for _ in range(2))
    late = []
    for _ in range(3):
        had: list[float] = []

        def take(had: list[float] = had) -> None:
            with other.database.write():
                had.append(time.monotonic())

        waiting = threading.Thread(target=take)
        with one.database.write():
            waiting.start()
            time.sleep(0.34)
        free = time.monotonic()
        waiting.join()
        late.append(had[0] - free)
    assert statistics.median(late) < 0.03
