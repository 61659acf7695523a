"""Studies and what was last said of them, as they lie in the store behind every replica."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image
from sqlalchemy.dialects import postgresql, sqlite

from csr.data.images import Placement, pixel_digest
from serving.errors import AlteredStudyError, UnknownStudyError
from serving.store.database import Database, now
from serving.store.entries import SYSTEM, Caller, Entry, canonical
from serving.store.rows import SEALED, Rows, same_value
from serving.store.schema import assessment, study, study_source

_SOURCES = sa.select(study_source.c.number, study_source.c.source).where(study_source.c.study == sa.bindparam("digest"))
_ADD_SOURCE = study_source.insert()
_ALL_SOURCES = (
    sa.select(study_source.c.number, study_source.c.added_at, study_source.c.source)
    .where(study_source.c.study == sa.bindparam("digest"))
    .order_by(study_source.c.number)
)
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}  # they alone know conflicts
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PNG, _UP = b"\x89PNG\r\n\x1a\n", 2


@dataclass(frozen=True)
class StoredStudy:
    """A study before anything was computed.

    Args:
        digest: `csr.data.images.pixel_digest` of the canvas.
        canvas: C×S×S uint8.
        placement: where the uploaded image lies on it; of the last upload, if several had these pixels.
        source: the allowed attributes of the DICOM file that it was just read from, as JSON; None for other files, and
            for a study from the store, see `load_sources`.
        coloured: whether the file that it was just read from has colour, whatever is left of it on the canvas.
    """

    digest: str
    canvas: np.ndarray
    placement: Placement
    source: str | None = None
    coloured: bool = False


@dataclass(frozen=True)
class StoredSource:
    """A DICOM image that a study was uploaded as; ``source``: its allowed attributes, as JSON."""

    number: int
    added_at: str
    source: str


@dataclass(frozen=True)
class Assessment:
    """What was last said of a study, as far as a worklist needs it.

    Args:
        study, bundle: digests.
        version: of the bundle, in the registry.
        top: the most probable class.
        margin: `csr.data.decisions.decision_margin`.
        expected_effect: of the best question, see `serving.core.questions`.
        asks_for_help, abstains: see `csr.bundle.format.Manifest`.
        confidence: the probability of ``top``; this and the next two are None where they were not kept, by a server
            before version 5 of the tables.
        found: the classes that the model says the study has.
        fits: whether the image is like those that the model was trained on.
    """

    study: str
    bundle: str
    version: str
    top: str
    margin: float
    expected_effect: float
    asks_for_help: bool
    abstains: bool
    confidence: float | None
    found: tuple[str, ...] | None
    fits: bool | None


def study_row(stored: StoredStudy) -> dict[str, Any]:
    """What `keep_study` keeps. Compresses the pixels: make it before a transaction begins, others wait for its end."""
    place = stored.placement
    return {
        "digest": stored.digest,
        "added_at": now(),
        "canvas": _png(stored.canvas),
        "width": place.width,
        "height": place.height,
        "scale": float(place.scale),
        "offset_left": float(place.left),
        "offset_top": float(place.top),
        "turn": place.turn,
    }


def keep_study(
    connection: sa.Connection,
    caller: Caller,
    row: dict[str, Any],
    source: str | None = None,
    assessed: Assessment | None = None,
) -> list[Entry]:
    """Keeps a study as an upload brings it, in the transaction that puts on record what this returns.

    One of the same pixels gets the new placement. A DICOM source that is not among the study's is added to them; none
    is ever replaced.

    Args:
        connection: of `serving.store.ledger.Ledger.append`.
        caller: whose upload it is.
        row: see `study_row`.
        source: see `StoredStudy`.
        assessed: what is said of the study, if that is new.
    """
    rows = _keep(connection, study, row, lasting=("added_at",))
    if source is not None:
        rows |= _keep_source(connection, row["digest"], source)
    if assessed is not None:
        rows |= _keep_assessment(connection, assessed)
    return [Entry("study", caller, "", {"rows": rows}, row["digest"])] if rows else []


def keep_assessment(connection: sa.Connection, given: Assessment) -> list[Entry]:
    """Keeps what is said of a study in place of what was said before, as `keep_study` does."""
    rows = _keep_assessment(connection, given)
    return [Entry("study", SYSTEM, "", {"rows": rows}, given.study)] if rows else []


def _keep_source(connection: sa.Connection, digest: str, source: str) -> Rows:
    known = {text: number for number, text in connection.execute(_SOURCES, {"digest": digest})}
    if source in known:
        return {}
    last = max((number for number in known.values() if isinstance(number, int)), default=0)
    row = {"study": digest, "number": last + 1, "added_at": now(), "source": source}
    connection.execute(_ADD_SOURCE, row)
    return {study_source.name: [row]}


def _keep_assessment(connection: sa.Connection, given: Assessment) -> Rows:
    numbers: dict[str, Any] = {"margin": float(given.margin), "expected_effect": float(given.expected_effect)}
    if given.confidence is not None:
        numbers["confidence"] = float(given.confidence)
    found = None if given.found is None else canonical(list(given.found))
    row = {**vars(given), **numbers, "found": found, "assessed_at": now()}
    return _keep(connection, assessment, row, still=("assessed_at",))


def _keep(
    connection: sa.Connection,
    table: sa.Table,
    row: dict[str, Any],
    lasting: Sequence[str] = (),
    still: Sequence[str] = (),
) -> Rows:
    """Inserts a row, or replaces what differs.

    Args:
        connection, table, row: what is kept where.
        lasting: columns that stay what they are.
        still: columns that do not make it another row.

    Returns:
        What the ledger must know of it.
    """
    find, insert = _statements(table, connection.dialect.name)
    said = {column.name: row[column.name] for column in SEALED[table.name].columns}
    if connection.execute(insert, row).one_or_none() is not None:  # first, since it is mostly new
        return {table.name: [said]}
    (key,) = (column.name for column in table.primary_key)
    found = connection.execute(find, {"key": row[key]}).mappings().one()
    changed = [name for name in said if name not in (*lasting, *still) and not same_value(found[name], said[name])]
    apart = [name for name in row if name not in said]  # a study's pixels, which may have been altered
    names = [*changed, *apart, *(still if changed else ())]
    if names:
        connection.execute(_update(table, tuple(names)), {f"new_{name}": row[name] for name in (key, *names)})
    return {table.name: [{name: said[name] for name in (key, *changed, *still)}]} if changed else {}


@cache
def _statements(table: sa.Table, dialect: str) -> tuple[Any, sa.Insert]:
    """Finds a row by its key, and inserts one unless there is one; that returns nothing then.

    Made once: it costs more than to run them.
    """
    (key,) = table.primary_key
    insert = _INSERT[dialect](table).on_conflict_do_nothing(index_elements=[key]).returning(key)
    return SEALED[table.name].query.where(key == sa.bindparam("key")), insert


@cache
def _update(table: sa.Table, names: tuple[str, ...]) -> sa.Update:
    (key,) = table.primary_key
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
    return table.update().where(key == sa.bindparam(f"new_{key.name}")).values(values)


def load_sources(database: Database, digest: str) -> list[StoredSource]:
    """The DICOM images that a study was uploaded as, in the order of their arrival; none for other images.

    Raises:
        StoreError: the database does not answer.
    """
    with database.read() as connection:
        return [StoredSource(*row) for row in connection.execute(_ALL_SOURCES, {"digest": digest})]


def load_study(database: Database, digest: str) -> StoredStudy:
    """A study as it was added: its digest is computed again, so that another's pixels are never taken for it.

    Raises:
        UnknownStudyError: no study of this digest was added.
        AlteredStudyError: what is kept under this digest is not what was added.
        StoreError: the database does not answer.
    """
    row = None
    if _DIGEST.fullmatch(digest):  # anything else is a stranger's text, which not every database takes
        with database.read() as connection:
            row = connection.execute(sa.select(study).where(study.c.digest == digest)).one_or_none()
    if row is None:
        raise _unknown()
    try:
        pixels = np.asarray(Image.open(io.BytesIO(row.canvas), formats=("PNG",)))
        canvas = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        placement = Placement(row.width, row.height, row.scale, row.offset_left, row.offset_top, row.turn)
        expected = Placement.of(row.width, row.height, canvas.shape[-1], row.turn)
    except Exception as error:  # whatever somebody put there
        raise _altered(digest, "it cannot be read") from error
    if pixel_digest(canvas) != digest:
        raise _altered(digest, "its pixels have another digest")
    if placement != expected:
        raise _altered(digest, "its image was moved")
    return StoredStudy(digest, canvas, placement)


def require_study(database: Database, digest: str) -> None:
    """Raises:
    UnknownStudyError: no study of this digest was added.
    StoreError: the database does not answer.
    """
    if _DIGEST.fullmatch(digest):
        with database.read() as connection:
            if connection.execute(sa.select(study.c.digest).where(study.c.digest == digest)).one_or_none():
                return
    raise _unknown()


def _unknown() -> UnknownStudyError:
    return UnknownStudyError("no study of this digest was added; upload it first")


def _altered(digest: str, how: str) -> AlteredStudyError:
    return AlteredStudyError(
        f"study {digest[:12]}: the store does not hold what was added ({how}); upload the image again, and tell who "
        "runs this server"
    )


def _png(canvas: np.ndarray) -> bytes:
    """Never the upload's own bytes, even where they are a PNG of these pixels: they may say more than that, and whoever
    reads the store would parse a stranger's file outside of the decoder's process.

    Quickly rather than small, since an upload waits for it: every row is stored as its difference from the row above
    (filter 2 of ISO/IEC 15948, 9.2), and of what that leaves zlib looks for runs alone. A fifth of the time of Pillow's
    fastest, and smaller."""
    pixels = np.moveaxis(canvas, 0, -1)
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    filtered = np.full((height, 1 + width * channels), _UP, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packer.compress(filtered.tobytes()) + packer.flush()), (b"IEND", b""))
    return _PNG + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
