"""Studies and what was last said of them, as they lie in the store behind every replica."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image
from sqlalchemy.dialects import postgresql, sqlite

from csr.data.images import Placement, pixel_digest
from serving.errors import AlteredStudyError, UnknownStudyError
from serving.interfaces.schemas import Order, Progress
from serving.store.database import Database, now
from serving.store.schema import assessment, ledger, study

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredStudy:
    """A study before anything was computed.

    Args:
        digest: `csr.data.images.pixel_digest` of the canvas.
        canvas: C×S×S uint8.
        placement: where the uploaded image lies on it; of the last upload, if several had these pixels.
        source: the allowed attributes of a DICOM file, as JSON; None for other files.
    """

    digest: str
    canvas: np.ndarray
    placement: Placement
    source: str | None = None


@dataclass(frozen=True)
class Assessment:
    """What was last said of a study, as far as a worklist needs it.

    Args:
        study, bundle: digests.
        version: of the bundle, in the registry.
        top: the most probable class.
        margin: `csr.interaction.corrections.decision_margin`.
        expected_effect: see `serving.core.worklist.expected_effect`.
        asks_for_help, abstains: see `csr.bundle.format.Manifest`.
    """

    study: str
    bundle: str
    version: str
    top: str
    margin: float
    expected_effect: float
    asks_for_help: bool
    abstains: bool


@dataclass(frozen=True)
class WorklistRow:
    """A study on the worklist; ``interactions`` counts those on record, by anybody and with any bundle."""

    assessment: Assessment
    assessed_at: str
    interactions: int
    last_interaction_at: str | None


def study_row(stored: StoredStudy) -> dict[str, Any]:
    """What `save_study` keeps. Compresses the pixels: make it before a transaction begins, others wait for its end."""
    place = stored.placement
    return {
        "digest": stored.digest,
        "added_at": now(),
        "canvas": _png(stored.canvas),
        "width": place.width,
        "height": place.height,
        "scale": place.scale,
        "offset_left": place.left,
        "offset_top": place.top,
        "source": stored.source,
    }


def save_study(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Keeps a study; one of the same pixels gets the new placement and source."""
    connection.execute(_upsert(connection.dialect.name, study, "digest"), row)


def save_assessment(connection: sa.Connection, given: Assessment) -> None:
    """Keeps what is said of a study, in place of what was said before."""
    values = {**vars(given), "assessed_at": now()}
    connection.execute(_upsert(connection.dialect.name, assessment, "study"), values)


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
        raise UnknownStudyError("no study of this digest was added; upload it first")
    try:
        pixels = np.asarray(Image.open(io.BytesIO(row.canvas), formats=("PNG",)))
        canvas = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        placement = Placement(row.width, row.height, row.scale, row.offset_left, row.offset_top)
        expected = Placement.of(row.width, row.height, canvas.shape[-1])
    except Exception as error:  # whatever somebody put there
        raise _altered(digest, "it cannot be read") from error
    if pixel_digest(canvas) != digest:
        raise _altered(digest, "its pixels have another digest")
    if placement != expected:
        raise _altered(digest, "its image was moved")
    return StoredStudy(digest, canvas, placement, row.source)


def _altered(digest: str, how: str) -> AlteredStudyError:
    return AlteredStudyError(
        f"study {digest[:12]}: the store does not hold what was added ({how}); upload the image again, and tell who "
        "runs this server"
    )


def worklist(database: Database, order: Order, progress: Progress, limit: int, offset: int) -> list[WorklistRow]:
    """Studies, the smallest margin first, or the largest expected effect.

    Raises:
        StoreError: the database does not answer.
    """
    read = (
        sa.select(ledger.c.study, sa.func.count().label("count"), sa.func.max(ledger.c.at).label("last_at"))
        .where(ledger.c.kind == "interaction")
        .group_by(ledger.c.study)
        .subquery()
    )
    query = sa.select(assessment, read.c.count, read.c.last_at).outerjoin(read, read.c.study == assessment.c.study)
    if progress != "all":
        query = query.where(read.c.count.is_(None) if progress == "unread" else read.c.count.is_not(None))
    by = assessment.c.margin if order == "margin" else assessment.c.expected_effect.desc()
    query = query.order_by(by, assessment.c.study).limit(limit).offset(offset)
    with database.read() as connection:
        return [_worklist_row(row) for row in connection.execute(query).mappings()]


def _worklist_row(row: Any) -> WorklistRow:
    known = {name: row[name] for name in Assessment.__dataclass_fields__}
    return WorklistRow(Assessment(**known), row["assessed_at"], row["count"] or 0, row["last_at"])


@cache
def _upsert(dialect: str, table: sa.Table, key: str) -> Any:
    """Inserts a row, or replaces all but its key and the time it was added. Made once: it costs more than to run it."""
    insert: Any = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[dialect](table)
    changed = {each.name: insert.excluded[each.name] for each in table.columns if each.name not in (key, "added_at")}
    return insert.on_conflict_do_update(index_elements=[key], set_=changed)


def _png(canvas: np.ndarray) -> bytes:
    """Quickly rather than small: an upload waits for it."""
    pixels = canvas[0] if canvas.shape[0] == 1 else np.moveaxis(canvas, 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
