"""HTTP: what the stock client never sends, and what strangers might."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks

from serving.engines.triton import ENCODER, MAX_BATCH
from serving.errors import NotReadyError
from serving.interfaces.oip import BundleModels
from serving.interfaces.oip.models import request_bytes
from tests.serving.interfaces.oip.conftest import Server, rest_app

Arrays = dict[str, np.ndarray]
INFER = f"/v2/models/{ENCODER}/infer"
LENGTH = "Inference-Header-Content-Length"
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def described(array: np.ndarray, **changes: Any) -> dict[str, Any]:
    """The encoder's input as JSON."""
    size = {"parameters": {"binary_data_size": array.nbytes}}
    return {"name": "image", "datatype": "UINT8", "shape": list(array.shape)} | size | changes


def binary(array: np.ndarray, **request: Any) -> tuple[bytes, dict[str, str]]:
    """A binary request for the encoder: its body and its header."""
    text = json.dumps({"inputs": [described(array)], **request}).encode()
    return text + array.tobytes(), {LENGTH: str(len(text))}


def refused(answer: Any, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "code"}
    return answer.json()["error"]


def test_health_and_metadata(client: TestClient):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json() == {"name": "csr", "version": "1", "extensions": ["binary_tensor_data"]}
    assert client.get(f"/v2/models/{ENCODER}/versions/1/ready").json() == {"name": ENCODER, "ready": True}
    about = client.get(f"/v2/models/{ENCODER}").json()
    assert set(about) == {"name", "versions", "platform", "inputs", "outputs"}


@pytest.mark.parametrize("path", ["", "/ready", "/versions/1", "/versions/1/ready"])
def test_unknown_models_are_404_with_the_known_ones(client: TestClient, path: str):
    answer = client.get(f"/v2/models/nothing{path}")
    assert "csr, csr_encoder, csr_reasoner" in refused(answer, 404)
    assert answer.json()["code"] == "unknown_model"


def test_a_version_that_is_not_served_is_404_with_those_that_are(client: TestClient, inputs: Arrays):
    content, headers = binary(inputs["image"])
    answer = client.post(f"/v2/models/{ENCODER}/versions/3/infer", content=content, headers=headers)
    assert "version '3': is not served; served are 1" in refused(answer, 404)


def test_nothing_is_ready_without_a_bundle(inputs: Arrays):
    with TestClient(rest_app(Server(NotReadyError("the golden case differs")))) as client:
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", f"/v2/models/{ENCODER}/ready", f"/v2/models/{ENCODER}"):
            assert refused(client.get(path), 503) == "the golden case differs"
        assert refused(client.post(INFER, content=binary(inputs["image"])[0]), 503) == "the golden case differs"


