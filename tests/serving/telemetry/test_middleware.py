"""Around every request: one id, one span, one count, one line; whatever the application does."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from serving.telemetry.logs import current_request_id, note_key
from serving.telemetry.metrics import Metrics
from serving.telemetry.middleware import RequestTelemetry
from serving.telemetry.tracing import configure_tracing
from tests.serving.telemetry.collector import attributes, running_collector
from tests.serving.telemetry.samples import read, value
from tests.serving.telemetry.test_logs import configured

DIGEST = "0123456789abcdef" * 4
KEY = "csr_" + "k" * 43


def application(folder: Any) -> FastAPI:
    app, more = FastAPI(), APIRouter(prefix="/v2")

    @app.get("/v1/studies/{digest}")
    async def study(digest: str) -> dict[str, str | None]:
        await asyncio.to_thread(note_key, "key7")
        return {"id": current_request_id()}

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("doe_john.dcm")

    @app.get("/own")
    async def own() -> Response:
        return Response(headers={"X-Request-ID": "another", "Set-Cookie": "a=1"})

    @more.get("/models/{name:path}/ready")
    async def model(name: str) -> None:
        return None

    @app.exception_handler(Exception)
    async def unforeseen(*_: Any) -> JSONResponse:
        return JSONResponse({"error": "internal"}, 500)

    app.include_router(more)
    app.mount("/page", StaticFiles(directory=folder))
    return app


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def client(registry: CollectorRegistry, tmp_path: Any) -> Iterator[TestClient]:
    (tmp_path / "index.html").write_text("page")
    app = RequestTelemetry(application(tmp_path), Metrics(registry), configure_tracing(None))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def requests(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    """Route, method and status → count."""
    return {
        (dict(labels)["route"], dict(labels)["method"], dict(labels)["status"]): count
        for (name, labels), count in read(registry).items()
        if name == "csr_request_seconds_count"
    }


@pytest.mark.parametrize("given", ["a", "A-Z_0.9", "x" * 64])
def test_a_clients_id_is_kept_and_told_to_all(client: TestClient, given: str) -> None:
    with configured() as lines:
        answer = client.get(f"/v1/studies/{DIGEST}", headers={"X-Request-ID": given})
        told = [line["request_id"] for line in lines() if line["message"] == "request"]
    assert answer.headers["x-request-id"] == given == answer.json()["id"]
    assert told == [given]


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "a\tb", "é", "a/b", '"', KEY, f"a{KEY}b"])
def test_an_id_that_is_malformed_or_a_key_is_replaced(client: TestClient, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given.encode()}
    own = [client.get(f"/v1/studies/{DIGEST}", headers=headers) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in own}
    assert len(ids) == 2 and all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert {answer.json()["id"] for answer in own} == ids


def test_an_answer_has_one_id_and_keeps_its_other_headers(client: TestClient) -> None:
    answer = client.get("/own", headers={"X-Request-ID": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert answer.headers["set-cookie"] == "a=1"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", f"/v1/studies/{DIGEST}", ("/v1/studies/{digest}", "GET", "200")),
        ("GET", "/v2/models/a/b/ready", ("/v2/models/{name:path}/ready", "GET", "200")),
        ("POST", f"/v1/studies/{DIGEST}", ("/v1/studies/{digest}", "POST", "405")),
        ("GET", "/Doe/John", ("unmatched", "GET", "404")),
        ("GET", "/page/index.html", ("/page", "GET", "200")),
        ("GET", "/page/Doe.html", ("/page", "GET", "404")),
        ("DOE", f"/v1/studies/{DIGEST}", ("/v1/studies/{digest}", "OTHER", "405")),
        ("GET", "/fails", ("/fails", "GET", "500")),
    ],
)
def test_a_request_is_counted_by_its_route_and_not_by_its_path(
    client: TestClient, registry: CollectorRegistry, method: str, path: str, expected: tuple[str, str, str]
) -> None:
    client.request(method, path)
    assert requests(registry) == {expected: 1}
    assert value(read(registry), "csr_requests_in_progress") == 0


def test_a_request_is_one_line_without_its_path(client: TestClient) -> None:
    with configured() as lines:
        client.get(f"/v1/studies/{DIGEST}?name=Doe", headers={"X-Request-ID": "r1"})
        (line,) = [line for line in lines() if line["logger"].startswith("serving.")]
    assert line.pop("time") and 0 < line.pop("duration_ms") < 10_000
    assert line == {
        "level": "INFO",
        "logger": "serving.telemetry.middleware",
        "message": "request",
        "request_id": "r1",
        "method": "GET",
        "route": "/v1/studies/{digest}",
        "status": 200,
        "key_id": "key7",
        "study": DIGEST[:12],
    }


@pytest.mark.parametrize("place", ["Doe_John", DIGEST.upper(), DIGEST[:-1]])
def test_what_is_no_digest_is_not_logged_as_one(client: TestClient, place: str) -> None:
    with configured() as lines:
        client.get(f"/v1/studies/{place}")
        (line,) = [line for line in lines() if line["message"] == "request"]
    assert "study" not in line


def test_an_unforeseen_error_is_answered_with_the_id_counted_and_passed_on(
    registry: CollectorRegistry, tmp_path: Any
) -> None:
    with running_collector() as collector:
        tracing = configure_tracing(collector.address)
        app = RequestTelemetry(application(tmp_path), Metrics(registry), tracing)
        answer = TestClient(app, raise_server_exceptions=False).get("/fails", headers={"X-Request-ID": "r1"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "r1")
        with pytest.raises(RuntimeError, match="doe_john"):
            TestClient(app).get("/fails")
        tracing.close()
        assert [span.status.message for span in collector.spans] == ["RuntimeError"] * 2
        assert attributes(collector.spans[0])["http.response.status_code"] == 500
    assert requests(registry) == {("/fails", "GET", "500"): 2}
    assert value(read(registry), "csr_requests_in_progress") == 0
    assert current_request_id() is None


def test_a_clients_trace_goes_on(registry: CollectorRegistry, tmp_path: Any) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with running_collector() as collector:
        tracing = configure_tracing(collector.address)
        app = RequestTelemetry(application(tmp_path), Metrics(registry), tracing)
        headers = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-ID": "r1"}
        TestClient(app).get(f"/v1/studies/{DIGEST}?name=Doe", headers=headers)
        tracing.close()
        (span,) = collector.spans
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == (
        "GET /v1/studies/{digest}",
        trace,
        parent,
    )
    assert attributes(span)["csr.request_id"] == "r1"
    sent = span.SerializeToString()
    assert b"Doe" not in sent and DIGEST.encode() not in sent


def scope(**others: Any) -> Scope:
    return {"type": "http", "method": "GET", "path": "/x", "headers": [], **others}


async def receive() -> Message:
    return {"type": "http.request", "body": b""}


async def nowhere(_: Message) -> None:
    """Takes everything."""


def test_an_application_that_fails_before_it_answers_is_a_500(registry: CollectorRegistry) -> None:
    async def failing(*_: Any) -> None:
        raise OSError

    middleware = RequestTelemetry(failing, Metrics(registry), configure_tracing(None))
    with pytest.raises(OSError):
        asyncio.run(middleware(scope(), receive, nowhere))
    assert requests(registry) == {("unmatched", "GET", "500"): 1}


def test_an_application_that_fails_in_its_answer_keeps_the_status_it_sent(registry: CollectorRegistry) -> None:
    async def failing(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise OSError

    middleware = RequestTelemetry(failing, Metrics(registry), configure_tracing(None))
    with pytest.raises(OSError):
        asyncio.run(middleware(scope(), receive, nowhere))
    assert requests(registry) == {("unmatched", "GET", "200"): 1}


def test_a_client_that_leaves_is_a_499(registry: CollectorRegistry) -> None:
    async def waiting(*_: Any) -> None:
        await asyncio.sleep(60)

    async def leave() -> None:
        task = asyncio.create_task(
            RequestTelemetry(waiting, Metrics(registry), configure_tracing(None))(scope(), receive, nowhere)
        )
        await asyncio.sleep(0.01)
        assert value(read(registry), "csr_requests_in_progress") == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert requests(registry) == {("unmatched", "GET", "499"): 1}
    assert value(read(registry), "csr_requests_in_progress") == 0


def test_what_is_no_http_request_passes_untouched(registry: CollectorRegistry) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send, current_request_id()))

    given: Scope = {"type": "lifespan"}
    asyncio.run(RequestTelemetry(app, Metrics(registry), configure_tracing(None))(given, receive, nowhere))
    assert seen == [(given, receive, nowhere, None)]
    assert requests(registry) == {}


def test_nothing_is_changed_in_the_message_of_the_application(registry: CollectorRegistry) -> None:
    message = {"type": "http.response.start", "status": 204, "headers": [(b"x-a", b"1")]}
    sent: list[Message] = []

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send(message)

    async def keep(each: Message) -> None:
        sent.append(each)

    asyncio.run(RequestTelemetry(app, Metrics(registry), configure_tracing(None))(scope(), receive, keep))
    assert message["headers"] == [(b"x-a", b"1")]
    assert [name for name, _ in sent[0]["headers"]] == [b"x-a", b"x-request-id"]


def test_the_line_is_written_at_info(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "serving.telemetry.middleware"):
        client.get("/Doe")
    assert [record.levelname for record in caplog.records if record.name == "serving.telemetry.middleware"] == ["INFO"]
