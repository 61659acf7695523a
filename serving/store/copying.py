"""A whole store into another database: from SQLite to PostgreSQL, when one machine is no longer enough.

Rows are copied as they are, so the chain of the ledger is the same chain, under the same key. What is in
``write_probe`` and ``session`` says nothing that must last, and stays: browsers sign in again.
"""

from __future__ import annotations

import sqlalchemy as sa

from serving.errors import StoreError
from serving.store import Store
from serving.store.schema import ledger_head, metadata, schema_version, session, study, write_probe

_LEFT = (schema_version, session, write_probe)  # the first is made with the tables
_CHUNK, _PICTURES = 1000, 50  # rows at once


def copy_store(source: Store, target: Store) -> dict[str, int]:
    """Copies everything, or nothing. Returns the number of rows of each table.

    Nobody may write to ``source`` meanwhile: what is added behind the copy's back is not in it.

    Raises:
        StoreError: the target is not empty, or one of them does not answer.
    """
    counts: dict[str, int] = {}
    with source.database.snapshot() as read, target.database.write() as write:
        for table in metadata.sorted_tables:
            if table is ledger_head or table in _LEFT:
                continue
            if write.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None:
                raise StoreError(f"{target.database.name}: {table.name} is not empty; name an empty database")
        write.execute(ledger_head.delete())  # of the empty ledger
        for table in metadata.sorted_tables:
            if table not in _LEFT:
                counts[table.name] = _copy(read, write, table)
    return counts


def _copy(read: sa.Connection, write: sa.Connection, table: sa.Table) -> int:
    count = 0
    chunk = _PICTURES if table is study else _CHUNK
    found = read.execute(sa.select(table).execution_options(yield_per=chunk))
    for rows in found.mappings().partitions(chunk):
        write.execute(table.insert(), [dict(row) for row in rows])
        count += len(rows)
    return count
