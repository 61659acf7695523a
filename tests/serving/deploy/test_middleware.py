"""What Ray Serve puts around requests, with HAProxy and without."""

from __future__ import annotations

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from serving.deploy.middleware import of_ray


async def ray(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers everything, as Ray Serve answers for itself."""
    await PlainTextResponse("success")(scope, receive, send)


def ask(path: str, host: str | None = "x", version: str = "1.1") -> httpx.Response:
    app = ray
    for each in reversed(of_ray()):
        app = each.cls(app, *each.args, **each.kwargs)

    async def as_sent(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
        named = [(b"host", host.encode())] if host else []
        await app({**scope, "headers": [*headers, *named], "http_version": version}, receive, send)

    return TestClient(as_sent).get(path)


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes", "/-/ROUTES", "/%2d/routes", "/-/x"])
def test_ray_s_python_proxy_answers_nobody(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    answer = ask(path)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-request-id"]
    assert ask("/health/live").status_code == 200


def test_ray_s_python_proxy_wants_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert "names its Host" in ask("/health/live", host=None).json()["error"]["message"]
    assert ask("/health/live", host=None, version="1.0").status_code == 200


def test_haproxy_s_own_questions_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks replicas whether they are well, naming no host, and refuses clients itself."""
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert ask("/-/healthz", host=None).text == "success"
