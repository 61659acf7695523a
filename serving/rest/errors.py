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

from serving.errors import ServingError
from serving.schemas import ErrorBody, ErrorDetail

_logger = logging.getLogger(__name__)
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
RETRY_AFTER_S = 1  # seconds, where what is missing may come back


def add_error_handlers(app: FastAPI) -> None:
    """Registers them."""

    @app.exception_handler(ServingError)
    async def serving_error(_: Request, error: ServingError) -> JSONResponse:
        if error.status >= 500:
            _logger.warning("%s: %s", error.code, error)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == 503 else None
        return JSONResponse(ErrorBody.of(error).model_dump(), error.status, headers)

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
