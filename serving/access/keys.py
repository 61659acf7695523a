"""API keys, of which only the SHA-256 is stored.

A plain hash is enough: a password needs a slow one because people choose it from few, but a key is 256 random bits, and
nobody finds those by trying, at any speed. So a request costs a microsecond of hashing and not 100 ms. Comparing takes
no time that depends on the secret: keys are found by their digest, of which a caller cannot choose a prefix.

Keys in use are few, so all of them are held in memory, read again once they are `FRESH_S` old. That bounds three
things: an authenticated request costs no query; a key that was revoked in another process ends within `FRESH_S`; and a
flood of wrong keys costs one query each `RETRY_S`, after which time a key made in another process works too.

Every change of a key is an entry of the ledger, which holds the digest and never the secret; `csr audit verify`
compares keys with them, so one that was put into the table, or changed there, is found.

Thread-safe. `KeyStore.find` may wait for the database, `KeyStore.recall` never waits.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from serving.access.roles import Actor, Role
from serving.errors import InvalidKeyNameError, KeyConflictError, StoreError, UnknownKeyError
from serving.store import Store
from serving.store.database import now
from serving.store.entries import SYSTEM, Entry
from serving.store.schema import api_key

PREFIX = "csr_"  # so that people, and scanners of leaked secrets, know one when they see it
FRESH_S = 5.0
RETRY_S = 1.0
MAX_KEYS = 10_000  # in use at once; bounds the memory of each replica, about 5 MB
_SECRET_BYTES = 32
_SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key; its secret is not. Times as `serving.store.database.now` writes them."""

    id: str
    name: str
    role: Role
    created_at: str
    revoked_at: str | None

    @property
    def actor(self) -> Actor:
        """Who asks with it."""
        return Actor(self.id, f"key:{self.name}", self.role)


@dataclass(frozen=True)
class _Snapshot:
    """The keys in use by digest, as the table had them at ``read_at`` (monotonic seconds) or later."""

    read_at: float
    keys: dict[str, ApiKey]

    def answers(self, digest: str, fresh_s: float) -> bool:
        """Whether it may still say whose digest this is, or that it is nobody's."""
        limit = fresh_s if digest in self.keys else min(fresh_s, RETRY_S)
        return time.monotonic() - self.read_at < limit


_NOTHING = _Snapshot(float("-inf"), {})


class KeyStore:
    """Makes, finds and revokes keys.

    Args:
        store: where they are, and the ledger that says so.
        fresh_s: seconds for which what was read may be used.
    """

    def __init__(self, store: Store, fresh_s: float = FRESH_S) -> None:
        self._database = store.database
        self._ledger = store.ledger
        self._fresh_s = fresh_s
        self._snapshot = _NOTHING
        self._failure: tuple[float, StoreError] | None = None
        self._lock = threading.Lock()

    def create(self, name: str, role: Role) -> tuple[ApiKey, str]:
        """Makes a key.

        Args:
            name: the pseudonym of who will use it, never used for another key again, revoked or not.
            role: what they may do.

        Returns:
            The key and its secret, which cannot be had a second time.

        Raises:
            InvalidKeyNameError: the name is not of the form that pseudonyms have.
            KeyConflictError: the name is taken, or there are `MAX_KEYS` keys.
            StoreError: the database does not answer.
        """
        if not _NAME.fullmatch(name):
            raise InvalidKeyNameError(
                "a key's name has 1 to 64 lower-case letters, digits, dots, hyphens and underscores, and begins with a "
                "letter or a digit"
            )
        secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        key = ApiKey(secrets.token_hex(8), name, role, now(), None)
        row = vars(key) | {"role": role.value, "digest": _digest(secret)}
        in_use = sa.select(sa.func.count()).select_from(api_key).where(api_key.c.revoked_at.is_(None))
        taken = sa.select(api_key.c.id).where(api_key.c.name == name)

        def add(connection: sa.Connection) -> list[Entry]:
            if connection.execute(taken).first() is not None:
                raise KeyConflictError(f"a key named {name} exists or existed; choose another name")
            if connection.execute(in_use).scalar_one() >= MAX_KEYS:
                raise KeyConflictError(f"there are {MAX_KEYS} keys in use; revoke some first")
            connection.execute(api_key.insert().values(row))
            return [_entry(row)]

        self._ledger.append((), add)
        self._forget()
        return key, secret

    def find(self, secret: str) -> ApiKey | None:
        """The key in use that has this secret.

        Raises:
            StoreError: the database does not answer; whether there is such a key is not known.
        """
        if not _SECRET.fullmatch(secret):
            return None
        digest = _digest(secret)
        snapshot = self._snapshot
        if not snapshot.answers(digest, self._fresh_s):
            with self._lock:
                if not self._snapshot.answers(digest, self._fresh_s):
                    self._snapshot = self._read()
                snapshot = self._snapshot
        return snapshot.keys.get(digest)

    def recall(self, secret: str) -> ApiKey | None:
        """The key if it is known without asking the database; None says nothing: ask `find`."""
        if not _SECRET.fullmatch(secret):
            return None
        snapshot, digest = self._snapshot, _digest(secret)
        return snapshot.keys.get(digest) if snapshot.answers(digest, self._fresh_s) else None

    def revoke(self, key_id: str) -> ApiKey:
        """Ends a key: here at once, in other processes within `FRESH_S`. Revoking it again changes nothing.

        Raises:
            UnknownKeyError: there is none with this id.
            StoreError: the database does not answer.
        """
        row = sa.select(api_key).where(api_key.c.id == key_id)
        at = now()
        end = api_key.update().where(api_key.c.id == key_id, api_key.c.revoked_at.is_(None)).values(revoked_at=at)

        def revoke(connection: sa.Connection) -> list[Entry]:
            return [_entry({"id": key_id, "revoked_at": at})] if connection.execute(end).rowcount else []

        self._ledger.append((), revoke)
        with self._database.read() as connection:
            found = connection.execute(row).one_or_none()
        self._forget()
        if found is None:
            raise UnknownKeyError("no key has this id; list the keys to see theirs")
        return _api_key(found)

    def list(self) -> tuple[ApiKey, ...]:
        """All keys, revoked ones too, oldest first.

        Raises:
            StoreError: the database does not answer.
        """
        with self._database.read() as connection:
            rows = connection.execute(sa.select(api_key).order_by(api_key.c.created_at, api_key.c.id)).all()
        return tuple(_api_key(row) for row in rows)

    def _forget(self) -> None:
        with self._lock:  # a reading under way may have begun before the change
            self._snapshot = _NOTHING

    def _read(self) -> _Snapshot:
        """Reads the table; those who waited for an attempt that failed, or come just after, share its outcome."""
        if self._failure and time.monotonic() - self._failure[0] < RETRY_S:
            raise StoreError(str(self._failure[1]), self._failure[1].told)
        read_at = time.monotonic()
        try:
            with self._database.read() as connection:
                rows = connection.execute(sa.select(api_key).where(api_key.c.revoked_at.is_(None))).all()
        except StoreError as error:
            self._failure = (time.monotonic(), error)
            raise
        self._failure = None
        return _Snapshot(read_at, {row.digest: _api_key(row) for row in rows})


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _entry(row: dict[str, Any]) -> Entry:
    return Entry("key", SYSTEM, "", {"rows": {api_key.name: [row]}})


def _api_key(row: Any) -> ApiKey:
    try:
        return ApiKey(row.id, row.name, Role(row.role), row.created_at, row.revoked_at)
    except ValueError:
        raise StoreError(f"table api_key, {row.name}: this server knows no role {row.role!r}; mend the row") from None
