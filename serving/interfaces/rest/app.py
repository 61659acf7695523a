"""The reading API ``/v1``, health checks and the page: thin HTTP adapters over `serving.deploy.service.Service`.

Concurrency: handlers are coroutines; whatever computes or waits for the store runs in a thread, never on the event
loop, which under Ray Serve also answers health checks. Handlers keep no state.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from serving.access.addresses import ClientAddress
from serving.access.description import describe_access
from serving.access.middleware import Access
from serving.access.signin import add_sign_in
from serving.interfaces.oip.rest import add_open_inference
from serving.interfaces.rest import atlas, catalogue, dicom, readings, sessions, studies
from serving.interfaces.rest.errors import RESPONSES, add_error_handlers
from serving.interfaces.rest.headers import AnswerHeaders
from serving.interfaces.rest.heads import AnswerHeads
from serving.interfaces.rest.limits import LimitBody
from serving.interfaces.schemas import Health
from serving.telemetry.middleware import RequestTelemetry

if TYPE_CHECKING:
    from serving.deploy.service import Service

PAGE = Path(__file__).parents[1] / "page"


def create_server(service: Service) -> ASGIApp:
    """The application as it is served: each request has an id and a client, and is counted, traced and logged."""
    app = RequestTelemetry(AnswerHeads(create_app(service)), service.telemetry.metrics, service.telemetry.tracing)
    return AnswerHeaders(ClientAddress(app, service.addresses))


def create_app(service: Service) -> FastAPI:
    """The application alone, for its description."""
    # The interactive documentation pages load scripts from elsewhere, which a closed network cannot.
    about: dict[str, Any] = {"title": "CSR reading API", "version": "1", "responses": RESPONSES}
    # A path is the one that is written; redirects to another would repeat whatever host the client named.
    app = FastAPI(**about, docs_url=None, redoc_url=None, redirect_slashes=False)
    secure = service.limits.tls is not None
    # The last one added is the first to see a request: strangers go before anything of theirs is read.
    app.add_middleware(LimitBody, limit=service.limits.body_bytes, seconds=service.limits.body_seconds)
    app.add_middleware(Access, authenticator=service.authenticator)
    add_sign_in(app, service.authenticator, secure)
    add_error_handlers(app)
    app.include_router(studies.routes(service))
    app.include_router(readings.routes(service))
    app.include_router(dicom.routes(service))
    app.include_router(atlas.routes(service))
    app.include_router(catalogue.routes(service))
    app.include_router(sessions.routes(service))
    add_open_inference(app, service)
    _add_health(app, service)
    _add_page(app)
    describe_access(app)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health/live")
    async def live() -> Health:
        """The process answers."""
        return Health(status="live")

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """What Prometheus reads, of all replicas of this machine."""
        page, content_type = service.telemetry.page()
        return Response(page, headers={"Content-Type": content_type})

    @app.get("/health/ready")
    def ready() -> Health:
        """A model is in service, its engine answers and the store takes writes; else 503 with the reason."""
        service.check_ready()
        return Health(status="ready")


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
