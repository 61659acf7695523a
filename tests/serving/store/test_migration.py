"""Stores of earlier versions: nothing is lost, what they hold is sealed once, and nobody has it sealed again."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import sqlalchemy as sa

from serving.access.keys import KeyStore
from serving.access.roles import Role
from serving.errors import StoreError
from serving.store import Store
from serving.store.entries import Caller, Chain, Entry, Receipt, canonical
from serving.store.schema import (
    HEAD,
    VERSION,
    api_key,
    assessment,
    ledger,
    ledger_head,
    metadata,
    schema_version,
    session,
    study,
    study_source,
    write_probe,
)
from serving.store.studies import (
    Assessment,
    keep_assessment,
    keep_study,
    load_sources,
    load_study,
    study_row,
)
from serving.store.verification import verify_studies
from serving.store.worklist import WorklistQuery, worklist
from tests.serving.store.test_database import url
from tests.serving.store.test_ledger import KEY, change, entry, server, store
from tests.serving.store.test_verification import make

__all__ = ["server", "store"]
CALLER = Caller("key:a", "r")
# Columns, by the version that added them.
ADDED = {4: (("study", "turn"),), 5: (("assessment", "confidence"), ("assessment", "found"), ("assessment", "fits"))}
SOURCES = ('{"sop_class_uid":"1"}', None, '{"sop_class_uid":"2"}')


def fill(store: Store) -> list[str]:
    """Three studies, with what is said of them, two keys, one of them revoked, and a review."""
    digests = []
    for seed, source in enumerate(SOURCES):
        given, row = make(seed), study_row(make(seed))
        image = {"width": given.placement.width, "height": given.placement.height}
        said = Assessment(given.digest, "b", "1", "mass", 0.25, 0.5, seed == 1, False, 0.75, ("mass",), True)
        store.ledger.append(
            [Entry("prediction", CALLER, "b", {"request": {"image": image}}, given.digest)],
            lambda connection, row=row, source=source, said=said: keep_study(connection, CALLER, row, source, said),
        )
        digests.append(given.digest)
    keys = KeyStore(store)
    keys.create("dr-lee", Role.READER)
    keys.revoke(keys.create("left", Role.ADMIN)[0].id)
    store.ledger.append([Entry("review", CALLER, "b", {"request": {"verdict": "keep"}})])
    return digests


def age(store: Store, version: int) -> None:
    """Makes it what a server of an earlier version left: the same rows, of which its ledger said nothing."""
    chain, end = Chain(KEY), Receipt(0, "")
    missing = [pair for since, pairs in ADDED.items() if version < since for pair in pairs]
    with store.database.write() as connection:
        connection.exec_driver_sql("DROP INDEX ledger_actor")
        for table, column in missing:
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
        entries = connection.execute(sa.select(ledger).order_by(ledger.c.number)).mappings().all()
        connection.execute(ledger.delete())
        for row in entries:
            if version > 2 or row["kind"] not in ("study", "key"):
                body = json.loads(row["body"])
                for table, column in missing:
                    for each in body.get("rows", {}).get(table, []):
                        each.pop(column, None)
                older = dict(row) | {"number": end.number + 1, "previous": end.hash, "body": canonical(body)}
                end = Receipt(older["number"], chain.hash(older))
                connection.execute(ledger.insert().values(older | {"hash": end.hash}))
        seal = chain.seal(end, version)
        head = HEAD if version > 2 else 1
        connection.execute(ledger_head.update().values(id=head, length=end.number, hash=end.hash, seal=seal))
        connection.execute(schema_version.update().values(version=version))
        if version > 2:
            return
        connection.exec_driver_sql("ALTER TABLE study ADD COLUMN source TEXT")
        connection.exec_driver_sql(
            "UPDATE study SET source = (SELECT source FROM study_source WHERE study = study.digest AND number = 1)"
        )
        metadata.drop_all(connection, [study_source, *([session, write_probe] if version == 1 else [])])


def contents(store: Store) -> dict[str, list[tuple[object, ...]]]:
    with store.database.read() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=str)
            for table in (study, assessment, api_key)
        }


def assessment_of(store: Store, digest: str) -> Assessment:
    rows = worklist(store.database, WorklistQuery(), "key:a").rows
    return next(each.assessment for each in rows if each.assessment.study == digest)


def before_5(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Rows of the worklist as they are where nobody said more of them."""
    more = len(ADDED[5])
    return [(*row[:-more], *[None] * more) for row in rows]


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_nothing_is_lost_and_all_of_it_is_sealed(store: Store, version: int) -> None:
    digests, before = fill(store), contents(store)
    before["assessment"] = before_5(before["assessment"])
    age(store, version)
    with store.database.read() as connection:
        entries = connection.execute(sa.select(ledger).order_by(ledger.c.number)).all()
    for _ in range(2):
        opened = Store.open(url(store), KEY)
        assert contents(opened) == before
        assert [[each.source for each in load_sources(opened.database, digest)] for digest in digests] == [
            [source] if source else [] for source in SOURCES
        ]
        assert np.array_equal(load_study(opened.database, digests[0]).canvas, make(0).canvas)
        assert opened.ledger.verify().faults == verify_studies(opened.database).faults == ()
        opened.ledger.check()
        opened.database.close()
    with store.database.read() as connection:
        after = connection.execute(sa.select(ledger).order_by(ledger.c.number)).all()
        versions = connection.execute(sa.select(schema_version.c.version).order_by(schema_version.c.version)).scalars()
        assert list(versions) == [version, VERSION]
        assert set(sa.inspect(connection).get_table_names()) == set(metadata.tables)
    assert after[: len(entries)] == entries, "what was on record stays as it was"
    added = after[len(entries) :]
    if version < 3:
        assert {row.kind for row in added} == {"migration"} and len(added) == 4, "once, and each table"
    else:
        assert not added, "all of it was on record"


