"""What must last: studies, the audit ledger and API keys, in one SQL schema."""

from __future__ import annotations

from dataclasses import dataclass

from serving.store.database import Database
from serving.store.entries import Chain
from serving.store.ledger import Ledger
from serving.store.migration import prepare


@dataclass(frozen=True)
class Store:
    """An open store: its database, and the ledger in it."""

    database: Database
    ledger: Ledger

    @classmethod
    def open(cls, url: str, key: bytes | None = None, migrate: bool = True) -> Store:
        """Args:
            url: see `serving.store.database.Database`.
            key: of the ledger's hashes, see `serving.store.ledger`.
            migrate: makes the tables where there are none, and brings those of an earlier version to this one.

        Raises:
            StoreError: it cannot be reached, or holds tables of another version.
        """
        database = Database(url)
        prepare(database, Chain(key), migrate)
        return cls(database, Ledger(database, key))
