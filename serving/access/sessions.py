"""Sessions of browsers: what a reader gets for a key or a token that they typed in once.

A session's secret is 256 random bits that say nothing of the key behind it, and only its SHA-256 is stored (see
`serving.access.keys` why that is enough). It is good in a cookie and nowhere else, as a key is in a header. It ends at
sign-out, when an administrator ends it, with the key or the token that opened it, once nobody used it for a while, and
in any case after a day's work. Rows of sessions that have ended are deleted when the next one opens.

The store holds them all, so any replica can answer, one that just opened elsewhere too. What was read is good for
`FRESH_S`: that is how long a session which was ended in another process may live on.

Thread-safe. Everything may wait for the database but `SessionStore.recall`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from cachetools import TTLCache
from pydantic import BaseModel, ConfigDict, Field

from serving.access.keys import FRESH_S
from serving.access.roles import Actor, Role
from serving.errors import StoreError, UnauthenticatedError, UnknownSessionError
from serving.store.database import Database
from serving.store.schema import api_key, session

PREFIX = "csr_session_"
MOST = 32  # open ones of one actor; the one that was unused for longest makes room for another
REMEMBERED = 4096
_TOUCHES = 20  # a session in use is written so many times, at most, in the time after which an unused one ends
_SECRET_BYTES = 32
_SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
_ID = re.compile(r"[0-9a-f]{16}")
_FOUND = sa.select(session, api_key.c.role.label("key_role"), api_key.c.revoked_at).outerjoin(
    api_key, api_key.c.id == session.c.key_id
)
_logger = logging.getLogger(__name__)


class SessionLimits(BaseModel):
    """When sessions end by themselves.

    Args:
        hours: after signing in.
        idle_minutes: after the last request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hours: Annotated[float, Field(gt=0, le=24 * 31)] = 12.0  # a long shift
    idle_minutes: Annotated[float, Field(ge=1)] = 60.0


@dataclass(frozen=True)
class Session:
    """What is known of an open session; its secret is not. Times as `serving.store.database.now` writes them."""

    id: str
    actor: Actor
    opened_at: str
    used_at: str
    expires_at: str


