"""One conversation of the stock client, over HTTP and gRPC, with this server and with a real Triton server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from csr.bundle.format import ENCODER_OUTPUTS, REASONER_OUTPUTS, Bundle
from csr.bundle.runtime import FIT_TOLERANCE
from serving.engines.triton import ENCODER, REASONER, build_repository
from serving.errors import NotReadyError
from serving.interfaces.oip import ENSEMBLE, BundleModels, model_specs
from tests.serving.engines.triton.server import triton_server
from tests.serving.interfaces.oip.conftest import Server, grpc_server, http_server

TOLERANCE = 1e-5
PROTOCOLS = {"http": triton_http, "grpc": triton_grpc}
ALIASES = {
    "subset": "logits",
    "json logits": "logits",
    "json scores": "scores",
    "gzip": "patches",
    "deflate": "patches",
}
STATUSES = {"http": ("404", "400"), "grpc": ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT")}
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Conversation:
    """What was said: the numbers of every inference by name of the step, and the status of every refusal."""

    numbers: dict[str, np.ndarray]
    refusals: dict[str, str]


class Key:
    """What the stock client calls a plugin: it signs every request."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __call__(self, request: Any) -> None:
        request.headers["authorization"] = f"Bearer {self._secret}"


def converse(
    protocol: ModuleType, url: str, bundle: Bundle, encoder: Arrays, reasoner: Arrays, key: str | None = None
) -> Conversation:
    """Everything that a client usually does, and what it does wrong.

    Args:
        protocol: ``tritonclient.http`` or ``tritonclient.grpc``.
        url: the server's address.
        bundle: what it serves as version 1.
        encoder, reasoner: inputs of the two models.
        key: that the server asks for, if it does.
    """
    client = protocol.InferenceServerClient(url)
    if key is not None:
        client.register_plugin(Key(key))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert plain(client.get_server_metadata())["name"]
        for name in (ENCODER, REASONER):
            assert client.is_model_ready(name)
            assert client.is_model_ready(name, "1")
            assert client.get_model_metadata(name) == client.get_model_metadata(name, "1")
            check_metadata(plain(client.get_model_metadata(name)), bundle)
        return Conversation(inferences(protocol, client, encoder, reasoner), refusals(protocol, client, encoder))
    finally:
        client.close()


def inferences(protocol: ModuleType, client: Any, encoder: Arrays, reasoner: Arrays) -> dict[str, np.ndarray]:
    wanted = protocol.InferRequestedOutput
    encoded = client.infer(ENCODER, tensors(protocol, encoder), "1", request_id="study 7/ä")
    about = plain(encoded.get_response())
    assert (about["id"], about["model_name"], about["model_version"]) == ("study 7/ä", ENCODER, "1")
    numbers = {name: encoded.as_numpy(name) for name in ENCODER_OUTPUTS}

    answer = client.infer(REASONER, tensors(protocol, reasoner))
    assert "id" not in plain(answer.get_response())
    numbers |= {name: answer.as_numpy(name) for name in REASONER_OUTPUTS}

    two = [wanted("probabilities"), wanted("logits")]
    subset = client.infer(REASONER, tensors(protocol, reasoner), outputs=two)
    assert {each["name"] for each in plain(subset.get_response())["outputs"]} == {"probabilities", "logits"}
    numbers["subset"] = subset.as_numpy("logits")

    if protocol is triton_http:
        as_json = tensors(protocol, reasoner, binary_data=False)
        mixed = [wanted("logits", binary_data=False), wanted("scores", binary_data=True)]
        answer = client.infer(REASONER, as_json, outputs=mixed)
        described = {each["name"]: each for each in answer.get_response()["outputs"]}
        assert "data" in described["logits"] and "data" not in described["scores"]
        numbers |= {"json logits": answer.as_numpy("logits"), "json scores": answer.as_numpy("scores")}
        for method in ("gzip", "deflate"):
            packed = client.infer(ENCODER, tensors(protocol, encoder), request_compression_algorithm=method)
            numbers[method] = packed.as_numpy("patches")
    return numbers


def refusals(protocol: ModuleType, client: Any, encoder: Arrays) -> dict[str, str]:
    image = encoder["image"]
    shape, patches = list(image.shape), protocol.InferRequestedOutput("patches")
    floats = protocol.InferInput("image", shape, "FP32").set_data_from_numpy(image.astype(np.float32))
    right = tensors(protocol, encoder)
    shared = protocol.InferInput("image", shape, "UINT8").set_shared_memory("anything", image.nbytes)
    asked: dict[str, Callable[[], Any]] = {
        "model": lambda: client.infer("nothing", right),
        "version": lambda: client.infer(ENCODER, right, "9"),
        "metadata": lambda: client.get_model_metadata("nothing"),
        "no input": lambda: client.infer(ENCODER, []),
        "input name": lambda: client.infer(ENCODER, tensors(protocol, {"picture": image})),
        "input twice": lambda: client.infer(ENCODER, right + right),
        "shape": lambda: client.infer(ENCODER, tensors(protocol, {"image": image[:, :, 1:]})),
        "batch": lambda: client.infer(ENCODER, tensors(protocol, {"image": np.repeat(image[:1], 33, axis=0)})),
        "datatype": lambda: client.infer(ENCODER, [floats]),
        "output name": lambda: client.infer(ENCODER, right, outputs=[protocol.InferRequestedOutput("picture")]),
        "shared memory": lambda: client.infer(ENCODER, [shared], outputs=[patches]),
    }
    statuses = {}
    for name, ask in asked.items():
        with pytest.raises(InferenceServerException) as refused:
            ask()
        assert refused.value.message(), name
        statuses[name] = refused.value.status()
    answer = client.infer(ENCODER, right)
    assert answer.as_numpy("patches") is not None, "the server does not answer any more"
    return statuses


