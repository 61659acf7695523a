"""gRPC: typed contents, refusals as statuses, and the two hosts that the servicer works under."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

from csr.bundle.runtime import FIT_TOLERANCE
from serving.engines.triton import ENCODER, REASONER
from serving.errors import InvalidInferenceError
from serving.interfaces.oip import BundleModels
from serving.interfaces.oip.grpc import InferenceServicer, infer
from tests.serving.interfaces.oip.conftest import Server, grpc_server

Arrays = dict[str, np.ndarray]
OFFERED = {"ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer"}
CALLS = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods


class Recorder:
    """A context that remembers the status, as Ray Serve's does."""

    def __init__(self) -> None:
        self.code: Any = None
        self.details = ""

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


@pytest.fixture(scope="module")
def stub(models: BundleModels) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc_server(Server(models)) as address, grpc.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def request_of(model: str, arrays: Arrays, raw: bool = True) -> Any:
    request = messages.ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        datatype, field = {"u": ("UINT8", "uint_contents"), "f": ("FP32", "fp32_contents")}[array.dtype.kind]
        each = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            request.raw_input_contents.append(array.tobytes())
        else:
            getattr(each.contents, field).extend(array.ravel().tolist())
    return request


def number(answer: Any, name: str) -> np.ndarray:
    index = [each.name for each in answer.outputs].index(name)
    return np.frombuffer(answer.raw_output_contents[index], np.float32).reshape(answer.outputs[index].shape)


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_raw_and_typed_contents_give_the_same(
    models: BundleModels, inputs: Arrays, reasoner_inputs: Arrays, expected: Arrays, raw: bool
):
    encoded = infer(Server(models), request_of(ENCODER, {"image": inputs["image"]}, raw))
    np.testing.assert_allclose(number(encoded, "patches"), expected["patches"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(number(encoded, "fit_scores"), expected["fit_scores"], rtol=0, atol=FIT_TOLERANCE)
    answer = infer(Server(models), request_of(REASONER, reasoner_inputs, raw))
    np.testing.assert_allclose(number(answer, "logits"), expected["logits"], rtol=0, atol=1e-5)


def wrong_requests(inputs: Arrays) -> list[tuple[Any, str]]:
    """Requests that the stock client cannot write, and what is said about each."""
    cases: list[tuple[Any, str]] = []

    def case(reason: str, raw: bool = True) -> Any:
        cases.append((request_of(ENCODER, {"image": inputs["image"]}, raw), reason))
        return cases[-1][0]

    case("raw_input_contents: are 2 for 1 inputs").raw_input_contents.append(b"")
    case("bytes, but shape").raw_input_contents[0] = b"short"
    case("typed contents beside raw_input_contents").inputs[0].contents.uint_contents.append(1)
    case("UINT8 belongs into uint_contents", False).inputs[0].contents.int_contents.append(1)
    case("data has 0 numbers", False).inputs[0].ClearField("contents")
    case("out of the range of UINT8", False).inputs[0].contents.uint_contents[0] = 256
    case("datatype is 'INT64', but it takes UINT8", False).inputs[0].datatype = "INT64"
    case("shape is").inputs[0].shape[1] = -1
    case("the batch is 4611686018427387904").inputs[0].shape[0] = 2**62
    case("'sequence_id' is not supported").parameters["sequence_id"].int64_param = 1
    case("not for clients").inputs[0].parameters["shared_memory_region"].string_param = "x"
    output = case("'classification' is not supported").outputs.add(name="patches")
    output.parameters["classification"].int64_param = 2
    return cases


def test_a_wrong_request_is_an_invalid_argument_with_its_reason(stub: Any, inputs: Arrays):
    for request, reason in wrong_requests(inputs):
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, reason
        assert reason in refused.value.details()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), st.text(max_size=20))
def test_arbitrary_tensors_are_refused(models: BundleModels, content: bytes, shape: list[int], name: str):
    request = messages.ModelInferRequest(model_name=ENCODER, raw_input_contents=[content])
    request.inputs.add(name=name or "image", datatype="UINT8", shape=shape)
    with pytest.raises(InvalidInferenceError):
        infer(Server(models), request)


@pytest.mark.parametrize("call", sorted({each.name for each in CALLS} - OFFERED - {"ModelStreamInfer"}))
def test_other_calls_are_unimplemented(stub: Any, call: str):
    with pytest.raises(grpc.RpcError) as refused:
        getattr(stub, call)(getattr(messages, f"{call}Request")())
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert refused.value.details() == f"{call}: this server does not offer it"


def test_a_stream_is_unimplemented_by_message_and_status(stub: Any):
    stream = stub.ModelStreamInfer(iter([messages.ModelInferRequest()]))
    assert next(stream).error_message == "ModelStreamInfer: this server does not offer it; use ModelInfer"
    with pytest.raises(grpc.RpcError) as refused:
        next(stream)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_messages_can_be_pickled_for_a_replica(models: BundleModels, monkeypatch: pytest.MonkeyPatch):
    message = messages.ModelInferRequest(model_name="csr")
    monkeypatch.delitem(sys.modules, type(message).__module__, raising=False)
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(message)
    InferenceServicer(Server(models))
    assert pickle.loads(pickle.dumps(message)) == message


def test_every_call_takes_the_context_by_ray_serves_name():
    for each in CALLS:
        assert list(inspect.signature(getattr(InferenceServicer, each.name)).parameters)[2] == "grpc_context"


def test_a_refusal_sets_the_status_and_returns_an_empty_message(models: BundleModels):
    """What Ray Serve sends on as the status of the call."""
    context = Recorder()
    servicer = InferenceServicer(Server(models))
    answer = asyncio.run(servicer.ModelInfer(messages.ModelInferRequest(model_name="x"), grpc_context=context))
    assert answer == messages.ModelInferResponse()
    assert context.code is grpc.StatusCode.NOT_FOUND
    assert context.details == "model 'x': is unknown; this server has csr, csr_encoder, csr_reasoner"


def test_what_nobody_foresaw_is_internal_and_tells_strangers_nothing(caplog: pytest.LogCaptureFixture):
    servicer, context = InferenceServicer(Server(RuntimeError("a path of this machine"))), Recorder()
    asyncio.run(servicer.ModelMetadata(messages.ModelMetadataRequest(), grpc_context=context))
    assert context.code is grpc.StatusCode.INTERNAL
    assert context.details == "the server failed at this request; its log says why"
    assert "a path of this machine" in caplog.text
