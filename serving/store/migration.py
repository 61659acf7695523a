"""The tables are made where there are none, and brought to this version where they are of an earlier one.

- Version 2 added ``session`` and ``write_probe``.
- Version 3 added ``study_source``, and seals what the tables hold (`serving.store.rows`): the rows that are there are
  put on record as they are found, once, and a head that was never sealed, as that of an empty ledger in version 1, is.
- Version 4 added ``study.turn``. Images were not turned before, and an entry that does not name the column means that
  (`serving.store.rows`), so nothing is put on record.
- Version 5 added ``assessment.confidence``, ``found`` and ``fits``. These stay empty, which is what an entry means that
  does not name them, until a study is encoded anew; nothing is put on record.

Indexes have no version: those that are missing are made at any start, which at 1,000,000 studies takes a minute once,
and a server that does not know them goes on beside one that does.

Whatever was altered before version 3 is sealed as it was found: verify the store with its own version first. Nobody can
have rows sealed a second time by calling a store older than it is, since its head is sealed with its version. A store
whose head does not have the seal of the version that it says is left as it is.

A server of an earlier version that still runs meanwhile finds no head from then on, or one that is not sealed as its
own: it says that it is not ready, and writes nothing. All of it is one transaction, so it happens or it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from serving.errors import StoreError
from serving.store.database import Database, take_time
from serving.store.entries import SYSTEM, Chain, Entry, Receipt, canonical
from serving.store.rows import SEALED, Sealed
from serving.store.schema import (
    HEAD,
    SEALED_SINCE,
    VERSION,
    assessment,
    ledger,
    ledger_head,
    metadata,
    schema_version,
    study,
    study_source,
)
from serving.store.tail import HEADS, Tail, is_sealed

_CREATION_LOCK = 7_214_021  # any number: PostgreSQL's advisory lock of those who create the tables
_HEAD_BEFORE_3 = 1
_ROWS_AN_ENTRY = 200
_ADDED = {  # columns, by the version that added them
    4: ("study ADD COLUMN turn INTEGER NOT NULL DEFAULT 1",),
    5: (
        "assessment ADD COLUMN confidence FLOAT(53)",
        "assessment ADD COLUMN found TEXT",
        "assessment ADD COLUMN fits BOOLEAN",
    ),
}
_REPLACED = {"assessment_margin", "assessment_effect"}  # indexes
_RENAME = "ALTER TABLE study RENAME COLUMN source TO source_before_3"  # older servers must not find it
_COPY = study_source.insert().from_select(
    ["study", "number", "added_at", "source"],
    sa.select(study.c.digest, sa.literal(1), study.c.added_at, sa.literal_column("source_before_3")).where(
        sa.literal_column("source_before_3").is_not(None)
    ),
)


def prepare(database: Database, chain: Chain, migrate: bool = True) -> None:
    """Makes a store's tables what this server needs.

    Args:
        database: the store.
        chain: of its ledger.
        migrate: False: they must be so already.

    Raises:
        StoreError: it cannot be reached, it holds tables of another version, or its ledger's head is not what that
            version left.
    """
    with database.write() if migrate else database.read() as connection:
        if migrate and connection.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATION_LOCK})
        found = _version(connection, database.name)
        if found is None and migrate:
            metadata.create_all(connection)
            head = {"id": HEAD, "length": 0, "hash": "", "seal": chain.seal(Receipt(0, ""))}
            connection.execute(ledger_head.insert().values(head))
        elif found in range(1, VERSION) and migrate:
            _migrate(connection, chain, database.name, found)
        elif found != VERSION:
            more = "; any `csr keys` or the server's start brings it there" if found in range(1, VERSION) else ""
            raise StoreError(f"{database.name}: has tables of version {found}, this server needs {VERSION}{more}")
        if migrate:
            _make_indexes(connection)
        if found != VERSION:
            connection.execute(schema_version.insert().values(version=VERSION))


def _version(connection: sa.Connection, name: str) -> Any:
    """Of the tables that there are; None if there are none."""
    tables = sa.inspect(connection).get_table_names()
    found = None
    if schema_version.name in tables:
        found = connection.execute(sa.select(sa.func.max(schema_version.c.version))).scalar_one()
    if found is None and ledger_head.name in tables:
        raise StoreError(f"{name}: has tables, but does not say of which version")
    return found


def _migrate(connection: sa.Connection, chain: Chain, name: str, found: int) -> None:
    metadata.create_all(connection)  # those that are missing
    if not _is_whole(connection, chain, found):
        raise StoreError(
            f"{name}: is of version {found}, and the head of its ledger is not what that version left; the "
            "`csr audit verify` of that version says more"
        )
    take_time(connection)
    for version in range(found + 1, VERSION + 1):
        for column in _ADDED.get(version, ()):
            connection.execute(sa.text(f"ALTER TABLE {column}"))
    length, last = connection.execute(sa.select(ledger_head.c.length, ledger_head.c.hash)).one()
    seal = chain.seal(Receipt(length, last))
    connection.execute(sa.update(ledger_head).values(id=HEAD, seal=seal))
    if found < SEALED_SINCE:
        connection.execute(sa.text(_RENAME))
        connection.execute(_COPY)
        _seal_rows(connection, chain)


def _make_indexes(connection: sa.Connection) -> None:
    """Those that are missing, and takes away those that others took the place of."""
    inspector = sa.inspect(connection)
    there = {index["name"] for table in metadata.sorted_tables for index in inspector.get_indexes(table.name)}
    missing = [each for table in metadata.sorted_tables for each in table.indexes if each.name not in there]
    if missing:
        take_time(connection)
    for each in missing:
        each.create(connection)
    for name in _REPLACED & there:
        connection.execute(sa.text(f"DROP INDEX {name}"))


def _seal_rows(connection: sa.Connection, chain: Chain) -> None:
    """Puts what the tables hold on record."""
    tail = Tail(connection, chain)
    for sealed in SEALED.values():
        for rows in _rows(connection, sealed):
            entry = Entry("migration", SYSTEM, "", {"version": VERSION, "rows": {sealed.table.name: rows}})
            tail.add(entry, entry.once())
    tail.write()


def _is_whole(connection: sa.Connection, chain: Chain, found: int) -> bool:
    """Whether head and last entry are what a version left."""
    heads = connection.execute(HEADS).mappings().all()
    if len(heads) != 1 or heads[0]["id"] != (_HEAD_BEFORE_3 if found < SEALED_SINCE else HEAD):
        return False
    head = heads[0]
    last = connection.execute(sa.select(ledger.c.number, ledger.c.hash).order_by(ledger.c.number.desc())).first()
    if found < SEALED_SINCE and last is None and (head["length"], head["hash"], head["seal"]) == (0, "", ""):
        return not any(
            connection.execute(sa.select(sa.literal(1)).select_from(each).limit(1)).first()
            for each in (study, assessment)
        )
    return is_sealed(head, chain, found) and (head["length"], head["hash"]) == (tuple(last) if last else (0, ""))


def _rows(connection: sa.Connection, sealed: Sealed) -> Iterator[list[dict[str, Any]]]:
    """What a table holds, in parts. Values that no server wrote are left out, and stay unknown to the ledger."""
    found = connection.execute(sealed.query.execution_options(yield_per=_ROWS_AN_ENTRY)).mappings()
    for part in found.partitions():
        yield [dict(row) for row in part if _can_be_told(row)]


def _can_be_told(row: sa.RowMapping) -> bool:
    try:
        canonical(dict(row))
    except (TypeError, ValueError):
        return False
    return True
