"""What happens around every request: an id, a span, counts, and one line in the log. Pure ASGI.

It belongs outside of everything else (``RequestTelemetry(create_app(…), …)``), Starlette's own handling of unforeseen
errors included: only there does an answer of 500 carry the id, too.
"""

from __future__ import annotations

import logging
import re
import uuid
from time import perf_counter

from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.telemetry.logs import note_study, redact, request_notes
from serving.telemetry.metrics import Metrics
from serving.telemetry.tracing import Tracing, end_request

REQUEST_ID = b"x-request-id"
UNMATCHED = "unmatched"  # the route of a path that has none
CLIENT_GONE = 499  # as nginx has it: the client left before it was answered
_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_CARRIED = (b"traceparent", b"tracestate")
_logger = logging.getLogger(__name__)


class RequestTelemetry:
    """ASGI middleware; passes on what is no HTTP request.

    Args:
        app: the application.
        metrics, tracing: who counts and who traces.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self.app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope, request_id = settle_request_id(scope)
        known = _headers(scope)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                others = [pair for pair in message.get("headers", ()) if pair[0].lower() != REQUEST_ID]
                message = {**message, "headers": [*others, (REQUEST_ID, request_id.encode())]}
            await send(message)

        scope.setdefault("state", {})["metrics"] = self._metrics  # for whoever refuses
        carried = {name.decode(): known[name].decode("latin-1") for name in _CARRIED if name in known}
        self._metrics.request_began()
        began = perf_counter()
        with request_notes(request_id), self._tracing.request(carried, request_id) as span:
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                status = status or 500
                raise
            finally:
                seconds = perf_counter() - began
                status = status or CLIENT_GONE
                method = scope["method"] if scope["method"] in _METHODS else "OTHER"
                route = _route(scope)
                self._metrics.request_ended(route, method, status, seconds)
                end_request(span, method, route, status)
                _log(scope, method, route, status, seconds)


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """Those that matter here; of several the first."""
    known: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in _CARRIED:
            known.setdefault(name, value)
    return known


def settle_request_id(scope: Scope) -> tuple[Scope, str]:
    """A request with one id, and the id: the client's first, unless it is malformed or, by mistake, a key; else ours.

    One that was refused is gone from the request, so that nobody inside can give it back.
    """
    given = [value for name, value in scope["headers"] if name == REQUEST_ID]
    text = given[0].decode("latin-1") if given else ""
    request_id = text if _OWN_ID.fullmatch(text) and redact(text) == text else uuid.uuid4().hex
    others = [pair for pair in scope["headers"] if pair[0] != REQUEST_ID]
    return {**scope, "headers": [*others, (REQUEST_ID, request_id.encode())]}, request_id


def _route(scope: Scope) -> str:
    """The template that the router left in the scope; of a mounted application where it is mounted.

    FastAPI leaves out the prefix of ``include_router``, not that of ``APIRouter``: give prefixes to the latter.
    """
    if "route" in scope:
        return scope["route"].path
    if "endpoint" in scope:  # FastAPI names a mount's application and not its route
        mounts = (route for route in scope["app"].routes if isinstance(route, Mount))
        return next((mount.path for mount in mounts if mount.app is scope["endpoint"]), UNMATCHED)
    return UNMATCHED


def _log(scope: Scope, method: str, route: str, status: int, seconds: float) -> None:
    digest = scope.get("path_params", {}).get("digest")
    if isinstance(digest, str) and _DIGEST.fullmatch(digest):  # anything else is a stranger's text
        note_study(digest)
    about = {"method": method, "route": route, "status": status, "duration_ms": round(seconds * 1000, 3)}
    _logger.info("request", extra=about)
