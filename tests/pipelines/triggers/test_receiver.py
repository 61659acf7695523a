"""Webhooks: what is believed, what counts, and that the same one counts once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.webhooks.delivery import _generate_hmac_signature
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from pipelines.triggers.config import MlflowConfig, TriggersConfig
from pipelines.triggers.outbox import Outbox
from pipelines.triggers.receiver import BODY_BYTES, create_receiver, verified_delivery

MOVED = {
    "entity": "model_version_alias",
    "action": "created",
    "timestamp": "2026-11-30T01:00:00+00:00",
    "data": {"name": "csr", "alias": "champion", "version": "7"},
}


@pytest.fixture
def woken() -> list[None]:
    return []


@pytest.fixture
def client(config: TriggersConfig, outbox: Outbox, woken: list[None]) -> TestClient:
    assert config.receiver is not None
    app = create_receiver(config.receiver, outbox, lambda: woken.append(None), lambda: [])
    return TestClient(app, raise_server_exceptions=False)


def signed(message: Any, delivery: str = "d1", secret: str = "whsec", at: float | None = None) -> dict[str, Any]:
    """As MLflow's own code signs it."""
    body = json.dumps(message)
    sent = str(int(time.time() if at is None else at))
    headers = {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": sent,
        "X-MLflow-Signature": _generate_hmac_signature(secret, delivery, sent, body),
    }
    return {"content": body, "headers": headers}


def post(client: TestClient, **sent: Any) -> tuple[int, str]:
    answer = client.post("/webhooks/mlflow", **sent)
    return answer.status_code, str(next(iter(answer.json().values())))


def test_a_moved_alias_is_taken_on_once(client: TestClient, outbox: Outbox, woken: list[None]) -> None:
    assert post(client, **signed(MOVED)) == (202, "accepted")
    assert post(client, **signed(MOVED)) == (200, "known"), "a delivery that is tried again"
    (taken,) = outbox.all()
    assert taken.event == "champion-moved"
    assert taken.payload == {"source": "mlflow", "name": "csr", "alias": "champion", "version": "7"}
    assert woken == [None]
    assert post(client, **signed(MOVED, "d2")) == (202, "accepted"), "moved there again, after a rollback"


@pytest.mark.parametrize("change", [{"name": "other"}, {"alias": "challenger"}])
def test_other_aliases_are_not_ours(client: TestClient, outbox: Outbox, change: dict[str, str]) -> None:
    message = {**MOVED, "data": {**MOVED["data"], **change}}  # type: ignore[dict-item]
    assert post(client, **signed(message)) == (200, "ignored")
    assert post(client, **signed({**MOVED, "action": "deleted"}, "d2")) == (200, "ignored")
    assert not outbox.all()


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (signed(MOVED, secret="another"), "made with another secret"),
        (signed(MOVED, at=0), "a replay"),
        (signed(MOVED, at=4e9), "a replay"),
        (signed(MOVED) | {"headers": {}}, "is missing"),
        (signed(MOVED) | {"content": json.dumps(MOVED).replace("7", "8")}, "X-MLflow-Signature"),
    ],
)
def test_what_is_not_mlflows_or_not_of_now_is_refused(
    client: TestClient, outbox: Outbox, sent: dict[str, Any], says: str
) -> None:
    status, message = post(client, **sent)
    assert status == 401 and says in message
    assert not outbox.all()


