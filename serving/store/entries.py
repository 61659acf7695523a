"""What the ledger holds: entries, on whose behalf they were made, and how they are hashed."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from serving.store.database import now
from serving.store.schema import SEALED_SINCE, VERSION

Kind = Literal[
    "prediction",
    "interaction",
    "reading",
    "skip",
    "inference",
    "document",
    "shadow",
    "review",
    "model",
    "study",
    "key",
    "migration",
]
_HASHED = ("number", "at", "kind", "actor", "request_id", "once", "study", "bundle", "body", "previous")


@dataclass(frozen=True)
class Caller:
    """On whose behalf something happens.

    Args:
        actor: pseudonym of the reader, or ``system``.
        request_id: of the request, to find it in logs.
        idempotency_key: the client's name for what it wants done once; None if it will not try again.
    """

    actor: str
    request_id: str
    idempotency_key: str | None = None


SYSTEM = Caller("system", "")


@dataclass(frozen=True)
class Entry:
    """What is to be appended.

    Args:
        kind: of event.
        caller: who caused it.
        bundle: digest of the bundle that it is about.
        body: must hold ``request``, by which a repetition is told from another request with the same idempotency key,
            where the caller has one. What it holds as ``rows`` is what tables must hold, see `serving.store.rows`.
        study: its digest; empty where it is about none.
    """

    kind: Kind
    caller: Caller
    bundle: str
    body: Mapping[str, Any]
    study: str = ""

    def once(self) -> str:
        """The same for a repetition; random where the caller announced none."""
        caller = self.caller
        if caller.idempotency_key is None:
            return uuid4().hex
        named = [caller.actor, caller.idempotency_key, self.kind, self.study]
        return hashlib.sha256(canonical(named).encode()).hexdigest()


@dataclass(frozen=True)
class Receipt:
    """Where an entry stands in the chain."""

    number: int
    hash: str


class Chain:
    """The hash function of one ledger.

    Args:
        key: of the HMAC; None for plain SHA-256.
    """

    def __init__(self, key: bytes | None) -> None:
        self._key = key

    def row(self, number: int, once: str, entry: Entry, previous: str) -> dict[str, Any]:
        """A row of the table ``ledger``."""
        row: dict[str, Any] = {
            "number": number,
            "at": now(),
            "kind": entry.kind,
            "actor": entry.caller.actor,
            "request_id": entry.caller.request_id,
            "once": once,
            "study": entry.study,
            "bundle": entry.bundle,
            "body": canonical(entry.body),
            "previous": previous,
        }
        return row | {"hash": self.hash(row)}

    def hash(self, row: Mapping[str, Any]) -> str:
        """Of a row, over everything in it but the hash itself."""
        return self._digest([row[name] for name in _HASHED])

    def seal(self, head: Receipt, version: int = VERSION) -> str:
        """Of the chain's length and last hash, and of the schema's version: a store cannot pass for an older one, whose
        rows are taken as they are (`serving.store.migration`)."""
        return self._digest([head.number, head.hash, *([version] if version >= SEALED_SINCE else [])])

    def _digest(self, values: list[Any]) -> str:
        content = canonical(values).encode()
        if self._key is None:
            return hashlib.sha256(content).hexdigest()
        return hmac.digest(self._key, content, "sha256").hex()


def canonical(value: Any) -> str:
    """JSON that is the same for the same value: sorted keys, no spaces, no NaN, and nothing that a database may not
    keep."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
