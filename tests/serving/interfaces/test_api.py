from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import numpy as np
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from PIL import Image

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.core.dataplane import DataPlane
from serving.core.study_cache import StudyCache
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server
from serving.interfaces.schemas import MAX_BOXES
from serving.store.probe import EVERY_S
from serving.store.schema import study
from tests.serving.conftest import CountingEngine, altered_copy, client_of, make_service, png, serve_instead

BOX = {"x_min": 10, "y_min": 10, "x_max": 40, "y_max": 40, "kind": "focus"}

WHOLE = {"x_min": 0, "y_min": 0, "x_max": 64, "y_max": 64}


def upload(client: TestClient, data: bytes, name: str = "study.png") -> httpx.Response:
    return client.post("/v1/studies", files={"file": (name, data)})


def assert_error(response: httpx.Response, status: int, code: str) -> str:
    assert (response.status_code, response.json().keys()) == (status, {"error"}), response.text
    assert response.json()["error"]["code"] == code
    return response.json()["error"]["message"]


@pytest.fixture
def digest(client: TestClient, sample: bytes) -> str:
    return upload(client, sample).json()["digest"]


def test_reading_a_study(client: TestClient, bundle: Bundle, sample: bytes, engine: CountingEngine) -> None:
    response = upload(client, sample)
    assert response.status_code == 201
    study = response.json()
    about, prediction = bundle.manifest, study["prediction"]
    assert study["image"] == {"width": about.side, "height": about.side, "turn": 1}
    assert set(study["timings_ms"]) == {"decode", "wait", "encode", "reason", "explain", "assess", "record"}
    assert [each["name"] for each in prediction["classes"]] == list(about.classes)
    assert sum(each["probability"] for each in prediction["classes"]) == pytest.approx(1, abs=1e-5)
    assert [each["name"] for each in prediction["concepts"]] == list(about.concepts)
    maps = client.get(f"/v1/studies/{study['digest']}/maps").json()
    assert np.array(maps["maps"]).shape == (len(about.concepts), about.height, about.width)
    assert maps["concepts"] == list(about.concepts) and maps["frame"]["side"] == about.side
    concept = prediction["concepts"][0]
    assert set(concept["contributions"]) == set(about.classes)
    assert {"x", "y", "similarity"} == set(concept["peak"])
    assert len(concept["exemplars"]) == 3
    again = client.get(f"/v1/studies/{study['digest']}").json()
    assert again["prediction"] == prediction

    assert isinstance(prediction["questions"], list)
    state = {"boxes": [BOX], "rejected": [concept["name"]], "image": study["image"]}
    changed = client.post(f"/v1/studies/{study['digest']}/interactions", json=state).json()
    assert changed["before"] == prediction
    assert changed["after"]["concepts"][0]["answer"] == "rejected"
    assert changed["changes"]["top_before"] == prediction["top"]
    assert changed["changes"]["summary"]
    assert (changed["alpha"], changed["doubts"]) == (about.alpha, [])
    assert engine.encoded == 1


def test_an_empty_interaction_is_the_plain_prediction_and_undo_the_earlier_answer(
    client: TestClient, digest: str
) -> None:
    def after(**state: Any) -> dict[str, Any]:
        return client.post(f"/v1/studies/{digest}/interactions", json=state).json()["after"]

    plain = client.get(f"/v1/studies/{digest}").json()["prediction"]
    boxed = after(boxes=[BOX])
    assert boxed != plain
    assert after(boxes=[BOX], rejected=["mass"]) != boxed
    assert after(boxes=[BOX]) == boxed
    assert after() == after(boxes=[], rejected=[], confirmed=[]) == after(alpha=0.0, background="alpha") == plain
    zero = after(rejection="zero")
    assert zero | {"questions": plain["questions"]} == plain  # what is asked next depends on what an answer does


