from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.websockets import WebSocketDisconnect

from serving.access.authenticator import Authenticator
from serving.access.credentials import SESSION_COOKIE
from serving.access.keys import FRESH_S, KeyStore
from serving.access.middleware import Access
from serving.access.oidc import TokenVerifier
from serving.access.rates import RateLimits, Rates
from serving.access.roles import Actor, Role
from serving.access.rules import OPEN, RULES, Rule, needed_role
from serving.access.sessions import SessionStore
from serving.errors import ForbiddenError, RateLimitedError, UnauthenticatedError
from tests.serving.access.conftest import Clock, bearer, open_session
from tests.serving.access.provider import Provider

Build = Callable[..., TestClient]
OPEN_PATHS = ["/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"]
WRONG = "csr_" + 43 * "A"
WRONG_SESSION = "csr_session_" + 43 * "A"


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_health_is_open(build: Build, path: str) -> None:
    assert build().get(path).json() == {}


@pytest.mark.parametrize(
    "path",
    ["/", "/v1/models", "/openapi.json", "/nowhere", "/health", "/health/live/", "//health/live", "/v1/health/live"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BREW"])
def test_strangers_get_nowhere(build: Build, method: str, path: str) -> None:
    answer = build().request(method, "http://csr.test" + path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="csr"'
    assert answer.headers["cache-control"] == "no-store"
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "unauthenticated"


def test_health_is_open_for_reading_only(build: Build) -> None:
    assert build().post("/health/live").status_code == 401


def test_under_v2_errors_are_the_protocols(build: Build, secret: str) -> None:
    for path in ("/v2", "/v2/models/csr/infer"):
        answer = build().get(path).json()
        assert set(answer) == {"error", "code"}
        assert answer["code"] == "unauthenticated"
        assert isinstance(answer["error"], str)
    refused = build().post("/v2/repository/index", headers=bearer(secret))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert build().get("/v2x").json()["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/", Role.READER),
        ("GET", "/page/js/main.js", Role.READER),
        ("GET", "/openapi.json", Role.READER),
        ("GET", "/v1/models", Role.READER),
        ("GET", "/v1/worklist", Role.READER),
        ("GET", "/v1/feedback", Role.READER),
        ("POST", "/v1/feedback", Role.ADMIN),
        ("GET", "/v1/me", Role.READER),
        ("GET", "/v1/studies/ab12/thumbnail.png", Role.READER),
        ("POST", "/v1/studies/ab12/readings", Role.READER),
        ("GET", "/v1/studies/ab12/readings", Role.READER),
        ("POST", "/v1/studies/ab12/skips", Role.READER),
        ("POST", "/v1/me", Role.ADMIN),
        ("POST", "/v1/studies/batch", Role.READER),
        ("POST", "/v1/atlas/Nodule/Mass/3/review", Role.REVIEWER),
        ("GET", "/v1/atlas", Role.READER),
        ("GET", "/v1/atlas/Nodule/Mass/3.png", Role.READER),
        ("GET", "/v1/samples/0.png", Role.READER),
        ("POST", "/v1/studies", Role.READER),
        ("POST", "/v1/studies/ab12/interactions", Role.READER),
        ("GET", "/v1/studies/ab12/image.png", Role.READER),
        ("GET", "/v1/studies/ab12/maps/Nodule/Mass.png", Role.READER),
        ("POST", "/v1/studies/ab12/maps/Nodule/Mass.png", Role.READER),
        ("POST", "/v2/models/csr/infer", Role.READER),
        ("GET", "/v2/models/csr/versions/1/ready", Role.READER),
        ("GET", "/v2/health/live", None),
        ("GET", "/sign-in", None),
        ("POST", "/sign-in", None),
        ("POST", "/sign-out", None),
        ("GET", "/sign-out", Role.ADMIN),
        ("DELETE", "/v1/studies/ab12", Role.ADMIN),
        ("PUT", "/v1/models", Role.ADMIN),
        ("POST", "/v1/modelx", Role.ADMIN),
        ("GET", "/v1/modelx", Role.ADMIN),
        ("GET", "/metrics", Role.ADMIN),
        ("GET", "/health/live\n", Role.ADMIN),
        ("GET", "/v2/health/live/x", Role.ADMIN),
        ("GET", "", Role.ADMIN),
    ],
)
def test_rules(method: str, path: str, needed: Role | None) -> None:
    assert needed_role(RULES, method, path) is needed


def test_the_first_rule_counts() -> None:
    rules = (*OPEN, Rule(frozenset({"GET"}), "/v1/.*", Role.REVIEWER), Rule(frozenset({"GET"}), "/v1/models", None))
    assert needed_role(rules, "GET", "/v1/models") is Role.REVIEWER
    assert needed_role((), "GET", "/health/live") is Role.ADMIN


@pytest.mark.parametrize("role", Role)
def test_roles_reach_what_they_may(build: Build, keys: KeyStore, role: Role) -> None:
    _, secret = keys.create("somebody", role)
    answer = build().get("/v1/models", headers=bearer(secret))
    assert answer.json() == {"actor": "key:somebody", "role": role.value}
    unlisted = build().delete("/v1/studies/ab12", headers=bearer(secret))
    assert unlisted.status_code == (200 if role is Role.ADMIN else 403)


def test_a_role_that_is_less_is_told_so(build: Build, secret: str) -> None:
    answer = build().get("/metrics", headers=bearer(secret))
    assert answer.status_code == 403
    assert answer.json() == {
        "error": {"code": "forbidden", "message": "this needs the role admin, and yours is reader"}
    }


@pytest.mark.parametrize("wrong", [WRONG, "csr_", "abc", "a.b.c"])
def test_a_wrong_key(build: Build, secret: str, wrong: str) -> None:
    answer = build().get("/v1/models", headers=bearer(wrong))
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthenticated"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"Bearer ", b"Bearer csr_", b"Basic "]))
def test_no_header_causes_a_500(keys: KeyStore, sessions: SessionStore, header: bytes, prefix: bytes) -> None:
    statuses = []

    async def app(*_: Any) -> None:
        statuses.append(200)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    authenticator = Authenticator(keys, sessions, rates=Rates(RateLimits(failures_per_minute=10_000)))
    raw = [(b"authorization", prefix + header), (b"cookie", header), (b"accept", header), (b"origin", header)]
    scope = {"type": "http", "method": "POST", "path": "/v1/studies", "headers": raw, "client": None}
    asyncio.run(Access(app, authenticator)(scope, None, send))  # type: ignore[arg-type]
    authenticator.close()
    assert statuses == [401]


def test_a_token_gets_in(build: Build, tokens: TokenVerifier, provider: Provider) -> None:
    client = build(tokens)
    answer = client.get("/v1/models", headers=bearer(provider.token()))
    assert answer.json()["actor"].startswith("oidc:")
    expired = client.get("/v1/models", headers=bearer(provider.token(exp=1)))
    assert (expired.status_code, expired.json()["error"]["code"]) == (401, "token_expired")
    assert expired.headers["www-authenticate"] == 'Bearer realm="csr", error="invalid_token"'
    no_role = client.get("/v1/models", headers=bearer(provider.token(roles=[])))
    assert (no_role.status_code, no_role.json()["error"]["code"]) == (403, "forbidden")
    assert client.get("/metrics", headers=bearer(provider.token(roles=["csr-admins"]))).status_code == 200


def test_without_a_provider_a_token_is_nobodys(build: Build, provider: Provider) -> None:
    answer = build().get("/v1/models", headers=bearer(provider.token()))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")


def test_a_provider_that_is_gone_is_a_503(build: Build, tokens: TokenVerifier, provider: Provider, secret: str) -> None:
    provider.status = 500
    client = build(tokens)
    answer = client.get("/v1/models", headers=bearer(provider.token()))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "identity_provider_unavailable")
    assert client.get("/v1/models", headers=bearer(secret)).status_code == 200


