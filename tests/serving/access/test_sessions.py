"""Sessions: opaque, known to every replica, and over when they should be."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from serving.access.keys import ApiKey, KeyStore
from serving.access.roles import Actor, Role
from serving.access.sessions import FRESH_S, MOST, PREFIX, SessionLimits, SessionStore
from serving.errors import StoreError, UnauthenticatedError, UnknownSessionError
from serving.store import Store
from serving.store.database import Database
from serving.store.schema import metadata, session
from tests.serving.access.conftest import Clock, Queries
from tests.serving.postgres import Postgres, postgres

SOMEBODY = Actor("oidc:0123456789abcdef", "oidc:0123456789abcdef", Role.REVIEWER)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, file: Path) -> Iterator[Store]:
    url = f"sqlite:///{file}"
    if request.param == "postgresql":
        url = request.getfixturevalue("server").url
        engine = sa.create_engine(url)
        metadata.drop_all(engine)
        engine.dispose()
    store = Store.open(url)
    yield store
    store.database.close()


@pytest.fixture
def key(keys: KeyStore) -> ApiKey:
    return keys.create("reader-1", Role.READER)[0]


def another(database: Database) -> SessionStore:
    """Another replica's."""
    return SessionStore(database)


def rewrite(database: Database, **values: str) -> None:
    """Makes all sessions what time would have made of them."""
    with database.write() as connection:
        connection.execute(session.update().values(**values))


def ago(**parts: float) -> str:
    return (datetime.now(UTC) - timedelta(**parts)).isoformat(timespec="microseconds")


def test_any_replica_knows_a_session_at_once(database: Database, sessions: SessionStore, key: ApiKey) -> None:
    other = another(database)
    secret = sessions.open(key.actor)
    found = other.find(secret)
    assert found is not None and found.actor == key.actor == Actor(key.id, "key:reader-1", Role.READER)
    assert sessions.list() == other.list() == (found,)


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_the_store_holds_no_secret(sessions: SessionStore, key: ApiKey, file: Path) -> None:
    made = [sessions.open(key.actor) for _ in range(3)]
    assert len(set(made)) == 3
    everything = b"".join(part.read_bytes() for part in file.parent.iterdir())
    assert b"key:reader-1" in everything
    assert not any(secret.removeprefix(PREFIX).encode() in everything for secret in made)
    assert all(secret not in repr(vars(sessions)) for secret in made)


@pytest.mark.parametrize("wrong", ["", PREFIX, PREFIX + 42 * "A", PREFIX + 44 * "A", "csr_" + 43 * "A", "a.b.c", "'--"])
def test_what_cannot_be_one_is_not_asked_for(
    sessions: SessionStore, database: Database, queries: Queries, wrong: str
) -> None:
    before = queries.count
    assert sessions.find(wrong) is None and sessions.recall(wrong) is None
    assert queries.count == before
    assert sessions.find(PREFIX + 43 * "A") is None and queries.count > before


def test_what_was_read_is_good_for_a_moment(
    sessions: SessionStore, key: ApiKey, queries: Queries, clock: Clock
) -> None:
    secret = sessions.open(key.actor)
    assert sessions.recall(secret) is None
    found = sessions.find(secret)
    before = queries.count
    assert sessions.recall(secret) == found
    clock.now += FRESH_S
    assert sessions.recall(secret) is None
    assert queries.count == before


def test_it_ends_after_its_hours(database: Database, sessions: SessionStore, key: ApiKey) -> None:
    secret = sessions.open(key.actor)
    opened = sessions.list()[0]
    lasts = datetime.fromisoformat(opened.expires_at) - datetime.fromisoformat(opened.opened_at)
    assert lasts == timedelta(hours=SessionLimits().hours)
    sessions.find(secret)
    rewrite(database, expires_at=ago(seconds=1))
    assert another(database).find(secret) is None and sessions.list() == ()


@pytest.mark.timed
def test_a_session_in_memory_ends_too(database: Database, key: ApiKey) -> None:
    sessions = SessionStore(database, fresh_s=60)
    secret = sessions.open(key.actor, until=time.time() + 0.3)
    assert sessions.find(secret) is not None
    time.sleep(0.4)
    assert sessions.recall(secret) is None


def test_it_ends_when_nobody_uses_it(database: Database, key: ApiKey) -> None:
    sessions = SessionStore(database, SessionLimits(idle_minutes=10))
    used, unused = sessions.open(key.actor), sessions.open(key.actor)
    rewrite(database, used_at=ago(minutes=9))
    assert sessions.find(used) is not None
    assert max(each.used_at for each in sessions.list()) > ago(seconds=30), "its use was noted"
    with database.write() as connection:
        connection.execute(session.update().where(session.c.used_at < ago(minutes=8)).values(used_at=ago(minutes=11)))
    assert sessions.find(unused) is None and sessions.find(used) is not None
    assert len(sessions.list()) == 1


