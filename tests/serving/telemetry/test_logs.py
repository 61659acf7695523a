"""A line is one JSON object with known fields, and no secret gets into it by any way in."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import string
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.telemetry.logs import (
    FIELDS,
    configure_logging,
    current_request_id,
    note_key,
    note_study,
    redact,
    request_notes,
)

URL_SAFE = string.ascii_letters + string.digits + "-_"
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="@\"'\\"), max_size=20)
LOGGER = logging.getLogger("serving.test")


@contextmanager
def configured(level: str = "INFO") -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Logging as the server sets it up, and its lines so far; as it was before, after."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(level, stream)
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    finally:
        root.handlers[:] = handlers
        root.setLevel(before)


def written(log: Callable[[], None]) -> tuple[dict[str, Any], str]:
    """The one line that a call writes, and its text."""
    with configured() as lines:
        log()
        (line,) = lines()
    return line, json.dumps(line, ensure_ascii=False)


def test_a_line_says_when_how_grave_who_and_what() -> None:
    line, _ = written(lambda: LOGGER.warning("%d of %d", 1, 2))
    assert list(line) == ["time", "level", "logger", "message"]
    assert line["time"].endswith("+00:00") and len(line["time"]) == len("2026-11-23T13:00:00.000+00:00")
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "serving.test", "1 of 2")


def test_a_line_names_the_request_it_belongs_to_and_only_known_fields() -> None:
    def log() -> None:
        with request_notes("r1"):
            note_key("key7")
            note_study("0123456789abcdef")
            about = {"route": "/x", "method": "GET", "status": 200, "duration_ms": 1.5}
            LOGGER.info("request", extra=about | {"patient": "Doe^John"})

    line, text = written(log)
    assert [name for name in FIELDS if name in line] == list(line)
    assert {name: line[name] for name in FIELDS[4:] if name in line} == {
        "request_id": "r1",
        "method": "GET",
        "route": "/x",
        "status": 200,
        "duration_ms": 1.5,
        "key_id": "key7",
        "study": "0123456789ab",
    }
    assert "Doe" not in text


def test_notes_end_with_their_request_and_outside_of_one_are_nowhere() -> None:
    with request_notes("r1"):
        with request_notes("r2"):
            assert current_request_id() == "r2"
        assert current_request_id() == "r1"
    assert current_request_id() is None
    note_key("key7")
    note_study("0123")
    line, _ = written(lambda: LOGGER.info("x"))
    assert not {"request_id", "key_id", "study"} & set(line)


def test_each_of_many_requests_keeps_its_notes_in_threads_of_its_own() -> None:
    async def answer(number: int) -> None:
        with request_notes(f"r{number}"):
            await asyncio.sleep(0.001 * (number % 3))
            await asyncio.to_thread(note_key, f"k{number}")
            await asyncio.to_thread(LOGGER.info, "%d", number)

    async def answer_all() -> None:
        await asyncio.gather(*(answer(number) for number in range(20)))

    with configured() as lines:
        asyncio.run(answer_all())
        found = lines()
    assert len(found) == 20
    assert all((line["request_id"], line["key_id"]) == (f"r{line['message']}", f"k{line['message']}") for line in found)


def test_the_level_is_the_least_that_is_written() -> None:
    with configured("WARNING") as lines:
        LOGGER.info("no")
        LOGGER.error("yes")
        assert [line["message"] for line in lines()] == ["yes"]


def test_a_message_of_several_lines_is_one_line() -> None:
    line, _ = written(lambda: LOGGER.info("a\nb\r\n\u2028c"))
    assert line["message"] == "a\nb\r\n\u2028c"


def failing(secret: str) -> None:
    try:
        try:
            raise ValueError(f"inner {secret}")
        except ValueError as error:
            raise RuntimeError(f"outer {secret}") from error
    except RuntimeError:
        LOGGER.exception("failed")


class Silent:
    """An argument that cannot be written."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __str__(self) -> str:
        raise ValueError(self.secret)

    __repr__ = __str__


