"""API keys: 256 random bits each, of which the store holds the SHA-256 and nothing else.

A slow hash protects passwords, which can be guessed; nobody guesses 256 random bits, and a fast one costs a request
nothing. A key that was found is remembered for `REMEMBERED_S` seconds, so a revoked one works for that long at most.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serving.access.actors import Actor, Role
from serving.errors import KeyNameError
from serving.store.database import Database, now
from serving.store.schema import api_key

KEY = re.compile(r"csr_[A-Za-z0-9_-]{43}")
REMEMBERED_S = 5.0
_REMEMBERED = 4096
_NAME = re.compile(r"[\w .@-]{1,80}")


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret."""

    id: str
    name: str
    role: Role
    created_at: str
    revoked_at: str | None


class KeyStore:
    """Thread-safe.

    Args:
        database: that holds the keys.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._remembered: OrderedDict[str, tuple[float, Actor | None]] = OrderedDict()

    def create(self, name: str, role: Role) -> str:
        """Makes a key and returns its secret, which is never seen again.

        Args:
            name: the pseudonym under which the ledger knows whoever holds it.
            role: of the holder.

        Raises:
            KeyNameError: the name is taken, or not one.
            StoreError: the store does not answer.
        """
        if not _NAME.fullmatch(name):
            raise KeyNameError(f"{name!r}: a key's name has 1 to 80 letters, digits, spaces or _ . @ -")
        secret = f"csr_{secrets.token_urlsafe(32)}"
        row = {"id": secrets.token_hex(8), "name": name, "role": role.name, "digest": _digest(secret)}
        with self._database.write() as connection:
            try:
                connection.execute(api_key.insert().values(**row, created_at=now()))
            except IntegrityError:
                raise KeyNameError(f"{name!r}: there is (or was) a key of this name; choose another") from None
        return secret

    def find(self, secret: str) -> Actor | None:
        """Whose key this is; None if it is nobody's, or was revoked.

        Raises:
            StoreError: the store does not answer.
        """
        if not KEY.fullmatch(secret):
            return None
        digest = _digest(secret)
        with self._lock:
            until, actor = self._remembered.get(digest, (0.0, None))
            if time.monotonic() < until:
                return actor
        with self._database.read() as connection:
            query = sa.select(api_key).where(api_key.c.digest == digest, api_key.c.revoked_at.is_(None))
            row = connection.execute(query).one_or_none()
        actor = None if row is None else Actor(f"key:{row.name}", Role[row.role])
        with self._lock:
            self._remembered[digest] = (time.monotonic() + REMEMBERED_S, actor)
            self._remembered.move_to_end(digest)
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return actor

    def remembers(self, secret: str) -> bool:
        """Whether `find` will answer without asking the store."""
        with self._lock:
            until, _ = self._remembered.get(_digest(secret), (0.0, None))
        return time.monotonic() < until

    def revoke(self, name: str) -> None:
        """Ends a key, here at once and at other replicas within `REMEMBERED_S` seconds.

        Raises:
            KeyNameError: there is none of this name, or it was revoked before.
            StoreError: the store does not answer.
        """
        update = sa.update(api_key).where(api_key.c.name == name, api_key.c.revoked_at.is_(None))
        with self._database.write() as connection:
            if connection.execute(update.values(revoked_at=now())).rowcount == 0:
                raise KeyNameError(f"{name!r}: no key of this name is in use")
        with self._lock:
            self._remembered.clear()

    def list(self) -> list[ApiKey]:
        """All keys there ever were, oldest first.

        Raises:
            StoreError: the store does not answer.
        """
        columns = (api_key.c.id, api_key.c.name, api_key.c.role, api_key.c.created_at, api_key.c.revoked_at)
        with self._database.read() as connection:
            rows = connection.execute(sa.select(*columns).order_by(api_key.c.created_at)).mappings()
            return [ApiKey(**(dict(row) | {"role": Role[row["role"]]})) for row in rows]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