def test_its_use_is_not_noted_at_each_request(sessions: SessionStore, key: ApiKey) -> None:
    secret = sessions.open(key.actor)
    before = sessions.list()
    for _ in range(5):
        sessions.find(secret)
    assert sessions.list() == before


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_store_that_takes_no_writes_still_knows_a_session(
    sessions: SessionStore, database: Database, key: ApiKey, file: Path
) -> None:
    secret = sessions.open(key.actor)
    rewrite(database, used_at=ago(minutes=30))
    with sqlite3.connect(file, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert sessions.find(secret) is not None
        writer.execute("ROLLBACK")
    writer.close()


def test_signing_out_ends_it_here_at_once(database: Database, sessions: SessionStore, key: ApiKey) -> None:
    secret, other = sessions.open(key.actor), sessions.open(key.actor)
    sessions.find(secret)
    sessions.end(secret)
    assert sessions.recall(secret) is None and sessions.find(secret) is None and another(database).find(secret) is None
    assert sessions.find(other) is not None


def test_ending_what_is_none_takes_no_turn_of_the_writers(
    database: Database, sessions: SessionStore, key: ApiKey
) -> None:
    """Anybody may ask for it."""
    secret = sessions.open(key.actor)
    began: list[sa.Connection] = []
    sa.event.listen(database._engine, "begin", began.append)

    def writes(ended: str) -> int:
        began.clear()
        sessions.end(ended)
        return sum(bool(each.get_execution_options().get("csr_writes")) for each in began)

    assert writes(secret) == 1
    assert [writes(each) for each in (secret, "made up", PREFIX + 43 * "A")] == [0, 0, 0]


def test_one_that_was_listed_can_be_ended(database: Database, sessions: SessionStore, key: ApiKey) -> None:
    secret, kept = sessions.open(key.actor), sessions.open(SOMEBODY)
    sessions.find(secret)
    mine = next(each for each in sessions.list() if each.actor == key.actor)
    assert another(database).end_by_id(mine.id) == mine
    assert sessions.find(secret) is None and sessions.find(kept) is not None
    for unknown in (mine.id, "0" * 16, "", "é\x00"):
        with pytest.raises(UnknownSessionError):
            sessions.end_by_id(unknown)


def test_it_ends_with_its_key(sessions: SessionStore, keys: KeyStore, key: ApiKey, database: Database) -> None:
    secret, kept = sessions.open(key.actor), sessions.open(SOMEBODY)
    keys.revoke(key.id)
    assert another(database).find(secret) is None and another(database).find(kept) is not None
    assert [each.actor for each in sessions.list()] == [SOMEBODY]
    with pytest.raises(UnauthenticatedError):
        sessions.open(key.actor)  # signing in and revoking at once


def test_it_ends_with_its_token(sessions: SessionStore, database: Database) -> None:
    secret = sessions.open(SOMEBODY, until=time.time() + 60)
    found = sessions.find(secret)
    assert found is not None and found.actor == SOMEBODY
    assert found.expires_at < ago(seconds=-61)
    late = sessions.open(SOMEBODY, until=1e300)
    assert sessions.find(late).expires_at < ago(hours=-SessionLimits().hours - 1)  # type: ignore[union-attr]


def test_the_table_does_not_grow(database: Database, sessions: SessionStore, keys: KeyStore, key: ApiKey) -> None:
    def rows() -> int:
        with database.read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(session)).scalar_one()

    other = keys.create("reader-2", Role.READER)[0]
    sessions.open(other.actor)
    made = [sessions.open(key.actor) for _ in range(MOST + 3)]
    assert rows() == MOST + 1
    assert [sessions.find(secret) is not None for secret in made] == [False] * 3 + [True] * MOST
    rewrite(database, expires_at=ago(seconds=1))
    sessions.open(SOMEBODY)
    assert rows() == 1
    sessions.open(key.actor)
    keys.revoke(key.id)
    sessions.open(SOMEBODY)
    assert rows() == 2


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_store_that_is_gone_is_said(sessions: SessionStore, key: ApiKey, lose: Callable[[], None]) -> None:
    secret = sessions.open(key.actor)
    lose()
    for call in (lambda: sessions.find(secret), lambda: sessions.open(key.actor), lambda: sessions.end(secret)):
        with pytest.raises(StoreError):
            call()
