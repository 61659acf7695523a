"""The Open Inference Protocol over gRPC: ``inference.GRPCInferenceService`` of tritonclient's protobuf messages.

`infer`, `model_metadata` and the like are functions from message to message which raise a `ServingError`;
`InferenceServicer` turns that into a status. It sets the status on the context and returns an empty message, which
both hosts understand: a ``grpc.aio`` server discards the message of a call that failed, and Ray Serve copies code and
details to the call. Aborting works under one host only; raising writes a traceback into the log at each mistake of a
client.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as service

from serving.errors import InvalidInferenceError, ServingError, UnsupportedCallError
from serving.interfaces.oip.models import SERVER_NAME, SERVER_VERSION, InferenceServer, ModelSpec, TensorSpec
from serving.interfaces.oip.tensors import Tensor, check_parameters, decode, encode, requested

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
_CONTENTS = {"UINT8": "uint_contents", "FP32": "fp32_contents"}
_logger = logging.getLogger(__name__)


class Context(Protocol):
    """What a ``grpc.aio.ServicerContext`` and a ``ray.serve.grpc_util.RayServegRPCContext`` have in common here."""

    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...


def add_open_inference_to_server(servicer: Any, server: Any) -> None:
    """Registers the service, for Ray Serve's ``grpc_servicer_functions``, in place of tritonclient's own function.

    With that one Ray Serve's Python proxy, which pickles messages for the replica, fails at every call.
    """
    _make_picklable()
    service.add_GRPCInferenceServiceServicer_to_server(servicer, server)


def server_metadata(server: InferenceServer) -> Any:
    """Which server this is, whatever it serves."""
    return messages.ServerMetadataResponse(name=SERVER_NAME, version=SERVER_VERSION)


def server_ready(server: InferenceServer) -> Any:
    """Whether every model can be asked."""
    return messages.ServerReadyResponse(ready=_ready(server))


def model_ready(server: InferenceServer, request: Any) -> Any:
    """Whether a model can be asked.

    Raises:
        UnknownModelError: no such model or version.
    """
    ready = _ready(server)
    if ready:
        server.inference().spec(request.name, request.version or None)
    return messages.ModelReadyResponse(ready=ready)


def model_metadata(server: InferenceServer, request: Any) -> Any:
    """What a model takes and gives.

    Raises:
        UnknownModelError: no such model or version.
        NotReadyError: nothing is served yet.
    """
    spec = server.inference().spec(request.name, request.version or None)
    answer = messages.ModelMetadataResponse(name=spec.name, versions=spec.versions, platform=spec.platform)
    for listed, tensors in ((answer.inputs, spec.inputs), (answer.outputs, spec.outputs)):
        for each in tensors:
            listed.add(name=each.name, datatype=each.datatype, shape=each.shape)
    return answer


def infer(server: InferenceServer, request: Any) -> Any:
    """Runs a model: ``ModelInferRequest`` → ``ModelInferResponse`` with raw contents.

    Raises:
        InvalidInferenceError: the model cannot take it.
        UnknownModelError, NotReadyError: see `model_metadata`.
    """
    models = server.inference()
    spec = models.spec(request.model_name, request.model_version or None)
    check_parameters("the request", request.parameters)
    for output in request.outputs:
        check_parameters(f"output {output.name[:100]!r}", output.parameters)
    outputs = requested(spec, [each.name for each in request.outputs])
    inputs = decode(spec, read_tensors(spec, request))
    version, values = models.infer(spec.name, spec.version, inputs, [each.name for each in outputs])
    return _answer(spec, version, request.id, [(each, values[each.name]) for each in outputs])


def read_tensors(spec: ModelSpec, request: Any) -> list[Tensor]:
    """The input tensors of a ``ModelInferRequest``, raw or typed, not yet compared with the model.

    Raises:
        InvalidInferenceError: raw contents that are not one for each input, or beside typed ones; parameters.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise InvalidInferenceError(f"raw_input_contents: are {len(raw)} for {len(request.inputs)} inputs")
    tensors = []
    for index, each in enumerate(request.inputs):
        where = f"input {each.name[:100]!r}"
        check_parameters(where, each.parameters)
        filled = [field.name for field, _ in each.contents.ListFields()]
        if raw and filled:
            raise InvalidInferenceError(f"{where}: has typed contents beside raw_input_contents; send one of them")
        content: bytes | list[Any] = raw[index] if raw else _typed(where, each, filled)
        tensors.append(Tensor(each.name, each.datatype, tuple(each.shape), content))
    return tensors


def status_code(error: ServingError) -> grpc.StatusCode:
    """The gRPC code of an error that has an HTTP status."""
    return _CODES.get(error.status, grpc.StatusCode.INTERNAL)


