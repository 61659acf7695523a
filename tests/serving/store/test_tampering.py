"""Everything that somebody with the database and without the ledger's key may try, on a store that was really served
from: `csr audit verify` misses nothing and says what is wrong."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from csr.bundle.format import Bundle
from serving.access.keys import KeyStore
from serving.access.roles import Role
from serving.errors import StoreError
from serving.interfaces.schemas import Box, ReviewRequest
from serving.store import Store
from serving.store.entries import Chain, Receipt
from serving.store.schema import VERSION, api_key, assessment, ledger, ledger_head, study, study_source
from serving.store.verification import verify_studies
from tests.serving.conftest import CALLER, add, interact, make_service, png
from tests.serving.dicom.files import PIXELS, dataset, written
from tests.serving.postgres import Postgres, postgres

Change = Callable[[sa.Connection], None]


@dataclass(frozen=True)
class Served:
    """A store that was served from, as a file, and what was noted of it."""

    file: Path
    key: bytes
    early: Path  # the same store after half of it
    noted: Receipt


def read_and_correct(bundle: Bundle, folder: Path, url: str, copy: Callable[[], None]) -> Receipt:
    """Uploads, interactions, reviews and keys, as a day brings them. Returns the head, which somebody notes."""
    store = {"url": url, "ledger_key_file": str(folder / "ledger.key")}
    service = make_service(bundle.path, folder, store=store)
    plane, atlas = service.plane, service.atlas
    try:
        service.keys.create("admin", Role.ADMIN)
        revoked, _ = service.keys.create("left", Role.READER)
        digests = [add(plane, file.read_bytes()).digest for file in sorted((bundle.path / "samples").glob("*.png"))[:3]]
        atlas.review("mass", 0, ReviewRequest(verdict="keep"), CALLER)
        service.store.database.close()  # all that was written is in the file
        copy()
        service.keys.create("reader", Role.READER)
        service.keys.revoke(revoked.id)
        for _ in range(2):  # the same pixels under two identities
            digests.append(add(plane, written(dataset(PatientName="Nobody"))).digest)
        add(plane, png((PIXELS >> 4).astype(np.uint8)))
        for digest in digests:
            interact(plane, digest, boxes=[Box(x_min=2, y_min=2, x_max=20, y_max=20)], rejected=["mass"])
        atlas.review("mass", 1, ReviewRequest(verdict="prune"), CALLER)
        atlas.review("mass", 1, ReviewRequest(verdict="keep"), CALLER)
        return service.store.ledger.verify().head
    finally:
        service.close()


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    file, early = folder / "store.db", folder / "early.db"
    noted = read_and_correct(bundle, folder, f"sqlite:///{file}", lambda: copy(file, early))
    return Served(file, (folder / "ledger.key").read_bytes().strip(), early, noted)


def copy(file: Path, to: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    shutil.copy(file, to)


@dataclass
class Copy:
    """A copy that may be tampered with."""

    url: str
    key: bytes

    def tamper(self, *changes: str | Change) -> None:
        engine = sa.create_engine(self.url)
        with engine.begin() as connection:
            for change in changes:
                if isinstance(change, str):
                    assert connection.exec_driver_sql(change).rowcount != 0, f"changes nothing: {change}"
                else:
                    change(connection)
        engine.dispose()

    def faults(self, noted: Receipt | None = None) -> list[str]:
        """What `csr audit verify --studies all` says; what it ends with counts, too."""
        try:
            store = Store.open(self.url, self.key, migrate=False)
        except StoreError as error:
            return [str(error)]
        try:
            return [*store.ledger.verify(noted).faults, *verify_studies(store.database).faults]
        finally:
            store.database.close()


@pytest.fixture
def tampered(served: Served, tmp_path: Path) -> Copy:
    copy(served.file, tmp_path / "copy.db")
    return Copy(f"sqlite:///{tmp_path}/copy.db", served.key)


STUDY = "(SELECT min(digest) FROM study WHERE digest NOT IN (SELECT study FROM study_source))"
SOURCED = "(SELECT max(study) FROM study_source)"
REVIEW = "(SELECT max(number) FROM ledger WHERE kind = 'review')"
LAST = "(SELECT max(number) FROM ledger)"
COLUMNS = "at, kind, actor, request_id, once, study, bundle, body, previous, hash"
IS_STUDY, IS_REVIEW = f"digest = {STUDY}", f"number = {REVIEW}"
IS_SOURCE, IS_READ = f"study = {SOURCED} AND number = 1", f"study = {STUDY}"
IS_READER, HAS_LEFT = "name = 'reader'", "name = 'left'"


def insert_entry(number: str) -> str:
    values = COLUMNS.replace("once", "'another'")
    return f"INSERT INTO ledger (number, {COLUMNS}) SELECT {number}, {values} FROM ledger WHERE {IS_REVIEW}"


def insert_copy(table: sa.Table, where: str, **instead: str) -> str:
    names = [column.name for column in table.columns]
    values = ", ".join(instead.get(name, name) for name in names)
    return f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {values} FROM {table.name} WHERE {where}"


def write(table: str, column: str, value: str, where: str) -> str:
    return f"UPDATE {table} SET {column} = {value} WHERE {where}"


def swap(table: sa.Table, first: str, second: str, *columns: str) -> Change:
    """Exchanges values of two rows, past what must be unique."""

    def change(connection: sa.Connection) -> None:
        query = sa.select(*table.primary_key, *(table.c[name] for name in columns))
        rows = [connection.execute(query.where(sa.text(where))).mappings().one() for where in (first, second)]
        values = [{name: row[name] for name in columns} for row in rows]
        places = [sa.and_(*(column == row[column.name] for column in table.primary_key)) for row in rows]
        assert values[0] != values[1], "changes nothing"
        for name in {"once", "digest"} & set(columns):
            connection.execute(sa.update(table).where(places[0]).values({name: "~"}))
        connection.execute(sa.update(table).where(places[1]).values(values[0]))
        connection.execute(sa.update(table).where(places[0]).values(values[1]))

    return change


def rechain(key: bytes | None, seal: bool) -> Change:
    """Turns a verdict, and hashes everything again without the ledger's key."""

    def change(connection: sa.Connection) -> None:
        forger, end = Chain(key), Receipt(0, "")
        for row in connection.execute(sa.select(ledger).order_by(ledger.c.number)).mappings().all():
            values = dict(row) | {"previous": end.hash}
            if row["kind"] == "review":
                values["body"] = row["body"].replace("keep", "prune")
            end = Receipt(row["number"], forger.hash(values))
            connection.execute(
                sa.update(ledger).where(ledger.c.number == end.number).values(values | {"hash": end.hash})
            )
        connection.execute(sa.update(ledger_head).values(hash=end.hash))
        if seal:
            connection.execute(sa.update(ledger_head).values(seal=forger.seal(end)))

    return change


