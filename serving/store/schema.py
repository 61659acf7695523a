"""The tables that must last. One schema for SQLite and PostgreSQL; times are UTC in ISO 8601, JSON is text.

- ``study``        the pixels that readers look at: what the network sees, never the file that was uploaded
- ``study_source``  the DICOM images that a study was uploaded as, side by side
- ``assessment``   the last word on each study, for the worklist
- ``ledger``       everything that was said, and what the tables above and ``api_key`` hold, chained by hashes
                   (`serving.store.ledger`, `serving.store.rows`)
- ``ledger_head``  its length and last hash; its one row is what writers lock
- ``api_key``      who may do what (`serving.access.keys`)
- ``session``      browsers that signed in (`serving.access.sessions`)
- ``write_probe``  one row at most, written anew to see whether the store takes writes (`serving.store.probe`)

What can be derived is not stored: reviews and the history of the served model are read from the ledger, features are
encoded again.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

VERSION = 5  # see `serving.store.migration`
SEALED_SINCE = 3  # the version from which on the ledger says what the tables hold, and its seal which version that is
HEAD = 3  # id of the one row of ``ledger_head``; servers of versions 1 and 2 look for 1, and write nothing without it
metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

study = Table(
    "study",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("added_at", String(32), nullable=False),
    Column("canvas", LargeBinary, nullable=False),  # PNG
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("scale", Float(53), nullable=False),
    Column("offset_left", Float(53), nullable=False),
    Column("offset_top", Float(53), nullable=False),
    Column("turn", Integer, nullable=False, server_default="1"),  # what brought it upright (`csr.data.orientation`)
)

study_source = Table(
    "study_source",
    metadata,
    Column("study", String(64), ForeignKey("study.digest"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 1, in the order of arrival
    Column("added_at", String(32), nullable=False),
    Column("source", Text, nullable=False),  # the allowed attributes of a DICOM file
)

assessment = Table(
    "assessment",
    metadata,
    Column("study", String(64), ForeignKey("study.digest"), primary_key=True),
    Column("bundle", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("assessed_at", String(32), nullable=False),
    Column("top", Text, nullable=False),
    Column("margin", Float(53), nullable=False),
    Column("expected_effect", Float(53), nullable=False),
    Column("asks_for_help", Boolean, nullable=False),
    Column("abstains", Boolean, nullable=False),
    # Empty where a server before version 5 assessed the study.
    Column("confidence", Float(53)),
    Column("found", Text),  # names of classes, as JSON
    Column("fits", Boolean),
)
# The orders of the worklist. `serving.store.migration` makes indexes that are missing; they are no part of the version.
Index("worklist_newest", study.c.added_at, study.c.digest)
Index("worklist_margin", assessment.c.margin, assessment.c.study)
Index("worklist_effect", assessment.c.expected_effect, assessment.c.study)
Index("worklist_help_margin", assessment.c.asks_for_help, assessment.c.margin, assessment.c.study)
Index("worklist_help_effect", assessment.c.asks_for_help, assessment.c.expected_effect, assessment.c.study)

ledger = Table(
    "ledger",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("once", String(64), nullable=False, unique=True),  # digest of actor and idempotency key, or random
    Column("study", String(64), nullable=False),  # empty where it is about none
    Column("bundle", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)
Index("ledger_study", ledger.c.study, ledger.c.kind)
Index("ledger_kind", ledger.c.kind, ledger.c.number)
# All that the worklist asks of one reader's entries, so that it need not read their bodies.
Index("ledger_actor", ledger.c.actor, ledger.c.kind, ledger.c.study, ledger.c.request_id, ledger.c.number)

ledger_head = Table(
    "ledger_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("length", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("seal", String(64), nullable=False),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created_at", String(32), nullable=False),
    Column("revoked_at", String(32)),
)

session = Table(
    "session",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),  # of the cookie's value, which is stored nowhere
    Column("actor", String(200), nullable=False),
    Column("role", String(16), nullable=False),
    Column("key_id", String(16), ForeignKey("api_key.id")),  # empty where a provider's token opened it
    Column("opened_at", String(32), nullable=False),
    Column("used_at", String(32), nullable=False),
    Column("expires_at", String(32), nullable=False),
)
Index("session_actor", session.c.actor)

write_probe = Table(
    "write_probe",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("filler", LargeBinary, nullable=False),
)
