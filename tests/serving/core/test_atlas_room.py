"""The atlas through the API: what prototypes do, what pruning does, and reviews that count or do not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from csr.bundle.format import Bundle
from csr.bundle.pruning import Pruning
from serving.access.roles import Role
from serving.core.reviews import settle
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server
from serving.models.in_service import Challenge, Model
from tests.serving.conftest import CountingEngine, client_of, make_service, serve_instead

PRUNE = {"verdict": "prune", "reason": "artefact", "comment": "a clip"}


@pytest.fixture
def live(bundle: Bundle) -> list[dict[str, Any]]:
    """Two prototypes of one concept that are alive."""
    entries = [entry for entry in bundle.atlas() if entry.alive]
    first = next(pair for pair in pairwise(entries) if pair[0].concept == pair[1].concept)
    return [{"concept": entry.concept, "index": entry.index} for entry in first]


@pytest.fixture
def strict(bundle: Bundle, tmp_path: Path) -> Iterator[Service]:
    """A server where a prune needs two reviewers."""
    service = make_service(bundle.path, tmp_path / "strict", review={"second_reader": True})
    yield service
    service.close()


def reviewer(service: Service, name: str) -> TestClient:
    key = service.keys.create(name, Role.REVIEWER)[1]
    return TestClient(create_server(service), headers={"Authorization": f"Bearer {key}"})


def test_a_prototype_says_what_it_does(client: TestClient, bundle: Bundle, live: list[dict[str, Any]]) -> None:
    concept, index = live[0]["concept"], live[0]["index"]
    found = client.get(f"/v1/atlas/{concept}/{index}").json()
    entry = next(each for each in client.get("/v1/atlas").json()["entries"] if each.items() >= live[0].items())
    assert found.items() >= entry.items() and found["maps"]
    pruning = Pruning(bundle)
    assert found["places"] == pruning.places(concept, index).tolist()
    assert [each["cosine"] for each in found["similar"]] == [each.cosine for each in pruning.similar(concept, index)]
    for told, known in zip(found["decides"], pruning.decides(concept, index), strict=True):
        assert set(told) == {"study_id", "class", "contribution", "share", "right"}
        assert (told["study_id"], told["class"], told["right"]) == (known.study_id, known.cls, known.right)
    assert client.get(f"/v1/atlas/{concept}/999").status_code == 404
    assert client.get("/v1/atlas/ship/0").status_code == 404


def test_a_preview_changes_nothing(client: TestClient, service: Service, live: list[dict[str, Any]]) -> None:
    before = len(list(service.store.ledger.entries()))
    answer = client.post("/v1/atlas/preview", json={"pruned": live[:1]}).json()
    known = Pruning(service.models.champion.bundle).preview([(live[0]["concept"], live[0]["index"])])
    assert answer["studies"] == known.studies and answer["changed"] == known.changed
    assert answer["after"] == {"macro_f1": known.after.macro_f1, "pointing": known.after.pointing}
    assert [each["f1_after"] for each in answer["classes"]] == [each.f1_after for each in known.classes]
    nothing = client.post("/v1/atlas/preview", json={"pruned": []}).json()
    assert nothing["before"] == nothing["after"] == answer["before"] and nothing["changed"] == 0
    assert len(list(service.store.ledger.entries())) == before


def test_a_preview_of_what_cannot_be_pruned_is_refused_plainly(client: TestClient, bundle: Bundle) -> None:
    concept = bundle.manifest.concepts[0]
    every = [{"concept": concept, "index": index} for index in range(bundle.manifest.per_concept)]
    for pruned, status, code in (
        (every, 422, "invalid_pruning"),
        ([{"concept": concept, "index": 99}], 404, "not_found"),
        ([{"concept": "ship", "index": 0}], 404, "unknown_concept"),
        ([{"concept": concept, "index": -1}], 422, "invalid_request"),
        ([{"concept": concept}], 422, "invalid_request"),
    ):
        answer = client.post("/v1/atlas/preview", json={"pruned": pruned})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    told = client.post("/v1/atlas/preview", json={"pruned": every}).json()["error"]["message"]
    assert told == f"{concept} would be left without a prototype; keep one of it"


def test_a_bundle_of_an_earlier_format_says_so(service: Service, client: TestClient, bundle: Bundle) -> None:
    serve_instead(service, replace(bundle, manifest=replace(bundle.manifest, format=7)))
    concept = bundle.manifest.concepts[0]
    found = client.get(f"/v1/atlas/{concept}/0").json()
    assert (found["places"], found["similar"], found["decides"], found["maps"]) == (None, [], [], False)
    assert client.get(f"/v1/atlas/{concept}/0.png").status_code == 200
    for answer in (
        client.get(f"/v1/atlas/{concept}/0.png?map=true"),
        client.post("/v1/atlas/preview", json={"pruned": []}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_validation_data")
        assert "export the bundle again" in answer.json()["error"]["message"]


def test_a_crop_with_its_map_is_the_crop_where_the_map_is_low(client: TestClient, bundle: Bundle) -> None:
    maps, crops = bundle.crop_maps(), bundle.crops()
    assert maps is not None
    number = 0
    for entry in bundle.atlas():
        for rank in range(len(entry.sources)):
            path = f"/v1/atlas/{entry.concept}/{entry.index}.png?rank={rank}"
            plain = np.asarray(Image.open(io.BytesIO(client.get(path).content)).convert("RGB"))
            drawn = np.asarray(Image.open(io.BytesIO(client.get(path + "&map=true").content)))
            assert drawn.shape == plain.shape == (*crops.shape[-2:], 3)
            clear = maps[number] <= 0.29 * maps.max()
            np.testing.assert_array_equal(drawn[clear], plain[clear])
            if (full := maps[number] >= 0.81 * maps.max()).any():
                assert (drawn[full] != plain[full]).any()
            number += 1
        if number > 12:
            return


def test_reviews_of_several_are_all_or_none(service: Service, client: TestClient, live: list[dict[str, Any]]) -> None:
    both = [{**each, **PRUNE} for each in live]
    wrong = [*both, {"concept": "ship", "index": 0, "verdict": "keep"}]
    twice = [both[0], {**both[0], "verdict": "keep"}]
    for reviews, status in ((wrong, 404), (twice, 422), ([], 422), ([{**both[0], "reason": "ugly"}], 422)):
        assert client.post("/v1/reviews", json={"reviews": reviews}).status_code == status
    assert list(service.store.ledger.entries("review")) == []
    answers = [client.post("/v1/reviews", json={"reviews": both}, headers={"Idempotency-Key": "one"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert len(list(service.store.ledger.entries("review"))) == 1
    for each, asked in zip(answers[0].json()["reviews"], both, strict=True):
        assert each.items() >= {**asked, "status": "agreed", "reviewer": "key:tester-admin"}.items()
    other = client.post("/v1/reviews", json={"reviews": both[:1]}, headers={"Idempotency-Key": "one"})
    assert other.json()["error"]["code"] == "idempotency_conflict"
    client.post(f"/v1/atlas/{live[0]['concept']}/{live[0]['index']}/review", json={"verdict": "keep"})
    found = client.get("/v1/reviews").json()
    assert not found["second_reader"]
    assert [(each["verdict"], each["reason"], each["status"]) for each in found["reviews"]] == [
        ("keep", "none", "agreed"),
        ("prune", "artefact", "agreed"),
    ]


def test_with_a_second_reader_two_must_say_prune(strict: Service, live: list[dict[str, Any]]) -> None:
    one, two, three = (reviewer(strict, name) for name in ("ann", "ben", "cleo"))
    path = f"/v1/atlas/{live[0]['concept']}/{live[0]['index']}/review"

    def status() -> str:
        answer = one.get("/v1/reviews").json()
        assert answer["second_reader"]
        return answer["reviews"][0]["status"]

    assert one.post(path, json=PRUNE).json()["status"] == "proposed"
    assert one.post(path, json={"verdict": "prune"}).json()["status"] == "proposed"  # the same person twice is one
    assert two.post(path, json={"verdict": "prune"}).json()["status"] == "agreed"
    assert three.post(path, json={"verdict": "keep", "comment": "typical"}).json()["status"] == "disputed"
    three.post(path, json={"verdict": "prune"})
    assert status() == "agreed"
    for client in (one, two, three):
        client.post(path, json={"verdict": "keep"})
    assert status() == "agreed"
    last = one.get("/v1/reviews").json()["reviews"][0]
    assert [word["reviewer"] for word in last["said"]] == ["key:ann", "key:ben", "key:cleo"]
    assert last["verdict"] == "keep" and last["reviewer"] == "key:cleo"


@given(st.lists(st.sampled_from(["keep", "prune"]), min_size=1, max_size=6))
def test_what_counts_does_not_depend_on_the_order(verdicts: list[str]) -> None:
    prune, keep = verdicts.count("prune"), verdicts.count("keep")
    assert settle(verdicts, second_reader=False) == "agreed"
    found = settle(verdicts, second_reader=True)
    assert found == settle(sorted(verdicts), second_reader=True)
    assert (found == "agreed") == (prune == 0 or (keep == 0 and prune >= 2))
    assert (found == "disputed") == (prune > 0 and keep > 0)


def test_who_may_ask(service: Service, live: list[dict[str, Any]]) -> None:
    reader, reviewing = client_of(service, Role.READER), client_of(service, Role.REVIEWER)
    concept, index = live[0]["concept"], live[0]["index"]
    for path in (f"/v1/atlas/{concept}/{index}", f"/v1/atlas/{concept}/{index}.png?map=true", "/v1/reviews"):
        assert reader.get(path).status_code == 200
    assert reader.post("/v1/atlas/preview", json={"pruned": live[:1]}).status_code == 200
    body = {"reviews": [{**live[0], **PRUNE}]}
    assert reader.post("/v1/reviews", json=body).status_code == 403
    assert reviewing.post("/v1/reviews", json=body).status_code == 201
    assert reviewing.post("/v1/models/rollback", json={"reason": "worse"}).status_code == 403


def said(service: Service) -> int:
    """Entries of the ledger but what a challenger says by itself, whenever it comes to it."""
    return sum(each["kind"] != "shadow" for each in service.store.ledger.entries())


def test_champion_and_challenger_side_by_side(
    service: Service, client: TestClient, bundle: Bundle, sample: bytes, engine: CountingEngine
) -> None:
    digest = client.post("/v1/studies", files={"file": ("a.png", sample)}).json()["digest"]
    state = {"rejected": [bundle.manifest.concepts[0]]}
    before = said(service)
    alone = client.post(f"/v1/studies/{digest}/compare", json=state).json()
    assert alone["challenger"] is None and alone["champion"]["model"]["version"] == "1"
    other = replace(bundle.manifest, ask_margin=1.0)
    challenger = Model(replace(bundle, manifest=other), CountingEngine(bundle), "2")
    challenger.digest = "0" * 64
    service.models.challenge_with(Challenge(challenger, "shadow"))
    worklist = client.get("/v1/worklist").json()["items"]
    both = client.post(f"/v1/studies/{digest}/compare", json=state).json()
    assert both["champion"]["before"] == alone["champion"]["before"]
    assert both["challenger"]["model"]["version"] == "2"
    for part in ("before", "after"):
        assert both["challenger"][part]["asks_for_help"]
        assert both["challenger"][part]["classes"] == both["champion"][part]["classes"]
    corrected = client.post(f"/v1/studies/{digest}/interactions", json=state).json()
    assert both["champion"]["after"]["classes"] == corrected["after"]["classes"]
    assert client.get("/v1/worklist").json()["items"][0]["model"] == worklist[0]["model"]
    assert said(service) == before + 1  # the interaction
    assert client.post(f"/v1/studies/{digest}/compare", json={"rejected": ["ship"]}).status_code == 422
    assert client.post(f"/v1/studies/{'0' * 64}/compare", json={}).status_code == 404


def test_models_say_what_a_card_needs(client: TestClient, bundle: Bundle) -> None:
    model = client.get("/v1/models").json()["models"][0]
    assert model["prototypes"] == len(bundle.atlas())
    assert model["live"] == sum(entry.alive for entry in bundle.atlas())
    size = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
    assert model["mb"] == pytest.approx(size / 1e6, abs=1e-3)
    assert model["manifest"]["metrics"] == bundle.manifest.metrics


def test_a_folder_cannot_be_rolled_back(client: TestClient) -> None:
    answer = client.post("/v1/models/rollback", json={"reason": "worse on rounds"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_rollback")
    assert "serves a folder" in answer.json()["error"]["message"]
    for reason in ("", "  "):
        assert client.post("/v1/models/rollback", json={"reason": reason}).status_code == 422
