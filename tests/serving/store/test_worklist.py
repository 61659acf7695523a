"""The worklist of a large store: its pages hold each study once, and cost the same however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import pytest
import sqlalchemy as sa

from serving.errors import InvalidCursorError
from serving.interfaces.schemas import Order, Progress
from serving.store import Store
from serving.store.schema import assessment, ledger, ledger_head, study
from serving.store.worklist import COUNTED, WorklistQuery, worklist
from tests.bench.large_store import KEY, READER, SIGNED, SKIPPED, address, build_store
from tests.serving.postgres import postgres

STUDIES = 3000
ORDERS, PROGRESS, HELP = get_args(Order), get_args(Progress), (None, True, False)
QUERIES = list(product(ORDERS, PROGRESS, HELP))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("large")
    build_store(folder, STUDIES)
    large = Store.open(address(folder), KEY)
    with large.database.write() as connection:  # as many are equal in margin as in a coarse model's
        connection.execute(assessment.update().values(margin=sa.func.round(assessment.c.margin * 20) / 20))
    if request.param == "sqlite":
        yield large
        large.database.close()
        return
    with postgres() as server:
        other = Store.open(server.url, KEY)
        with large.database.read() as source, other.database.write() as target:
            target.execute(ledger_head.delete())
            for table in (study, assessment, ledger, ledger_head):
                target.execute(table.insert(), [dict(row) for row in source.execute(sa.select(table)).mappings()])
        large.database.close()
        yield other
        other.database.close()


def pages(store: Store, limit: int = 500, **query: Any) -> list[Any]:
    """All rows, a page after another by key."""
    found, after = [], None
    while True:
        page = worklist(store.database, WorklistQuery(limit=limit, after=after, **query), READER)
        found += page.rows
        after = page.after
        if after is None:
            return found
        assert len(page.rows) == limit


def expected(store: Store, order: str, progress: str, asks: bool | None) -> list[str]:
    """Digests as the tables have them, sorted and filtered in Python."""
    with store.database.read() as connection:
        added = dict(connection.execute(sa.select(study.c.digest, study.c.added_at)).all())
        rows = connection.execute(sa.select(assessment)).mappings().all()
        done = connection.execute(sa.select(ledger.c.study, ledger.c.kind).where(ledger.c.actor == READER)).all()
    kinds = {digest: {"reading": "signed", "skip": "skipped"}[kind] for digest, kind in done}
    keys = {
        "margin": lambda row: (row["margin"], row["study"]),
        "effect": lambda row: (row["expected_effect"], row["study"]),
        "newest": lambda row: (added[row["study"]], row["study"]),
    }
    kept = [
        row
        for row in rows
        if progress in ("all", kinds.get(row["study"], "unread")) and asks in (None, row["asks_for_help"])
    ]
    return [row["study"] for row in sorted(kept, key=keys[order], reverse=order != "margin")]


@pytest.mark.parametrize(("order", "progress", "asks"), QUERIES)
def test_pages_by_key_hold_each_study_once_and_in_order(
    store: Store, order: str, progress: str, asks: bool | None
) -> None:
    known = expected(store, order, progress, asks)
    limit = 500 if len(known) > 600 else 40
    found = pages(store, limit, order=order, progress=progress, help=asks)
    assert [row.assessment.study for row in found] == known
    page = worklist(store.database, WorklistQuery(order, progress, asks, 10, 20), READER)
    assert [row.assessment.study for row in page.rows] == known[20:30]
    assert (page.total, page.exact) == (min(len(known), COUNTED), len(known) <= COUNTED)


def test_each_study_says_how_far_the_reader_is(store: Store) -> None:
    mine = [row.mine for row in pages(store)]
    assert {kind: mine.count(kind) for kind in set(mine)} == {
        "signed": SIGNED,
        "skipped": SKIPPED,
        "unread": STUDIES - SIGNED - SKIPPED,
    }


@pytest.mark.parametrize(
    "after",
    ["", "x", "margin", "margin:0.5", "margin:x:a", "margin:nan:a", "margin:inf:a", "effect:0.5:a", "newest:0.5:a",
     "newest:2026-01-01:a", "margin:0.5:a\0"],
)  # fmt: skip
def test_a_page_starts_where_one_ended(store: Store, after: str) -> None:
    with pytest.raises(InvalidCursorError, match="next_after"):
        worklist(store.database, WorklistQuery("margin", after=after), READER)


def plan(store: Store, query: WorklistQuery) -> list[str]:
    """What SQLite does for a page, its count and all, statement by statement."""
    asked: list[tuple[str, Any]] = []
    engine = store.database._engine

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *more: Any) -> None:
        asked.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        worklist(store.database, query, READER)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    with store.database.read() as connection:
        return [
            str(row[3])
            for statement, parameters in asked
            if statement.startswith("SELECT")
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


@pytest.mark.parametrize(("order", "progress", "asks"), QUERIES)
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)  # PostgreSQL chooses by how many rows there are
def test_no_page_walks_over_the_whole_store(
    store: Store, order: str, progress: str, asks: bool | None, later: bool
) -> None:
    query = WorklistQuery(order, progress, asks, limit=20)  # type: ignore[arg-type]
    if later:
        first = worklist(store.database, query, READER)
        query = WorklistQuery(order, progress, asks, limit=20, after=first.after)  # type: ignore[arg-type]
    steps = plan(store, query)
    sorts = any("TEMP B-TREE FOR ORDER BY" in step for step in steps)
    walks = [step for step in steps if step.startswith(("SCAN assessment", "SCAN study", "SCAN ledger"))]
    walks = [step for step in walks if not step.startswith("SCAN ledger_head")]  # which has one row
    if progress in ("read", "signed", "skipped"):  # what this reader did is found among theirs, and sorted
        assert any("USING COVERING INDEX ledger_actor (actor=?" in step for step in steps), steps
        assert sorts and not walks, steps
    else:  # along the index of the order for as long as a page needs; few enough to be counted are sorted
        few = order == "newest" and asks is True
        used = ["worklist_help_"] if few else [f"worklist_{order}", f"worklist_help_{order}"]
        assert any(f"INDEX {name}" in step for step in steps for name in used), steps
        assert sorts == few, steps
        assert all(" INDEX worklist_" in step for step in walks), steps
