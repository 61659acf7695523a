"""What the ledger says of other tables: an entry's body holds, as ``rows``, what was written into them with it.

Later entries count for the columns that they name. So a row that somebody inserted, deleted or changed behind the
server's back differs from what the ledger says, which nobody without its key can make say something else. Sealed are
all columns but a study's pixels, which have a digest of their own (`serving.store.verification`).

Not covered: ``session`` and ``write_probe``, whose rows come and go by themselves.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from serving.store.entries import Kind
from serving.store.schema import api_key, assessment, study, study_source

KINDS: tuple[Kind, ...] = ("study", "key", "migration")  # of the entries that write into tables
Rows = dict[str, list[dict[str, Any]]]
_CHUNK = 1000
_CACHE_KB = 64 << 10  # that a verification keeps in memory of what the ledger says of tables
_NAME = 64  # characters of a key's


@dataclass(frozen=True)
class Sealed:
    """A table that the ledger speaks of.

    Args:
        table: it.
        columns: the sealed ones.
        before: what columns of a later version are where an entry of an earlier one does not name them.
        says: how a row is called, by its values.
    """

    table: sa.Table
    columns: tuple[sa.Column[Any], ...]
    says: Callable[[Any], str]
    before: Mapping[str, Any]

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """The sealed values of a row by their columns."""
        return {column.name: value for column, value in zip(self.columns, values, strict=True)}

    @cached_property
    def key_places(self) -> tuple[int, ...]:
        """Where the primary key is among the columns."""
        return tuple(place for place, column in enumerate(self.columns) if column.primary_key)

    @cached_property
    def query(self) -> Any:
        """The sealed columns as the database holds them: SQLAlchemy would make a Boolean of anything."""
        return sa.select(*(sa.type_coerce(each, sa.types.NullType()).label(each.name) for each in self.columns))


def _sealed(
    table: sa.Table, says: Callable[[Any], str], apart: Sequence[str] = (), before: Mapping[str, Any] | None = None
) -> Sealed:
    return Sealed(table, tuple(each for each in table.columns if each.name not in apart), says, before or {})


def short(value: Any, characters: int = 12) -> str:
    """Enough of a digest or an id to find it; as letters that every terminal knows, whatever somebody put there."""
    return ascii(value[:characters])[1:-1] if isinstance(value, str) else ascii(value)[: 2 * characters]


SEALED = {
    each.table.name: each
    for each in (
        _sealed(study, lambda row: f"study {short(row['digest'])}", apart=("canvas",), before={"turn": 1}),
        _sealed(study_source, lambda row: f"DICOM source {short(row['number'])} of study {short(row['study'])}"),
        _sealed(
            assessment,
            lambda row: f"worklist row of study {short(row['study'])}",
            before={"confidence": None, "found": None, "fits": None},
        ),
        _sealed(api_key, lambda row: f"key {short(row['name'], _NAME)} (id {short(row['id'], _NAME)})"),
    )
}


class Replay:
    """Entries, oldest first → what the tables must hold.

    Kept in a file of SQLite's that is gone with the process, so memory stays the same however many rows there are;
    about 400 bytes of disk a row, in ``SQLITE_TMPDIR``. To be used as a context manager.
    """

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", isolation_level=None)  # "": a file of its own, without a name
        for statement in (
            f"PRAGMA cache_size = -{_CACHE_KB}",
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE expected (name TEXT, key TEXT, said TEXT, PRIMARY KEY (name, key)) WITHOUT ROWID",
            "BEGIN",
        ):
            self._rows.execute(statement)

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *error: object) -> None:
        self._rows.close()

    def take(self, entry: sa.RowMapping) -> bool:
        """Takes note of an entry; False if it cannot be read."""
        if entry["kind"] not in KINDS:
            return True
        try:
            for name, rows in json.loads(entry["body"])["rows"].items():
                for values in rows:
                    self._note(SEALED[name], values)
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        return True

    def faults(self, connection: sa.Connection) -> Iterator[str]:
        """How the tables differ from what was taken note of."""
        for name, sealed in SEALED.items():
            query = sealed.query.execution_options(yield_per=_CHUNK)
            for row in connection.execute(query):
                known = self._taken_out(name, tuple(row[place] for place in sealed.key_places))
                if known is None:
                    yield f"{sealed.says(sealed.named(row))}: was put there, the ledger does not know it"
                    continue
                for column, found, said in zip(sealed.columns, row, known, strict=True):
                    if not same_value(found, said):
                        yield f"{sealed.says(sealed.named(row))}: {column.name} was changed"
            for (said,) in self._rows.execute("SELECT said FROM expected WHERE name = ? ORDER BY key", (name,)):
                yield f"{sealed.says(sealed.named(json.loads(said)))}: is gone, though the ledger knows it"

    def _note(self, sealed: Sealed, values: dict[str, Any]) -> None:
        key = (sealed.table.name, _text(tuple(values[sealed.columns[place].name] for place in sealed.key_places)))
        if any(each.name not in values for each in sealed.columns):
            found = self._rows.execute("SELECT said FROM expected WHERE name = ? AND key = ?", key).fetchone()
            values = {**(sealed.before if found is None else sealed.named(json.loads(found[0]))), **values}
            if found is None and any(each.name not in values for each in sealed.columns):
                return  # a change to a row that nobody added: it stays unknown
        said = json.dumps([values[each.name] for each in sealed.columns])
        self._rows.execute("INSERT OR REPLACE INTO expected VALUES (?, ?, ?)", (*key, said))

    def _taken_out(self, name: str, key: tuple[Any, ...]) -> list[Any] | None:
        query = "DELETE FROM expected WHERE name = ? AND key = ? RETURNING said"
        found = self._rows.execute(query, (name, _text(key))).fetchall()
        return json.loads(found[0][0]) if found else None


def _text(key: tuple[Any, ...]) -> str:
    """A primary key as text: JSON, or, of what no server wrote, as Python shows it."""
    try:
        return json.dumps(key)
    except TypeError:
        return repr(key)


def same_value(found: Any, expected: Any) -> bool:
    """Whether a database holds this value, and as what it was written."""
    if isinstance(expected, bool) and type(found) is int:  # SQLite has no others
        return found == int(expected)
    return type(found) is type(expected) and bool(found == expected)
