"""What the ledger says of other tables: an entry's body holds, as ``rows``, what was written into them with it.

Later entries count for the columns that they name. So a row that somebody inserted, deleted or changed behind the
server's back differs from what the ledger says, which nobody without its key can make say something else. Sealed are
all columns but a study's pixels, which have a digest of their own (`serving.store.verification`).

Not covered: ``session`` and ``write_probe``, whose rows come and go by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from serving.store.schema import api_key, assessment, study, study_source

KINDS = ("study", "key", "migration")  # of the entries that write into tables
Rows = dict[str, list[dict[str, Any]]]
_CHUNK = 1000
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

    def key(self, values: Mapping[str, Any] | sa.RowMapping) -> tuple[Any, ...]:
        """A row's primary key."""
        return tuple(values[column.name] for column in self.table.primary_key)

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """The sealed values of a row by their columns."""
        return {column.name: value for column, value in zip(self.columns, values, strict=True)}

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
    """Entries, oldest first → what the tables must hold. About 500 bytes a row."""

    def __init__(self) -> None:
        self._expected: dict[str, dict[tuple[Any, ...], tuple[Any, ...]]] = {name: {} for name in SEALED}

    def take(self, entry: sa.RowMapping) -> bool:
        """Takes note of an entry; False if it cannot be read."""
        if entry["kind"] not in KINDS:
            return True
        try:
            for name, rows in json.loads(entry["body"])["rows"].items():
                for values in rows:
                    self._note(SEALED[name], self._expected[name], values)
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        return True

    def faults(self, connection: sa.Connection) -> Iterator[str]:
        """How the tables differ from what was taken note of."""
        for name, sealed in SEALED.items():
            expected = self._expected[name]
            query = sealed.query.execution_options(yield_per=_CHUNK)
            for row in connection.execute(query).mappings():
                what, known = sealed.says(row), expected.pop(sealed.key(row), None)
                if known is None:
                    yield f"{what}: was put there, the ledger does not know it"
                    continue
                for column, said in zip(sealed.columns, known, strict=True):
                    if not same_value(row[column.name], said):
                        yield f"{what}: {column.name} was changed"
            for key in sorted(expected, key=str):
                yield f"{sealed.says(sealed.named(expected[key]))}: is gone, though the ledger knows it"

    @staticmethod
    def _note(sealed: Sealed, known: dict[tuple[Any, ...], tuple[Any, ...]], values: dict[str, Any]) -> None:
        before = known.get(sealed.key(values))
        values = {**(sealed.before if before is None else sealed.named(before)), **values}
        if before is None and any(each.name not in values for each in sealed.columns):
            return  # a change to a row that nobody added: it stays unknown
        known[sealed.key(values)] = tuple(values[each.name] for each in sealed.columns)


def same_value(found: Any, expected: Any) -> bool:
    """Whether a database holds this value, and as what it was written."""
    if isinstance(expected, bool) and type(found) is int:  # SQLite has no others
        return found == int(expected)
    return type(found) is type(expected) and bool(found == expected)
