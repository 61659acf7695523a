"""The ledger, on SQLite and on PostgreSQL: nothing that was acknowledged is lost, nothing is changed unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.errors import IdempotencyError, StoreError
from serving.store import Store
from serving.store.entries import Caller, Chain, Entry, Receipt
from serving.store.ledger import Ledger
from serving.store.schema import ledger, ledger_head, metadata
from tests.serving.postgres import Postgres, postgres

KEY = b"a key of at least thirty-two bytes"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/store.db"
    else:
        url = request.getfixturevalue("server").url
        engine = sa.create_engine(url)
        metadata.drop_all(engine)
        engine.dispose()
    store = Store.open(url, KEY)
    yield store
    store.database.close()


def entry(text: str = "x", key: str | None = None, study: str = "s") -> Entry:
    return Entry("interaction", Caller("key:a", "r", key), "b", {"request": {"text": text}, "after": 0.5}, study)


def fill(store: Store, count: int) -> list[Receipt]:
    return [store.ledger.append([entry(str(n))])[0] for n in range(count)]


def test_entries_come_back_in_their_order(store: Store) -> None:
    receipts = fill(store, 5)
    assert [receipt.number for receipt in receipts] == [1, 2, 3, 4, 5]
    found = list(store.ledger.entries())
    assert [row["body"]["request"]["text"] for row in found] == ["0", "1", "2", "3", "4"]
    assert [row["hash"] for row in found] == [receipt.hash for receipt in receipts]
    assert [row["number"] for row in store.ledger.entries(after=3)] == [4, 5]
    assert list(store.ledger.entries("review")) == []
    verified = store.ledger.verify()
    assert (verified.head, verified.faults) == (receipts[-1], ())


def test_an_empty_ledger_is_whole(store: Store) -> None:
    assert store.ledger.verify().faults == ()


def test_writers_at_once_each_get_their_own_place(store: Store) -> None:
    other = Ledger(store.database, KEY)  # another replica, which shares the database and nothing else
    with ThreadPoolExecutor(24) as pool:
        jobs = [pool.submit((store.ledger, other)[n % 2].append, [entry(str(n)), entry(f"{n}b")]) for n in range(60)]
        receipts = [job.result() for job in jobs]
    numbers = sorted(receipt.number for pair in receipts for receipt in pair)
    assert numbers == list(range(1, 121))
    assert all(second.number == first.number + 1 for first, second in receipts)
    assert store.ledger.verify().faults == ()
    texts = {row["body"]["request"]["text"] for row in store.ledger.entries()}
    assert len(texts) == 120


def test_a_repetition_is_recorded_once(store: Store) -> None:
    first = store.ledger.append([entry("a", "once")])[0]
    assert store.ledger.append([entry("a", "once")])[0] == first
    assert store.ledger.append([entry("a", "once", study="other")])[0] != first
    with pytest.raises(IdempotencyError, match="used before for another request"):
        store.ledger.append([entry("b", "once")])
    with pytest.raises(IdempotencyError):
        store.ledger.append([entry("c", "new"), entry("d", "new")])  # all or none
    assert store.ledger.verify().head.number == 2


def test_one_caller_s_mistake_is_not_the_others(store: Store) -> None:
    store.ledger.append([entry("a", "once")])
    barrier = threading.Barrier(8)

    def write(n: int) -> Any:
        barrier.wait()
        try:
            return store.ledger.append([entry("other", "once") if n == 3 else entry(str(n))])
        except IdempotencyError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(write, range(8)))
    assert [isinstance(outcome, IdempotencyError) for outcome in outcomes] == [n == 3 for n in range(8)]
    assert store.ledger.verify().head.number == 8


def test_writers_at_once_share_transactions_and_a_bad_entry_costs_the_others_none(store: Store) -> None:
    """All wait for the first, whose transaction is held open; then they ride in one, and in one more for who erred."""
    first, held = threading.Event(), threading.Event()
    commits = []
    write = store.database.write

    @contextmanager
    def counted() -> Iterator[sa.Connection]:
        with write() as connection:
            yield connection
        commits.append(1)

    def hold(_: sa.Connection) -> list[Entry]:
        first.set()
        assert held.wait(10)
        return []

    def append(n: int) -> Any:
        also = None
        if n == 5:

            def also(connection: sa.Connection) -> list[Entry]:
                connection.execute(ledger_head.update().values(length=10_000))  # must not stay
                raise KeyError("mine")

        try:
            return store.ledger.append([entry(str(n)), entry(f"{n}b")], also)[0].number
        except (KeyError, ValueError) as error:
            return type(error)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(17) as pool:
        patch.setattr(store.database, "write", counted)
        opening = pool.submit(store.ledger.append, [entry("first")], hold)
        assert first.wait(10)
        jobs = [pool.submit(append, n) for n in range(16)]
        while len(store.ledger._pending) < 16:
            sleep(0.001)
        held.set()
        outcomes = [job.result(30) for job in jobs]
        assert opening.result()[0].number == 1
    assert outcomes[5] is KeyError
    assert sorted(each for n, each in enumerate(outcomes) if n != 5) == list(range(2, 32, 2))
    assert len(commits) == 2
    assert store.ledger.verify().faults == () and store.ledger.head().number == 31
    assert store.ledger.append([entry("afterwards")])[0].number == 32


def test_an_entry_that_the_database_does_not_take_is_refused_alone() -> None:
    with postgres() as server:
        store = Store.open(server.url, KEY)
        first, held = threading.Event(), threading.Event()

        def hold(_: sa.Connection) -> list[Entry]:
            first.set()
            assert held.wait(10)
            return []

        def append(n: int) -> Any:
            try:
                return store.ledger.append([entry(str(n), study="s" * (200 if n == 2 else 2))])[0].number
            except StoreError as error:
                return str(error)

        with ThreadPoolExecutor(5) as pool:
            pool.submit(store.ledger.append, [entry("first")], hold)
            assert first.wait(10)
            jobs = [pool.submit(append, n) for n in range(4)]
            while len(store.ledger._pending) < 4:
                sleep(0.001)
            held.set()
            outcomes = [job.result(30) for job in jobs]
        assert "too long" in outcomes[2]
        assert sorted(each for n, each in enumerate(outcomes) if n != 2) == [2, 3, 4]
        assert store.ledger.verify().faults == ()
        store.database.close()


def change(store: Store, statement: sa.Executable) -> None:
    with store.database.write() as connection:
        connection.execute(statement)


COLUMNS = ["at", "kind", "actor", "request_id", "once", "study", "bundle", "body", "previous", "hash"]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_changed_column_is_found(store: Store, column: str) -> None:
    fill(store, 4)
    change(store, sa.update(ledger).where(ledger.c.number == 2).values({column: "forged"}))
    assert any(fault.startswith(("entry 2", "entry 3")) for fault in store.ledger.verify().faults)


def test_what_is_missing_added_or_moved_is_found(store: Store) -> None:
    fill(store, 6)
    before = store.ledger.verify().head
    change(store, ledger.delete().where(ledger.c.number == 3))
    assert "entry 3: missing" in store.ledger.verify().faults
    change(store, sa.update(ledger).where(ledger.c.number == 4).values(number=3))
    faults = store.ledger.verify().faults
    assert "entry 3: was changed" in faults and "entry 4: missing" in faults
    change(store, ledger.delete().where(ledger.c.number > 4))
    assert "entries 4 to 6: missing" in store.ledger.verify().faults
    assert before.number == 6


def test_the_end_cannot_be_cut_off(store: Store) -> None:
    receipts = fill(store, 5)
    change(store, ledger.delete().where(ledger.c.number > 3))
    change(store, sa.update(ledger_head).values(length=3, hash=receipts[2].hash))
    assert store.ledger.verify().faults == ("head: was changed",)  # its seal needs the key
    assert store.ledger.verify(receipts[4]).faults[-1] == "entries 4 to 5: missing, though noted elsewhere"


def forged(number: int) -> sa.Executable:
    row = Chain(b"another key").row(
        number, f"once{number}", Entry("review", Caller("a", "r"), "b", {"request": {}}), ""
    )
    return ledger.insert().values(row)


@pytest.mark.parametrize("number", [4, 1_000_000])
def test_a_row_that_the_chain_does_not_reach_is_found_and_read_by_nobody(store: Store, number: int) -> None:
    fill(store, 3)
    store.ledger.check()
    change(store, forged(number))
    assert store.ledger.verify().faults == (f"entry {number}: is beyond the head",)
    assert [row["number"] for row in store.ledger.entries()] == [1, 2, 3]
    assert list(store.ledger.entries("review")) == []
    with pytest.raises(StoreError, match="csr audit verify"):
        store.ledger.check()


def test_an_idempotency_key_of_a_row_beyond_the_head_is_not_known(store: Store) -> None:
    fill(store, 1)
    mine = entry("a", "once")
    change(store, ledger.insert().values(Chain(b"x").row(9, mine.once(), entry("forged", "once"), "")))
    with pytest.raises(StoreError):  # its place is taken: refused, never answered with the forged receipt
        store.ledger.append([mine])


@pytest.mark.parametrize("column", [column for column in COLUMNS if column != "once"])
@pytest.mark.parametrize("value", ["é", b"\xff\xfe", b"blob", "", "\N{SNOWMAN}" * 9])
def test_odd_values_are_faults_and_no_failures(store: Store, column: str, value: Any) -> None:
    fill(store, 3)
    odd = sa.literal(value, sa.types.NullType())
    try:
        change(store, sa.update(ledger).where(ledger.c.number == 2).values({column: odd}))
    except StoreError:
        return  # the database has types of its own
    assert any("entry 2" in fault or "entry 3" in fault for fault in store.ledger.verify().faults)


def test_a_body_that_is_no_json_is_named_where_it_is_read(store: Store) -> None:
    fill(store, 2)
    change(store, sa.update(ledger).where(ledger.c.number == 2).values(body="{"))
    with pytest.raises(StoreError, match="ledger entry 2 cannot be read; see csr audit verify"):
        list(store.ledger.entries())


def test_a_missing_head_and_a_second_one_are_named(store: Store) -> None:
    receipts = fill(store, 2)
    second = {"id": 2, "length": 1, "hash": receipts[0].hash, "seal": ""}
    change(store, ledger_head.insert().values(second))
    assert store.ledger.verify().faults == ("head: there are 2 of them",)
    with pytest.raises(StoreError):
        store.ledger.check()
    change(store, ledger_head.delete())
    assert "head: is missing" in store.ledger.verify().faults
    with pytest.raises(StoreError, match="head: is missing"):
        store.ledger.append([entry()])


def test_verifying_while_others_write_sees_one_state(store: Store) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            store.ledger.append([entry()])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            assert store.ledger.verify().faults == ()
            store.ledger.check()
    finally:
        stop.set()
        writer.join()


def test_a_chain_rebuilt_with_another_key_is_found(store: Store, tmp_path: Path) -> None:
    noted = fill(store, 3)[-1]
    change(store, ledger.delete())
    change(store, sa.update(ledger_head).values(length=0, hash="", seal=""))
    assert store.ledger.verify().faults == ("head: was changed",)  # the empty head is sealed, too
    with pytest.raises(StoreError, match="head: was changed"):
        store.ledger.append([entry("innocent")])  # which would seal it
    forger = Ledger(store.database, b"another key")
    change(store, sa.update(ledger_head).values(seal=Chain(b"another key").seal(Receipt(0, ""))))
    forger.append([entry("forged")])
    assert forger.verify().faults == ()
    assert "entry 1: was changed" in store.ledger.verify().faults
    assert any("noted elsewhere" in fault for fault in store.ledger.verify(noted).faults)


def test_a_database_put_back_to_an_earlier_state_differs_from_a_head_that_was_noted(store: Store) -> None:
    fill(store, 2)
    early = store.ledger.verify().head
    assert store.ledger.verify(early).faults == ()
    noted = fill(store, 1)[-1]
    assert store.ledger.verify(early).faults == ()
    assert store.ledger.verify(Receipt(2, noted.hash)).faults == ("entry 2: is not the one that was noted",)


def test_what_else_is_written_comes_and_goes_with_the_entries(store: Store) -> None:
    def fail(connection: sa.Connection) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError):
        store.ledger.append([entry()], fail)
    assert store.ledger.verify().head.number == 0


numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies=st.lists(json_values, min_size=1, max_size=4))
def test_whatever_is_written_reads_back_the_same_and_verifies(store: Store, bodies: list[Any]) -> None:
    start = store.ledger.verify().head.number
    store.ledger.append([Entry("interaction", Caller("a", "r"), "b", {"request": body}) for body in bodies])
    assert [row["body"]["request"] for row in store.ledger.entries(after=start)] == bodies
    assert store.ledger.verify().faults == ()


def test_a_body_that_is_no_json_is_refused_before_anything_is_written(store: Store) -> None:
    with pytest.raises(ValueError):
        store.ledger.append([entry(), Entry("interaction", Caller("a", "r"), "b", {"request": float("nan")})])
    assert store.ledger.verify().head.number == 0


def test_a_database_that_is_gone_is_said_soon_and_comes_back() -> None:
    with postgres() as server:
        store = Store.open(server.url, KEY)
        fill(store, 2)
        server.kill()
        with pytest.raises(StoreError, match="does not answer"):
            store.ledger.append([entry()])
        server.start()
        assert store.ledger.append([entry()])[0].number == 3
        assert store.ledger.verify().faults == ()
        store.database.close()


@pytest.mark.parametrize("url", ["nonsense", "oracle://x", "sqlite://", "sqlite:///:memory:"])
def test_addresses_that_cannot_be(url: str) -> None:
    with pytest.raises(StoreError, match=r"store\.url"):
        Store.open(url)


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(StoreError) as failure:
        Store.open("postgresql+psycopg://csr:s3cret@127.0.0.1:1/csr")
    assert "s3cret" not in str(failure.value) and "***" in str(failure.value)