def test_a_model_that_abstains_says_so_and_when(
    service: Service, client: TestClient, bundle: Bundle, sample: bytes
) -> None:
    """With a threshold between its confidences before and after an interaction, it abstains from one of the two."""
    state = {"boxes": [BOX | {"kind": "ignore"}], "rejected": list(bundle.manifest.concepts)}

    def read(threshold: float | None) -> tuple[dict[str, Any], dict[str, Any], float | None]:
        serve_instead(service, Bundle(bundle.path, replace(bundle.manifest, abstain_below=threshold)))
        service.plane._studies = StudyCache(0)
        digest = upload(client, sample).json()["digest"]
        answer = client.post(f"/v1/studies/{digest}/interactions", json=state).json()
        about = client.get("/v1/models").json()["models"][0]["manifest"]
        return answer["before"], answer["after"], about["abstain_below"]

    def confidence(prediction: dict[str, Any]) -> float:
        return max(each["probability"] for each in prediction["classes"])

    before, after, threshold = read(None)
    assert threshold is None and before["abstains"] is after["abstains"] is False
    assert abs(confidence(before) - confidence(after)) > 1e-5
    between = (confidence(before) + confidence(after)) / 2
    before, after, threshold = read(between)
    assert threshold == between
    assert before["abstains"] is (confidence(before) < between)
    assert after["abstains"] is (confidence(after) < between)
    assert before["abstains"] is not after["abstains"]


def test_pictures(client: TestClient, digest: str) -> None:
    for path in (f"studies/{digest}/image.png", f"studies/{digest}/maps/mass.png", "atlas/mass/1.png", "samples/0.png"):
        response = client.get(f"/v1/{path}")
        assert (response.status_code, response.headers["content-type"]) == (200, "image/png"), path
        assert response.content.startswith(b"\x89PNG")
    assert client.get(f"/v1/studies/{digest}/image.png").headers["cache-control"] == "no-store"
    sources = {client.get(f"/v1/atlas/mass/1.png?rank={rank}").content for rank in range(3)}
    assert len(sources) == 3 and client.get("/v1/atlas/mass/1.png").content in sources
    ignore = {"boxes": [WHOLE | {"kind": "ignore"}]}
    changed = client.post(f"/v1/studies/{digest}/maps/mass.png", json=ignore)
    assert changed.status_code == 200
    assert changed.content != client.get(f"/v1/studies/{digest}/maps/mass.png").content


def test_model_atlas_and_samples(client: TestClient, bundle: Bundle) -> None:
    model = client.get("/v1/models").json()["models"][0]
    assert (model["role"], model["digest"]) == ("champion", bundle.digest)
    assert model["manifest"]["classes"] == list(bundle.manifest.classes)
    entries = client.get("/v1/atlas").json()["entries"]
    assert len(entries) == len(bundle.manifest.concepts) * bundle.manifest.per_concept
    assert {"concept", "index", "sources", "usage", "reliance"} <= set(entries[0])
    samples = client.get("/v1/samples").json()
    assert [each["index"] for each in samples] == list(range(len(bundle.samples())))


def test_concept_names_with_a_slash_reach_the_data_plane(client: TestClient, digest: str) -> None:
    name = quote("Nodule/Mass", safe="")
    message = assert_error(client.get(f"/v1/studies/{digest}/maps/{name}.png"), 404, "unknown_concept")
    assert "'Nodule/Mass'" in message
    assert "'Nodule/Mass'" in assert_error(client.get(f"/v1/atlas/{name}/0.png"), 404, "unknown_concept")


def test_what_is_not_there_is_404(client: TestClient, digest: str) -> None:
    nobody = "0" * 64
    assert "upload it first" in assert_error(client.get(f"/v1/studies/{nobody}"), 404, "unknown_study")
    assert_error(client.post(f"/v1/studies/{nobody}/interactions", json={}), 404, "unknown_study")
    assert_error(client.get(f"/v1/studies/{nobody}/image.png"), 404, "unknown_study")
    assert_error(client.get(f"/v1/studies/{digest}/maps/spaceship.png"), 404, "unknown_concept")
    assert_error(client.get("/v1/atlas/mass/99.png"), 404, "not_found")
    assert_error(client.get("/v1/atlas/mass/-1.png"), 404, "not_found")
    assert "no source 3" in assert_error(client.get("/v1/atlas/mass/1.png?rank=3"), 404, "not_found")
    assert_error(client.get("/v1/samples/99.png"), 404, "not_found")
    assert_error(client.get("/v1/nothing"), 404, "not_found")
    assert_error(client.get("/page/nothing.js"), 404, "not_found")
    assert_error(client.delete(f"/v1/studies/{digest}"), 405, "method_not_allowed")


