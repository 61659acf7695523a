"""Takes webhooks: ``POST /webhooks/mlflow`` and ``POST /webhooks/alertmanager``.

MLflow signs its messages (``mlflow.webhooks.delivery``): ``X-MLflow-Signature`` is ``v1,`` and the base64 of
HMAC-SHA256 over ``<delivery id>.<timestamp>.<body>``. A message without a signature, with a wrong one, or from another
time is refused; one that comes again has the same delivery id and is known. Alertmanager cannot sign; it sends a bearer
token. Both try again on what is not 2xx, so an event that cannot be written down is refused with 503.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import time
from asyncio import to_thread
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from csr.errors import ConfigError
from pipelines.triggers.config import AlertmanagerConfig, MlflowConfig, ReceiverConfig, secret
from pipelines.triggers.outbox import Outbox, OutboxError

BODY_BYTES = 1 << 20
WEBHOOK_SECRET, ALERTS_TOKEN = "CSR_WEBHOOK_SECRET", "CSR_ALERTS_TOKEN"
MOST_ALERTS = 20  # in one dispatch; GitHub bounds its payload
_log = logging.getLogger(__name__)


class AliasMoved(BaseModel):
    """What MLflow says of an alias that was set."""

    name: str
    alias: str
    version: str


class Message(BaseModel):
    """MLflow's message; ``data`` is as its entity and action have it."""

    entity: str
    action: str
    data: dict[str, Any]


class Alert(BaseModel):
    """One of Alertmanager's alerts."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    startsAt: str
    fingerprint: str


class Notification(BaseModel):
    """Alertmanager's message, version 4."""

    alerts: list[Alert]


def create_receiver(
    config: ReceiverConfig, outbox: Outbox, told: Callable[[], None], problems: Callable[[], Sequence[str]]
) -> Starlette:
    """The application.

    Args:
        told: is called when an event was taken on.
        problems: what a person should know.
    """

    async def mlflow(request: Request) -> Response:
        assert config.mlflow is not None
        body = await _body(request)
        delivery = verified_delivery(config.mlflow, request.headers, body, time.time())
        moved = _alias_moved(config.mlflow, body)
        if moved is None:
            return _answer("ignored")
        payload = {"source": "mlflow", **moved.model_dump()}
        return _taken(await take([f"mlflow:{delivery}"], config.mlflow.aliases[moved.alias], payload))

    async def alertmanager(request: Request) -> Response:
        assert config.alertmanager is not None
        given = request.headers.get("authorization", "").encode()
        expected = f"Bearer {secret(config.alertmanager.token_file, ALERTS_TOKEN)}".encode()
        if not hmac.compare_digest(given, expected):
            raise HTTPException(401, "the bearer token is missing, or another")
        alerts = _alerts(config.alertmanager, await _body(request))
        if not alerts:
            return _answer("ignored")
        new = [await take(own.keys(), event, _together(own.values())) for event, own in alerts.items()]
        return _taken(any(new))

    async def take(keys: Collection[str], event: str, payload: dict[str, Any]) -> bool:
        """Writes an event down; whether it is new."""
        new = await to_thread(outbox.put, keys, event, payload)
        if new:
            told()
        return new

    async def live(request: Request) -> Response:
        return _answer("live")

    async def ready(request: Request) -> Response:
        found = list(problems())
        return JSONResponse({"status": "not ready" if found else "ready", "problems": found}, 503 if found else 200)

    routes = [Route("/health/live", live), Route("/health/ready", ready)]
    if config.mlflow is not None:
        routes.append(Route("/webhooks/mlflow", mlflow, methods=["POST"]))
    if config.alertmanager is not None:
        routes.append(Route("/webhooks/alertmanager", alertmanager, methods=["POST"]))
    handlers: Mapping[Any, Any] = {HTTPException: _refused, OutboxError: _unavailable, ConfigError: _unavailable}
    return Starlette(routes=routes, exception_handlers=handlers)


def verified_delivery(config: MlflowConfig, headers: Mapping[str, str], body: bytes, now: float) -> str:
    """The id of a message of MLflow's.

    Args:
        now: seconds since 1970.

    Raises:
        HTTPException: 401; it is not MLflow's, or not of now.
    """
    delivery, sent = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    if not delivery or not (sent.isascii() and sent.isdecimal() and len(sent) < 12):
        raise HTTPException(401, "X-MLflow-Delivery-Id or X-MLflow-Timestamp is missing")
    key = secret(config.secret_file, WEBHOOK_SECRET).encode()
    signed = hmac.new(key, f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(signed)
    if not hmac.compare_digest(headers.get("x-mlflow-signature", "").encode(), expected):
        raise HTTPException(401, "X-MLflow-Signature is missing, or made with another secret")
    if abs(now - int(sent)) > config.window_s:
        raise HTTPException(401, f"sent {now - int(sent):.0f} s ago by its timestamp: a replay, or a clock is wrong")
    return delivery


def _alias_moved(config: MlflowConfig, body: bytes) -> AliasMoved | None:
    try:
        message = Message.model_validate_json(body)
        if (message.entity, message.action) != ("model_version_alias", "created"):
            return None
        moved = AliasMoved.model_validate(message.data)
    except ValidationError as error:
        raise HTTPException(400, f"this is no message of MLflow's ({error.errors()[0]['msg']})") from None
    return moved if moved.name == config.model and moved.alias in config.aliases else None


def _alerts(config: AlertmanagerConfig, body: bytes) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each event the alerts that fire and count, by their key. One that goes on firing keeps its key."""
    try:
        alerts = Notification.model_validate_json(body).alerts
    except ValidationError as error:
        raise HTTPException(400, f"this is no message of Alertmanager's ({error.errors()[0]['msg']})") from None
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for alert in alerts:
        name = alert.labels.get("alertname", "")
        if alert.status == "firing" and name in config.alerts:
            about = {"alert": name, "since": alert.startsAt, "summary": alert.annotations.get("summary", "")[:200]}
            found[config.alerts[name]][f"alert:{alert.fingerprint}:{alert.startsAt}"] = about
    return found


def _together(alerts: Collection[dict[str, Any]]) -> dict[str, Any]:
    return {"source": "alertmanager", "count": len(alerts), "alerts": list(alerts)[:MOST_ALERTS]}


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES:
            raise HTTPException(413, f"the message is larger than {BODY_BYTES} bytes")
    return body


def _taken(new: bool) -> Response:
    return _answer("accepted", 202) if new else _answer("known")


def _answer(status: str, code: int = 200) -> Response:
    return JSONResponse({"status": status}, code)


async def _refused(request: Request, error: HTTPException) -> Response:
    _log.warning("%s: refused with status %d: %s", request.url.path, error.status_code, error.detail)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _unavailable(request: Request, error: Exception) -> Response:
    _log.error("%s: %s", request.url.path, error)
    return JSONResponse({"error": "it cannot be taken now; the log says why"}, 503, headers={"Retry-After": "30"})
