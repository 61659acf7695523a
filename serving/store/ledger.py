"""The audit ledger: an append-only chain in which every entry carries the hash of the one before.

    hash(n) = H(number, at, kind, actor, request_id, once, study, bundle, body, hash(n − 1))        hash(0) = ""

H is HMAC-SHA256 with a secret key, so that whoever can write to the database but has not the key can change nothing
unnoticed; without a key it is SHA-256, which shows accidents and clumsy hands only. `Ledger.verify` finds any entry
that was changed, removed, added or moved. The head, sealed the same way from the first, empty one on, says how long the
chain is, so that it cannot be cut at its end either; nobody reads a row that it does not reach, and nothing is added
behind a head whose seal is broken. Entries say what other tables hold, too (`serving.store.rows`), and the tables are
compared with them. A database that was put back whole to an earlier state is sound in itself: compare with a head that
was noted elsewhere.

Concurrency: `Ledger.append` returns when its entry is durable. One transaction at a time writes; whoever comes
meanwhile rides in the next, which the first of them writes for all, so under load many entries share one sync of the
disk, and each thread is woken once. Replicas take turns at the head.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from serving.errors import IdempotencyError, StoreError
from serving.store.database import Database
from serving.store.entries import Chain, Entry, Kind, Receipt, canonical
from serving.store.rows import Replay
from serving.store.schema import HEAD, ledger, ledger_head
from serving.store.tail import HEADS, Tail, check_head, head_faults, head_of, same

Also = Callable[[sa.Connection], Sequence[Entry]]
_CHUNK = 1000
_LENGTH = sa.select(ledger_head.c.length).where(ledger_head.c.id == HEAD).scalar_subquery()
REACHED = ledger.c.number <= _LENGTH  # nobody reads a row behind the head
_LAST = sa.select(sa.func.max(ledger.c.number))
_MOST_FAULTS = 20


@dataclass(frozen=True)
class Verification:
    """What `Ledger.verify` found; the ledger is sound if there are no faults."""

    head: Receipt
    faults: tuple[str, ...]


@dataclass(eq=False)
class _Ticket:
    """What one caller wants written, and what became of it.

    ``turn`` is held until it is done, or until its caller is the one who writes.
    """

    entries: Sequence[Entry]
    also: Also | None
    receipts: list[Receipt] = field(default_factory=list)
    error: BaseException | None = None
    done: bool = False
    turn: threading.Lock = field(default_factory=threading.Lock)


class _Refused(Exception):
    """One caller's mistake, which is not the others'."""

    def __init__(self, ticket: _Ticket, error: Exception) -> None:
        super().__init__(str(error))
        self.ticket = ticket
        self.error = error


class Ledger:
    """Args:
    database: where it is kept.
    key: of the HMAC; None for plain SHA-256.
    """

    def __init__(self, database: Database, key: bytes | None) -> None:
        self._database = database
        self._chain = Chain(key)
        self._pending: list[_Ticket] = []
        self._guard = threading.Lock()
        self._writing = False  # somebody writes, or was told to

    def append(self, entries: Sequence[Entry], also: Also | None = None) -> list[Receipt]:
        """Appends entries, all or none, and returns once they are durable.

        An entry that repeats one of the same actor, idempotency key, kind and study is not appended again; its receipt
        is the first one's.

        Args:
            entries: in their order.
            also: writes more in the same transaction, and says what: its entries come first. It may be called again.

        Raises:
            What ``also`` raises: nothing was written.
            IdempotencyError: an idempotency key was used before for another request.
            StoreError: nothing was written, or it is not known because the connection broke while it committed.
        """
        ticket = _Ticket(entries, also)
        ticket.turn.acquire()
        with self._guard:
            self._pending.append(ticket)
            waits, self._writing = self._writing, True
        if waits:
            ticket.turn.acquire()
        if not ticket.done:
            self._write_all()
        if ticket.error is not None:
            raise ticket.error
        return ticket.receipts

    def verify(self, anchor: Receipt | None = None) -> Verification:
        """Walks the whole chain, and compares what it says of other tables with them; all as of one moment, and in the
        same memory however long the chain is.

        Args:
            anchor: a head that was noted elsewhere; the chain must still contain it.

        Raises:
            StoreError: the database does not answer.
        """
        with self._database.snapshot() as connection, Replay() as replay:
            heads = connection.execute(HEADS).mappings().all()
            head = head_of(heads)
            faults: list[str] = []
            for fault in chain(
                head_faults(heads, self._chain),
                self._faults(connection, head, anchor, replay),
                replay.faults(connection),
            ):
                if len(faults) == _MOST_FAULTS:
                    faults.append("and more")
                    break
                faults.append(fault)
        return Verification(head, tuple(faults))

    def head(self) -> Receipt:
        """Its last entry; number 0 where there is none.

        Raises:
            StoreError: the database does not answer, or the head cannot be read.
        """
        with self._database.snapshot() as connection:
            return head_of(connection.execute(HEADS).mappings().all())

    def check(self) -> None:
        """Whether it can be appended to.

        Raises:
            StoreError: the database does not answer, the head was changed, or there are rows where the next entry must
                go.
        """
        with self._database.snapshot() as connection:
            heads = connection.execute(HEADS).mappings().all()
            last = connection.execute(_LAST).scalar_one()
        check_head(heads, self._chain)
        if (last or 0) != head_of(heads).number:
            raise StoreError("the ledger and its head do not end at the same entry; see csr audit verify")

    def repeated(self, entry: Entry) -> Receipt | None:
        """The receipt of the entry that this one would repeat, before anything is done for it; None if it repeats none.

        Raises:
            IdempotencyError: its idempotency key was used before for another request.
            StoreError: the database does not answer.
        """
        if entry.caller.idempotency_key is None:
            return None
        with self._database.read() as connection:
            known = _known(connection, [entry.once()])
        return _repeated(known[entry.once()], entry) if known else None

    def entries(
        self,
        kind: Kind | None = None,
        studies: Collection[str] | None = None,
        after: int = 0,
        until: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Entries as dictionaries with their body parsed, oldest first, as far as the head reaches.

        Args:
            kind, studies: only of this kind, only about one of these.
            after: only with a higher number.
            until: only with this number or a lower one.

        Raises:
            StoreError: the database does not answer, or an entry cannot be read.
        """
        query = sa.select(ledger).where(ledger.c.number > after, REACHED)
        # A sum, or SQLite walks over all entries of the kind in their order and not over those of the studies.
        query = query.order_by(ledger.c.number if studies is None else ledger.c.number + 0)
        if kind is not None:
            query = query.where(ledger.c.kind == kind)
        if studies is not None:
            query = query.where(ledger.c.study.in_(studies))
        if until is not None:
            query = query.where(ledger.c.number <= until)
        with self._database.read() as connection:
            for row in connection.execute(query.execution_options(yield_per=_CHUNK)):
                yield dict(row._mapping) | {"body": _parsed(row)}

    def _write_all(self) -> None:
        """Writes what waits, wakes whose it was, and lets the first of those who came meanwhile write theirs."""
        with self._guard:
            batch, self._pending = self._pending, []
        try:
            self._write(list(batch))
        finally:
            with self._guard:
                following = self._pending[:1]
                self._writing = bool(following)
            for ticket in batch:
                ticket.done = True
            for ticket in (*following, *batch):
                ticket.turn.release()

    def _write(self, batch: list[_Ticket]) -> None:
        while batch:
            try:
                self._commit(batch)
            except _Refused as refused:
                refused.ticket.error = refused.error
                batch.remove(refused.ticket)
                continue
            except BaseException as error:
                if len(batch) > 1 and _is_of_one(error):
                    for ticket in batch:
                        self._write([ticket])
                else:
                    for ticket in batch:
                        ticket.error = error
            return

    def _commit(self, batch: list[_Ticket]) -> None:
        given = [[(entry.once(), entry) for entry in ticket.entries] for ticket in batch]
        with self._database.write() as connection:
            tail = Tail(connection, self._chain)
            known = _known(
                connection, [once for pairs in given for once, entry in pairs if entry.caller.idempotency_key]
            )
            receipts = [self._add(connection, tail, known, *each) for each in zip(batch, given, strict=True)]
            tail.write()
        for ticket, own in zip(batch, receipts, strict=True):
            ticket.receipts = own

    def _add(
        self,
        connection: sa.Connection,
        tail: Tail,
        known: dict[str, Any],
        ticket: _Ticket,
        pairs: list[tuple[str, Entry]],
    ) -> list[Receipt]:
        """Adds one caller's entries to the tail; ``known`` are those with an idempotency key that are there already.

        Raises:
            _Refused: they are at fault.
            StoreError, SQLAlchemyError: the database does not answer.
        """
        receipts = []
        try:
            for entry in ticket.also(connection) if ticket.also is not None else ():
                tail.add(entry, entry.once())
            for once, entry in pairs:
                if once in known:
                    receipts.append(_repeated(known[once], entry))
                    continue
                known[once] = added = tail.add(entry, once)
                receipts.append(Receipt(added["number"], added["hash"]))
        except (StoreError, SQLAlchemyError):
            raise
        except Exception as error:
            raise _Refused(ticket, error) from None
        return receipts

    def _faults(
        self, connection: sa.Connection, head: Receipt, anchor: Receipt | None, replay: Replay
    ) -> Iterator[str]:
        query = sa.select(ledger).order_by(ledger.c.number)
        expected, previous = 1, ""
        for row in connection.execute(query.execution_options(yield_per=_CHUNK)).mappings():
            number = row["number"]
            if number < expected:
                yield f"entry {number}: is before the first"
                continue
            if number > head.number:
                yield f"entry {number}: is beyond the head"
                continue
            if number > expected:
                yield f"{_span(expected, number - 1)} missing"
            elif row["previous"] != previous:
                yield f"entry {number}: does not follow the one before it"
            if not same(row["hash"], self._hash(row)):
                yield f"entry {number}: was changed"
            if anchor is not None and number == anchor.number and row["hash"] != anchor.hash:
                yield f"entry {number}: is not the one that was noted"
            if not replay.take(row):
                yield f"entry {number}: what it says of other tables cannot be read"
            expected, previous = number + 1, row["hash"]
        if expected <= head.number:
            yield f"{_span(expected, head.number)} missing"
        if previous != head.hash:
            yield "head: is not the hash of the last entry"
        if anchor is not None and anchor.number > head.number:
            yield f"{_span(head.number + 1, anchor.number)} missing, though noted elsewhere"

    def _hash(self, row: sa.RowMapping) -> str | None:
        """What the row's hash must be; None if it holds what the ledger never writes, a blob for example."""
        try:
            return self._chain.hash(dict(row))
        except (TypeError, ValueError):
            return None


def _is_of_one(error: BaseException) -> bool:
    """Whether a failure may be of one entry, which the database or its driver does not take, and not of all."""
    if isinstance(error, StoreError):
        return isinstance(error.__cause__, DataError | IntegrityError)
    return isinstance(error, Exception)


def _parsed(row: Any) -> Any:
    try:
        return json.loads(row.body)
    except (TypeError, ValueError):
        raise StoreError(f"ledger entry {row.number} cannot be read; see csr audit verify") from None


def _span(first: int, last: int) -> str:
    return f"entry {first}:" if first == last else f"entries {first} to {last}:"


def _known(connection: sa.Connection, keys: list[str]) -> dict[str, Any]:
    if not keys:
        return {}
    query = sa.select(ledger).where(ledger.c.once.in_(keys), REACHED)
    return {row["once"]: row for row in connection.execute(query).mappings()}


def _repeated(row: Any, entry: Entry) -> Receipt:
    if canonical(json.loads(row["body"])["request"]) != canonical(entry.body["request"]):
        raise IdempotencyError(
            f"the idempotency key was used before for another request (ledger entry {row['number']}); choose a new one"
        )
    return Receipt(row["number"], row["hash"])