def test_hostile_uploads(client: TestClient, sample: bytes) -> None:
    assert_error(upload(client, sample[:200]), 422, "unreadable_image")
    assert_error(upload(client, b""), 422, "unreadable_image")
    assert_error(upload(client, b"patient notes", "notes.png"), 415, "unsupported_image")
    assert_error(upload(client, b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 415, "unsupported_image")
    assert_error(upload(client, b"\x00" * 128 + b"DICM" + b"\x00" * 64), 422, "incomplete_dicom")
    assert_error(upload(client, sample + bytes(2 << 20)), 413, "too_large")
    frames = io.BytesIO()
    Image.new("L", (64, 64)).save(frames, "PNG", save_all=True, append_images=[Image.new("L", (64, 64), "white")])
    assert "more than one page or frame" in assert_error(upload(client, frames.getvalue()), 422, "unreadable_image")
    for kind, status, code in (("GIF", 415, "unsupported_image"), ("WEBP", 422, "unreadable_image")):
        buffer = io.BytesIO()
        Image.new("L", (64, 64)).save(buffer, kind)  # of WebP only that nothing is to be seen on it is wrong
        assert_error(upload(client, buffer.getvalue()), status, code)
    bomb = png(np.zeros((8100, 8000), np.uint8))
    assert len(bomb) < 1 << 20
    assert "over the limit" in assert_error(upload(client, bomb), 422, "unreadable_image")
    assert_error(client.post("/v1/studies", files={"file": (None, "text")}), 422, "invalid_request")
    assert_error(client.post("/v1/studies", files={"other": ("a.png", sample)}), 422, "invalid_request")
    broken = client.post("/v1/studies", content=b"xx", headers={"content-type": "multipart/form-data; boundary=q"})
    assert 400 <= broken.status_code < 500 and broken.json()["error"]["code"]


def test_a_body_without_a_declared_length_is_limited_too(client: TestClient, digest: str) -> None:
    def chunks() -> Any:
        for _ in range(40):
            yield b" " * 65536

    headers = {"content-type": "application/json"}
    response = client.post(f"/v1/studies/{digest}/interactions", content=chunks(), headers=headers)
    assert_error(response, 413, "too_large")


def box(**other: Any) -> dict[str, Any]:
    return {"boxes": [BOX | other]}


@pytest.mark.parametrize(
    ("state", "code", "mentions"),
    [
        (box(x_max=5), "invalid_interaction", "inverted"),
        (box(x_max=10), "invalid_interaction", "empty"),
        (box(x_min=64, x_max=90), "invalid_interaction", "outside the 64×64 image"),
        (box(x_min=1e308, x_max=1.1e308), "invalid_interaction", "outside"),
        ({"rejected": ["spaceship"]}, "invalid_interaction", "spaceship"),
        ({"confirmed": ["spaceship"]}, "invalid_interaction", "spaceship"),
        (
            box(kind="finding", concept="spaceship"),
            "invalid_interaction",
            "unknown concept 'spaceship'",
        ),
        (box(kind="finding"), "invalid_interaction", "boxes[0].concept"),
        (box(concept="mass"), "invalid_interaction", "only a finding box names one"),
        (
            {"confirmed": ["mass"], "rejected": ["mass"]},
            "invalid_interaction",
            "confirmed and rejected both name 'mass'",
        ),
        (
            box(kind="finding", concept="mass") | {"rejected": ["mass"]},
            "invalid_interaction",
            "boxes[0]: shows 'mass', and rejected says that there is none",
        ),
        (
            {"boxes": [BOX | {"kind": "finding", "concept": "mass"}, WHOLE | {"kind": "ignore"}]},
            "invalid_interaction",
            "boxes[0]: this finding of 'mass' lies where boxes[1] says to ignore all",
        ),
        ({"confirmed": "mass"}, "invalid_request", "confirmed"),
        ({"confirmed": ["a" * 201]}, "invalid_request", "confirmed.0"),
        ({"alpha": -0.1}, "invalid_request", "alpha"),
        (box(concept=3), "invalid_request", "boxes.0.concept"),
        (box(kind="positive"), "invalid_request", "'focus', 'ignore' or 'finding'"),
        (box(kind="maybe"), "invalid_request", "boxes.0.kind"),
        (box(x_min="10"), "invalid_request", "boxes.0.x_min"),
        (box(x_min=None), "invalid_request", "boxes.0.x_min"),
        (box(x_min=True), "invalid_request", "boxes.0.x_min"),
        (box(colour="red"), "invalid_request", "boxes.0.colour"),
        ({"boxes": [{"x_min": 1}]}, "invalid_request", "boxes.0.y_min"),
        ({"boxes": [BOX] * (MAX_BOXES + 1)}, "invalid_request", "at most 200"),
        ({"boxes": {}}, "invalid_request", "boxes"),
        ({"rejected": "mass"}, "invalid_request", "rejected"),
        ({"alpha": 1.5}, "invalid_request", "alpha"),
        ({"rejection": "maybe"}, "invalid_request", "rejection"),
        ({"image": {"width": 0, "height": 4}}, "invalid_request", "image.width"),
        ({"unknown": 1}, "invalid_request", "unknown"),
        ([], "invalid_request", "body"),
    ],
)
def test_hostile_interactions(client: TestClient, digest: str, state: Any, code: str, mentions: str) -> None:
    response = client.post(f"/v1/studies/{digest}/interactions", json=state)
    assert mentions in assert_error(response, 422, code)
    assert client.post(f"/v1/studies/{digest}/maps/mass.png", json=state).status_code == 422


def test_probing_a_box(service: Service, client: TestClient, digest: str, bundle: Bundle) -> None:
    region = {name: BOX[name] for name in ("x_min", "y_min", "x_max", "y_max")}
    reader = client_of(service, Role.READER)
    answer = reader.post(f"/v1/studies/{digest}/probe", json={"box": region})
    assert answer.status_code == 200 and answer.json()["box"] == region
    concepts = answer.json()["concepts"]
    assert sorted(each["name"] for each in concepts) == sorted(bundle.manifest.concepts)
    for each in concepts[:3]:
        crop = reader.get(each["exemplars"][0]["crop"])
        assert (crop.status_code, crop.headers["content-type"]) == (200, "image/png")
    for body, code, mentions in (
        ({}, "invalid_request", "box"),
        ({"box": BOX}, "invalid_request", "kind"),
        ({"box": region | {"x_max": 5}}, "invalid_interaction", "box: is empty or inverted"),
        ({"box": region | {"x_min": 64, "x_max": 90}}, "invalid_interaction", "box: lies outside the 64×64 image"),
        ({"box": region | {"y_min": "1"}}, "invalid_request", "box.y_min"),
        ({"box": region, "more": 1}, "invalid_request", "more"),
    ):
        assert mentions in assert_error(client.post(f"/v1/studies/{digest}/probe", json=body), 422, code)
    wrong = {"box": region, "image": {"width": 5, "height": 5}}
    assert_error(client.post(f"/v1/studies/{digest}/probe", json=wrong), 409, "image_size_differs")
    assert_error(client.post(f"/v1/studies/{'0' * 64}/probe", json={"box": region}), 404, "unknown_study")
    service.models.champion.naming = None
    assert_error(client.post(f"/v1/studies/{digest}/probe", json={"box": region}), 409, "cannot_name")


@pytest.mark.parametrize(
    "body",
    [
        '{"boxes": [{"x_min": NaN, "y_min": 0, "x_max": 5, "y_max": 5}]}',
        '{"boxes": [{"x_min": 0, "y_min": 0, "x_max": Infinity, "y_max": 5}]}',
        '{"boxes": [{"x_min": 0, "y_min": 0, "x_max": 1e999, "y_max": 5}]}',
        '{"alpha": NaN}',
        '{"boxes": [',
        "[" * 100_000,
        "\udc80",
        "",
    ],
)
def test_json_that_is_none(client: TestClient, digest: str, body: str) -> None:
    data, headers = body.encode("utf-8", "surrogateescape"), {"content-type": "application/json"}
    response = client.post(f"/v1/studies/{digest}/interactions", content=data, headers=headers)
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["code"] in ("invalid_request", "bad_request")


MULTIPART, JSON = "multipart/form-data; boundary=q", "application/json"


@pytest.mark.parametrize(
    ("path", "kinds", "others"),
    [
        ("/v1/studies", [MULTIPART], [JSON, "image/png", "application/x-www-form-urlencoded", None]),
        ("/v1/studies/batch", [MULTIPART], [JSON, None]),
        ("/v1/studies/DIGEST/interactions", [JSON, "APPLICATION/JSON ;charset=utf-8"], [MULTIPART, "text/plain", None]),
        ("/v1/studies/DIGEST/probe", [JSON], ["text/plain", None]),
        ("/v1/studies/DIGEST/maps", [JSON, "application/vnd.x+json"], ["application/xjson", "json", "text/json"]),
        ("/v1/studies/DIGEST/report.dcm", [JSON], ["text/plain"]),
        ("/v1/atlas/mass/0/review", [JSON], ["text/plain"]),
        ("/sign-in", [MULTIPART, "application/x-www-form-urlencoded"], [JSON, "text/plain", None]),
    ],
)
def test_bodies_say_what_they_are(
    client: TestClient, digest: str, path: str, kinds: list[str], others: list[str | None]
) -> None:
    url = path.replace("DIGEST", digest)
    for kind in [*kinds, *others]:
        answer = client.post(url, content=b"{}", headers={"content-type": kind} if kind else {})
        assert (answer.status_code == 415) is (kind in others), (kind, answer.text)
        if kind in others and path != "/sign-in":
            said = assert_error(answer, 415, "unsupported_media_type")
            assert (repr(kind) if kind else "missing") in said and kinds[0].partition(";")[0] in said


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/studies/DIGEST/interactions", '{"rejected": ["mass"], "rejected": []}'),
        ("/v1/studies/DIGEST/interactions", '{"rejected": ["mass"], "r\\u0065jected": []}'),
        ("/v1/studies/DIGEST/interactions", '{"boxes": [{"x_min": 1, "x_min": 2}]}'),
        ("/v1/studies/DIGEST/maps", '{"alpha": 0.1, "alpha": 0.9}'),
        ("/v1/atlas/mass/0/review", '{"verdict": "keep", "verdict": "prune"}'),
        ("/v2/models/csr_encoder/infer", '{"inputs": [], "inputs": []}'),
        ("/v2/models/csr_encoder/infer", '{"inputs": [{"name": "image", "name": "other"}]}'),
    ],
)
def test_a_key_that_is_there_twice_is_refused(client: TestClient, digest: str, path: str, body: str) -> None:
    answer = client.post(path.replace("DIGEST", digest), content=body, headers={"content-type": JSON})
    assert answer.status_code == (400 if path.startswith("/v2") else 422)
    assert "is no JSON: Detected duplicate key" in str(answer.json()["error"])