SEALED: dict[str, sa.Executable] = {
    "key": sa.update(api_key).where(api_key.c.name == "dr-lee").values(role="admin"),
    "revoked key": sa.update(api_key).where(api_key.c.name == "left").values(revoked_at=None),
    "study": sa.update(study).values(width=1),
    "turn": sa.update(study).values(turn=3),
    "source": sa.update(study_source).values(source="{}"),
    "worklist": sa.delete(assessment),
    "confidence": sa.update(assessment).values(confidence=0.5),
    "found": sa.update(assessment).values(found='["mass"]'),
    "fits": sa.update(assessment).values(fits=sa.true()),
}


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("what", SEALED)
def test_what_an_earlier_version_kept_is_compared_from_then_on(store: Store, what: str, version: int) -> None:
    fill(store)
    age(store, version)
    opened = Store.open(url(store), KEY)
    change(opened, SEALED[what])
    assert opened.ledger.verify().faults != ()
    opened.database.close()


@pytest.mark.parametrize("version", [1, 2])
def test_an_empty_head_that_was_never_sealed_is(store: Store, version: int) -> None:
    KeyStore(store).create("admin", Role.ADMIN)
    age(store, version)
    change(store, sa.update(ledger_head).values(seal=""))
    opened = Store.open(url(store), KEY)
    assert opened.ledger.verify().faults == ()
    assert opened.ledger.append([entry()])[0].number == 2  # after the key's, as it was found
    opened.database.close()


def cut(store: Store) -> None:
    end = sa.select(ledger.c.hash).where(ledger.c.number == 3).scalar_subquery()
    change(store, ledger.delete().where(ledger.c.number > 3))
    change(store, sa.update(ledger_head).values(length=3, hash=end))


def empty(store: Store) -> None:
    change(store, ledger.delete())
    change(store, sa.update(ledger_head).values(length=0, hash="", seal=""))


