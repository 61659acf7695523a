"""Every answer that is not a success, made in one place: ``{"error": {"code": …, "message": …}}``.

Under ``/v2`` the body is the Open Inference Protocol's, see `serving.oip`.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from serving.errors import ForbiddenError, RateLimitedError, ServingError, UnauthenticatedError
from serving.schemas import ErrorBody, ErrorDetail
from serving.telemetry.metrics import Metrics

_logger = logging.getLogger(__name__)
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
RETRY_AFTER_S = 1  # seconds, where what is missing may come back


def add_error_handlers(app: FastAPI) -> None:
    """Registers them."""

    @app.exception_handler(ServingError)
    async def serving_error(request: Request, error: ServingError) -> JSONResponse:
        return refusal(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # one sentence, and never the input: it may hold a NaN, or a patient's name
        place = ".".join(str(part) for part in first["loc"])
        return _answer(request.scope, 422, "invalid_request", f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "http_error")
        return _answer(request.scope, error.status_code, code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        _logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _answer(request.scope, 500, "internal", "the server failed at this request; its log says why")


def refusal(scope: Scope, error: ServingError) -> JSONResponse:
    """The answer to a request that cannot be served, in the form of the protocol that it came by."""
    if error.status >= 500:
        _logger.warning("%s: %s", error.code, error)
    _count(scope, error)
    headers: dict[str, str] = {}
    if isinstance(error, RateLimitedError):
        headers["Retry-After"] = str(error.retry_after_s)
    elif error.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    elif isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    return _answer(scope, error.status, error.code, str(error), headers)


def _count(scope: Scope, error: ServingError) -> None:
    metrics: Metrics = scope["state"]["metrics"]
    metrics.refused(error)
    if isinstance(error, RateLimitedError):
        metrics.rate_limited()
    elif isinstance(error, UnauthenticatedError):
        metrics.unauthorised("unauthenticated")
    elif isinstance(error, ForbiddenError):
        metrics.unauthorised("forbidden")


def _answer(scope: Scope, status: int, code: str, message: str, headers: Any = None) -> JSONResponse:
    if scope["path"].startswith("/v2"):
        return JSONResponse({"error": message, "code": code}, status, headers)
    return JSONResponse(ErrorBody(error=ErrorDetail(code=code, message=message)).model_dump(), status, headers)
