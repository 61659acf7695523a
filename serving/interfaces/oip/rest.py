"""The Open Inference Protocol over HTTP, ``/v2``: a thin adapter over `serving.interfaces.oip.models.InferenceServer`.

Concurrency: handlers are coroutines that read the body; parsing, computing and writing run in a thread. A body is read
no further than the model's longest request (`serving.interfaces.oip.models.request_bytes`), inflated or not.

Answers that are not a success have the body ``{"error": "…", "code": "…"}``: ``error`` is a string here, as the
protocol has it, unlike in ``/v1``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from serving.access.refusals import refusal
from serving.errors import InvalidInferenceError, ServingError, TooLargeError
from serving.interfaces.oip.models import (
    NAMES,
    SERVER_NAME,
    SERVER_VERSION,
    InferenceModels,
    InferenceServer,
    ModelSpec,
    request_bytes,
)
from serving.interfaces.oip.schemas import (
    InferAnswer,
    InferRequest,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    Refusal,
    ServerMetadata,
)
from serving.interfaces.oip.tensors import decode
from serving.interfaces.oip.wire import AnswerForm, inflate, read_request

EXTENSIONS = ["binary_tensor_data"]
HEADER_LENGTH = "Inference-Header-Content-Length"
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

ModelName = Annotated[str, Path(json_schema_extra={"enum": list(NAMES)})]  # others are 404, not invalid
HeaderLength = Annotated[int | None, Header(alias=HEADER_LENGTH, ge=0)]


def add_open_inference(app: FastAPI, server: InferenceServer) -> None:
    """Adds the routes of ``/v2``.

    Args:
        app: the application.
        server: what is served.
    """
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal} for status in (400, 404, 413, 415, 503, "4XX", "5XX", "default")
    }
    router = APIRouter(prefix="/v2", tags=["open inference"], route_class=_Route, responses=responses)
    _add_server(router, server)
    _add_metadata(router, server)
    _add_infer(router, server)
    app.include_router(router)


def _add_server(router: APIRouter, server: InferenceServer) -> None:
    @router.get("")
    async def server_metadata() -> ServerMetadata:
        """Which server this is."""
        return ServerMetadata(name=SERVER_NAME, version=SERVER_VERSION, extensions=EXTENSIONS)

    @router.get("/health/live")
    async def server_live() -> Live:
        """The process answers."""
        return Live(live=True)

    @router.get("/health/ready")
    def server_ready() -> Ready:
        """Every model can be asked; else 503 with the reason."""
        server.check_ready()
        return Ready(ready=True)


def _add_metadata(router: APIRouter, server: InferenceServer) -> None:
    @router.get("/models/{model}")
    async def model_metadata(model: ModelName) -> ModelMetadata:
        """What a model takes and gives, in its default version."""
        return _metadata(server.inference().spec(model))

    @router.get("/models/{model}/versions/{version}")
    async def version_metadata(model: ModelName, version: str) -> ModelMetadata:
        """What a version of a model takes and gives."""
        return _metadata(server.inference().spec(model, version))

    @router.get("/models/{model}/ready")
    def model_ready(model: ModelName) -> ModelReady:
        """A model can be asked; else 503 with the reason."""
        server.check_ready()
        return ModelReady(name=server.inference().spec(model).name, ready=True)

    @router.get("/models/{model}/versions/{version}/ready")
    def version_ready(model: ModelName, version: str) -> ModelReady:
        """A version of a model can be asked; else 503 with the reason."""
        server.check_ready()
        return ModelReady(name=server.inference().spec(model, version).name, ready=True)


def _add_infer(router: APIRouter, server: InferenceServer) -> None:
    content = {"application/json": {"schema": _inlined(InferRequest.model_json_schema())}, **_BINARY}
    described: dict[str, Any] = {
        "response_model": InferAnswer,
        "responses": {200: {"content": _BINARY}},
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }

    @router.post("/models/{model}/infer", **described)
    async def infer(request: Request, model: ModelName, header_length: HeaderLength = None) -> Response:
        """Runs a model in its default version."""
        return await _infer(server.inference(), request, model, None, header_length)

    @router.post("/models/{model}/versions/{version}/infer", **described)
    async def version_infer(
        request: Request, model: ModelName, version: str, header_length: HeaderLength = None
    ) -> Response:
        """Runs a version of a model."""
        return await _infer(server.inference(), request, model, version, header_length)


async def _infer(
    models: InferenceModels, request: Request, model: str, version: str | None, header_length: int | None
) -> Response:
    spec = models.spec(model, version)
    body = await _read(request, request_bytes(spec))
    encoding = ", ".join(request.headers.getlist("content-encoding"))
    return await asyncio.to_thread(_answer, models, spec, body, encoding, header_length)


def _answer(
    models: InferenceModels, spec: ModelSpec, body: bytes, encoding: str, header_length: int | None
) -> Response:
    asked, tensors = read_request(inflate(body, encoding, request_bytes(spec)), header_length)
    inputs = decode(spec, tensors)
    form = AnswerForm(spec, asked, len(inputs[spec.inputs[0].name]))
    version, values = models.infer(spec.name, spec.version, inputs, [each.name for each in form.outputs])
    content, json_length = form.write(version, values)
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={HEADER_LENGTH: str(json_length)})


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLargeError(f"the request is over this model's limit of {limit:,} bytes")
        parts.append(part)
    return b"".join(parts)


def _metadata(spec: ModelSpec) -> ModelMetadata:
    return ModelMetadata.model_validate(asdict(spec))


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema without references, which would not lead anywhere inside an OpenAPI operation. It is no cycle."""
    definitions = schema.pop("$defs")

    def resolved(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return resolved(definitions[part["$ref"].rpartition("/")[2]])
            return {key: resolved(value) for key, value in part.items()}
        return [resolved(each) for each in part] if isinstance(part, list) else part

    return resolved(schema)


class _Route(APIRoute):
    """A route whose refusals have the protocol's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except ServingError as error:
                return refusal(request.scope, error)
            except RequestValidationError as error:
                first = error.errors()[0]  # never the input
                place = ".".join(str(part) for part in first["loc"])
                return refusal(request.scope, InvalidInferenceError(f"{place}: {first['msg']}"))

        return guarded