BROKEN: dict[str, Callable[[Store], None]] = {
    "cut": cut,
    "emptied": empty,
    "last entry gone": lambda store: change(store, ledger.delete().where(ledger.c.number == head(store).number)),
    "seal": lambda store: change(store, sa.update(ledger_head).values(seal="0" * 64)),
    "no head": lambda store: change(store, ledger_head.delete()),
    "other head": lambda store: change(store, sa.update(ledger_head).values(id=7)),
    "of this version": lambda store: change(store, sa.update(ledger_head).values(seal=Chain(KEY).seal(head(store)))),
}


def head(store: Store) -> Receipt:
    with store.database.read() as connection:
        return Receipt(*connection.execute(sa.select(ledger_head.c.length, ledger_head.c.hash)).one())


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("how", BROKEN)
def test_a_store_whose_head_is_not_what_its_version_left_is_left_alone(store: Store, how: str, version: int) -> None:
    fill(store)
    age(store, version)
    BROKEN[how](store)
    with pytest.raises(
        StoreError, match=f"is of version {version}, and the head of its ledger is not what that version left"
    ):
        Store.open(url(store), KEY)
    with store.database.read() as connection:
        assert "fits" not in {each["name"] for each in sa.inspect(connection).get_columns(assessment.name)}
        assert list(connection.execute(sa.select(schema_version.c.version)).scalars()) == [version]
        assert not connection.execute(sa.select(ledger).where(ledger.c.kind == "migration")).all()


def test_what_an_earlier_version_did_not_say_is_said_later(store: Store) -> None:
    digest, *_ = fill(store)
    age(store, 4)
    opened = Store.open(url(store), KEY)
    before = assessment_of(opened, digest)
    assert (before.confidence, before.found, before.fits) == (None, None, None)
    said = Assessment(digest, "b", "1", "mass", 0.25, 0.5, False, False, 0.75, ("mass", "nodule"), True)
    opened.ledger.append((), lambda connection: keep_assessment(connection, said))
    assert assessment_of(opened, digest) == said and opened.ledger.verify().faults == ()
    entries = len(list(opened.ledger.entries()))
    opened.ledger.append((), lambda connection: keep_assessment(connection, said))
    assert len(list(opened.ledger.entries())) == entries, "what is said again is not on record again"
    opened.database.close()


def test_who_only_verifies_changes_nothing(store: Store) -> None:
    fill(store)
    age(store, 2)
    with pytest.raises(StoreError, match="version 2, this server needs 5; any `csr keys` or the server's start brings"):
        Store.open(url(store), KEY, migrate=False)
    with store.database.read() as connection:
        assert "study_source" not in sa.inspect(connection).get_table_names()


def test_a_server_of_an_earlier_version_that_still_runs_finds_nothing_to_write_to(store: Store) -> None:
    fill(store)
    age(store, 1)
    Store.open(url(store), KEY).database.close()
    with store.database.read() as connection:
        assert connection.execute(sa.select(ledger_head).where(ledger_head.c.id == 1)).all() == []
        columns = {each["name"] for each in sa.inspect(connection).get_columns(study.name)}
    assert HEAD != 1 and "source" not in columns and "source_before_3" in columns


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)  # the other takes none
def test_values_that_no_server_wrote_are_not_sealed(store: Store) -> None:
    digest, *_ = fill(store)
    age(store, 2)
    change(store, sa.text(f"UPDATE assessment SET top = X'fffe' WHERE study = '{digest}'"))
    opened = Store.open(url(store), KEY)
    assert opened.ledger.verify().faults == (
        f"worklist row of study {digest[:12]}: was put there, the ledger does not know it",
    )
    said = Assessment(digest, "b", "2", "mass", 0.25, 0.5, False, False, 0.75, ("mass",), True)
    opened.ledger.append((), lambda connection: keep_assessment(connection, said))
    assert opened.ledger.verify().faults != (), "a part of a row that nobody knows is not a row"
    opened.database.close()
