"""Both clients against the real application, and against a server that fails as servers do."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from serving.access.roles import Role
from serving.client import (
    AsyncClient,
    Box,
    Client,
    ClientError,
    InteractionRequest,
    NamedReview,
    PreviewRequest,
    ReadingRequest,
    Region,
    ReviewRequest,
    ReviewsRequest,
    ServerUnreachableError,
    calls,
)
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server

URL = "http://csr.test"
Run = Callable[..., Any]


class _Waiting(httpx.BaseTransport):
    """The application under the synchronous client."""

    def __init__(self, app: Any) -> None:
        self._inner = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            again = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            response = await self._inner.handle_async_request(again)
            await response.aread()
            return response

        answer = asyncio.run(ask())
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest, service: Service) -> Run:
    """Calls a client's method by name, on either client."""
    key = service.keys.create("client", Role.ADMIN)[1]
    app = create_server(service)

    def waiting(name: str, *arguments: Any) -> Any:
        with Client(URL, key, transport=_Waiting(app)) as client:
            return getattr(client, name)(*arguments)

    def awaited(name: str, *arguments: Any) -> Any:
        async def ask() -> Any:
            async with AsyncClient(URL, key, transport=httpx.ASGITransport(app)) as client:
                return await getattr(client, name)(*arguments)

        return asyncio.run(ask())

    return waiting if request.param == "sync" else awaited


def test_a_reader_s_round(run: Run, sample: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(sample)
    study = run("add_study", tmp_path / "a.png")
    assert run("study", study.digest).prediction == study.prediction
    request = InteractionRequest(boxes=[Box(x_min=5, y_min=5, x_max=30, y_max=30)], rejected=["mass"])
    answer = run("interact", study.digest, request)
    assert answer.before == study.prediction and answer.after != answer.before
    place = {"x_min": 5, "y_min": 5, "x_max": 30, "y_max": 30}
    probed = run("probe", study.digest, Region(**place), study.image)
    names = [each.name for each in probed.concepts]
    assert sorted(names) == sorted(each.name for each in study.prediction.concepts)
    named = Box(**place, kind="finding", concept=names[0])
    found = run("interact", study.digest, InteractionRequest(boxes=[named], confirmed=[names[1]], rejected=[names[2]]))
    assert [next(each.answer for each in found.after.concepts if each.name == name) for name in names[:3]] == [
        "confirmed",
        "confirmed",
        "rejected",
    ]
    with pytest.raises(ClientError, match="confirmed and rejected both name 'mass'"):
        run("interact", study.digest, InteractionRequest(confirmed=["mass"], rejected=["mass"]))
    assert len(run("maps", study.digest).maps) == len(study.prediction.concepts)
    assert run("maps", study.digest, request).maps != run("maps", study.digest).maps
    assert run("overlay", study.digest, "mass").startswith(b"\x89PNG")
    assert run("overlay", study.digest, "mass", request).startswith(b"\x89PNG")
    assert run("atlas").entries[0].concept == study.prediction.concepts[0].name
    assert run("review", "mass", 0, ReviewRequest(verdict="prune")).verdict == "prune"
    assert run("reviews").reviews[0].comment == ""
    assert run("me").actor == "key:client"
    assert run("thumbnail", study.digest).startswith(b"\x89PNG")
    assert run("skip", study.digest, "later").reason == "later"
    signed = run("sign", study.digest, ReadingRequest(state=request, decision="keep", model=study.model.digest))
    assert signed.found == answer.after.found and run("readings", study.digest).readings == [signed]
    for progress, expected in (("signed", [study.digest]), ("unread", [])):
        assert [each.digest for each in run("worklist", "newest", progress, 9, 0).items] == expected
    helped = [run("worklist", "margin", "all", 9, 0, wanted).total for wanted in (None, True, False)]
    assert helped[0] == helped[1] + helped[2] == 1
    assert run("worklist", "newest", "all", 9, 0, None, f"newest:9999-01-01:{study.digest}").items[0].mine == "signed"
    assert run("models").models[0].digest == study.model.digest
    assert len(run("add_studies", [("a.png", sample), ("b.png", sample)]).studies) == 2


def test_a_reviewer_s_round(run: Run, sample: bytes) -> None:
    first, second = [entry for entry in run("atlas").entries if entry.alive][:2]
    entry = run("prototype", first.concept, first.index)
    assert entry.sources == first.sources and sum(map(sum, entry.places)) > 0 and len(entry.similar) == 5
    plain, drawn = (run("crop", first.concept, first.index, 0, with_map) for with_map in (False, True))
    assert plain.startswith(b"\x89PNG") and drawn.startswith(b"\x89PNG") and plain != drawn
    nothing = run("preview", PreviewRequest())
    assert nothing.before == nothing.after
    named = [NamedReview(concept=each.concept, index=each.index, verdict="keep") for each in (first, second)]
    said = run("review_all", ReviewsRequest(reviews=named)).reviews
    assert said == run("reviews").reviews and {each.status for each in said} == {"agreed"}
    digest = run("add_study", ("a.png", sample)).digest
    assert run("compare", digest, InteractionRequest()).challenger is None
    with pytest.raises(ClientError) as folder:
        run("rollback", "worse")
    assert folder.value.code == "no_rollback"


def test_sessions(run: Run, service: Service) -> None:
    sessions = service.authenticator.sessions
    secret = sessions.open(service.keys.list()[0].actor)
    (listed,) = run("sessions").sessions
    assert (listed.actor, listed.role) == ("key:client", "admin")
    assert run("end_session", listed.id) == listed
    assert sessions.find(secret) is None and run("sessions").sessions == []
    with pytest.raises(ClientError, match="unknown_session"):
        run("end_session", listed.id)


def test_refusals_say_what_the_server_said(run: Run, sample: bytes) -> None:
    with pytest.raises(ClientError, match="upload it first") as unknown:
        run("study", "0" * 64)
    assert (unknown.value.status, unknown.value.code) == (404, "unknown_study")
    with pytest.raises(ClientError) as unreadable:
        run("add_study", ("a.png", sample[:99]))
    assert unreadable.value.code == "unreadable_image"
    with pytest.raises(ClientError) as concept:
        run("overlay", "0" * 64, "a/b c?")
    assert concept.value.code == "unknown_study"


def test_both_clients_have_the_same_methods() -> None:
    def methods(client: type) -> dict[str, list[str]]:
        public = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(each).parameters) for name, each in public if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)