@pytest.mark.parametrize("nested", [False, True])
def test_json_alone_in_and_out(client: TestClient, inputs: Arrays, expected: Arrays, nested: bool):
    image = inputs["image"]
    data = image.tolist() if nested else image.ravel().tolist()
    answer = client.post(INFER, json={"id": "a", "inputs": [described(image, parameters={}, data=data)]})
    assert answer.headers["content-type"] == "application/json" and LENGTH not in answer.headers
    assert answer.json()["id"] == "a"
    output, fits = answer.json()["outputs"]
    assert (fits["name"], fits["shape"]) == ("fit_scores", list(expected["fit_scores"].shape))
    assert (output["name"], output["datatype"]) == ("patches", "FP32")
    found = np.array(output["data"], np.float32).reshape(output["shape"])
    np.testing.assert_allclose(found, expected["patches"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": []}, "'image': is missing"),
        ({"inputs": [{}]}, "inputs.0.name: Field required"),
        ({"inputs": "image"}, "inputs: Input should be"),
        ({"unknown": 1}, "unknown: Extra inputs are not permitted"),
        ({"id": 7}, "id: Input should be a valid string"),
        ({"id": "i" * 300}, "id: String should have at most 256 characters"),
        ({"parameters": {"binary_data_output": 1}}, "'binary_data_output' must be true or false"),
        ({"parameters": {"sequence_id": 3}}, "'sequence_id' is not supported"),
        ({"parameters": {"nested": {}}}, "parameters.nested"),
        ({"outputs": [{"name": "picture"}]}, "output 'picture': is unknown; csr_encoder gives patches, fit_scores"),
        ({"outputs": [{"name": "patches"}] * 2}, "asked for twice"),
        ({"outputs": [{"name": "patches", "parameters": {"classification": 2}}]}, "'classification' is not supported"),
        ({"outputs": [{"name": "patches", "parameters": {"binary_data": "yes"}}]}, "must be true or false"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(client: TestClient, inputs: Arrays, changes: Any, reason: str):
    text = json.dumps({"inputs": [described(inputs["image"])]} | changes).encode()
    binary_part = inputs["image"].tobytes() if "inputs" not in changes else b""
    answer = client.post(INFER, content=text + binary_part, headers={LENGTH: str(len(text))})
    assert reason in refused(answer)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parameters": {}}, "must have either 'data' or the parameter 'binary_data_size'"),
        ({"data": [1]}, "must have either 'data' or the parameter 'binary_data_size'"),
        ({"parameters": {"binary_data_size": -1}}, "binary_data_size must be a whole number up to"),
        ({"parameters": {"binary_data_size": True}}, "binary_data_size must be a whole number up to"),
        ({"parameters": {"binary_data_size": 8.0}}, "binary_data_size must be a whole number up to"),
        ({"parameters": {"binary_data_size": 2**70}}, "binary_data_size must be a whole number up to"),
        ({"parameters": {"binary_data_size": 8}}, "the body has"),
        ({"parameters": {"shared_memory_region": "x"}}, "memory of this machine is not for clients"),
        ({"shape": [2**62]}, "shape is [4611686018427387904]"),
        ({"shape": [1.0]}, "shape.0: Input should be a valid integer"),
        ({"shape": [1] * 1000}, "shape: List should have at most 8 items"),
        ({"datatype": "BYTES"}, "datatype is 'BYTES', but it takes UINT8"),
    ],
)
def test_a_wrong_input_is_refused_with_its_reason(client: TestClient, inputs: Arrays, changes: Any, reason: str):
    text = json.dumps({"inputs": [described(inputs["image"], **changes)]}).encode()
    answer = client.post(INFER, content=text + inputs["image"].tobytes(), headers={LENGTH: str(len(text))})
    assert reason in refused(answer)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"id": "\\ud800"}', b"9" * 9000, b"null"])
def test_bodies_that_are_no_requests(client: TestClient, content: bytes):
    assert len(refused(client.post(INFER, content=content))) < 200


@pytest.mark.parametrize("length", ["100000000", "-1", "x", "1e3", "0", "9" * 5000])
def test_header_lengths_that_cannot_be(client: TestClient, inputs: Arrays, length: str):
    refused(client.post(INFER, content=binary(inputs["image"])[0], headers={LENGTH: length}))


def test_bytes_after_the_last_tensor_are_refused(client: TestClient, inputs: Arrays):
    content, headers = binary(inputs["image"])
    assert "has 1 bytes more" in refused(client.post(INFER, content=content + b"\0", headers=headers))


@pytest.mark.parametrize("declared", [True, False])
def test_a_request_over_the_models_limit_is_413(client: TestClient, models: BundleModels, declared: bool):
    limit = request_bytes(models.spec(ENCODER))
    content = b" " * (limit + 1)
    answer = client.post(INFER, content=content if declared else iter([content[:limit], content[limit:]]))
    assert f"limit of {limit:,} bytes" in refused(answer, 413)