def cut(count: int, lower: bool = True) -> Change:
    """Takes entries off the end; the head says so."""

    def change(connection: sa.Connection) -> None:
        last = connection.execute(sa.select(sa.func.max(ledger.c.number))).scalar_one() - count
        connection.execute(sa.delete(ledger).where(ledger.c.number > last))
        end = connection.execute(sa.select(ledger.c.hash).where(ledger.c.number == last)).scalar_one()
        if lower:
            connection.execute(sa.update(ledger_head).values(length=last, hash=end))

    return change


# What is done, and what is said of it: a regular expression.
Tampering = tuple[tuple[str | Change, ...], str]
ANYWHERE: dict[str, Tampering] = {
    "entry put at the end": ((insert_entry(f"{LAST} + 1"),), "is beyond the head"),
    "entry put far beyond the end": ((insert_entry("1000000"),), "entry 1000000: is beyond the head"),
    "entry put before the first": ((insert_entry("0"),), "entry 0: is before the first"),
    "entry put at a negative number": ((insert_entry("-5"),), "entry -5: is before the first"),
    "review deleted": ((f"DELETE FROM ledger WHERE {IS_REVIEW}",), "entry [0-9]+: missing"),
    "verdict turned": ((write("ledger", "body", "replace(body, 'keep', 'prune')", IS_REVIEW),), "was changed"),
    "end cut off": ((cut(2),), "head: was changed"),
    "emptied": (("DELETE FROM ledger", "UPDATE ledger_head SET length = 0, hash = '', seal = ''"), "head: was changed"),
    "hashed again without a key": ((rechain(None, True),), "head: was changed"),
    "head's length": (("UPDATE ledger_head SET length = length + 1",), "head: was changed"),
    "head gone": (("DELETE FROM ledger_head",), "head: is missing"),
    "head twice": ((insert_copy(ledger_head, "1 = 1", id="1"),), "head: there are 2 of them"),
    "study's width": ((write("study", "width", "width + 1", IS_STUDY),), "^study .*: width was changed"),
    "studies' pixels swapped": (
        (swap(study, IS_STUDY, f"digest = {SOURCED}", "canvas"),),
        r"does not hold what was added \(its pixels have another digest\)",
    ),
    "source's identity": (
        (write("study_source", "source", "replace(source, '2.25.', '1.25.')", IS_SOURCE),),
        "^DICOM source 1 of study .*: source was changed",
    ),
    "sources swapped": (
        (swap(study_source, IS_SOURCE, f"study = {SOURCED} AND number = 2", "source"),),
        "^DICOM source 1 of study .*: source was changed",
    ),
    "off the worklist": ((f"DELETE FROM assessment WHERE {IS_READ}",), "^worklist row of study .*: is gone"),
    "doubt taken away": (
        (write("assessment", "abstains", "NOT abstains", IS_READ),),
        "^worklist row .*: abstains was changed",
    ),
    "key's role": ((write("api_key", "role", "'admin'", IS_READER),), "^key .*: role was changed"),
    "key put there": (
        (insert_copy(api_key, IS_READER, id="'forged'", name="'forged'", digest="'forged'", role="'admin'"),),
        r"^key forged \(id forged\): was put there",
    ),
    "key revived": ((write("api_key", "revoked_at", "NULL", HAS_LEFT),), "^key .*: revoked_at was changed"),
    "keys' secrets swapped": (
        (swap(api_key, IS_READER, "name = 'admin'", "digest"),),
        "^key .*: digest was changed",
    ),
    "called an older store": (
        ("DELETE FROM schema_version", "INSERT INTO schema_version (version) VALUES (2)"),
        "has tables of version 2",
    ),
    "of no version": (("DELETE FROM schema_version",), "does not say of which version"),
}
MORE: dict[str, Tampering] = {
    "first entry deleted": (("DELETE FROM ledger WHERE number = 1",), "entry 1: missing"),
    "last entry deleted": ((f"DELETE FROM ledger WHERE number = {LAST}",), "entry [0-9]+: missing"),
    "all entries deleted": (("DELETE FROM ledger",), "entries 1 to [0-9]+: missing"),
    "entries missing at the end": ((cut(3, lower=False),), "entries [0-9]+ to [0-9]+: missing"),
    "emptied, under the seal that it has": (
        ("DELETE FROM ledger", "UPDATE ledger_head SET length = 0, hash = ''"),
        "head: was changed",
    ),
    "entry renumbered": ((write("ledger", "number", "999", "number = 3"),), "entry 3: missing"),
    "all entries renumbered": (
        ("UPDATE ledger SET number = number + 1000", "UPDATE ledger SET number = number - 999"),
        "entry 1: missing",
    ),
    "two entries change places": (
        (
            write("ledger", "number", "-1", "number = 3"),
            write("ledger", "number", "3", "number = 4"),
            write("ledger", "number", "4", "number = -1"),
        ),
        "entry 3: does not follow the one before it",
    ),
    "two bodies swapped": ((swap(ledger, "number = 3", IS_REVIEW, "body"),), "entry 3: was changed"),
    "two hashes swapped": ((swap(ledger, "number = 3", IS_REVIEW, "hash"),), "entry 3: was changed"),
    "all but the number swapped": (
        (swap(ledger, "number = 3", IS_REVIEW, *COLUMNS.split(", ")),),
        "entry 3: does not follow the one before it",
    ),
    "body written with spaces": ((write("ledger", "body", "replace(body, ':', ': ')", IS_REVIEW),), "was changed"),
    "hashed again, under the seal that it has": ((rechain(None, False),), "head: was changed"),
    "hashed again with another key": ((rechain(b"x" * 32, True),), "head: was changed"),
    "head's hash": (
        ("UPDATE ledger_head SET hash = (SELECT hash FROM ledger WHERE number = 3)",),
        "head: was changed",
    ),
    "head's seal": (("UPDATE ledger_head SET seal = hash",), "head: was changed"),
    "head's seal an entry's hash": (
        ("UPDATE ledger_head SET seal = (SELECT hash FROM ledger WHERE number = 3)",),
        "head: was changed",
    ),
    "head renumbered": (("UPDATE ledger_head SET id = 1",), "head: is missing"),
    "what adds a key deleted with the key": (
        ("DELETE FROM ledger WHERE body LIKE '%\"reader\"%'", f"DELETE FROM api_key WHERE {IS_READER}"),
        "missing",
    ),
    "study deleted": ((f"DELETE FROM study WHERE {IS_STUDY}",), "^study .*: is gone"),
    "study put there": (
        (insert_copy(study, IS_STUDY, digest=f"'{'0' * 64}'"),),
        "^study 0{12}: was put there, the ledger does not know it",
    ),
    "studies swapped": (
        (swap(study, IS_STUDY, f"digest = {SOURCED}", *(c.name for c in study.columns if c.name != "digest")),),
        "^study .*: added_at was changed",
    ),
    "source deleted": ((f"DELETE FROM study_source WHERE {IS_SOURCE}",), "^DICOM source 1 of study .*: is gone"),
    "source put there": (
        (insert_copy(study_source, IS_SOURCE, study=STUDY),),
        "^DICOM source 1 of study .*: was put there",
    ),
    "worklist row put there": (
        (insert_copy(assessment, IS_READ, study=f"'{'0' * 64}'"),),
        "^worklist row of study 0{12}: was put there",
    ),
    "margins swapped": (
        (swap(assessment, IS_READ, f"study = {SOURCED}", "margin"),),
        "^worklist row .*: margin was changed",
    ),
    "key deleted": ((f"DELETE FROM api_key WHERE {HAS_LEFT}",), "^key .*: is gone"),
    "key revoked": ((write("api_key", "revoked_at", "created_at", IS_READER),), "^key .*: revoked_at was changed"),
    "called a newer store": (("INSERT INTO schema_version (version) VALUES (9)",), "has tables of version 9"),
    "version of another type": (("UPDATE schema_version SET version = 'é'",), "version"),
}
# Each column takes another value of its kind, and one of another: SQLite keeps whatever it is given.
PLACES = {ledger: IS_REVIEW, study: IS_STUDY, study_source: IS_SOURCE, assessment: IS_READ, api_key: HAS_LEFT}
VALUES = {
    "another": "'forged'",
    "a blob": "X'fffe'",
    "no ASCII": "'é'",
    "no UTF-8": "CAST(X'ff' AS TEXT)",
    "float": "0.7",
}
NAMES = {ledger: "entry ", study: "study ", study_source: "DICOM source ", assessment: "worklist row ", api_key: "key "}
for table, place in PLACES.items():
    for column in table.columns:
        for kind, value in VALUES.items():
            MORE[f"{table.name}.{column.name} {kind}"] = ((write(table.name, column.name, value, place),), NAMES[table])