class SessionStore:
    """Opens, finds and ends sessions.

    Args:
        database: the store.
        limits: when they end.
        fresh_s: seconds for which what was read may be used.
    """

    def __init__(self, database: Database, limits: SessionLimits | None = None, fresh_s: float = FRESH_S) -> None:
        self.limits = limits or SessionLimits()
        self._database = database
        self._idle = timedelta(minutes=self.limits.idle_minutes)
        self._known: TTLCache[str, Session] = TTLCache(REMEMBERED, fresh_s, timer=lambda: time.monotonic())
        self._ends = 0  # of sessions, here: a row that was read before one is not kept after it
        self._lock = threading.Lock()

    def open(self, actor: Actor, until: float | None = None) -> str:
        """Opens a session for somebody whose key or token was just checked.

        Args:
            actor: who signs in.
            until: Unix time at which what they showed ends, if it does.

        Returns:
            The secret, which cannot be had a second time.

        Raises:
            UnauthenticatedError: the key was revoked meanwhile.
            StoreError: the database does not answer.
        """
        secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        opened = datetime.now(UTC)
        expires = opened + timedelta(hours=self.limits.hours)
        if until is not None and until < expires.timestamp():
            expires = datetime.fromtimestamp(until, UTC)
        row = {
            "id": secrets.token_hex(8),
            "digest": _digest(secret),
            "actor": actor.name,
            "role": actor.role.value,
            "key_id": actor.id if actor.by_key else None,
            "opened_at": _text(opened),
            "used_at": _text(opened),
            "expires_at": _text(expires),
        }
        with self._database.write() as connection:
            if actor.by_key and not _in_use(connection, actor.id):
                raise UnauthenticatedError("this key is not valid: mistyped, or revoked")
            connection.execute(session.delete().where(self._ended()))
            own = sa.select(session.c.id).where(session.c.actor == actor.name).order_by(session.c.used_at.desc())
            surplus = connection.execute(own.offset(MOST - 1)).scalars().all()
            if surplus:
                connection.execute(session.delete().where(session.c.id.in_(surplus)))
            connection.execute(session.insert().values(row))
        _logger.info("session %s opened for %s", row["id"], actor.name)
        return secret

    def recall(self, secret: str) -> Session | None:
        """The session if it is known without asking the database; None says nothing: ask `find`."""
        with self._lock:
            known = self._known.get(_digest(secret))
        return known if known is not None and self._is_open(known) else None

    def find(self, secret: str) -> Session | None:
        """The open session that has this secret, which counts as used now.

        Raises:
            StoreError: the database does not answer; whether there is such a session is not known.
        """
        if not _SECRET.fullmatch(secret):
            return None
        digest, ends = _digest(secret), self._ends
        with self._database.read() as connection:
            row = connection.execute(_FOUND.where(session.c.digest == digest)).one_or_none()
        found = None if row is None else _session(row)
        if found is None or not self._is_open(found):
            return None
        self._touch(found)
        with self._lock:
            if ends == self._ends:
                self._known[digest] = found
        return found

    def end(self, secret: str) -> None:
        """Ends the session of this secret, if it is open: here at once, in other processes within `FRESH_S`.

        Raises:
            StoreError: the database does not answer; it goes on.
        """
        if self.find(secret) is None:  # strangers may ask for this, and must not take the writers' turns
            return
        with self._database.write() as connection:
            connection.execute(session.delete().where(session.c.digest == _digest(secret)))
        self._forget()

    def end_by_id(self, session_id: str) -> Session:
        """The same for one that was listed; returns what it was.

        Raises:
            UnknownSessionError: none of this id is open.
            StoreError: the database does not answer.
        """
        row = None
        if _ID.fullmatch(session_id):  # anything else is a stranger's text, which not every database takes
            with self._database.write() as connection:
                row = connection.execute(_FOUND.where(session.c.id == session_id)).one_or_none()
                connection.execute(session.delete().where(session.c.id == session_id))
            self._forget()
        found = None if row is None else _session(row)
        if found is None or not self._is_open(found):
            raise UnknownSessionError("no session of this id is open; list the sessions to see theirs")
        return found

    def list(self) -> tuple[Session, ...]:
        """Those that are open, oldest first.

        Raises:
            StoreError: the database does not answer.
        """
        with self._database.read() as connection:
            rows = connection.execute(_FOUND.order_by(session.c.opened_at, session.c.id)).all()
        found = (_session(row) for row in rows)
        return tuple(each for each in found if each is not None and self._is_open(each))

    def _forget(self) -> None:
        with self._lock:
            self._ends += 1
            self._known.clear()

    def _is_open(self, found: Session) -> bool:
        moment = datetime.now(UTC)
        return found.expires_at > _text(moment) and found.used_at > _text(moment - self._idle)

    def _ended(self) -> Any:
        """`_is_open` for rows, and those of keys that were revoked."""
        moment = datetime.now(UTC)
        revoked = sa.select(api_key.c.id).where(api_key.c.revoked_at.is_not(None))
        return sa.or_(
            session.c.expires_at <= _text(moment),
            session.c.used_at <= _text(moment - self._idle),
            session.c.key_id.in_(revoked),
        )

    def _touch(self, found: Session) -> None:
        """Notes that it is in use, now and then: a write for each request would be one for each picture of the page."""
        moment = datetime.now(UTC)
        if found.used_at > _text(moment - self._idle / _TOUCHES):
            return
        try:
            with self._database.write() as connection:
                connection.execute(session.update().where(session.c.id == found.id).values(used_at=_text(moment)))
        except StoreError as error:  # a store that takes no writes still knows who this is
            _logger.warning("session %s: its use is not noted: %s", found.id, error)


def _in_use(connection: sa.Connection, key_id: str) -> bool:
    query = sa.select(api_key.c.id).where(api_key.c.id == key_id, api_key.c.revoked_at.is_(None))
    return connection.execute(query).one_or_none() is not None


def _session(row: Any) -> Session | None:
    """None if the key behind it was revoked. A key's role is the key's, as it is now."""
    if row.key_id is not None and (row.key_role is None or row.revoked_at is not None):
        return None
    try:
        role = Role(row.role if row.key_id is None else row.key_role)
    except ValueError:
        raise StoreError(f"table session, {row.id}: this server knows no role {row.role!r}; delete the row") from None
    return Session(row.id, Actor(row.key_id or row.actor, row.actor, role), row.opened_at, row.used_at, row.expires_at)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
