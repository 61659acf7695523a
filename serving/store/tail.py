"""The end of the chain: where the next entries go, and whether it is where the ledger left it."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from serving.errors import StoreError
from serving.store.entries import Chain, Entry, Receipt
from serving.store.schema import HEAD, VERSION, ledger, ledger_head

# Made once: to build and compile a statement costs more than to run it.
HEADS = sa.select(ledger_head).order_by(ledger_head.c.id)
_LOCK = HEADS.with_for_update()
_ADD = ledger.insert()
_MOVE = (
    sa.update(ledger_head)
    .where(ledger_head.c.id == HEAD)
    .values({name: sa.bindparam(f"new_{name}") for name in ("length", "hash", "seal")})
)


class Tail:
    """The end of the chain in a transaction, which holds its lock until it ends.

    A head whose seal is broken is never sealed anew: whoever cut the ledger's end would only have to wait for the next
    entry.

    Raises:
        StoreError: the head is not as the ledger left it.
    """

    def __init__(self, connection: sa.Connection, chain: Chain) -> None:
        heads = connection.execute(_LOCK).mappings().all()
        check_head(heads, chain)
        self._connection = connection
        self._chain = chain
        self._rows: list[dict[str, Any]] = []
        self._head = head_of(heads)

    def add(self, entry: Entry, once: str) -> dict[str, Any]:
        """Appends an entry, and returns its row."""
        row = self._chain.row(self._head.number + 1, once, entry, self._head.hash)
        self._head = Receipt(row["number"], row["hash"])
        self._rows.append(row)
        return row

    def write(self) -> None:
        """Writes what was appended."""
        if self._rows:
            self._connection.execute(_ADD, self._rows)
            head, seal = self._head, self._chain.seal(self._head)
            self._connection.execute(_MOVE, {"new_length": head.number, "new_hash": head.hash, "new_seal": seal})


def head_of(heads: Sequence[sa.RowMapping]) -> Receipt:
    """The head; that of an empty ledger if there is none."""
    for row in heads:
        if row["id"] == HEAD and type(row["length"]) is int:
            return Receipt(row["length"], row["hash"])
    return Receipt(0, "")


def head_faults(heads: Sequence[sa.RowMapping], chain: Chain) -> Iterator[str]:
    """What is wrong with the table ``ledger_head``."""
    own = [row for row in heads if row["id"] == HEAD]
    if not own:
        yield "head: is missing"
    if len(heads) > 1:
        yield f"head: there are {len(heads)} of them"
    if own and not is_sealed(own[0], chain):
        yield "head: was changed"


def check_head(heads: Sequence[sa.RowMapping], chain: Chain) -> None:
    """Raises:
    StoreError: something is wrong with it.
    """
    for fault in head_faults(heads, chain):
        raise StoreError(f"nothing can be added to the ledger ({fault}); see csr audit verify")


def is_sealed(row: sa.RowMapping, chain: Chain, version: int = VERSION) -> bool:
    """Whether a head has the seal of this version; what is of another type than we write has none."""
    if type(row["length"]) is not int:
        return False
    try:
        return same(row["seal"], chain.seal(Receipt(row["length"], row["hash"]), version))
    except (TypeError, ValueError):
        return False


def same(found: Any, expected: str | None) -> bool:
    """Whether a value of a table is the hash that it must be, in a time that tells nothing."""
    if not isinstance(found, str) or expected is None:
        return False
    return hmac.compare_digest(found.encode(errors="surrogateescape"), expected.encode())
