"""A store that answers questions and takes no writes is found out, without growing and without waiting for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from serving.errors import StoreError
from serving.store import Store
from serving.store.entries import Caller, Entry
from serving.store.probe import ROOM, WriteProbe
from serving.store.schema import study, write_probe
from tests.serving.postgres import Postgres
from tests.serving.store.test_ledger import server, store

__all__ = ["server", "store"]


@pytest.fixture
def probe(store: Store) -> Iterator[WriteProbe]:
    probe = WriteProbe(store.database, every_s=0)
    yield probe
    probe.close()


def rows(store: Store) -> int:
    with store.database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(write_probe)).scalar_one()


def add_study(store: Store, digest: str, size: int) -> None:
    with store.database.write() as connection:
        row = {"width": 1, "height": 1, "scale": 1.0, "offset_left": 0.0, "offset_top": 0.0, "added_at": ""}
        connection.execute(study.insert().values(digest=digest, canvas=bytes(size), **row))


def limit_pages(store: Store, pages: int) -> None:
    """As a full disk does, SQLite takes no more than these."""
    sa.event.listen(
        store.database._engine,
        "begin",
        lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}"),
    )


def pages(store: Store) -> int:
    with store.database.read() as connection:
        return connection.exec_driver_sql("PRAGMA page_count").scalar_one()


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Another writer has its turn and does not end it."""
    with store.database._writer.connect() as connection, connection.begin():
        connection.execute(sa.text("SELECT * FROM ledger_head" + store_lock(connection)))
        yield


def store_lock(connection: sa.Connection) -> str:
    return " FOR UPDATE" if connection.dialect.name == "postgresql" else ""


def test_a_sound_store_takes_writes_and_does_not_grow(store: Store, probe: WriteProbe) -> None:
    for _ in range(3):
        probe.check()
    size = pages(store) if store.database.name.startswith("sqlite") else 0
    for _ in range(20):
        probe.check()
    assert rows(store) == 1
    if size:
        assert pages(store) == size


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize("checked_before", [False, True])
def test_a_full_store_is_found_out_and_found_well_again(store: Store, probe: WriteProbe, checked_before: bool) -> None:
    if checked_before:
        probe.check()
    full = pages(store)
    limit_pages(store, full)
    with pytest.raises(StoreError):
        for number in range(100):
            add_study(store, str(number), ROOM)
    with pytest.raises(StoreError, match="disk is full") as refused:
        probe.check()
    assert refused.value.told == "the store is full"
    assert store.ledger.verify().faults == (), "it still answers"
    limit_pages(store, full + 100)
    probe.check()
    assert rows(store) == 1


@pytest.mark.timed
def test_a_store_that_somebody_holds_is_found_out_in_time(store: Store) -> None:
    probe = WriteProbe(store.database, every_s=0, within_s=0.3)
    probe.check()
    with locked(store):
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(StoreError, match=r"took no write within 0\.3 s"):
                probe.check()
            assert time.monotonic() - began < 2
    deadline = time.monotonic() + 10
    while True:
        try:
            probe.check()
            break
        except StoreError:
            assert time.monotonic() < deadline, "the store was given back, and is not found well"
            time.sleep(0.1)
    assert rows(store) == 1
    probe.close()


def test_a_lock_that_outlasts_the_store_s_patience_is_named(store: Store) -> None:
    probe = WriteProbe(store.database, within_s=20)
    with locked(store), pytest.raises(StoreError) as refused:
        probe.check()
    assert refused.value.told.startswith("the store is locked by another writer")
    probe.close()


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_store_that_may_not_be_written_is_named(store: Store, probe: WriteProbe, tmp_path: Path) -> None:
    probe.check()
    sa.event.listen(
        store.database._engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA query_only = ON")
    )
    with pytest.raises(StoreError) as refused:
        probe.check()
    assert refused.value.told == "the store takes no writes"


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)
def test_a_database_that_is_gone_is_found_out(store: Store, probe: WriteProbe, server: Postgres) -> None:
    probe.check()
    server.kill()
    try:
        with pytest.raises(StoreError):
            probe.check()
    finally:
        server.start()
    probe.check()


def test_it_writes_now_and_then_whoever_asks_how_often(store: Store) -> None:
    writes = []
    sa.event.listen(store.database._engine, "commit", lambda connection: writes.append(threading.current_thread().name))
    probe = WriteProbe(store.database, every_s=60)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: probe.check(), range(100)))
    assert len(writes) == 1 and writes[0].startswith("probe")
    probe.close()


def test_replicas_do_not_stand_in_each_other_s_way(store: Store) -> None:
    probes = [WriteProbe(store.database, every_s=0, within_s=20) for _ in range(4)]

    def work(call: Callable[[], object]) -> None:
        for _ in range(15):
            call()

    def append() -> None:
        store.ledger.append([Entry("review", Caller("key:a", "r"), "b", {"request": {}})])

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work, call) for call in [*(probe.check for probe in probes), append, append]]:
            done.result()
    assert rows(store) == 1 and store.ledger.verify().faults == ()
    for probe in probes:
        probe.close()
