from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.access.keys import FRESH_S, MAX_KEYS, RETRY_S, KeyStore
from serving.access.roles import Role
from serving.errors import InvalidKeyNameError, KeyConflictError, StoreError, UnknownKeyError
from serving.store import Store
from serving.store.database import Database
from serving.store.entries import Caller, Entry
from tests.serving.access.conftest import Clock, Queries

WRONG = "csr_" + 43 * "A"


def test_a_key_is_found_by_its_secret(keys: KeyStore) -> None:
    key, secret = keys.create("reader-1", Role.REVIEWER)
    assert re.fullmatch(r"csr_[A-Za-z0-9_-]{43}", secret)
    assert keys.find(secret) == key
    assert (key.actor.id, key.actor.name, key.actor.role) == (key.id, "key:reader-1", Role.REVIEWER)
    assert keys.list() == (key,)


def test_only_the_digest_is_stored(keys: KeyStore, file: Path) -> None:
    _, secret = keys.create("reader-1", Role.READER)
    with sqlite3.connect(file) as connection:
        (row,) = connection.execute("select * from api_key").fetchall()
    assert hashlib.sha256(secret.encode()).hexdigest() in row
    stored = b"".join(part.read_bytes() for part in file.parent.iterdir())
    assert secret.encode() not in stored
    assert secret[4:].encode() not in stored


def test_every_change_is_on_record_and_no_secret(keys: KeyStore, store: Store) -> None:
    key, secret = keys.create("reader-1", Role.READER)
    with pytest.raises(KeyConflictError):
        keys.create("reader-1", Role.ADMIN)
    for _ in range(2):
        keys.revoke(key.id)
    with pytest.raises(UnknownKeyError):
        keys.revoke("0123456789abcdef")
    made, revoked = store.ledger.entries()
    assert (made["kind"], made["actor"]) == (revoked["kind"], revoked["actor"]) == ("key", "system")
    assert made["body"]["rows"]["api_key"][0]["role"] == "reader"
    assert set(revoked["body"]["rows"]["api_key"][0]) == {"id", "revoked_at"}
    assert secret[4:] not in str((made, revoked))
    assert store.ledger.verify().faults == ()


def test_a_key_that_cannot_be_had_fails_nobody_else_s_entry(keys: KeyStore, store: Store) -> None:
    keys.create("reader-1", Role.READER)
    entry = Entry("interaction", Caller("a", "r"), "b", {"request": {}}, "s")

    def write(number: int) -> bool:
        try:
            return bool(store.ledger.append([entry])) if number % 2 else bool(keys.create("reader-1", Role.READER))
        except KeyConflictError:
            return False

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(write, range(16))) == [bool(number % 2) for number in range(16)]
    assert len(list(store.ledger.entries("interaction"))) == 8 and store.ledger.verify().faults == ()


@pytest.mark.parametrize("other", ["", "csr_", WRONG, WRONG + "A", WRONG[:-1] + "\n", "csr_" + 43 * "ä", "\ud800"])
def test_another_secret_finds_nothing(keys: KeyStore, secret: str, other: str) -> None:
    assert keys.find(other) is None
    assert keys.recall(other) is None


@pytest.mark.parametrize("alter", [str.lower, str.upper, lambda secret: secret[:-1], lambda secret: f" {secret}"])
def test_a_secret_is_found_to_the_letter(keys: KeyStore, secret: str, alter: Callable[[str], str]) -> None:
    assert keys.find(secret)
    assert keys.find(alter(secret)) is None


@pytest.mark.parametrize("name", ["", "Anna", "-a", "a b", "a\n", "a:b", "ä", 65 * "a"])
def test_a_name_has_a_form(keys: KeyStore, name: str) -> None:
    with pytest.raises(InvalidKeyNameError):
        keys.create(name, Role.READER)
    assert keys.list() == ()


def test_a_name_is_used_once_for_ever(keys: KeyStore) -> None:
    key, _ = keys.create("reader-1", Role.READER)
    keys.revoke(key.id)
    with pytest.raises(KeyConflictError, match="reader-1"):
        keys.create("reader-1", Role.READER)
    assert len(keys.list()) == 1


def test_of_those_who_want_a_name_at_once_one_gets_it(keys: KeyStore) -> None:
    def attempt(_: int) -> bool:
        try:
            keys.create("reader-1", Role.READER)
        except KeyConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(attempt, range(8))) == 1


