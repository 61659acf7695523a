"""The worklist: what was last said of each study, and how far one reader is with it.

A reader has *signed* a study if a reading of theirs is on record, else *skipped* it if they said so, else *read* it if
they corrected it or asked for its prediction. To upload a study is not to read it: its prediction is on record under
the request that added it.

A page costs the same however many studies there are: it starts at a key (`WorklistPage.after`), not at a number of
rows that would have to be walked over, every order has an index, and studies are counted up to `COUNTED` only. What a
page of one's unread, read, signed or skipped studies costs goes with what this reader has done, not with the store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from serving.errors import InvalidCursorError, StoreError
from serving.interfaces.schemas import Mine, Order, Progress
from serving.store.database import Database
from serving.store.ledger import REACHED
from serving.store.schema import assessment, ledger, study
from serving.store.studies import Assessment

COUNTED = 1000  # studies; of more than these a reader only wants to know that there are more


@dataclass(frozen=True)
class _Sorted:
    """An order of studies.

    Args:
        value: what it goes by.
        study: the digest, which decides between equal values; the two are an index.
        falls: the largest comes first, in both.
    """

    value: sa.ColumnElement[Any]
    study: sa.ColumnElement[str]
    falls: bool

    def sorting(self) -> _Sorted:
        """The same, but not along the index: what was found otherwise is sorted.

        SQLite would rather walk: it does not know how few rows are to be sorted.
        """
        return replace(self, value=self.value + ("" if isinstance(self.value.type, sa.String) else 0))

    def by(self) -> list[sa.ColumnElement[Any]]:
        """For ORDER BY."""
        return [each.desc() if self.falls else each.asc() for each in (self.value, self.study)]

    def behind(self, value: Any, digest: str) -> sa.ColumnElement[bool]:
        """Whether a study comes after another."""
        own, other = sa.tuple_(self.value, self.study), sa.tuple_(sa.literal(value), sa.literal(digest))
        return own < other if self.falls else own > other


_ORDERS: dict[Order, _Sorted] = {
    "margin": _Sorted(assessment.c.margin, assessment.c.study, falls=False),
    "effect": _Sorted(assessment.c.expected_effect, assessment.c.study, falls=True),
    "newest": _Sorted(study.c.added_at, study.c.digest, falls=True),
}


@dataclass(frozen=True)
class WorklistQuery:
    """Which studies, and in which order.

    Args:
        order: the smallest margin first, the largest expected effect, or the newest.
        progress: how far the reader is with them; ``read`` is read and not yet signed.
        help: only those where the model asks for help, or only the others; None: both.
        limit: so many.
        offset: from this one on.
        after: from where a page of the same order ended (`WorklistPage.after`); None: from the first.
    """

    order: Order = "margin"
    progress: Progress = "all"
    help: bool | None = None
    limit: int = 50
    offset: int = 0
    after: str | None = None


@dataclass(frozen=True)
class WorklistRow:
    """A study on the worklist; ``interactions`` counts those on record, by anybody and with any bundle, ``mine`` is the
    reader's."""

    assessment: Assessment
    assessed_at: str
    added_at: str
    interactions: int
    last_interaction_at: str | None
    mine: Mine


@dataclass(frozen=True)
class WorklistPage:
    """A page of the worklist.

    Args:
        rows: its studies.
        after: where the next page starts; None on the last one.
        total: studies of all pages, or `COUNTED` if they are more.
        exact: whether they are not more.
    """

    rows: list[WorklistRow]
    after: str | None
    total: int
    exact: bool


def worklist(database: Database, query: WorklistQuery, reader: str) -> WorklistPage:
    """A page of the studies.

    Args:
        database: the store.
        query: which.
        reader: the actor whose progress is meant.

    Raises:
        InvalidCursorError: ``after`` is not where a page of this order ended.
        StoreError: the database does not answer, or a row cannot be read.
    """
    start = None if query.after is None else _start(query.order, query.after)
    own = _done_by(reader) if query.progress in ("read", "signed", "skipped") else None
    known, mine = _known(own), _mine(reader) if own is None else _mine_in(own)
    with database.snapshot() as connection:
        wanted = _wanted(query, mine, by_help=own is None)
        some = sa.select(sa.literal(1)).select_from(known).where(*wanted).limit(COUNTED + 1).subquery()
        total = connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()
        # Few are found by their filter and sorted; many are walked through as they are sorted.
        order, by_newest = _ORDERS[query.order], query.order == "newest"
        if own is not None or (by_newest and query.help is not None and total <= COUNTED):
            order = order.sorting()
        elif by_newest:
            wanted = _wanted(query, mine, by_help=False)
        if start is not None:
            wanted = [*wanted, order.behind(*start)]
        page = (
            sa.select(assessment, study.c.added_at, mine.label("mine"))
            .select_from(known.join(study, study.c.digest == assessment.c.study))
            .where(*wanted)
            .order_by(*order.by())
            .limit(query.limit + 1)
            .offset(query.offset)
        )
        found = connection.execute(page).mappings().all()
        rows = found[: query.limit]
        counts = connection.execute(_corrections([row["study"] for row in rows])).all()
    corrected = {each.study: (each.corrections, each.last_at) for each in counts}
    return WorklistPage(
        rows=[_row(row, *corrected.get(row["study"], (0, None))) for row in rows],
        after=_cursor(query.order, rows[-1]) if len(found) > len(rows) else None,
        total=min(total, COUNTED),
        exact=total <= COUNTED,
    )