def test_head_is_get_without_its_body(client: TestClient, service: Service, digest: str) -> None:
    paths = [
        "/", "/page/js/main.js", "/sign-in", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/v2",
        "/v1/models", "/v1/atlas", "/v1/samples/0.png", f"/v1/studies/{digest}/image.png",
        f"/v1/studies/{digest}/maps/mass.png",
        "/v2/models/csr_encoder", "/v1/nothing", "/page/nothing.js",
    ]  # fmt: skip
    for path in paths:
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers.get("content-type") == got.headers.get("content-type"), path
        assert int(head.headers["content-length"]) > 0, path
    assert client.head(f"/v1/studies/{digest}/interactions").status_code == 405
    stranger = TestClient(create_server(service), raise_server_exceptions=False)
    assert [stranger.head(path).status_code for path in ("/v1/models", "/metrics", "/health/live")] == [401, 401, 200]
    assert 'method="HEAD"' in client.get("/metrics").text


def test_boxes_drawn_on_an_image_of_another_size(client: TestClient, digest: str) -> None:
    state = {"boxes": [BOX], "image": {"width": 640, "height": 640}}
    response = client.post(f"/v1/studies/{digest}/interactions", json=state)
    assert "upload yours again" in assert_error(response, 409, "image_size_differs")


