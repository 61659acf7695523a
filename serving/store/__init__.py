"""What must last: studies, the audit ledger and API keys, in one SQL schema."""

from __future__ import annotations

from dataclasses import dataclass

from serving.store.database import Database
from serving.store.entries import Chain, Receipt
from serving.store.ledger import Ledger


@dataclass(frozen=True)
class Store:
    """An open store: its database, and the ledger in it."""

    database: Database
    ledger: Ledger

    @classmethod
    def open(cls, url: str, key: bytes | None = None) -> Store:
        """Args:
            url: see `serving.store.database.Database`.
            key: of the ledger's hashes, see `serving.store.ledger`.

        Raises:
            StoreError: it cannot be reached, or holds tables of another version.
        """
        database = Database(url, Chain(key).seal(Receipt(0, "")))
        return cls(database, Ledger(database, key))