for column in ledger_head.columns:
    for kind, value in VALUES.items():
        MORE[f"ledger_head.{column.name} {kind}"] = ((f"UPDATE ledger_head SET {column.name} = {value}",), "head: ")


@pytest.mark.parametrize("name", [*ANYWHERE, *MORE])
def test_tampering_is_found_and_named(tampered: Copy, name: str) -> None:
    changes, said = (ANYWHERE | MORE)[name]
    try:
        tampered.tamper(*changes)
    except sa.exc.IntegrityError as error:
        assert "datatype mismatch" in str(error), "the only thing that SQLite refuses is a number that is none"
        return
    faults = tampered.faults()
    assert any(re.search(said, fault) for fault in faults), faults
    assert all(fault.encode() for fault in faults), "every terminal can show it"


def test_an_untampered_store_is_whole(served: Served, tampered: Copy) -> None:
    assert tampered.faults() == tampered.faults(served.noted) == []
    assert len(ANYWHERE) + len(MORE) >= 40


def snapshot(file: Path, *tables: str) -> Change:
    """Puts tables back as an older copy of the store has them."""

    def change(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"ATTACH '{file}' AS early")
        for name in tables:
            connection.exec_driver_sql(f"DELETE FROM {name}")
            connection.exec_driver_sql(f"INSERT INTO {name} SELECT * FROM early.{name}")

    return change