def _ready(server: InferenceServer) -> bool:
    try:
        server.check_ready()
    except ServingError:
        return False
    return True


def _make_picklable() -> None:
    """tritonclient's message classes say that they come from a module of another name, which cannot be imported."""
    sys.modules.setdefault(messages.ModelInferRequest.__module__, messages)


def _typed(where: str, given: Any, filled: list[str]) -> list[Any]:
    expected = _CONTENTS.get(given.datatype)
    if expected is None:  # of a datatype that no input here has: the comparison with the model says so
        return []
    if any(name != expected for name in filled):
        raise InvalidInferenceError(f"{where}: {given.datatype} belongs into {expected}, not {', '.join(filled)}")
    return list(getattr(given.contents, expected))


def _answer(spec: ModelSpec, version: str, request_id: str, values: list[tuple[TensorSpec, Any]]) -> Any:
    answer = messages.ModelInferResponse(model_name=spec.name, model_version=version, id=request_id)
    for output, array in values:
        answer.outputs.add(name=output.name, datatype=output.datatype, shape=array.shape)
        answer.raw_output_contents.append(encode(output, array))
    return answer


def _unsupported(call: str) -> Callable[[Any, Any, Context], Coroutine[Any, Any, Any]]:
    """A method that refuses one of Triton's own calls."""

    async def method(self: Any, request: Any, grpc_context: Context) -> Any:
        error = UnsupportedCallError(f"{call}: this server does not offer it")
        return refuse(grpc_context, error, getattr(messages, f"{call}Response"))

    return method


def refuse(context: Context, error: ServingError, answer: type) -> Any:
    """Sets code and details of a call and returns an empty message; see the module's docstring."""
    context.set_code(status_code(error))
    context.set_details(error.told)
    return answer()


class InferenceServicer:
    """The service's methods, for a ``grpc.aio`` server and, inherited or delegated to, for a Ray Serve deployment.

    The second parameter is called ``grpc_context`` because Ray Serve passes it by that name. Whatever computes runs in
    a thread.

    Args:
        server: what is served.
    """

    def __init__(self, server: InferenceServer) -> None:
        _make_picklable()
        self._server = server

    async def ServerLive(self, request: Any, grpc_context: Context) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, grpc_context: Context) -> Any:
        return await self._answer(messages.ServerReadyResponse, grpc_context, server_ready)

    async def ServerMetadata(self, request: Any, grpc_context: Context) -> Any:
        return await self._answer(messages.ServerMetadataResponse, grpc_context, server_metadata)

    async def ModelReady(self, request: Any, grpc_context: Context) -> Any:
        return await self._answer(messages.ModelReadyResponse, grpc_context, model_ready, request)

    async def ModelMetadata(self, request: Any, grpc_context: Context) -> Any:
        return await self._answer(messages.ModelMetadataResponse, grpc_context, model_metadata, request)

    async def ModelInfer(self, request: Any, grpc_context: Context) -> Any:
        return await self._answer(messages.ModelInferResponse, grpc_context, infer, request)

    async def ModelStreamInfer(self, request: Any, grpc_context: Context) -> AsyncIterator[Any]:
        """For models that answer more than once, and these do not.

        Says so in a message too, since Ray Serve's Python proxy forgets the status of a stream without one.
        """
        error = UnsupportedCallError("ModelStreamInfer: this server does not offer it; use ModelInfer")
        yield messages.ModelStreamInferResponse(error_message=str(error))
        refuse(grpc_context, error, messages.ModelStreamInferResponse)

    ModelConfig = _unsupported("ModelConfig")
    ModelStatistics = _unsupported("ModelStatistics")
    RepositoryIndex = _unsupported("RepositoryIndex")
    RepositoryModelLoad = _unsupported("RepositoryModelLoad")
    RepositoryModelUnload = _unsupported("RepositoryModelUnload")
    SystemSharedMemoryStatus = _unsupported("SystemSharedMemoryStatus")
    SystemSharedMemoryRegister = _unsupported("SystemSharedMemoryRegister")
    SystemSharedMemoryUnregister = _unsupported("SystemSharedMemoryUnregister")
    CudaSharedMemoryStatus = _unsupported("CudaSharedMemoryStatus")
    CudaSharedMemoryRegister = _unsupported("CudaSharedMemoryRegister")
    CudaSharedMemoryUnregister = _unsupported("CudaSharedMemoryUnregister")
    TraceSetting = _unsupported("TraceSetting")
    LogSettings = _unsupported("LogSettings")

    async def _answer(self, answer: type, context: Context, compute: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await asyncio.to_thread(compute, self._server, *arguments)
        except ServingError as error:
            return refuse(context, error, answer)
        except Exception:
            _logger.exception("%s failed", compute.__name__)
            return refuse(context, ServingError("the server failed at this request; its log says why"), answer)