def test_a_full_batch_is_within_the_limit(client: TestClient, inputs: Arrays):
    full = np.repeat(inputs["image"][:1], MAX_BATCH, axis=0)
    content, headers = binary(full, parameters={"binary_data_output": True})
    answer = client.post(INFER, content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    shape = json.loads(answer.content[: int(answer.headers[LENGTH])])["outputs"][0]["shape"]
    assert shape[0] == MAX_BATCH


def test_too_many_numbers_as_json_are_refused_before_anything_is_computed(
    client: TestClient, inputs: Arrays, monkeypatch: pytest.MonkeyPatch, expected: Arrays
):
    monkeypatch.setattr("serving.interfaces.oip.wire.MAX_JSON_NUMBERS", expected["patches"].size - 1)
    content, headers = binary(inputs["image"])
    assert "ask for binary data" in refused(client.post(INFER, content=content, headers=headers))
    content, headers = binary(inputs["image"], parameters={"binary_data_output": True})
    assert client.post(INFER, content=content, headers=headers).status_code == 200


# --- compression: the stock client's two methods, never more than the limit


@pytest.mark.parametrize(
    ("encoding", "pack", "reason", "status"),
    [
        ("gzip", lambda body: b"x" + gzip.compress(body), "the body is not gzip", 400),
        ("gzip", lambda body: gzip.compress(body)[:-4], "cut off", 400),
        ("gzip", lambda body: gzip.compress(body) * 2, "followed by other bytes", 400),
        ("deflate", lambda body: zlib.compress(body) + b"x", "followed by other bytes", 400),
        ("gzip", lambda body: gzip.compress(bytes(1 << 26)), "the inflated request is over", 413),
        ("deflate", lambda body: zlib.compress(bytes(1 << 26)), "the inflated request is over", 413),
        ("br", lambda body: body, "is neither 'gzip' nor 'deflate'", 415),
        ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body)), "is neither 'gzip' nor 'deflate'", 415),
    ],
)
def test_compressed_bodies_that_are_refused(client: TestClient, inputs: Arrays, encoding, pack, reason, status):
    content, headers = binary(inputs["image"])
    answer = client.post(INFER, content=pack(content), headers=headers | {"Content-Encoding": encoding})
    assert reason in refused(answer, status)


@pytest.mark.parametrize(
    ("encoding", "pack"), [("GZIP", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
)
def test_compressed_bodies_that_are_read(client: TestClient, inputs: Arrays, encoding: str, pack):
    content, headers = binary(inputs["image"])
    answer = client.post(INFER, content=pack(content), headers=headers | {"Content-Encoding": encoding})
    assert answer.status_code == 200, answer.text


# --- strangers


@FUZZ
@given(
    st.binary(max_size=300), st.none() | st.integers(-1, 400) | st.text(max_size=5), st.sampled_from(["", "gzip", "x"])
)
def test_arbitrary_bytes_are_refused_and_never_an_error_of_the_server(
    client: TestClient, content: bytes, length: Any, encoding: str
):
    headers = {"Content-Encoding": encoding}
    if length is not None:
        headers[LENGTH] = str(length).encode("utf-8", "replace")
    answer = client.post(INFER, content=content, headers=headers)
    assert refused(answer, 415 if answer.status_code == 415 and encoding == "x" else 400)


@FUZZ
@given(st.data())
def test_a_right_request_with_bytes_changed_is_answered_or_refused(client: TestClient, inputs: Arrays, data):
    content, headers = binary(inputs["image"][:1])
    changed = bytearray(content)
    json_end = int(headers[LENGTH])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, json_end - 1))] = data.draw(st.integers(0, 255))
    answer = client.post(INFER, content=bytes(changed), headers=headers)
    assert answer.status_code in (200, 400), answer.text


def fuzz(operation: Any, mode: GenerationMode) -> set[int]:
    """Asks an operation for much that its description allows, or forbids, and compares the answers with it.

    Returns:
        The statuses that were answered.
    """
    statuses = set()

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        answer = case.call()
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    ask()
    return statuses


def test_the_interface_is_described_well_enough_to_be_fuzzed(models: BundleModels):
    schema = schemathesis.openapi.from_asgi("/openapi.json", rest_app(Server(models)))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 9
    for operation in operations:
        statuses = fuzz(operation, GenerationMode.POSITIVE)
        if operation.method == "post":
            statuses |= fuzz(operation, GenerationMode.NEGATIVE)
        if "{version}" in operation.path:
            assert 404 in statuses
        elif operation.method == "get":
            assert statuses == {200}, operation.path
        else:
            assert 400 in statuses, operation.path