TABLES = ("ledger", "ledger_head", "study", "study_source", "assessment", "api_key")
RETURNS: dict[tuple[str, ...], str] = {
    ("ledger",): "entries [0-9]+ to [0-9]+: missing",
    ("ledger_head",): "is beyond the head",
    ("ledger", "ledger_head"): "was put there, the ledger does not know it",
    ("study",): "^study .*: is gone",
    ("study_source",): "^DICOM source .*: is gone",
    ("assessment",): "^worklist row .*: is gone",
    ("api_key",): "^key .*: revoked_at was changed",
    TABLES[2:]: "is gone",
}


@pytest.mark.parametrize("tables", RETURNS, ids="+".join)
def test_a_part_that_was_put_back_is_found(served: Served, tampered: Copy, tables: tuple[str, ...]) -> None:
    tampered.tamper(snapshot(served.early, *tables))
    faults = tampered.faults()
    assert any(re.search(RETURNS[tables], fault) for fault in faults), faults


def test_a_store_that_was_put_back_whole_is_sound_but_for_a_head_that_was_noted(served: Served, tampered: Copy) -> None:
    """What no check of the store alone can see; `docs/security.md` says so."""
    tampered.tamper(snapshot(served.early, *TABLES))
    assert tampered.faults() == []
    assert any("missing, though noted elsewhere" in fault for fault in tampered.faults(served.noted))


