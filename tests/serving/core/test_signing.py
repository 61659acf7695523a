"""Readings through the API: what is signed, by whom it may be seen, and what several readers agree on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server

Reader = Callable[..., TestClient]
BOX = {"x_min": 5, "y_min": 5, "x_max": 30, "y_max": 30}
CORRECTED = {"boxes": [BOX | {"kind": "finding", "concept": "nodule"}], "rejected": ["mass"], "alpha": 0.1}


@pytest.fixture
def reader(service: Service) -> Iterator[Reader]:
    """Makes clients, each with a key of its own."""

    def make(name: str, role: Role = Role.READER) -> TestClient:
        key = service.keys.create(name, role)[1]
        headers = {"Authorization": f"Bearer {key}"}
        return TestClient(create_server(service), raise_server_exceptions=False, headers=headers)

    yield make


@pytest.fixture
def digest(client: TestClient, sample: bytes) -> str:
    return client.post("/v1/studies", files={"file": ("a.png", sample)}).json()["digest"]


def sign(client: TestClient, digest: str, decision: str = "keep", key: str | None = None, **more: Any) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(f"/v1/studies/{digest}/readings", json={"decision": decision, **more}, headers=headers)


def probabilities(prediction: Any) -> list[dict[str, Any]]:
    classes = [{"name": each["name"], "probability": each["probability"]} for each in prediction["classes"]]
    return sorted(classes, key=lambda each: -each["probability"])


def item(client: TestClient, digest: str, query: str = "") -> Any:
    (found,) = [each for each in client.get(f"/v1/worklist?{query}").json()["items"] if each["digest"] == digest]
    return found


def states(client: TestClient, progress: str = "all") -> list[tuple[str, str]]:
    found = client.get(f"/v1/worklist?progress={progress}").json()
    assert found["total"] == len(found["items"])
    return [(each["digest"], each["mine"]) for each in found["items"]]


def test_who_asks_is_told_who_they_are(reader: Reader) -> None:
    for role in Role:
        assert reader(f"dr-{role}", role).get("/v1/me").json() == {"actor": f"key:dr-{role}", "role": role.value}


def test_what_is_kept_is_what_the_interaction_says(client: TestClient, service: Service, digest: str) -> None:
    answer = client.post(f"/v1/studies/{digest}/interactions", json=CORRECTED).json()
    signed = sign(client, digest, state=CORRECTED, comment="Ein Knötchen.", model=answer["model"]["digest"])
    assert signed.status_code == 201, signed.text
    reading = signed.json()
    assert reading["classes"] == probabilities(answer["after"])
    assert (reading["found"], reading["top"]) == (answer["after"]["found"], answer["after"]["top"])
    assert (reading["reader"], reading["decision"], reading["comment"]) == ("key:tester-admin", "keep", "Ein Knötchen.")
    assert reading["state"]["rejected"] == ["mass"] and reading["state"]["boxes"][0]["concept"] == "nodule"
    assert reading["model"] == answer["model"] and reading["supersedes"] is None
    entries = list(service.store.ledger.entries("reading"))
    assert [(row["number"], row["hash"], row["at"]) for row in entries] == [
        (reading["record"]["number"], reading["record"]["hash"], reading["at"])
    ]
    assert service.store.ledger.verify().faults == ()


def test_what_is_reverted_is_signed_as_it_was_predicted(client: TestClient, service: Service, digest: str) -> None:
    predicted = client.get(f"/v1/studies/{digest}").json()["prediction"]
    reading = sign(client, digest, "revert", state=CORRECTED).json()
    assert reading["classes"] == probabilities(predicted)
    assert reading["found"] == predicted["found"] and reading["state"]["rejected"] == ["mass"]
    body = next(iter(service.store.ledger.entries("reading")))["body"]
    assert body["before"]["classes"] != body["after"]["classes"], "the corrections are on record"


def test_a_later_reading_supersedes(client: TestClient, digest: str) -> None:
    first, second = sign(client, digest).json(), sign(client, digest, "revert").json()
    assert second["supersedes"] == first["record"]["number"]
    listed = client.get(f"/v1/studies/{digest}/readings").json()
    assert listed["readings"] == [second] and listed["hidden"] == 0
    assert listed["agreement"]["verdict"] == "one"


def test_reading_is_blind_until_one_has_signed(reader: Reader, digest: str, client: TestClient) -> None:
    ann, bob, eve = (reader(name) for name in ("ann", "bob", "eve"))
    sign(ann, digest, state=CORRECTED)
    blind = bob.get(f"/v1/studies/{digest}/readings").json()
    assert (blind["readings"], blind["hidden"], blind["agreement"]) == (
        [],
        1,
        {"readers": 1, "verdict": "one", "concepts": []},
    )
    sign(bob, digest, state={"rejected": ["nodule", "mass"]})
    blind = eve.get(f"/v1/studies/{digest}/readings")
    assert blind.json()["agreement"] == {"readers": 2, "verdict": "hidden", "concepts": []}
    assert "key:ann" not in blind.text and item(eve, digest)["agreement"] == "hidden"
    assert (item(eve, digest)["readers"], item(eve, digest)["mine"]) == (2, "unread")
    sign(eve, digest, "revert", state={"confirmed": ["mass"]})
    for who in (ann, bob, eve, client):
        seen = who.get(f"/v1/studies/{digest}/readings").json()
        assert [each["reader"] for each in seen["readings"]] == ["key:ann", "key:bob", "key:eve"]
        assert seen["hidden"] == 0 and seen["agreement"]["readers"] == 3
        counts = {each["name"]: (each["confirmed"], each["rejected"]) for each in seen["agreement"]["concepts"]}
        assert counts == {"nodule": (1, 1), "mass": (0, 2)}, "what is reverted does not count"
        found = {tuple(each["found"]) for each in seen["readings"]}
        assert (
            seen["agreement"]["verdict"] == item(who, digest)["agreement"] == ("same" if len(found) == 1 else "differ")
        )


def test_the_worklist_knows_how_far_each_reader_is(reader: Reader, client: TestClient, bundle: Bundle) -> None:
    files = [file.read_bytes() for file in sorted((bundle.path / "samples").glob("*.png"))[:4]]
    ann, bob = reader("ann"), reader("bob")
    batch = ann.post("/v1/studies/batch", files=[("files", (f"{n}.png", data)) for n, data in enumerate(files)])
    first, second, third, fourth = (each["digest"] for each in batch.json()["studies"])
    assert {mine for _, mine in states(ann)} == {"unread"}, "to upload is not to read"
    ann.get(f"/v1/studies/{first}")
    ann.post(f"/v1/studies/{second}/interactions", json={"rejected": ["mass"]})
    assert ann.post(f"/v1/studies/{third}/skips", json={"reason": "not my field"}).status_code == 201
    ann.post(f"/v1/studies/{third}/interactions", json={})
    sign(ann, fourth)
    expected = {first: "read", second: "read", third: "skipped", fourth: "signed"}
    assert dict(states(ann)) == expected
    for progress in ("unread", "read", "skipped", "signed"):
        assert dict(states(ann, progress)) == {key: mine for key, mine in expected.items() if mine == progress}
    assert dict(states(bob)) == dict.fromkeys(expected, "unread")
    sign(ann, third)
    assert item(ann, third)["mine"] == "signed"


def test_the_worklist_says_more(client: TestClient, digest: str, wide: bytes) -> None:
    said = client.get(f"/v1/studies/{digest}").json()["prediction"]
    row = item(client, digest)
    assert row["found"] == said["found"] and row["fits"] is (not said["fits"]["reasons"])
    assert row["confidence"] == max(each["probability"] for each in said["classes"])
    newer = client.post("/v1/studies", files={"file": ("w.png", wide)}).json()["digest"]
    newest = client.get("/v1/worklist?order=newest").json()
    assert [each["digest"] for each in newest["items"]] == [newer, digest] and newest["total"] == 2
    assert newest["items"][0]["added_at"] > newest["items"][1]["added_at"]
    for wanted in (True, False):
        found = client.get(f"/v1/worklist?help={str(wanted).lower()}").json()["items"]
        assert all(each["asks_for_help"] is wanted for each in found)
    page = client.get("/v1/worklist?limit=1").json()
    assert (page["total"], page["next_offset"]) == (2, 1)
    assert client.get("/v1/worklist?limit=1&offset=1").json()["next_offset"] is None
    assert client.get("/v1/worklist?offset=9").json()["items"] == []


def test_a_thumbnail_is_small_and_kept_for_the_session(client: TestClient, wide: bytes, sample: bytes) -> None:
    for data in (wide, sample):
        digest = client.post("/v1/studies", files={"file": ("w.png", data)}).json()["digest"]
        answer = client.get(f"/v1/studies/{digest}/thumbnail.png")
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers.get_list("cache-control") == ["private, max-age=86400, immutable"]
        assert answer.headers["vary"] == "Authorization, Cookie"
        width, height = Image.open(io.BytesIO(answer.content)).size
        assert max(width, height) <= 96 and (width > height) is (data is wide)
    missing = client.get(f"/v1/studies/{'0' * 64}/thumbnail.png")
    assert missing.status_code == 404 and missing.headers["cache-control"] == "no-store"


def test_a_repeated_signature_is_one(client: TestClient, service: Service, digest: str) -> None:
    answers = [sign(client, digest, state=CORRECTED, key="once").json() for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert len(list(service.store.ledger.entries("reading"))) == 1
    other = sign(client, digest, "revert", key="once")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    skipped = client.post(f"/v1/studies/{digest}/skips", json={})
    assert (skipped.status_code, skipped.json()["error"]["code"]) == (409, "already_signed")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"decision": "burn"}, 422, "invalid_request"),
        ({"comment": "x" * 2001}, 422, "invalid_request"),
        ({"comment": None}, 422, "invalid_request"),
        ({"signature": "me"}, 422, "invalid_request"),
        ({"state": {"rejected": ["ship"]}}, 422, "invalid_interaction"),
        ({"state": {"boxes": [{**BOX, "x_max": 1}]}}, 422, "invalid_interaction"),
        ({"state": {"image": {"width": 7, "height": 7}}}, 409, "image_size_differs"),
        ({"model": "0" * 64}, 409, "model_changed"),
    ],
)
def test_what_cannot_be_signed(
    client: TestClient, service: Service, digest: str, change: dict[str, Any], status: int, code: str
) -> None:
    answer = sign(client, digest, **{"decision": "keep", **change})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert list(service.store.ledger.entries("reading")) == []


def test_unknown_studies_have_no_readings(client: TestClient) -> None:
    for unknown in ("0" * 64, "x"):
        for answer in (
            sign(client, unknown),
            client.get(f"/v1/studies/{unknown}/readings"),
            client.post(f"/v1/studies/{unknown}/skips", json={}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_study")
