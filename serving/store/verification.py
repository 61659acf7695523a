"""Whether the studies in the store are those that were added, as `serving.store.ledger` says it of its entries."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import sqlalchemy as sa

from serving.errors import AlteredStudyError, UnknownStudyError
from serving.store.database import Database, take_time
from serving.store.rows import short
from serving.store.schema import ledger, study
from serving.store.studies import load_study

_MOST_FAULTS = 20
_CHUNK = 1000


@dataclass(frozen=True)
class StudyVerification:
    """What `verify_studies` found.

    Args:
        stored: studies there are.
        recomputed: those of them whose pixels were looked at.
        faults: none if they are sound.
    """

    stored: int
    recomputed: int
    faults: tuple[str, ...]


def verify_studies(database: Database, most: int | None = None) -> StudyVerification:
    """Compares the studies with the ledger, and their pixels with their digests.

    Every study that the ledger names must be there, and no other. Those that are looked at must have the digest that
    they are kept under, and lie on the canvas as an image of a size that the ledger has recorded for them. Memory stays
    the same however many there are.

    Args:
        database: the store.
        most: how many to look at, chosen by chance; None: all.

    Raises:
        StoreError: the database does not answer.
    """
    with database.read() as connection:
        take_time(connection)
        stored = connection.execute(sa.select(sa.func.count()).select_from(study)).scalar_one()
    looked_at = stored if most is None else min(most, stored)
    chosen = _named(database) if looked_at == stored else iter(_drawn(_named(database), looked_at))
    faults: list[str] = []
    for fault in chain(_addresses(database), _altered(database, chosen)):
        if len(faults) == _MOST_FAULTS:
            faults.append("and more")
            break
        faults.append(fault)
    return StudyVerification(stored, looked_at, tuple(faults))


def _addresses(database: Database) -> Iterator[str]:
    """What is wrong with which studies there are, as of one moment; no more than are told."""
    there = sa.select(sa.literal(1)).where(study.c.digest == ledger.c.study).exists()
    gone = sa.select(ledger.c.study).where(ledger.c.study != "", ~there).distinct().order_by(ledger.c.study)
    added = sa.select(study.c.digest).where(~_is_named()).order_by(study.c.digest)
    with database.snapshot() as connection:
        take_time(connection)
        missing, unknown = (
            connection.execute(query.limit(_MOST_FAULTS + 1)).scalars().all() for query in (gone, added)
        )
    for digest in missing:
        yield f"study {short(digest)}: is gone, though the ledger names it"
    for digest in unknown:
        yield f"study {short(digest)}: was put there, no entry of the ledger names it"


def _named(database: Database) -> Iterator[str]:
    """The studies that are there and that the ledger names, a part at a time: no transaction is open for long."""
    last: Any = ""
    while True:
        query = sa.select(study.c.digest, _is_named()).where(study.c.digest > _bound(last)).order_by(study.c.digest)
        with database.read() as connection:
            found = connection.execute(query.limit(_CHUNK)).all()
        if not found:
            return
        yield from (digest for digest, is_named in found if is_named)
        last = found[-1][0]


def _bound(last: Any) -> Any:
    """A digest to begin behind. What is no UTF-8 can be read (`serving.store.database`), and is given back as bytes."""
    if isinstance(last, str) and not last.isascii():
        return sa.cast(sa.literal(last.encode(errors="surrogateescape"), sa.LargeBinary), sa.Text)
    return last


def _is_named() -> sa.ColumnElement[bool]:
    return sa.select(sa.literal(1)).where(ledger.c.study == study.c.digest, ledger.c.study != "").exists()


def _drawn(digests: Iterator[str], most: int) -> list[str]:
    """So many of them by chance, each as likely as any other (Vitter 1985, algorithm R)."""
    chance, kept = random.SystemRandom(), list(islice(digests, most))
    for seen, digest in enumerate(digests, most + 1):
        if (place := chance.randrange(seen)) < most:
            kept[place] = digest
    return kept


def _altered(database: Database, digests: Iterator[str]) -> Iterator[str]:
    """What is wrong with studies themselves."""
    for digest in digests:
        try:
            place = load_study(database, digest).placement
        except (AlteredStudyError, UnknownStudyError) as error:
            yield str(error).partition(";")[0]
            continue
        if (place.width, place.height) not in _recorded_sizes(database, digest):
            yield f"study {digest[:12]}: is of an image of {place.width}×{place.height}, which the ledger does not know"


def _recorded_sizes(database: Database, digest: str) -> set[tuple[int, int]]:
    """Of the images that this study was uploaded as."""
    query = sa.select(ledger.c.body).where(ledger.c.study == digest, ledger.c.kind == "prediction")
    sizes = set()
    with database.read() as connection:
        for body in connection.execute(query).scalars():
            try:
                image = json.loads(body)["request"]["image"]
                sizes.add((image["width"], image["height"]))
            except (
                ValueError,
                KeyError,
                TypeError,
            ):  # a changed entry, which the ledger's own verification names
                continue
    return sizes