def test_there_is_a_limit_of_keys_in_use(keys: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_KEYS <= 10_000
    monkeypatch.setattr("serving.access.keys.MAX_KEYS", 2)
    first, _ = keys.create("reader-1", Role.READER)
    keys.create("reader-2", Role.READER)
    with pytest.raises(KeyConflictError, match="2 keys in use"):
        keys.create("reader-3", Role.READER)
    keys.revoke(first.id)
    keys.create("reader-3", Role.READER)


def test_a_revoked_key_ends_at_once_here(keys: KeyStore, secret: str) -> None:
    key = keys.find(secret)
    assert key and keys.recall(secret)
    revoked = keys.revoke(key.id)
    assert revoked.revoked_at
    assert keys.recall(secret) is None
    assert keys.find(secret) is None
    assert keys.revoke(key.id) == revoked
    assert keys.list() == (revoked,)


def test_an_unknown_id_cannot_be_revoked(keys: KeyStore) -> None:
    with pytest.raises(UnknownKeyError):
        keys.revoke("0123456789abcdef")


def test_a_key_revoked_elsewhere_ends_in_time(keys: KeyStore, store: Store, secret: str, clock: Clock) -> None:
    key = keys.find(secret)
    assert key
    KeyStore(store).revoke(key.id)
    clock.now += FRESH_S - 0.01
    assert keys.find(secret) == key
    clock.now += 0.01
    assert keys.recall(secret) is None
    assert keys.find(secret) is None


def test_a_key_made_elsewhere_works_in_time(keys: KeyStore, store: Store, clock: Clock) -> None:
    assert keys.find(WRONG) is None
    key, secret = KeyStore(store).create("reader-2", Role.READER)
    clock.now += RETRY_S
    assert keys.find(secret) == key


def test_an_authenticated_request_costs_no_query(keys: KeyStore, secret: str, queries: Queries) -> None:
    keys.find(secret)
    read = queries.count
    for _ in range(100):
        assert keys.find(secret)
    assert queries.count == read


def test_a_flood_of_wrong_keys_costs_a_query_a_second(keys: KeyStore, queries: Queries, clock: Clock) -> None:
    def flood() -> int:
        before = queries.count
        with ThreadPoolExecutor(8) as threads:
            assert not any(threads.map(keys.find, (f"csr_{number:043}" for number in range(400))))
        return queries.count - before

    once = flood()
    assert 1 <= once <= 2  # BEGIN, and the query
    assert flood() == 0
    clock.now += RETRY_S
    assert flood() == once


def test_those_who_ask_at_once_share_a_reading(
    keys: KeyStore, secret: str, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = keys._read

    def slow() -> Any:
        time.sleep(0.1)
        return read()

    monkeypatch.setattr(keys, "_read", slow)
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(keys.find, 8 * [secret]))
    assert queries.count <= 2  # BEGIN, and the query


def test_without_a_database_nobody_is_known_or_unknown(
    keys: KeyStore, secret: str, lose: Callable[[], None], clock: Clock
) -> None:
    assert keys.find(secret)
    lose()
    assert keys.find(secret), "for what is fresh nobody is asked"
    clock.now += FRESH_S
    assert keys.recall(secret) is None
    for asked in (secret, WRONG):
        with pytest.raises(StoreError):
            keys.find(asked)
    for change in (lambda: keys.create("reader-2", Role.READER), lambda: keys.revoke("x"), keys.list):
        with pytest.raises(StoreError):
            change()


@pytest.mark.timed
def test_a_database_that_hangs_is_waited_for_once(
    keys: KeyStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def hang() -> None:
        attempts.append(1)
        time.sleep(0.5)
        raise StoreError("the store does not answer")

    monkeypatch.setattr(database, "read", hang)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(keys.find, WRONG) for _ in range(8)]
    assert all(isinstance(one.exception(), StoreError) for one in waiting)
    assert len(attempts) == 1
    assert time.monotonic() - started < 2  # one after the other they would wait 4


def test_a_database_that_is_back_is_asked_again(
    keys: KeyStore, secret: str, database: Database, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    with monkeypatch.context() as gone:
        gone.setattr(database, "read", lambda: (_ for _ in ()).throw(StoreError("gone")))
        with pytest.raises(StoreError):
            keys.find(secret)
    clock.now += RETRY_S
    assert keys.find(secret)


def test_a_row_with_an_unknown_role_is_an_error_that_names_it(keys: KeyStore, secret: str, file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("update api_key set role = 'boss'")
    with pytest.raises(StoreError, match=r"reader-1.*boss"):
        keys.find(secret)


def test_revoking_while_others_ask(keys: KeyStore) -> None:
    made = [keys.create(f"reader-{number}", Role.READER) for number in range(8)]
    late: list[str] = []
    revoked: set[str] = set()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            for _, secret in made:
                ended = secret in revoked
                if keys.find(secret) and ended:
                    late.append(secret)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for key, secret in made:
        keys.revoke(key.id)
        revoked.add(secret)
    stop.set()
    for asker in askers:
        asker.join()
    assert late == []
    assert not any(keys.find(secret) for _, secret in made)


def test_roles_include_those_before() -> None:
    allowed = [[role.allows(needed) for needed in Role] for role in Role]
    assert allowed == [[True, False, False], [True, True, False], [True, True, True]]