@pytest.mark.parametrize("name", ["end cut off", "emptied", "head gone", "head twice", "hashed again without a key"])
def test_a_broken_head_is_never_sealed_anew(tampered: Copy, name: str) -> None:
    """Or who cuts the end off would only have to wait for the next entry."""
    tampered.tamper(*ANYWHERE[name][0])
    store = Store.open(tampered.url, tampered.key)
    with pytest.raises(StoreError, match=r"nothing can be added to the ledger \(head: .*; see csr audit verify"):
        KeyStore(store).create("another", Role.READER)
    with pytest.raises(StoreError, match="csr audit verify"):
        store.ledger.check()
    store.database.close()
    assert any("head: " in fault for fault in tampered.faults())


@pytest.mark.parametrize("name", ["called an older store", "of no version"])
def test_rows_are_not_sealed_a_second_time(tampered: Copy, name: str) -> None:
    tampered.tamper(*ANYWHERE["key put there"][0], *ANYWHERE[name][0])
    with pytest.raises(StoreError, match=r"head of its ledger is not what that version left|of which version"):
        Store.open(tampered.url, tampered.key)
    tampered.tamper(f"INSERT INTO schema_version (version) VALUES ({VERSION})")
    assert any("key forged (id forged): was put there" in fault for fault in tampered.faults())


def test_a_key_that_was_put_there_is_not_made_sound_by_revoking_it(tampered: Copy) -> None:
    tampered.tamper(*ANYWHERE["key put there"][0])
    store = Store.open(tampered.url, tampered.key)
    KeyStore(store).revoke("forged")
    store.database.close()
    assert any("key forged (id forged): was put there" in fault for fault in tampered.faults())
    tampered.tamper("DELETE FROM api_key WHERE id = 'forged'")
    assert tampered.faults() == []


def test_a_role_that_was_raised_is_not_made_sound_by_revoking_the_key(tampered: Copy) -> None:
    tampered.tamper(*ANYWHERE["key's role"][0])
    store = Store.open(tampered.url, tampered.key)
    keys = KeyStore(store)
    keys.revoke(next(key.id for key in keys.list() if key.name == "reader"))
    store.database.close()
    assert len(tampered.faults()) == 1 and tampered.faults()[0].endswith("role was changed")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(scope="module")
def on_postgres(bundle: Bundle, server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("postgres")
    noted = read_and_correct(bundle, folder, server.url, lambda: None)
    return Served(folder, (folder / "ledger.key").read_bytes().strip(), folder, noted)


@pytest.mark.parametrize("name", ANYWHERE)
def test_tampering_is_found_on_postgresql(on_postgres: Served, server: Postgres, name: str) -> None:
    """In a copy that the server makes of the database."""
    engine = sa.create_engine(server.url, isolation_level="AUTOCOMMIT")
    own = f"copy_{list(ANYWHERE).index(name)}"
    with sa.create_engine(
        server.url.replace("/postgres", "/template1"), isolation_level="AUTOCOMMIT"
    ).connect() as admin:
        admin.exec_driver_sql(f"CREATE DATABASE {own} TEMPLATE postgres")
    engine.dispose()
    copied = Copy(server.url.replace("/postgres", f"/{own}"), on_postgres.key)
    assert copied.faults(on_postgres.noted) == []
    changes, said = ANYWHERE[name]
    copied.tamper(*changes)
    faults = copied.faults()
    assert any(re.search(said, fault) for fault in faults), faults