def test_a_database_that_is_gone_is_a_503(
    build: Build, secret: str, lose: Callable[[], None], clock: Clock, file: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = build()
    session = {"Cookie": f"{SESSION_COOKIE}={open_session(client, secret)}"}
    for headers in (bearer(secret), session):
        assert client.get("/v1/models", headers=headers).status_code == 200
    lose()
    clock.now += FRESH_S
    for headers in (bearer(secret), bearer(WRONG), session, {"Cookie": f"{SESSION_COOKIE}={WRONG_SESSION}"}):
        answer = client.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert str(file) not in answer.text
        assert answer.headers["retry-after"] == "2"
    assert str(file) in caplog.text
    assert client.get("/health/live").status_code == 200
    assert client.get("/v1/models").status_code == 401


def test_a_browser_is_led_to_the_sign_in(build: Build) -> None:
    html = {"Accept": "text/html,application/xhtml+xml"}
    for headers in (html, {**html, "Cookie": f"{SESSION_COOKIE}={WRONG_SESSION}"}):
        answer = build().get("/", headers=headers)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert build().get("/v1/models", headers=html).status_code == 401
    assert build().post("/", headers=html).status_code == 401
    assert build().get("/", headers={"Accept": "application/json"}).status_code == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_another_sites_page_cannot_use_a_session(build: Build, keys: KeyStore, method: str) -> None:
    _, secret = keys.create("boss", Role.ADMIN)
    client = build()
    session = {"Cookie": f"{SESSION_COOKIE}={open_session(client, secret)}"}
    for foreign in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.test"}, {"Origin": "null"}):
        refused = client.request(method, "/v1/studies", headers={**session, **foreign})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cross_site")
        assert client.get("/v1/models", headers={**session, **foreign}).status_code == 200
        assert client.request(method, "/v1/studies", headers={**bearer(secret), **foreign}).status_code == 200
    for own in ({}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://csr.test"}):
        assert client.request(method, "/v1/studies", headers={**session, **own}).status_code == 200


def test_too_many_requests(build: Build, keys: KeyStore, secret: str) -> None:
    client = build(requests_per_minute=3)
    answers = [client.get("/v1/models", headers=bearer(secret)) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].json()["error"]["code"] == "rate_limited"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    _, other = keys.create("reader-2", Role.READER)
    assert client.get("/v1/models", headers=bearer(other)).status_code == 200


def test_too_many_wrong_keys_refuse_wrong_keys_only(build: Build, secret: str) -> None:
    client = build(failures_per_minute=2)
    statuses = [client.get("/v1/models", headers=bearer(WRONG)).status_code for _ in range(4)]
    assert statuses == [401, 401, 429, 429]
    assert client.get("/v1/models", headers=bearer(secret)).status_code == 200


def test_too_many_at_once(keys: KeyStore, sessions: SessionStore, secret: str) -> None:
    running, release = threading.Semaphore(0), threading.Event()

    app = FastAPI()

    @app.get("/v1/models")
    async def slow() -> None:
        running.release()
        await asyncio.to_thread(release.wait, 20)

    authenticator = Authenticator(keys, sessions, rates=Rates(RateLimits(concurrent=2)))
    with TestClient(Access(app, authenticator)) as client, ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(client.get, "/v1/models", headers=bearer(secret)) for _ in range(2)]
        for _ in waiting:
            assert running.acquire(timeout=20)
        refused = client.get("/v1/models", headers=bearer(secret))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        release.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
        assert client.get("/v1/models", headers=bearer(secret)).status_code == 200
    authenticator.close()


def test_a_handler_that_fails_gives_its_place_back(keys: KeyStore, sessions: SessionStore, secret: str) -> None:
    async def app(*_: Any) -> None:
        raise ForbiddenError("raised by the application, and none of our business")

    authenticator = Authenticator(keys, sessions, rates=Rates(RateLimits(concurrent=1)))
    client = TestClient(Access(app, authenticator))
    for _ in range(3):
        with pytest.raises(ForbiddenError, match="none of our business"):
            client.get("/v1/models", headers=bearer(secret))
    authenticator.close()


def test_the_actor_is_nobody_elses_state(keys: KeyStore, sessions: SessionStore, secret: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    authenticator = Authenticator(keys, sessions)
    shared = {"plane": 1}
    headers = [(b"authorization", f"Bearer {secret}".encode())]
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers, "state": shared}

    async def send(_: Any) -> None:
        pass

    asyncio.run(Access(app, authenticator)(scope, None, send))  # type: ignore[arg-type]
    authenticator.close()
    assert seen[0]["plane"] == 1
    assert seen[0]["actor"].name == "key:reader-1"
    assert shared == {"plane": 1}


def test_web_sockets_are_refused(keys: KeyStore, sessions: SessionStore, secret: str) -> None:
    reached: list[Any] = []

    async def app(*scope: Any) -> None:
        reached.append(scope)

    authenticator = Authenticator(keys, sessions)
    with (
        pytest.raises(WebSocketDisconnect),
        TestClient(Access(app, authenticator)).websocket_connect("/health/live", headers=bearer(secret)),
    ):
        pass
    authenticator.close()
    assert reached == []


def test_one_decision_for_grpc(
    keys: KeyStore, sessions: SessionStore, secret: str, tokens: TokenVerifier, provider: Provider
) -> None:
    authenticator = Authenticator(keys, sessions, tokens, Rates(RateLimits(failures_per_minute=1)))
    metadata = {"user-agent": "grpc-python/1.85", "authorization": f"Bearer {secret}"}
    assert authenticator.authorize(metadata, Role.READER, "10.0.0.1") == Actor(
        keys.list()[0].id, "key:reader-1", Role.READER
    )
    assert authenticator.authorize({"authorization": f"Bearer {provider.token()}"}, Role.READER).name.startswith(
        "oidc:"
    )
    with pytest.raises(ForbiddenError):
        authenticator.authorize(metadata, Role.REVIEWER)
    with pytest.raises(UnauthenticatedError):
        authenticator.authorize({}, Role.READER)
    wrong = {"authorization": f"Bearer {WRONG}"}
    with pytest.raises(UnauthenticatedError):
        authenticator.authorize(wrong, Role.READER, "10.0.0.1")
    with pytest.raises(RateLimitedError):
        authenticator.authorize(wrong, Role.READER, "10.0.0.1")
    with pytest.raises(UnauthenticatedError):
        authenticator.authorize(wrong, Role.READER, "10.0.0.2")
    authenticator.close()


def test_revoking_ends_what_many_clients_do(build: Build, keys: KeyStore, secret: str) -> None:
    client = build(requests_per_minute=10_000, failures_per_minute=10_000)
    key = keys.list()[0]
    revoked = threading.Event()

    def ask(_: int) -> tuple[bool, int]:
        before = revoked.is_set()
        return before, client.get("/v1/models", headers=bearer(secret)).status_code

    with client, ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, number) for number in range(100)]
        keys.revoke(key.id)
        revoked.set()
        asked += [threads.submit(ask, number) for number in range(20)]
    answers = [one.result() for one in asked]
    assert {status for _, status in answers} <= {200, 401}
    assert {status for before, status in answers if before} == {401}
