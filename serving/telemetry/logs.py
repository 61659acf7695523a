"""Logs as JSON, one object a line, on standard error: who asked for what, how long it took, and no secret.

A request's notes (its id, the key's id, the study's digest prefix) travel in a context variable, which
``asyncio.to_thread`` hands on, so that whoever logs while a request is answered need not know of them. Nothing but
`FIELDS` is written: an ``extra`` of another name is dropped.

Secrets are taken out of messages, tracebacks and fields before they are formatted (`RedactSecrets`): our API keys,
Authorization headers, bearer tokens, passwords in URLs. A patient's name looks like any other word: messages must not
hold one, nor a file's name.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from serving.telemetry.metrics import DIGEST_CHARACTERS

FIELDS = (
    "time",
    "level",
    "logger",
    "message",
    "request_id",
    "method",
    "route",
    "status",
    "duration_ms",
    "key_id",
    "study",
    "exc_info",
    "stack_info",
)
_NOTED = ("request_id", "key_id", "study")
_REDACTED = "[redacted]"
# They quote what patients are called, and the addresses of queries about them.
_TALKATIVE = ("pydicom", "highdicom", "dicomweb_client", "urllib3")
# A header as text, as JSON, or as a pair of Python strings or bytes; unquoted it takes the rest of its line.
_HEADER = r"(?i)(authorization[\\\"']*\s*[:=,]\s*)(?:b?\"[^\"\r\n]*\"?|b?'[^'\r\n]*'?|[^\"'\s][^\r\n]*)"
# Passwords can be tokens of a thousand characters and more; without a limit a hostile text takes quadratic time.
_SECRETS = (  # what a text in lower case must hold to be searched, as most do not; the pattern; what takes its place
    ("authorization", re.compile(_HEADER), rf"\1{_REDACTED}"),
    ("bearer", re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{16,}"), rf"\1{_REDACTED}"),
    ("csr_", re.compile(r"csr_[A-Za-z0-9_-]{43,}"), _REDACTED),
    ("://", re.compile(r"(://[^\s:/@]*:)\S{0,2048}@"), rf"\1{_REDACTED}@"),
)
_encode = json.JSONEncoder(default=str).encode


@dataclass
class RequestNotes:
    """What log lines say of the request that is being answered.

    Args:
        request_id: the client's or ours. key_id: of the key it came with, never the key. study: a digest's prefix.
    """

    request_id: str
    key_id: str | None = None
    study: str | None = None


_notes: ContextVar[RequestNotes | None] = ContextVar("csr_request_notes", default=None)


@contextmanager
def request_notes(request_id: str) -> Iterator[RequestNotes]:
    """While it is open, log lines name this request."""
    notes = RequestNotes(request_id)
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def current_request_id() -> str | None:
    """The id of the request that is being answered here, if one is."""
    notes = _notes.get()
    return notes.request_id if notes else None


def note_key(key_id: str) -> None:
    """The request came with this key. Outside of a request nothing is noted."""
    if notes := _notes.get():
        notes.key_id = key_id


def note_study(digest: str) -> None:
    """The request is about this study. Outside of a request nothing is noted."""
    if notes := _notes.get():
        notes.study = digest[:DIGEST_CHARACTERS]


def redact(text: str) -> str:
    """The text without anything that looks like a secret."""
    lowered = text.lower()
    for mark, pattern, replacement in _SECRETS:
        if mark in lowered:
            text = pattern.sub(replacement, text)
    return text


class RedactSecrets(logging.Filter):
    """Lets every record pass, its texts final and without secrets. Handlers that come after see it so, too."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(_message(record)), ()
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        for name in ("exc_text", "stack_info", *FIELDS):
            value = record.__dict__.get(name)
            if isinstance(value, str):
                record.__dict__[name] = redact(value)
        return True


class JsonLines(JsonFormatter):
    """`FIELDS` in their order, those that are empty left out; ``time`` is UTC in ISO 8601."""

    def __init__(self) -> None:
        renamed = {"asctime": "time", "levelname": "level", "name": "logger"}
        super().__init__(["asctime", "levelname", "name", "message"], rename_fields=renamed)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        notes = _notes.get()
        known = {name: getattr(notes, name) for name in _NOTED} if notes else {}
        known |= {name: value for name, value in log_data.items() if value is not None}
        return {name: known[name] for name in FIELDS if known.get(name) is not None}

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        return _encode(log_data)


def configure_logging(level: str = "INFO", stream: TextIO | None = None) -> logging.Handler:
    """Makes JSON lines of everything that this process logs, in place of what was set up before.

    Servers with access logs of their own write whole paths and addresses: start uvicorn with ``log_config=None`` and
    ``access_log=False``, Ray Serve with ``enable_access_log=False``.

    Args:
        level: the least that is written. stream: where to; None: standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(RedactSecrets())
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    return handler


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # an argument's own __str__ may raise anything, and logging would print all of them as they are
        return f"the log call at {record.filename}:{record.lineno} does not fit its arguments"