def tensors(protocol: ModuleType, arrays: Arrays, **form: bool) -> list[Any]:
    given = []
    for name, array in arrays.items():
        given.append(protocol.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        given[-1].set_data_from_numpy(np.ascontiguousarray(array), **form)
    return given


def plain(answer: Any) -> dict[str, Any]:
    """A JSON object as it is, a message as the object that it would be."""
    return answer if isinstance(answer, dict) else MessageToDict(answer, preserving_proto_field_name=True)


def check_metadata(found: dict[str, Any], bundle: Bundle) -> None:
    spec = model_specs(bundle.manifest)[found["name"]]
    assert found["versions"] == ["1"]
    assert found["platform"]
    for listed, known in ((found["inputs"], spec.inputs), (found["outputs"], spec.outputs)):
        # 64-bit integers are strings in the JSON form of protobuf messages
        assert [(each["name"], each["datatype"], tuple(map(int, each["shape"]))) for each in listed] == [
            (each.name, each.datatype, each.shape) for each in known
        ]


@pytest.fixture(scope="module")
def ours(models: BundleModels) -> Iterator[dict[str, str]]:
    with http_server(Server(models)) as http, grpc_server(Server(models)) as grpc:
        yield {"http": http, "grpc": grpc}


@pytest.fixture(scope="module")
def triton(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    repository = tmp_path_factory.mktemp("oip") / "repository"
    build_repository(bundle, repository, 1, "python")
    with triton_server(repository, [ENCODER, REASONER], repository.with_name("server.log")) as address:
        yield {"http": address.http, "grpc": address.grpc}


@pytest.mark.parametrize("server", ["ours", "triton"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_servers_answer_the_stock_client_alike(
    request: pytest.FixtureRequest,
    server: str,
    protocol: str,
    bundle: Bundle,
    inputs: Arrays,
    reasoner_inputs: Arrays,
    expected: Arrays,
):
    url = request.getfixturevalue(server)[protocol]
    said = converse(PROTOCOLS[protocol], url, bundle, {"image": inputs["image"]}, reasoner_inputs)
    check_conversation(said, protocol, expected, knows_regions=server == "triton")


def check_conversation(said: Conversation, protocol: str, expected: Arrays, knows_regions: bool = False) -> None:
    """The numbers are the runner's, the statuses those of the protocol.

    Args:
        knows_regions: a server that would take shared memory says of an unknown region that it is not found.
    """
    for step, found in said.numbers.items():
        known = expected[ALIASES.get(step, step)]
        assert found.shape == known.shape and found.dtype == np.float32, step
        exact = FIT_TOLERANCE if step == "fit_scores" else TOLERANCE
        np.testing.assert_allclose(found, known, rtol=0, atol=exact, err_msg=step)
    assert set(expected) <= set(said.numbers)

    unknown, wrong = STATUSES[protocol]
    statuses = dict.fromkeys(said.refusals, wrong) | dict.fromkeys(["model", "version", "metadata"], unknown)
    if knows_regions:
        statuses["shared memory"] = unknown
    assert said.refusals == statuses


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_ensemble_is_the_encoder_and_the_reasoner_in_one_request(
    ours: dict[str, str], protocol: str, inputs: Arrays, expected: Arrays
):
    module = PROTOCOLS[protocol]
    client = module.InferenceServerClient(ours[protocol])
    answer = client.infer(ENSEMBLE, tensors(module, inputs))
    client.close()
    np.testing.assert_allclose(answer.as_numpy("fit_scores"), expected["fit_scores"], rtol=0, atol=FIT_TOLERANCE)
    for name in REASONER_OUTPUTS:
        np.testing.assert_allclose(answer.as_numpy(name), expected[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_without_a_bundle_lives_and_is_not_ready(protocol: str):
    module = PROTOCOLS[protocol]
    with {"http": http_server, "grpc": grpc_server}[protocol](Server(NotReadyError("the golden case differs"))) as url:
        client = module.InferenceServerClient(url)
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready(ENSEMBLE)
        with pytest.raises(InferenceServerException, match="the golden case differs") as refused:
            client.get_model_metadata(ENSEMBLE)
        client.close()
    assert refused.value.status() == {"http": "503", "grpc": "StatusCode.UNAVAILABLE"}[protocol]
