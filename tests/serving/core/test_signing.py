"""Readings through the API: what is signed, by whom it may be seen, and what several readers agree on."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server
from serving.store.schema import ledger, study
from tests.serving.conftest import client_of, make_service, png, serve_instead
from tests.serving.postgres import postgres

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


def test_two_readers_who_sign_at_once_are_both_on_record(service: Service, reader: Reader, digest: str) -> None:
    readers = [reader(f"r{number}") for number in range(4)]
    with ThreadPoolExecutor(len(readers) * 2) as pool:
        answers = list(pool.map(lambda each: sign(each, digest).json(), readers * 2))
    numbers = [each["record"]["number"] for each in answers]
    assert len(set(numbers)) == len(answers), "each is an entry of its own"
    by_number = {each["record"]["number"]: each for each in answers}
    for each in answers:
        earlier = [other["record"]["number"] for other in answers if other["reader"] == each["reader"]]
        before = [number for number in earlier if number < each["record"]["number"]]
        assert each["supersedes"] == (max(before) if before else None)
    listed = readers[0].get(f"/v1/studies/{digest}/readings").json()
    assert len(listed["readings"]) == len(readers) and listed["agreement"]["verdict"] == "same"
    for each in listed["readings"]:
        assert each == by_number[each["record"]["number"]]
    assert service.store.ledger.verify().faults == ()


def test_one_who_signs_twice_at_once_with_one_key_signs_once(service: Service, client: TestClient, digest: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: sign(client, digest, key="once").json(), range(6)))
    assert all(each == answers[0] for each in answers)
    assert len(list(service.store.ledger.entries("reading"))) == 1


def retrained(bundle: Bundle, folder: Path) -> Bundle:
    """Another model, for all that digests say."""
    shutil.copytree(bundle.path, folder)
    with (folder / "manifest.json").open("a") as manifest:
        manifest.write("\n")
    return Bundle.open(folder)


def test_a_model_that_changed_meanwhile_is_not_signed_by_mistake(
    client: TestClient, service: Service, bundle: Bundle, tmp_path: Path, digest: str
) -> None:
    seen = client.get(f"/v1/studies/{digest}").json()["model"]["digest"]
    first = sign(client, digest, model=seen, key="first").json()
    other = retrained(bundle, tmp_path / "retrained")
    serve_instead(service, other)
    refused = sign(client, digest, model=seen)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_changed")
    assert sign(client, digest, model=seen, key="first").json() == first, "what is on record is no news"
    again = sign(client, digest, model=other.digest).json()
    assert again["model"]["digest"] == other.digest != seen and again["supersedes"] == first["record"]["number"]
    unsaid = sign(client, digest).json()
    assert unsaid["model"]["digest"] == other.digest, (
        "who does not say what they saw signs what answers, and is told which"
    )


@pytest.mark.parametrize("cached", [True, False])
def test_an_altered_study_cannot_be_signed(
    client: TestClient, service: Service, bundle: Bundle, tmp_path: Path, digest: str, cached: bool
) -> None:
    signed = sign(client, digest).json()
    canvas = png(np.zeros((64, 64), np.uint8))
    with service.store.database.write() as connection:
        connection.execute(study.update().values(canvas=canvas))
    if not cached:
        service = make_service(bundle.path, tmp_path / "state")
        client = TestClient(create_server(service), raise_server_exceptions=False, headers=dict(client.headers))
    for answer in (sign(client, digest), client.get(f"/v1/studies/{digest}/thumbnail.png")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "study_altered")
    assert client.get(f"/v1/studies/{digest}/readings").json()["readings"] == [signed], "the record stands"
    assert len(list(service.store.ledger.entries("reading"))) == 1


def test_a_reading_that_somebody_altered_is_one_sentence(client: TestClient, service: Service, digest: str) -> None:
    sign(client, digest)
    for body in ('{"request": {}}', "[]", "no JSON", '{"request": {"decision": "keep", "state": {}}, "after": null}'):
        with service.store.database.write() as connection:
            connection.execute(ledger.update().where(ledger.c.kind == "reading").values(body=body))
        for answer in (client.get(f"/v1/studies/{digest}/readings"), client.get("/v1/worklist")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable"), body
        assert service.store.ledger.verify().faults != ()


def test_on_the_other_database(bundle: Bundle, tmp_path: Path, sample: bytes) -> None:
    """PostgreSQL, which knows no Boolean that is a number and sorts by rules of its own."""
    with postgres() as server:
        store = {"url": server.url, "ledger_key_file": str(tmp_path / "state/ledger.key")}
        service = make_service(bundle.path, tmp_path / "state", store=store)
        client = client_of(service)
        digest = client.post("/v1/studies", files={"file": ("a.png", sample)}).json()["digest"]
        assert states(client) == [(digest, "unread")]
        client.get(f"/v1/studies/{digest}")
        assert states(client, "read") == [(digest, "read")]
        client.post(f"/v1/studies/{digest}/skips", json={"reason": "\x00 Übung"})
        assert states(client, "skipped") == [(digest, "skipped")]
        answers = [sign(client, digest, state=CORRECTED, key="k", comment="\x00 Übung").json() for _ in range(2)]
        assert answers[0] == answers[1] and answers[0]["comment"] == "\x00 Übung"
        row = item(client, digest)
        assert (row["mine"], row["agreement"], type(row["fits"])) == ("signed", "one", bool)
        totals = [client.get(f"/v1/worklist?order=newest&help={each}").json()["total"] for each in ("true", "false")]
        assert sorted(totals) == [0, 1]
        assert service.store.ledger.verify().faults == ()
        service.close()