def test_two_hundred_boxes_are_taken(client: TestClient, digest: str) -> None:
    state = {"boxes": [BOX] * MAX_BOXES, "rejected": ["mass", "mass"]}
    assert client.post(f"/v1/studies/{digest}/interactions", json=state).status_code == 200


def test_health(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}


HEADERS = ("content-security-policy", "referrer-policy", "x-content-type-options")
# Method and path, and the status: one of each kind of answer, whoever gives it.
ANSWERS = [
    ("GET", "/", 200),
    ("GET", "/page/index.html", 200),
    ("GET", "/page/js/main.js", 200),
    ("GET", "/page/icon.svg", 200),
    ("GET", "/page/nothing.js", 404),
    ("GET", "/page", 404),
    ("GET", "/sign-in", 200),
    ("POST", "/sign-in", 401),
    ("POST", "/sign-out", 303),
    ("GET", "/v1/models", 200),
    ("GET", "/v1/models/", 404),
    ("GET", "/v1/samples/0.png", 200),
    ("GET", "/v1/atlas/mass/1.png", 200),
    ("GET", "/v1/studies/none", 404),
    ("DELETE", "/v1/studies/none", 405),
    ("POST", "/v1/studies", 422),
    ("GET", "/v2", 200),
    ("GET", "/v2/models/none", 404),
    ("GET", "/metrics", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/health/live", 200),
    ("GET", "/v1/studies/none/image.png", 500),
]


@pytest.mark.parametrize(("method", "path", "status"), ANSWERS)
def test_every_answer_has_the_same_headers_and_one_id(
    client: TestClient, service: Service, method: str, path: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(DataPlane, "image", fail)
    stranger = TestClient(create_server(service), raise_server_exceptions=False)
    is_open = path.startswith(("/sign-", "/health/"))
    for each, statuses in ((client, {status}), (stranger, {status} if is_open else {303, 401})):
        for given, kept in ((["not one"], []), (["not one", "mine"], []), (["mine", "other"], ["mine"])):
            headers = [("Accept", "text/html"), *(("X-Request-ID", value) for value in given)]
            answer = each.request(method, path, headers=headers, follow_redirects=False)
            assert answer.status_code in statuses
            told = {name: answer.headers.get_list(name) for name in ("x-request-id", *HEADERS)}
            assert all(len(values) == 1 for values in told.values()), told
            assert told["x-request-id"] == kept or re.fullmatch("[0-9a-f]{32}", told["x-request-id"][0])
            assert told["x-content-type-options"] == ["nosniff"] and told["referrer-policy"] == ["same-origin"]
            assert "frame-ancestors 'none'" in told["content-security-policy"][0]


def test_a_study_that_was_swapped_in_the_store_is_not_answered_from(
    client: TestClient, service: Service, sample: bytes, wide: bytes
) -> None:
    digest, other = (upload(client, data).json()["digest"] for data in (sample, wide))
    with service.store.database.write() as connection:
        pixels = sa.select(study.c.canvas).where(study.c.digest == other).scalar_subquery()
        connection.execute(sa.update(study).where(study.c.digest == digest).values(canvas=pixels))
    assert client.get(f"/v1/studies/{digest}").status_code == 200, "this replica holds what was added"
    service.plane._studies = StudyCache(0)
    before = service.store.ledger.verify().head.number
    for method, path, body in (
        ("GET", "", None), ("GET", "/image.png", None), ("GET", "/maps", None), ("POST", "/interactions", {}),
        ("POST", "/report.dcm", {}),
    ):  # fmt: skip
        answer = client.request(method, f"/v1/studies/{digest}{path}", json=body)
        assert "does not hold what was added" in assert_error(answer, 500, "study_altered")
    assert service.store.ledger.verify().head.number == before
    assert client.get(f"/v1/studies/{other}").status_code == 200
    assert upload(client, sample).json()["digest"] == digest
    assert client.get(f"/v1/studies/{digest}").status_code == 200


def test_a_server_whose_store_is_full_is_not_ready(client: TestClient, service: Service, sample: bytes) -> None:
    database = service.store.database
    with database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

    def limit(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    sa.event.listen(database._engine, "begin", limit)
    uploads = (upload(client, png(np.random.default_rng(n).integers(0, 255, (64, 64), np.uint8))) for n in range(50))
    assert_error(next(answer for answer in uploads if answer.status_code != 201), 503, "store_unavailable")
    answer = client.get("/health/ready")
    assert assert_error(answer, 503, "store_unavailable") == "the store is full" and answer.headers["retry-after"]
    assert client.get("/health/live").status_code == 200 and client.get("/v1/worklist").status_code == 200
    sa.event.remove(database._engine, "begin", limit)
    sa.event.listen(database._engine, "begin", lambda each: each.exec_driver_sql("PRAGMA max_page_count = 100000"))
    service.probe._began -= EVERY_S
    assert client.get("/health/ready").status_code == 200 and upload(client, sample).status_code == 201


def test_an_administrator_signs_browsers_out(client: TestClient, service: Service) -> None:
    key = service.keys.create("clinician", Role.READER)
    browser = TestClient(create_server(service))
    assert browser.post("/sign-in", data={"key": key[1]}).status_code == 200
    (session,) = client.get("/v1/sessions").json()["sessions"]
    assert (session["actor"], session["role"]) == ("key:clinician", "reader")
    assert browser.cookies["csr_session"] not in client.get("/v1/sessions").text
    for method, path in (("GET", "/v1/sessions"), ("DELETE", f"/v1/sessions/{session['id']}")):
        assert_error(browser.request(method, path), 403, "forbidden")
    assert browser.get("/v1/models").status_code == 200
    assert client.delete(f"/v1/sessions/{session['id']}").json() == session
    assert_error(browser.get("/v1/models"), 401, "unauthenticated")
    assert_error(client.delete(f"/v1/sessions/{session['id']}"), 404, "unknown_session")


def test_no_redirect_repeats_a_host(client: TestClient) -> None:
    for path in ("/page", "/v1/models/", "/health/live/", "/sign-in/"):
        answer = client.get(path, headers={"Host": "evil.test"}, follow_redirects=False)
        assert answer.status_code == 404 and "evil" not in f"{answer.headers} {answer.text}"


def test_an_altered_bundle_is_alive_but_not_ready(bundle: Bundle, tmp_path: Path) -> None:
    service = make_service(altered_copy(bundle, tmp_path / "bundle"), tmp_path / "state")
    with client_of(service) as client:
        assert client.get("/health/live").status_code == 200
        assert "atlas.json: digest differs" in assert_error(client.get("/health/ready"), 503, "not_ready")
        assert_error(upload(client, b"x"), 503, "not_ready")
        assert client.get("/").status_code == 200
        assert "atlas.json" in client.get("/v1/models").json()["refused"]["champion"]
    service.close()


def test_an_unforeseen_failure_tells_the_client_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(DataPlane, "predict", fail)
    response = client.get("/v1/studies/x")
    assert_error(response, 500, "internal")
    assert "secret" not in response.text


def test_the_event_loop_answers_while_a_study_is_encoded(
    service: Service, engine: CountingEngine, sample: bytes
) -> None:
    import threading

    started, go_on = threading.Event(), threading.Event()
    run_encoder = engine.run_encoder

    def slow(images: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        started.set()
        assert go_on.wait(20)
        return run_encoder(images, outputs)

    engine.run_encoder = slow  # type: ignore[method-assign]

    async def scenario() -> int:
        key = service.keys.create("reader", Role.READER)[1]
        headers = {"Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(create_server(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            reading = asyncio.create_task(client.post("/v1/studies", files={"file": ("a.png", sample)}))
            assert await asyncio.to_thread(started.wait, 20)
            live = await asyncio.wait_for(client.get("/health/live"), 5)
            assert live.status_code == 200 and not reading.done()
            go_on.set()
            return (await reading).status_code

    assert asyncio.run(scenario()) == 201


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    response = client.get("/")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    folder = Path(__file__).parents[3] / "serving" / "interfaces" / "page"
    for file in filter(Path.is_file, folder.rglob("*")):
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text, file.name
        assert "innerHTML" not in text, file.name
        assert client.get(f"/page/{file.relative_to(folder).as_posix()}").status_code == 200


def test_the_contract_is_published(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/studies", "/v1/studies/{digest}/interactions", "/health/ready"} <= set(paths)