class Failing(httpx.BaseTransport):
    """Answers with what it was given, one after the other, and counts."""

    def __init__(self, *outcomes: httpx.Response | Exception) -> None:
        self.requests: list[httpx.Request] = []
        self._outcomes: Iterator[httpx.Response | Exception] = iter(outcomes)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


REFUSED = httpx.ConnectError("refused")
ATLAS = {"entries": [], "timings_ms": {}}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("serving.client.synchronous.time.sleep", waited.append)
    return waited


def test_what_may_be_tried_again_is(waits: list[float]) -> None:
    busy = httpx.Response(503, headers={"Retry-After": "3"})
    gone = httpx.Response(404, text="Path '/v1/atlas' not found. Ping http://.../-/routes for available routes.")
    transport = Failing(REFUSED, busy, httpx.Response(502), gone, httpx.Response(200, json=ATLAS))
    assert Client(URL, "k", transport=transport).atlas().entries == []
    assert len(waits) == 4 and waits[1] == 3.0


def test_a_repetition_has_the_same_idempotency_key(waits: list[float]) -> None:
    transport = Failing(httpx.ReadTimeout("slow"), httpx.Response(404, json={"error": {"code": "c", "message": "m"}}))
    with pytest.raises(ClientError):
        Client(URL, "k", transport=transport).interact("x", InteractionRequest())
    keys = [request.headers["idempotency-key"] for request in transport.requests]
    assert len(keys) == 2 and keys[0] == keys[1]
    assert transport.requests[0].headers["authorization"] == "Bearer k"


def test_a_rollback_is_sent_once(waits: list[float]) -> None:
    transport = Failing(httpx.ReadTimeout("slow"))
    with pytest.raises(ServerUnreachableError):
        Client(URL, "k", transport=transport).rollback("worse")
    assert waits == []


def test_it_gives_up_in_the_end_and_says_so(waits: list[float]) -> None:
    transport = Failing(*[REFUSED] * 20)
    with pytest.raises(ServerUnreachableError, match=r"http://csr\.test: no answer \(refused\)"):
        Client(URL, "k", transport=transport).models()
    assert len(transport.requests) == calls.TRIES
    transport = Failing(*[httpx.Response(503, json={"error": {"code": "busy", "message": "m"}})] * 20)
    with pytest.raises(ClientError) as busy:
        Client(URL, "k", transport=transport).models()
    assert busy.value.status == 503 and len(transport.requests) == calls.TRIES


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
def test_what_would_only_fail_again_is_not_tried_again(status: int, waits: list[float]) -> None:
    transport = Failing(httpx.Response(status, json={"error": {"code": "c", "message": "m"}}))
    with pytest.raises(ClientError):
        Client(URL, "k", transport=transport).models()
    assert waits == []


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b"[]", b'{"error": 1}', b""])
@pytest.mark.parametrize("status", [200, 404])
def test_a_server_that_is_another_one(status: int, answer: bytes) -> None:
    with pytest.raises(ClientError) as other:
        Client(URL, "k", transport=Failing(httpx.Response(status, content=answer))).atlas()
    assert other.value.code == "unexpected_answer"


def test_the_client_is_light() -> None:
    """No torch, no ONNX Runtime, no server framework: it must install and start where people work."""
    heavy = "{'torch', 'onnxruntime', 'fastapi', 'ray', 'mlflow', 'sqlalchemy'}"
    code = f"import sys, serving.client; sys.exit(str({heavy} & set(sys.modules) or '') or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
