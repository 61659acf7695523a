"""Whether the studies in the store are those that were added, as `serving.store.ledger` says it of its entries."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from serving.errors import AlteredStudyError, UnknownStudyError
from serving.store.database import Database
from serving.store.rows import short
from serving.store.schema import ledger, study
from serving.store.studies import load_study

_MOST_FAULTS = 20


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
    they are kept under, and lie on the canvas as an image of a size that the ledger has recorded for them.

    Args:
        database: the store.
        most: how many to look at, chosen by chance; None: all.

    Raises:
        StoreError: the database does not answer.
    """
    stored, named = _addresses(database)
    chosen = sorted(stored, key=str)
    if most is not None and most < len(chosen):
        chosen = random.SystemRandom().sample(chosen, most)
    faults: list[str] = []
    for fault in _faults(database, stored, named, chosen):
        if len(faults) == _MOST_FAULTS:
            faults.append("and more")
            break
        faults.append(fault)
    return StudyVerification(len(stored), len(chosen), tuple(faults))


def _addresses(database: Database) -> tuple[set[str], set[str]]:
    """Of the studies that there are, and of those that the ledger names; in one statement, as of one moment."""
    there = sa.select(study.c.digest, sa.literal(True))
    named = sa.select(ledger.c.study, sa.literal(False)).where(ledger.c.study != "").distinct()
    found: tuple[set[str], set[str]] = (set(), set())
    with database.read() as connection:
        for digest, is_there in connection.execute(there.union_all(named)):
            found[0 if is_there else 1].add(digest)
    return found


def _faults(database: Database, stored: set[str], named: set[str], chosen: list[str]) -> Iterator[str]:
    for digest in sorted(named - stored, key=str):
        yield f"study {short(digest)}: is gone, though the ledger names it"
    for digest in sorted(stored - named, key=str):
        yield f"study {short(digest)}: was put there, no entry of the ledger names it"
    for digest in chosen:
        if digest not in named:
            continue
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