def _wanted(query: WorklistQuery, mine: sa.ColumnElement[str], by_help: bool) -> list[sa.ColumnElement[bool]]:
    """The filters. ``by_help``: studies are found by whether the model asks for help, if that is asked, and not looked
    at for it as they come."""
    wanted: list[sa.ColumnElement[bool]] = [] if query.progress == "all" else [mine == query.progress]
    if query.help is not None:
        asks: sa.ColumnElement[bool] = assessment.c.asks_for_help
        asks = asks if by_help else sa.case((asks, sa.literal(True)), else_=sa.literal(False))
        wanted.append(asks == sa.literal(query.help))
    return wanted


def _cursor(order: Order, row: Any) -> str:
    """Where the page after this row starts."""
    value = {"margin": row["margin"], "effect": row["expected_effect"], "newest": row["added_at"]}[order]
    return f"{order}:{value}:{row['study']}"


def _start(order: Order, cursor: str) -> tuple[float | str, str]:
    """The value and the digest in what `_cursor` made."""
    named, _, rest = cursor.partition(":")
    text, _, digest = rest.rpartition(":")
    try:
        value = datetime.fromisoformat(text) if order == "newest" else float(text)
    except ValueError:
        value = math.nan
    if named != order or not (isinstance(value, datetime) or math.isfinite(value)) or "\0" in digest:
        raise InvalidCursorError("after: take it from next_after of a page in the same order, as it is")
    return (text if isinstance(value, datetime) else value), digest


def _corrections(studies: Sequence[str]) -> sa.Select[Any]:
    """By anybody, counted by study."""
    return (
        sa.select(ledger.c.study, sa.func.count().label("corrections"), sa.func.max(ledger.c.at).label("last_at"))
        .where(ledger.c.kind == "interaction", ledger.c.study.in_(studies), REACHED)
        .group_by(ledger.c.study)
    )


def _known(own: sa.Subquery | None) -> sa.FromClause:
    """The studies that are looked at: all, or those with which the reader has done something."""
    return assessment if own is None else own.join(assessment, assessment.c.study == own.c.study)


def _mine(reader: str) -> sa.ColumnElement[str]:
    """How far a reader is with the study of a row of ``assessment``: a few looks into an index a row."""

    def did(*what: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
        entry = sa.select(sa.literal(1)).where(ledger.c.actor == reader, ledger.c.study == assessment.c.study, REACHED)
        return entry.where(*what).exists()

    read = sa.or_(did(ledger.c.kind == "interaction"), did(_asked()))
    return sa.case(
        (did(ledger.c.kind == "reading"), "signed"), (did(ledger.c.kind == "skip"), "skipped"), (read, "read"),
        else_="unread",
    )  # fmt: skip


def _mine_in(own: sa.Subquery) -> sa.ColumnElement[str]:
    """The same, from all that the reader has done."""
    return sa.case((own.c.signed == 1, "signed"), (own.c.skipped == 1, "skipped"), else_="read")


def _asked() -> sa.ColumnElement[bool]:
    """Whether an entry is a prediction that was asked for, and not that of an upload."""
    adding = ledger.alias()
    added = (
        sa.select(sa.literal(1))
        .where(
            adding.c.actor == ledger.c.actor,
            adding.c.kind == "study",
            adding.c.study == ledger.c.study,
            adding.c.request_id == ledger.c.request_id,
        )
        .exists()
    )
    return sa.and_(ledger.c.kind == "prediction", sa.not_(added))


def _done_by(reader: str) -> sa.Subquery:
    """What a reader has done, by study; those with which they have done nothing are not there."""
    signed, skipped = (sa.func.max(sa.case((ledger.c.kind == kind, 1), else_=0)) for kind in ("reading", "skip"))
    return (
        sa.select(ledger.c.study, signed.label("signed"), skipped.label("skipped"))
        .where(
            ledger.c.actor == reader, sa.or_(ledger.c.kind.in_(("interaction", "reading", "skip")), _asked()), REACHED
        )
        .group_by(ledger.c.study)
        .subquery()
    )


def _row(row: Any, corrections: int, last_at: str | None) -> WorklistRow:
    known = {name: row[name] for name in Assessment.__dataclass_fields__}
    try:
        known["found"] = None if row["found"] is None else tuple(json.loads(row["found"]))
    except (ValueError, TypeError):
        raise StoreError(f"the worklist row of study {row['study']} cannot be read; see csr audit verify") from None
    said = Assessment(**known)
    return WorklistRow(said, row["assessed_at"], row["added_at"], corrections, last_at, row["mine"])
