"""The worklist: what was last said of each study, and how far one reader is with it.

A reader has *signed* a study if a reading of theirs is on record, else *skipped* it if they said so, else *read* it if
they corrected it or asked for its prediction. To upload a study is not to read it: its prediction is on record under
the request that added it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from serving.errors import StoreError
from serving.interfaces.schemas import Mine, Order, Progress
from serving.store.database import Database
from serving.store.ledger import REACHED
from serving.store.schema import assessment, ledger, study
from serving.store.studies import Assessment

_ORDERS: dict[Order, sa.ColumnElement[Any]] = {
    "margin": assessment.c.margin.asc(),
    "effect": assessment.c.expected_effect.desc(),
    "newest": study.c.added_at.desc(),
}


@dataclass(frozen=True)
class WorklistQuery:
    """Which studies, and in which order.

    Args:
        order: the smallest margin first, the largest expected effect, or the newest.
        progress: how far the reader is with them; ``read`` is read and not yet signed.
        help: only those where the model asks for help, or only the others; None: both.
        limit, offset: so many, from this one on.
    """

    order: Order = "margin"
    progress: Progress = "all"
    help: bool | None = None
    limit: int = 50
    offset: int = 0


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


def worklist(database: Database, query: WorklistQuery, reader: str) -> tuple[list[WorklistRow], int]:
    """A page of the studies, and how many there are on all pages.

    Args:
        database: the store.
        query: which.
        reader: the actor whose progress is meant.

    Raises:
        StoreError: the database does not answer, or a row cannot be read.
    """
    own = _done_by(reader)
    mine: sa.ColumnElement[str] = sa.case(
        (own.c.study.is_(None), "unread"), (own.c.signed == 1, "signed"), (own.c.skipped == 1, "skipped"), else_="read"
    )
    known = assessment.outerjoin(own, own.c.study == assessment.c.study)
    wanted = []
    if query.progress != "all":
        wanted.append(mine == query.progress)
    if query.help is not None:
        wanted.append(assessment.c.asks_for_help == sa.literal(query.help))
    counted = sa.select(sa.func.count()).select_from(known if wanted else assessment).where(*wanted)
    page = (
        sa.select(assessment, study.c.added_at, mine.label("mine"))
        .select_from(known.join(study, study.c.digest == assessment.c.study))
        .where(*wanted)
        .order_by(_ORDERS[query.order], assessment.c.study)
        .limit(query.limit)
        .offset(query.offset)
    )
    with database.snapshot() as connection:
        total = connection.execute(counted).scalar_one()
        rows = connection.execute(page).mappings().all()
        found = connection.execute(_corrections([row["study"] for row in rows])).all()
    corrected = {each.study: (each.corrections, each.last_at) for each in found}
    return [_row(row, *corrected.get(row["study"], (0, None))) for row in rows], total


def _corrections(studies: Sequence[str]) -> sa.Select[Any]:
    """By anybody, counted by study."""
    return (
        sa.select(ledger.c.study, sa.func.count().label("corrections"), sa.func.max(ledger.c.at).label("last_at"))
        .where(ledger.c.kind == "interaction", ledger.c.study.in_(studies), REACHED)
        .group_by(ledger.c.study)
    )


def _done_by(reader: str) -> sa.Subquery:
    """What a reader has done, by study; those with which they have done nothing are not there."""
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
    asked = sa.and_(ledger.c.kind == "prediction", sa.not_(added))
    signed, skipped = (sa.func.max(sa.case((ledger.c.kind == kind, 1), else_=0)) for kind in ("reading", "skip"))
    return (
        sa.select(ledger.c.study, signed.label("signed"), skipped.label("skipped"))
        .where(ledger.c.actor == reader, sa.or_(ledger.c.kind.in_(("interaction", "reading", "skip")), asked), REACHED)
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