@given(
    delivery=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1),
    body=st.binary(),
    sent=st.integers(0, 10**10),
    flip=st.integers(0, 2**16),
)
def test_a_signature_is_that_of_the_definition_and_of_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, delivery: str, body: bytes, sent: int, flip: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "secret"
    file.write_text("whsec")
    config = MlflowConfig(secret_file=file)
    digest = hmac.new(b"whsec", f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    headers = {
        "x-mlflow-delivery-id": delivery,
        "x-mlflow-timestamp": str(sent),
        "x-mlflow-signature": "v1," + base64.b64encode(digest).decode(),
    }
    assert verified_delivery(config, headers, body, float(sent)) == delivery
    changed = bytearray(body or b"0")
    changed[flip % len(changed)] ^= 1
    for other in ({"x-mlflow-timestamp": str(sent + 1)}, {"x-mlflow-delivery-id": delivery + "0"}):
        with pytest.raises(HTTPException):
            verified_delivery(config, headers | other, body, float(sent))
    with pytest.raises(HTTPException):
        verified_delivery(config, headers, bytes(changed), float(sent))


@pytest.mark.parametrize("message", [[], {}, {**MOVED, "data": {}}, {**MOVED, "data": "x"}])
def test_what_mlflow_never_sends_is_a_mistake_of_the_sender(client: TestClient, message: Any) -> None:
    status, says = post(client, **signed(message))
    assert status == 400 and "no message of MLflow's" in says


def test_a_message_that_is_too_large_is_not_read(client: TestClient) -> None:
    assert post(client, content=b"x" * (BODY_BYTES + 1))[0] == 413


def notification(*alerts: tuple[str, str, str], name: str = "CsrConceptDrift") -> dict[str, Any]:
    """As Alertmanager 0.25 sends it. alerts: status, fingerprint, since."""
    return {
        "version": "4",
        "groupKey": '{}:{alertname="CsrConceptDrift"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "retrain",
        "groupLabels": {"alertname": name},
        "commonLabels": {"alertname": name, "severity": "warning"},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "alerts": [
            {
                "status": status,
                "labels": {"alertname": name, "concept": fingerprint},
                "annotations": {"summary": f"{fingerprint} has drifted"},
                "startsAt": since,
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "",
                "fingerprint": fingerprint,
            }
            for status, fingerprint, since in alerts
        ],
    }


def alarm(client: TestClient, message: Any, token: str = "alarm") -> tuple[int, str]:
    answer = client.post("/webhooks/alertmanager", json=message, headers={"Authorization": f"Bearer {token}"})
    return answer.status_code, str(next(iter(answer.json().values())))


def test_alerts_that_fire_are_one_dispatch_until_another_fires(client: TestClient, outbox: Outbox) -> None:
    first, second = ("firing", "nodule", "2026-11-30T01:00:00Z"), ("firing", "mass", "2026-11-30T01:05:00Z")
    assert alarm(client, notification(first, second)) == (202, "accepted")
    assert alarm(client, notification(first, second)) == (200, "known"), "repeat_interval"
    assert alarm(client, notification(second)) == (200, "known")
    assert alarm(client, notification(("resolved", *first[1:]))) == (200, "ignored")
    (taken,) = outbox.all()
    assert taken.event == "drift-alert" and taken.payload["count"] == 2
    assert taken.payload["alerts"][0] == {
        "alert": "CsrConceptDrift",
        "since": "2026-11-30T01:00:00Z",
        "summary": "nodule has drifted",
    }
    assert alarm(client, notification(("firing", "nodule", "2026-12-02T01:00:00Z"))) == (202, "accepted")


def test_other_alerts_and_other_senders_are_not_ours(client: TestClient, outbox: Outbox) -> None:
    firing = ("firing", "a", "2026-11-30T01:00:00Z")
    assert alarm(client, notification(firing, name="CsrSlow")) == (200, "ignored")
    assert alarm(client, notification(firing), token="another")[0] == 401
    assert alarm(client, {"alerts": [{}]})[0] == 400
    assert not outbox.all()


def test_what_cannot_be_written_down_is_refused_so_that_it_comes_again(
    client: TestClient, config: TriggersConfig, outbox: Outbox
) -> None:
    config.outbox.unlink()
    config.outbox.mkdir()
    assert post(client, **signed(MOVED))[0] == 503
    assert alarm(client, notification(("firing", "a", "2026-11-30T01:00:00Z")))[0] == 503
    config.outbox.rmdir()
    Outbox(config.outbox)
    assert post(client, **signed(MOVED)) == (202, "accepted")


def test_a_missing_secret_is_the_operators_fault(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "mlflow.secret").unlink()
    assert post(client, **signed(MOVED))[0] == 503
