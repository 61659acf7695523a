from __future__ import annotations

from collections.abc import Callable, Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from serving.access.authenticator import Authenticator
from serving.access.credentials import SESSION_COOKIE
from serving.access.keys import KeyStore
from serving.access.middleware import Access
from serving.access.oidc import TokenVerifier
from serving.access.rates import RateLimits, Rates
from serving.access.roles import Role
from serving.access.sessions import SessionStore
from serving.access.signin import add_sign_in
from serving.store import Store
from serving.store.database import Database
from tests.serving.access.provider import Provider


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Queries:
    """Counts statements on a database."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        sa.event.listen(database._engine, "before_cursor_execute", self._count)

    def _count(self, *_: Any) -> None:
        self.count += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of what is remembered, of keys and of a provider's keys."""
    clock = Clock()
    module = SimpleNamespace(monotonic=clock.monotonic)
    monkeypatch.setattr("serving.access.keys.time", module)
    monkeypatch.setattr("serving.access.jwks.time", module)
    monkeypatch.setattr("serving.access.sessions.time", module)
    return clock


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store" / "csr.db"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{file}", b"a key of at least thirty-two bytes")
    yield store
    store.database.close()


@pytest.fixture
def database(store: Store) -> Database:
    return store.database


@pytest.fixture
def queries(database: Database) -> Queries:
    return Queries(database)


@pytest.fixture
def keys(store: Store) -> KeyStore:
    return KeyStore(store)


@pytest.fixture
def sessions(database: Database) -> SessionStore:
    return SessionStore(database)


@pytest.fixture
def lose(database: Database, file: Path) -> Callable[[], None]:
    """Takes the database away."""

    def lose() -> None:
        database.close()
        for part in file.parent.iterdir():
            part.unlink()
        file.mkdir()

    return lose


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def tokens(provider: Provider, tmp_path: Path) -> TokenVerifier:
    return TokenVerifier(provider.config(tmp_path))


@pytest.fixture
def build(keys: KeyStore, sessions: SessionStore) -> Iterator[Callable[..., TestClient]]:
    """Makes an application behind `Access`, whose handlers say who asks, and a client of it."""
    made: list[Authenticator] = []

    def build(tokens: TokenVerifier | None = None, secure: bool = False, **limits: int) -> TestClient:
        authenticator = Authenticator(keys, sessions, tokens, Rates(RateLimits(**limits)))
        made.append(authenticator)
        app = FastAPI()
        add_sign_in(app, authenticator, secure)

        @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
        async def anything(request: Request) -> dict[str, str]:
            actor = getattr(request.state, "actor", None)
            return {"actor": actor.name, "role": actor.role} if actor else {}

        app.add_middleware(Access, authenticator=authenticator)
        return TestClient(app, base_url="https://csr.test" if secure else "http://csr.test", follow_redirects=False)

    yield build
    for authenticator in made:
        authenticator.close()


@pytest.fixture
def secret(keys: KeyStore) -> str:
    """A reader's."""
    return keys.create("reader-1", Role.READER)[1]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def open_session(client: TestClient, secret: str) -> str:
    """Signs in as the page does, and returns what the cookie holds; the client itself keeps none."""
    answer = client.post("/sign-in", data={"key": secret}, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 303, answer.text
    session = SimpleCookie(answer.headers["set-cookie"])[SESSION_COOKIE].value
    client.cookies.clear()
    return session
