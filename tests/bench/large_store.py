"""A store of many studies, written row by row into SQLite: as a server would leave it, in a thousandth of the time.

Every row and entry is what `serving.store` writes, but for the pixels, of which there are none: 1,000,000 studies are
about 2.5 GB without them. So it is sound to `Ledger.verify`, and not to a look at single studies.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from serving.store import Store
from serving.store.entries import SYSTEM, Caller, Chain, Entry, Receipt
from serving.store.rows import SEALED
from serving.store.schema import HEAD, assessment, ledger, metadata, study

KEY = b"the key of a store that is gone in a minute"
READER, SIGNED, SKIPPED = "key:reader", 500, 50  # a reader and how many studies they have signed and skipped
HELP = 0.1  # share of the studies for which the model asks for help
_TIMES = 1_767_225_600  # seconds since 1970 of the first study


def address(folder: Path) -> str:
    """The URL of the store in a folder."""
    return f"sqlite:///{folder}/store.db"


def build_store(folder: Path, studies: int, seed: int = 0) -> None:
    """Makes a store of so many studies, each with its row of the worklist and its entry of the ledger."""
    Store.open(address(folder), KEY).database.close()
    made = _Made(studies, seed)
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as connection:
        for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", "PRAGMA cache_size = -262144"):
            connection.execute(statement)
        for table in metadata.sorted_tables:  # made anew below, in a fraction of the time
            for index in table.indexes:
                connection.execute(f"DROP INDEX {index.name}")
        connection.execute("BEGIN")
        _insert(connection, study, (row | {"canvas": b""} for row, _ in made.rows()))
        _insert(connection, assessment, (row for _, row in made.rows()))
        _insert(connection, ledger, made.entries())
        head = {"length": made.head.number, "hash": made.head.hash, "seal": made.chain.seal(made.head), "id": HEAD}
        connection.execute("UPDATE ledger_head SET length = :length, hash = :hash, seal = :seal WHERE id = :id", head)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    Store.open(address(folder), KEY).database.close()


def _insert(connection: sqlite3.Connection, table: sa.Table, rows: Iterator[dict[str, Any]]) -> None:
    names = [column.name for column in table.columns]
    marks = ", ".join("?" * len(names))
    connection.executemany(
        f"INSERT INTO {table.name} VALUES ({marks})", ([row[name] for name in names] for row in rows)
    )


class _Made:
    """What the tables hold; `entries` walks once and leaves the chain's end in ``head``."""

    def __init__(self, studies: int, seed: int) -> None:
        self.chain, self.head = Chain(KEY), Receipt(0, "")
        self._rng = np.random.default_rng(seed)
        self._digests = sorted(hashlib.sha256(f"{seed} {number}".encode()).hexdigest() for number in range(studies))
        self._margins, self._effects = self._rng.random(studies), self._rng.random(studies)
        self._helps = self._rng.random(studies) < HELP
        self._seconds = self._rng.permutation(studies)

    def rows(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Of ``study`` and of ``assessment``."""
        found = zip(self._digests, self._margins, self._effects, self._helps, self._seconds, strict=True)
        for digest, margin, effect, helps, second in found:
            at = _time(int(second))
            place = {"width": 512, "height": 512, "scale": 0.375, "offset_left": 0.0, "offset_top": 0.0, "turn": 1}
            about = {"bundle": "b" * 64, "version": "1", "assessed_at": at, "top": "mass", "margin": float(margin)}
            said = {"expected_effect": float(effect), "asks_for_help": bool(helps), "abstains": False}
            more = {"confidence": 0.9, "found": '["mass"]', "fits": True}
            yield {"digest": digest, "added_at": at} | place, {"study": digest} | about | said | more

    def entries(self) -> Iterator[dict[str, Any]]:
        """Of ``ledger``."""
        uploader, reader = Caller("key:uploader", "u"), Caller(READER, "r")
        for own, said in self.rows():
            rows = {
                table: [{column.name: row[column.name] for column in SEALED[table].columns}]
                for table, row in (("study", own), ("assessment", said))
            }
            yield self._entry(Entry("study", uploader, "", {"rows": rows}, own["digest"]))
        done = self._rng.choice(self._digests, min(SIGNED + SKIPPED, len(self._digests)), replace=False)
        for number, digest in enumerate(map(str, done)):
            kind = "reading" if number < SIGNED else "skip"
            yield self._entry(Entry(kind, reader, "b" * 64, {"request": {}}, digest))
        yield self._entry(Entry("model", SYSTEM, "b" * 64, {"request": {}}))

    def _entry(self, entry: Entry) -> dict[str, Any]:
        once = f"{self.head.number:064x}"
        row = self.chain.row(self.head.number + 1, once, entry, self.head.hash)
        self.head = Receipt(row["number"], row["hash"])
        return row


def _time(second: int) -> str:
    return f"{np.datetime64(_TIMES + second, 's')}.000000+00:00"
