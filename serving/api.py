"""The reading API ``/v1``, health checks and the page: a thin HTTP adapter over `serving.dataplane.DataPlane`.

Concurrency: handlers are coroutines; whatever computes runs in a thread (`asyncio.to_thread`), never on the event
loop, which under Ray Serve also answers health checks. Handlers keep no state; the provider's data plane is
thread-safe.

Every answer that is not a success has the body ``{"error": {"code": …, "message": …}}``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, File, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from serving.dataplane import DataPlane
from serving.errors import ServingError
from serving.limits import LimitBody
from serving.schemas import (
    AtlasAnswer,
    ErrorBody,
    ErrorDetail,
    Health,
    InteractionAnswer,
    InteractionRequest,
    ModelAnswer,
    Sample,
    StudyAnswer,
)

UPLOAD_BYTES = 64 << 20
PAGE = Path(__file__).parent / "page"
_logger = logging.getLogger(__name__)
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(dataplane: Callable[[], DataPlane], upload_bytes: int = UPLOAD_BYTES) -> FastAPI:
    """The application.

    Args:
        dataplane: gives the data plane at once, or raises `NotReadyError` with the reason.
        upload_bytes: the largest file that may be uploaded.
    """
    # The interactive documentation pages load scripts from elsewhere, which a closed network cannot.
    app = FastAPI(title="CSR reading API", version="1", docs_url=None, redoc_url=None, responses=_error_responses())
    app.add_middleware(LimitBody, upload_bytes=upload_bytes)
    _add_error_handlers(app)
    _add_studies(app, dataplane)
    _add_model(app, dataplane)
    _add_health(app, dataplane)
    _add_page(app)
    return app


def _add_studies(app: FastAPI, dataplane: Callable[[], DataPlane]) -> None:
    @app.post("/v1/studies", status_code=201)
    async def upload(file: UploadFile = File()) -> StudyAnswer:  # noqa: B008 (FastAPI's way to say: a form's file)
        """Adds a study and predicts."""
        plane, data = dataplane(), await file.read()
        return await asyncio.to_thread(plane.add_study, data, (file.filename or "upload")[:100])

    @app.get("/v1/studies/{digest}")
    async def study(digest: str) -> StudyAnswer:
        """The prediction without interaction, again."""
        return await asyncio.to_thread(dataplane().predict, digest)

    @app.post("/v1/studies/{digest}/interactions")
    async def interact(digest: str, request: InteractionRequest) -> InteractionAnswer:
        """Applies an interaction, which carries its whole state, and says what changed."""
        plane = dataplane()
        interaction = request.interaction(plane.manifest)
        return await asyncio.to_thread(plane.interact, digest, interaction, request.image)

    @app.get("/v1/studies/{digest}/image.png", response_class=Response)
    async def image(digest: str) -> Response:
        """The study as the network saw it."""
        return _private_png(await asyncio.to_thread(dataplane().image, digest))

    # ``:path`` because concept names may hold a slash, as VinDr-CXR's "Nodule/Mass" does.
    @app.get("/v1/studies/{digest}/maps/{concept:path}.png", response_class=Response)
    async def concept_map(digest: str, concept: str) -> Response:
        """A concept's similarity map without interaction, to lay over the image."""
        return _private_png(await asyncio.to_thread(dataplane().overlay, digest, concept))

    @app.post("/v1/studies/{digest}/maps/{concept:path}.png", response_class=Response)
    async def concept_map_after(digest: str, concept: str, request: InteractionRequest) -> Response:
        """A concept's similarity map under an interaction."""
        plane = dataplane()
        interaction = request.interaction(plane.manifest)
        return _private_png(await asyncio.to_thread(plane.overlay, digest, concept, interaction, request.image))


def _add_model(app: FastAPI, dataplane: Callable[[], DataPlane]) -> None:
    @app.get("/v1/model")
    async def model() -> ModelAnswer:
        """Which bundle answers."""
        plane = dataplane()
        return ModelAnswer(bundle_digest=plane.bundle_digest, manifest=plane.manifest)

    @app.get("/v1/atlas")
    async def atlas() -> AtlasAnswer:
        """Every prototype with its source, usage and reliance."""
        return AtlasAnswer(entries=dataplane().exhibits.atlas)

    @app.get("/v1/atlas/{concept:path}/{index:int}.png", response_class=Response)
    async def crop(concept: str, index: int) -> Response:
        """What a prototype looks like."""
        return Response(await asyncio.to_thread(dataplane().exhibits.crop, concept, index), media_type="image/png")

    @app.get("/v1/samples")
    async def samples() -> list[Sample]:
        """Studies to try the page with."""
        return dataplane().exhibits.samples

    @app.get("/v1/samples/{index:int}.png", response_class=Response)
    async def sample(index: int) -> Response:
        """A sample's image, to be uploaded like any other."""
        return Response(dataplane().exhibits.sample(index), media_type="image/png")


def _add_health(app: FastAPI, dataplane: Callable[[], DataPlane]) -> None:
    @app.get("/health/live")
    async def live() -> Health:
        """The process answers."""
        return Health(status="live")

    @app.get("/health/ready")
    async def ready() -> Health:
        """The bundle's digests and golden case are right; else 503 with the reason."""
        dataplane()
        return Health(status="ready")


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=_SECURITY)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ServingError)
    async def serving_error(_: Request, error: ServingError) -> JSONResponse:
        return JSONResponse(ErrorBody.of(error).model_dump(), error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # one sentence, and never the input: it may hold a NaN, or a patient's name
        place = ".".join(str(part) for part in first["loc"])
        return _error(422, "invalid_request", f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, _CODES.get(error.status_code, "http_error"), str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        _logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _error(500, "internal", "the server failed at this request; its log says why")


def _error(status: int, code: str, message: str, headers: Any = None) -> JSONResponse:
    return JSONResponse(ErrorBody(error=ErrorDetail(code=code, message=message)).model_dump(), status, headers)


def _error_responses() -> dict[int | str, dict[str, Any]]:
    return {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}


def _private_png(data: bytes) -> Response:
    """A picture of a patient: no cache on the way may keep it."""
    return Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})
