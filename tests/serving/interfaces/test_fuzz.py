"""Strangers' requests to the whole application: what its own description allows, what it does not, and hostile files.

`make test-faults` runs the same with many more examples.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode, checks

from csr.bundle.format import Bundle
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_app, create_server
from tests.serving.bombs import BOMBS
from tests.serving.conftest import client_of, make_service
from tests.serving.dicom.files import dataset, written

EXAMPLES = int(os.environ.get("CSR_FUZZ_EXAMPLES", "12"))
MORE = settings(
    max_examples=6 * EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CHECKS = [checks.not_a_server_error, checks.response_schema_conformance]
# Their answers are pictures and documents, or what they do is to call another server.
LEFT_OUT = ("/metrics", "/sign-in")


@pytest.fixture(scope="module")
def service(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    limits = {"rates": {"requests_per_minute": 10_000_000, "failures_per_minute": 10_000_000}}
    service = make_service(bundle.path, tmp_path_factory.mktemp("fuzz"), access=limits)
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    return client_of(service)


@pytest.fixture(scope="module")
def digest(client: TestClient, bundle: Bundle) -> str:
    sample = (bundle.path / "samples/00.png").read_bytes()
    return client.post("/v1/studies", files={"file": ("a.png", sample)}).json()["digest"]


def fuzz(operation: Any, mode: GenerationMode, headers: dict[str, str], digest: str) -> set[int]:
    """Asks an operation for what its description allows, or forbids. Returns the statuses that were answered."""
    seen: set[int] = set()

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        if "digest" in (case.path_parameters or {}):
            case.path_parameters["digest"] = digest
        answer = case.call(headers=headers)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400:
            body = answer.json()
            assert body["code"] if case.path.startswith("/v2") else body["error"]["code"]

    try:
        ask()
    except Unsatisfiable:  # without parameters there is nothing that could be otherwise than described
        assert mode is GenerationMode.NEGATIVE and not seen
    return seen


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as described", "otherwise"])
def test_no_request_breaks_the_server(service: Service, client: TestClient, digest: str, mode: GenerationMode) -> None:
    """Each operation, with the digest of a study that is there where one is asked for."""
    headers = {"Authorization": client.headers["authorization"]}
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_server(service), headers=headers)
    statuses: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if not operation.path.startswith(LEFT_OUT):
            statuses[operation.label] = fuzz(operation, mode, headers, digest)
    assert len(statuses) > 30 and sum(map(bool, statuses.values())) > 20
    if mode is GenerationMode.POSITIVE:
        for label in ("GET /v1/atlas", "GET /v1/worklist", "POST /v1/studies/{digest}/maps", "GET /v2"):
            assert 200 in statuses[label], label
    assert 500 not in set().union(*statuses.values())
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer x", "Basic eDp5", "Bearer csr_" + "a" * 43])
def test_nothing_but_health_answers_without_a_key(service: Service, key: str | None) -> None:
    stranger = TestClient(create_server(service), headers={"Authorization": key} if key is not None else {})
    for path, methods in create_app(service).openapi()["paths"].items():
        for method in methods:
            status = stranger.request(method, path.replace("{digest}", "0" * 64)).status_code
            assert status == (200 if "/health/" in path else 401), (method, path)


def files() -> dict[str, bytes]:
    """One valid file of each kind."""
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8))
    made: dict[str, bytes] = {"dicom": written(dataset())}
    for name, picture, options in (
        ("png", grey, {}),
        ("palette", grey.convert("P"), {"format": "PNG"}),
        ("jpeg", grey.convert("RGB"), {}),
        ("tiff", Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), {}),
        ("float", grey.convert("F"), {"format": "TIFF"}),
        ("lzw", grey, {"format": "TIFF", "compression": "tiff_lzw"}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, **({"format": name.upper()} | options))
        made[name] = buffer.getvalue()
    return made


FILES = files()


@MORE
@given(
    kind=st.sampled_from(sorted(FILES)),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=12),
    splice=st.binary(max_size=40),
)
def test_damaged_files_are_refused_or_read(
    client: TestClient, kind: str, cut: float, flips: list[tuple[float, int]], splice: bytes
) -> None:
    data = bytearray(FILES[kind])
    for place, change in flips:
        data[int(place * len(data))] ^= change
    data[int(cut * len(data)) :] = splice if cut < 0.9 else data[int(cut * len(data)) :]
    answer = client.post("/v1/studies", files={"file": ("a", bytes(data))})
    assert answer.status_code in (201, 415, 422), answer.text
    if answer.status_code != 201:
        assert answer.json()["error"]["code"]


@pytest.mark.parametrize("kind", FILES)
def test_undamaged_files_are_read(client: TestClient, kind: str) -> None:
    answer = client.post("/v1/studies", files={"file": ("a", FILES[kind])})
    assert answer.status_code == 201, answer.text


@MORE
@given(kind=st.sampled_from(sorted(BOMBS)), number=st.integers(0, 300))
def test_files_of_many_parts_are_refused_or_read(client: TestClient, kind: str, number: int) -> None:
    """Those of very many are in `tests.serving.faults.test_bombs`."""
    make, _ = BOMBS[kind]
    answer = client.post("/v1/studies", files={"file": ("a", make(number))})
    assert answer.status_code in (201, 422), (kind, number, answer.text)


numbers = st.floats() | st.integers(-(2**70), 2**70) | st.none() | st.booleans() | st.text(max_size=5)
states = st.fixed_dictionaries(
    {},
    optional={
        "boxes": st.lists(
            st.dictionaries(st.sampled_from(["x_min", "y_min", "x_max", "y_max", "kind", "x"]), numbers), max_size=4
        ),
        "confirmed": st.lists(st.sampled_from(["mass", "nodule"]) | st.text(max_size=8), max_size=4),
        "rejected": st.lists(st.sampled_from(["mass", "nodule"]) | st.text(max_size=8), max_size=4),
        "alpha": numbers,
        "rejection": st.sampled_from(["zero", "absent", "x"]),
        "image": st.dictionaries(st.sampled_from(["width", "height"]), numbers),
    },
)


@MORE
@given(state=states)
def test_any_interaction_is_applied_or_refused(client: TestClient, digest: str, state: dict[str, Any]) -> None:
    content = json.dumps(state)  # writes NaN and Infinity, which are no JSON, as clients do
    headers = {"content-type": "application/json"}
    answer = client.post(f"/v1/studies/{digest}/interactions", content=content.encode(), headers=headers)
    assert answer.status_code in (200, 400, 409, 422), answer.text


@MORE
@given(path=st.binary(max_size=60))
def test_any_path_is_answered(client: TestClient, path: bytes) -> None:
    answer = client.get("/v1/" + quote(path, safe="/.%"))
    assert answer.status_code < 500


@MORE
@given(
    name=st.sampled_from(["Idempotency-Key", "X-Request-ID", "traceparent", "Accept", "Cookie", "Origin", "Range"]),
    value=st.binary(max_size=80).filter(lambda text: not set(text) & set(b"\r\n\0")),
)
def test_any_header_is_survived(client: TestClient, digest: str, name: str, value: bytes) -> None:
    answer = client.post(f"/v1/studies/{digest}/interactions", json={}, headers={name.encode(): value})
    assert answer.status_code in (200, 403, 409, 422), (answer.status_code, answer.text)


def test_hostile_files_do_not_fill_the_memory(client: TestClient) -> None:
    """Two hundred refusals, among them of files that declare far more than they hold."""
    wide = bytearray(FILES["png"])
    wide[16:24] = (60_000).to_bytes(4, "big") * 2
    huge = dataset(Rows=65535, Columns=65535)
    for _ in range(3):
        client.post("/v1/studies", files={"file": ("a", bytes(wide))})
    before = _resident()
    for _ in range(100):
        assert client.post("/v1/studies", files={"file": ("a", bytes(wide))}).status_code == 422
        assert client.post("/v1/studies", files={"file": ("a", written(huge))}).status_code == 422
    assert _resident() - before < 64 << 20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
