"""Changes of what is in service, as the ledger has them."""

from __future__ import annotations

from dataclasses import replace

from serving.interfaces.schemas import ModelChange, Record
from serving.models.in_service import Role
from serving.store.entries import SYSTEM, Entry
from serving.store.ledger import Ledger


def change_entry(role: Role, digest: str, version: str, previous: str, after: int) -> Entry:
    """A change of what is in service, which all replicas report and which is put on record once.

    Args:
        role: that changes.
        digest, version: of the bundle; empty where a trial ended.
        previous: the digest of the bundle before it.
        after: the number of the entry that put that into service.
    """
    caller = replace(SYSTEM, idempotency_key=f"{role} {digest} after {after}")
    request = {"role": role, "version": version, "previous_digest": previous}
    return Entry("model", caller, digest, {"request": request})


def changes(ledger: Ledger) -> list[ModelChange]:
    """All changes of what is in service, oldest first."""
    return [
        ModelChange(
            at=row["at"],
            digest=row["bundle"],
            record=Record(number=row["number"], hash=row["hash"]),
            **row["body"]["request"],
        )
        for row in ledger.entries("model")
    ]
