"""Secrets go in by every path; nothing that people or files get to see may hold one."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from serving.access.authenticator import Authenticator
from serving.access.credentials import SESSION_COOKIE, read_credential
from serving.access.keys import FRESH_S, KeyStore
from serving.access.oidc import TokenVerifier
from serving.access.rates import RateLimits, Rates
from serving.access.roles import Role
from serving.access.sessions import SessionStore
from serving.errors import KeyConflictError, ServingError, StoreError
from serving.store.database import Database
from tests.serving.access.conftest import Clock, bearer, open_session
from tests.serving.access.provider import Provider, private_key

WRONG = "csr_" + 43 * "W"


class Seen:
    """All that was seen."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        self._caplog = caplog
        self._texts: list[str] = []

    def add(self, *things: Any) -> None:
        for thing in things:
            if isinstance(thing, BaseException):
                self._texts += ["".join(traceback.format_exception(thing)), repr(thing)]
            else:
                self._texts += [str(thing), repr(thing)]

    def check(self, *secrets: str) -> None:
        formatter = logging.Formatter()
        records = [record for record in self._caplog.records if not record.name.startswith(("asyncio", "httpx"))]
        logged = [formatter.format(record) + repr(record.__dict__) for record in records]
        everything = "\n".join(self._texts + logged)
        assert everything
        for secret in secrets:
            assert secret.removeprefix("csr_") not in everything


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Seen:
    return Seen(caplog)


def attempts(client: TestClient, secret: str) -> list[Any]:
    """Shows a secret in every way, and returns the answers."""
    ways: list[dict[str, Any]] = [
        {"headers": bearer(secret)},
        {"headers": {"Authorization": f"bearer   {secret}"}},
        {"headers": {"Authorization": secret}},
        {"headers": {"Authorization": f"Basic {secret}"}},
        {"headers": {"Authorization": f"Bearer {secret} {secret}"}},
        {"headers": {"Cookie": f"{SESSION_COOKIE}={secret}"}},
        {"headers": {"Cookie": f"{SESSION_COOKIE}={secret}", "Accept": "text/html"}},
        {"headers": {"Cookie": f"{SESSION_COOKIE}={secret}", "Origin": "https://evil.test"}},
    ]
    answers = []
    for way in ways:
        for method, path in (
            ("GET", "/"),
            ("POST", "/v1/studies"),
            ("GET", "/metrics"),
            ("POST", "/v2/models/m/infer"),
        ):
            answers.append(client.request(method, path, **way))
    for form in ({"data": {"key": secret}}, {"data": {"other": secret}}, {"files": {"key": secret.encode()}}):
        answers.append(client.post("/sign-in", **form))  # type: ignore[arg-type]
    answers += [client.post("/sign-out"), client.get("/sign-in")]
    client.cookies.clear()
    return answers


def texts(answers: list[Any]) -> list[str]:
    """Bodies and headers, but for the cookie that a browser must get."""
    for answer in answers:
        answer.headers.pop("set-cookie", None)
    return [f"{answer.text} {answer.headers}" for answer in answers]


def test_keys(
    build: Callable[..., TestClient], keys: KeyStore, seen: Seen, lose: Callable[[], None], clock: Clock
) -> None:
    key, right = keys.create("reader-1", Role.READER)
    ended, revoked = keys.create("reader-2", Role.READER)
    keys.revoke(ended.id)
    client = build(failures_per_minute=10_000)
    statuses = set()
    for secret in (right, revoked, WRONG):
        answers = attempts(client, secret)
        statuses |= {answer.status_code for answer in answers}
        seen.add(*texts(answers))
    answers = attempts(build(requests_per_minute=1, failures_per_minute=1), right)
    answers += attempts(build(failures_per_minute=1), WRONG)
    lose()
    clock.now += FRESH_S
    answers += attempts(client, right)
    statuses |= {answer.status_code for answer in answers}
    assert statuses == {200, 303, 400, 401, 403, 429, 503}
    seen.add(*texts(answers), key, keys, keys.__dict__, key.actor)
    seen.check(right, revoked, WRONG)


def test_sessions(
    build: Callable[..., TestClient], sessions: SessionStore, secret: str, seen: Seen, lose: Callable[[], None]
) -> None:
    client = build(failures_per_minute=10_000)
    session = open_session(client, secret)
    answers = attempts(client, session)
    sessions.end(session)
    lose()
    answers += attempts(client, session)
    assert {answer.status_code for answer in answers} == {200, 303, 400, 401, 403, 503}
    seen.add(*texts(answers), sessions, sessions.__dict__, sessions.find)
    seen.check(session, session.removeprefix("csr_session_"), secret)


def test_keys_in_errors(
    keys: KeyStore, sessions: SessionStore, database: Database, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = "W" * 43
    monkeypatch.setattr("serving.access.keys.secrets.token_urlsafe", lambda _: made)
    _, secret = keys.create("reader-1", Role.READER)
    with pytest.raises(KeyConflictError) as conflict:
        keys.create("reader-1", Role.READER)
    with database.write() as connection:
        connection.execute(sa.text("drop table api_key"))
    keys._forget()
    with pytest.raises(StoreError) as create:
        keys.create("reader-2", Role.READER)
    with pytest.raises(StoreError) as find:
        keys.find(secret)
    authenticator = Authenticator(keys, sessions)
    with pytest.raises(StoreError) as authenticate:
        authenticator.authorize({"authorization": f"Bearer {secret}"}, Role.READER)
    authenticator.close()
    for error in (conflict, create, find, authenticate):
        seen.add(error.value)
    seen.add(read_credential({"authorization": f"Bearer {secret}"}), authenticator)
    seen.check(secret)


def test_tokens(
    build: Callable[..., TestClient], tokens: TokenVerifier, provider: Provider, tmp_path: Path, seen: Seen
) -> None:
    other = private_key("RS256", "somebody else")
    made = [
        provider.token(),
        provider.token(exp=1),
        provider.token(aud="another"),
        provider.token(iss="another"),
        provider.token(roles=[]),
        provider.token(key=other),
        provider.token(key_id="made-up"),
        provider.token("HS256", key=b"s" * 32),
        jwt.encode({"sub": "jane.doe"}, None, "none"),
        provider.token(exp="soon"),
    ]
    client = build(tokens, failures_per_minute=10_000)
    for token in made:
        seen.add(*texts(attempts(client, token)))
        try:
            seen.add(tokens.verify(token))
        except ServingError as error:
            seen.add(error)
    seen.add(tokens, tokens._keys, tokens._remembered)
    payloads_and_signatures = [part for token in made for part in token.split(".")[1:] if part]
    seen.check(*payloads_and_signatures, "jane.doe")


def test_the_salt(tokens: TokenVerifier, provider: Provider, tmp_path: Path, seen: Seen) -> None:
    seen.add(tokens, provider.config(tmp_path), tokens.verify(provider.token()))
    seen.check((tmp_path / "salt").read_text())


def test_a_broken_store_says_nothing_of_a_credential_even_unhandled(
    keys: KeyStore, sessions: SessionStore, seen: Seen
) -> None:
    authenticator = Authenticator(keys, sessions, rates=Rates(RateLimits(failures_per_minute=1)))
    for _ in range(2):
        with pytest.raises(ServingError) as refused:
            authenticator.authorize({"authorization": f"Bearer {WRONG}"}, Role.READER, "10.0.0.1")
        seen.add(refused.value)
    authenticator.close()
    seen.check(WRONG)
