"""The atlas' reviews, the worklist, batches, and what is put on record, through the API."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from csr.bundle.format import Bundle
from csr.bundle.runtime import BundleRunner
from csr.interaction.corrections import Interaction
from serving.access.roles import Role
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server
from tests.serving.conftest import CountingEngine, client_of, make_service, stripes


@pytest.fixture
def files(bundle: Bundle) -> list[bytes]:
    return [file.read_bytes() for file in sorted((bundle.path / "samples").glob("*.png"))[:4]]


def batch(client: TestClient, files: list[bytes]) -> Any:
    return client.post("/v1/studies/batch", files=[("files", (f"{n}.png", data)) for n, data in enumerate(files)])


def test_a_batch_is_answered_in_its_order(client: TestClient, files: list[bytes], engine: CountingEngine) -> None:
    response = batch(client, [*files, files[0]])
    assert response.status_code == 201
    studies = response.json()["studies"]
    assert len(studies) == 5 and studies[0]["digest"] == studies[4]["digest"]
    assert engine.encoded == len({each["digest"] for each in studies}) == 4
    alone = client.post("/v1/studies", files={"file": ("a.png", files[2])}).json()
    assert alone["prediction"] == studies[2]["prediction"]


def test_a_batch_with_a_bad_file_is_refused_whole(client: TestClient, service: Service, files: list[bytes]) -> None:
    one = batch(client, [files[0], b"", files[1]])
    assert (one.status_code, one.json()["error"]["code"]) == (422, "unreadable_image")
    two = batch(client, [b"text", files[0], files[1][:99]])
    assert (two.status_code, two.json()["error"]["code"]) == (422, "unreadable_images")
    assert "0.png: not a PNG" in two.json()["error"]["message"] and "2.png: " in two.json()["error"]["message"]
    assert list(service.store.ledger.entries("prediction")) == []
    assert client.get("/v1/worklist").json()["items"] == []
    many = batch(client, [files[0]] * 33)
    assert (many.status_code, many.json()["error"]["code"]) == (413, "too_many_files")


def test_the_worklist_is_in_the_order_that_was_asked_for(client: TestClient, files: list[bytes]) -> None:
    studies = {each["digest"]: each for each in batch(client, files).json()["studies"]}
    by_margin = client.get("/v1/worklist?order=margin").json()
    margins = [item["margin"] for item in by_margin["items"]]
    assert len(margins) == 4 and margins == sorted(margins) and by_margin["next_offset"] is None
    for item in by_margin["items"]:
        assert item["margin"] == pytest.approx(studies[item["digest"]]["prediction"]["margin"])
        assert item["top"] == studies[item["digest"]]["prediction"]["top"]
    effects = [item["expected_effect"] for item in client.get("/v1/worklist?order=effect").json()["items"]]
    assert effects == sorted(effects, reverse=True) and effects[0] > 0
    first = client.get("/v1/worklist?limit=3").json()
    rest = client.get(f"/v1/worklist?limit=3&offset={first['next_offset']}").json()
    assert [item["digest"] for item in first["items"] + rest["items"]] == [
        item["digest"] for item in by_margin["items"]
    ]


def test_the_worklist_goes_on_where_a_page_ended(client: TestClient, files: list[bytes]) -> None:
    batch(client, files)
    for order in ("margin", "effect", "newest"):
        whole = client.get(f"/v1/worklist?order={order}").json()
        assert (whole["total"], whole["total_exact"], whole["next_after"]) == (4, True, None)
        first = client.get(f"/v1/worklist?order={order}&limit=3").json()
        query = {"order": order, "limit": 3, "after": first["next_after"]}
        rest = client.get("/v1/worklist", params=query).json()
        assert first["items"] + rest["items"] == whole["items"] and rest["next_after"] is None


@pytest.mark.parametrize("query", ["after=x", "order=newest&after=margin:0.5:a", "after=margin:0.5:%00"])
def test_a_page_that_starts_nowhere_is_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/v1/worklist?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_cursor")
    assert client.get("/v1/worklist?offset=10001").status_code == 422


def test_the_worklist_knows_what_was_read(client: TestClient, files: list[bytes]) -> None:
    digests = [each["digest"] for each in batch(client, files).json()["studies"]]
    for _ in range(2):
        client.post(f"/v1/studies/{digests[1]}/interactions", json={"rejected": ["mass"]})
    read = client.get("/v1/worklist?progress=read").json()["items"]
    assert [(item["digest"], item["interactions"]) for item in read] == [(digests[1], 2)]
    unread = client.get("/v1/worklist?progress=unread").json()["items"]
    assert {item["digest"] for item in unread} == set(digests) - {digests[1]}
    for bad in ("limit=0", "limit=201", "offset=-1", "order=size", "progress=half"):
        assert client.get(f"/v1/worklist?{bad}").status_code == 422, bad


def test_the_expected_effect_is_that_of_the_best_question(
    client: TestClient, bundle: Bundle, files: list[bytes]
) -> None:
    from csr.data.images import decode, fit

    batch(client, files[:1])
    runner, about = BundleRunner(bundle), bundle.manifest
    patches = runner.encode(fit(decode(files[0]), about.side, about.channels)[0][None])

    def bits(**answer: tuple[str, ...]) -> float:
        p = runner.reason(patches, [Interaction(**answer)])["probabilities"][0].astype(float)  # type: ignore[arg-type]
        return float(-(p * np.log2(p)).sum())

    likely = runner.reason(patches, [Interaction()])["concept_probabilities"][0]
    left = [
        c * bits(confirmed=(k,)) + (1 - c) * bits(rejected=(k,)) for k, c in zip(about.concepts, likely, strict=True)
    ]
    item = client.get("/v1/worklist").json()["items"][0]
    assert item["expected_effect"] == pytest.approx(bits() - min(left), abs=1e-5)


def test_reviews_are_on_record_and_the_last_one_counts(service: Service, bundle: Bundle) -> None:
    reviewer, reader = client_of(service, Role.REVIEWER), client_of(service, Role.READER)
    first = reviewer.post("/v1/atlas/mass/1/review", json={"verdict": "prune", "comment": "a clip"})
    assert first.status_code == 201
    reviewer.post("/v1/atlas/nodule/0/review", json={"verdict": "keep"})
    reviewer.post("/v1/atlas/mass/1/review", json={"verdict": "keep"})
    assert reader.post("/v1/atlas/mass/1/review", json={"verdict": "keep"}).status_code == 403
    found = reader.get("/v1/reviews").json()["reviews"]
    assert [(each["concept"], each["index"], each["verdict"]) for each in found] == [
        ("mass", 1, "keep"),
        ("nodule", 0, "keep"),
    ]
    assert found[0]["reviewer"] == "key:tester-reviewer" and found[0]["bundle"] == bundle.digest
    for path, body, status in (
        ("mass/99", {"verdict": "keep"}, 404),
        ("ship/0", {"verdict": "keep"}, 404),
        ("mass/1", {"verdict": "burn"}, 422),
        ("mass/1", {"verdict": "keep", "comment": "x" * 1001}, 422),
    ):
        assert reviewer.post(f"/v1/atlas/{path}/review", json=body).status_code == status
    assert len(list(service.store.ledger.entries("review"))) == 3


def test_readers_see_nothing_of_keys(service: Service, files: list[bytes]) -> None:
    service.keys.create("secret-project", Role.ADMIN)
    reader = client_of(service, Role.READER)
    reader.post("/v1/studies", files={"file": ("a.png", files[0])})
    for path in ("reviews", "models", "worklist", "atlas"):
        answer = reader.get(f"/v1/{path}")
        assert answer.status_code == 200 and "secret-project" not in answer.text


def test_what_was_shown_is_on_record_before_it_was_shown(
    client: TestClient, service: Service, files: list[bytes]
) -> None:
    study = client.post("/v1/studies", files={"file": ("Müller^Hans.png", files[0])}).json()
    state = {"boxes": [{"x_min": 5, "y_min": 5, "x_max": 30, "y_max": 30}], "rejected": ["mass"]}
    headers = {"Idempotency-Key": "one"}
    path = f"/v1/studies/{study['digest']}/interactions"
    answers = [client.post(path, json=state, headers=headers).json() for _ in range(2)]
    assert answers[0]["record"] == answers[1]["record"]
    assert client.post(path, json={}, headers=headers).json()["error"]["code"] == "idempotency_conflict"
    client.get(f"/v1/studies/{study['digest']}")
    kinds = [(row["number"], row["kind"]) for row in service.store.ledger.entries()]
    shown = [(4, "prediction"), (5, "interaction"), (6, "prediction")]
    assert kinds == [(1, "model"), (2, "key"), (3, "study"), *shown]
    row = next(iter(service.store.ledger.entries("interaction")))
    assert (row["number"], row["hash"]) == (answers[0]["record"]["number"], answers[0]["record"]["hash"])
    assert (row["actor"], row["study"], row["bundle"]) == (
        "key:tester-admin",
        study["digest"],
        study["model"]["digest"],
    )
    body = row["body"]
    assert body["request"]["rejected"] == ["mass"] and body["request"]["boxes"][0]["kind"] == "focus"
    assert body["latency_ms"] > 0
    for part in ("before", "after"):
        classes = {each["name"]: each["probability"] for each in answers[0][part]["classes"]}
        assert body[part]["classes"] == pytest.approx(classes)
    assert "Müller" not in str(list(service.store.ledger.entries()))


def test_another_replica_answers_for_a_study_that_it_never_saw(
    bundle: Bundle, service: Service, client: TestClient, tmp_path: Any, files: list[bytes]
) -> None:
    study = client.post("/v1/studies", files={"file": ("a.png", files[0])}).json()
    other = make_service(bundle.path, tmp_path / "state")  # the same store, in another process for all it knows
    state = {"rejected": ["mass"]}
    path = f"/v1/studies/{study['digest']}/interactions"
    key = service.keys.create("second", Role.READER)[1]
    with TestClient(create_server(other), headers={"Authorization": f"Bearer {key}"}) as second:
        there = second.post(path, json=state).json()
        assert there["after"] == client.post(path, json=state).json()["after"]
        wide = second.post("/v1/studies", files={"file": ("w.png", stripes(90))}).json()
    again = client.post("/v1/studies", files={"file": ("w.png", stripes(90, times=2))}).json()
    assert again["digest"] == wide["digest"] and again["image"] != wide["image"]
    boxes = {"boxes": [{"x_min": 1, "y_min": 1, "x_max": 90, "y_max": 90}], "image": again["image"]}
    with TestClient(create_server(other), headers={"Authorization": f"Bearer {key}"}) as second:
        seen = second.post(f"/v1/studies/{again['digest']}/interactions", json=boxes)
        assert seen.status_code == 200  # it asked the store for the last upload's frame
    other.close()


def test_a_store_that_is_gone_is_503_and_nothing_is_shown(
    client: TestClient, service: Service, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.errors import StoreError
    from serving.store.ledger import Ledger

    digest = client.post("/v1/studies", files={"file": ("a.png", files[0])}).json()["digest"]

    def fail(*_: object) -> None:
        raise StoreError("the store does not answer")

    monkeypatch.setattr(Ledger, "append", fail)
    for response in (
        client.post(f"/v1/studies/{digest}/interactions", json={}),
        client.get(f"/v1/studies/{digest}"),
        client.post("/v1/studies", files={"file": ("a.png", files[1])}),
    ):
        assert (response.status_code, response.json().keys()) == (503, {"error"})
        assert response.headers["retry-after"] == "2"