WAYS: dict[str, Callable[[str], None]] = {
    "message": lambda secret: LOGGER.info(f"with {secret}"),
    "argument": lambda secret: LOGGER.info("with %s", secret),
    "named argument": lambda secret: LOGGER.info("with %(it)s", {"it": secret}),
    "object": lambda secret: LOGGER.info("with %s", {"it": [secret]}),
    "message that is an object": lambda secret: LOGGER.info({"it": secret}),
    "too many arguments": lambda secret: LOGGER.info("without", secret),
    "argument that cannot be written": lambda secret: LOGGER.info("with %s", Silent(secret)),
    "traceback": failing,
    "known field": lambda secret: LOGGER.info("x", extra={"route": secret}),
    "unknown field": lambda secret: LOGGER.info("x", extra={"headers": [secret]}),
    "field of another kind": lambda secret: LOGGER.info("x", extra={"extra": {"it": secret}}),
}
keys = st.text(URL_SAFE, min_size=43, max_size=43).map(lambda tail: f"csr_{tail}")


@pytest.mark.parametrize("way", WAYS)
@given(key=keys)
def test_a_key_gets_in_by_no_way(way: str, key: str) -> None:
    line, text = written(lambda: WAYS[way](key))
    assert key not in text and key[4:] not in text
    assert line["message"]


@given(WORDS, keys, WORDS)
def test_a_key_is_found_within_any_text_and_what_is_around_it_stays(before: str, key: str, after: str) -> None:
    told = redact(f"{before} {key} {after}")
    assert key not in told
    if "://" not in before + after and "uthorization" not in (before + after).lower():
        assert told == f"{before} [redacted] {after}"


HEADERS = (
    "Authorization: {}",
    "authorization:{}",
    "AUTHORIZATION : {}",
    "Proxy-Authorization: {}",
    '{{"Authorization": "{}"}}',
    '{{\\"Authorization\\": \\"{}\\"}}',
    "{{'authorization': '{}'}}",
    "[(b'authorization', b'{}'), (b'host', b'x')]",
    "curl -H 'Authorization: {}' http://x/",
    "authorization={}",
)


@pytest.mark.parametrize("form", HEADERS)
@pytest.mark.parametrize("scheme", ["Basic", "Bearer", "Digest", "ApiKey", ""])
@given(secret=st.binary(min_size=9, max_size=40).map(lambda data: base64.b64encode(data).decode()))
def test_an_authorization_header_is_found_in_every_form(form: str, scheme: str, secret: str) -> None:
    told = redact("a " + form.format(f"{scheme} {secret}".strip()) + "\nnext line")
    assert secret not in told and "[redacted]" in told
    assert told.startswith("a ") and told.endswith("\nnext line")


def test_a_digest_header_goes_whole() -> None:
    assert (
        redact('Authorization: Digest username="m", response="6629"\nHost: x') == "Authorization: [redacted]\nHost: x"
    )


def test_a_bearer_token_goes_without_its_headers_name_and_a_bearer_stays() -> None:
    assert redact("sent bearer eyJhbGciOi.eyJzdWIi.SflKxw-_c again") == "sent bearer [redacted] again"
    assert redact("the bearer of this letter") == "the bearer of this letter"


passwords = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=8, max_size=30)


@given(passwords, st.sampled_from(["postgresql+psycopg", "https", "redis"]), st.sampled_from(["", "csr", "a.b"]))
def test_a_urls_password_is_found_and_the_rest_of_the_url_stays(password: str, scheme: str, user: str) -> None:
    told = redact(f"at {scheme}://{user}:{password}@db.example:5432/csr now")
    assert told == f"at {scheme}://{user}:[redacted]@db.example:5432/csr now"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "csr_short",
        "csr_" + "a" * 42,
        "http://host:8000/v1/studies",
        "https://host/path?query=1",
        "mail reader@example.org",
        "unauthorised",
        "pruned 3 prototypes of csr_encoder",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_a_hostile_text_is_read_in_time_in_proportion_to_its_length() -> None:
    text = "authorization bearer csr_ " + "://a:" * 20_000
    began = time.thread_time()
    assert redact(text) == text
    assert time.thread_time() - began < 2
