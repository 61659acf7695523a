"""FastAPI's own failures and ours become `serving.access.refusals`."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.access.refusals import answer, refusal
from serving.errors import ServingError
from serving.interfaces.schemas import ErrorBody

_logger = logging.getLogger(__name__)
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}


def add_error_handlers(app: FastAPI) -> None:
    """Registers them."""

    @app.exception_handler(ServingError)
    async def serving_error(request: Request, error: ServingError) -> JSONResponse:
        return refusal(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # one sentence, and never the input: it may hold a NaN, or a patient's name
        if first["type"] == "json_invalid":
            return answer(request.scope, 422, "invalid_request", f"body: is no JSON: {first['ctx']['error']}")
        place = ".".join(str(part) for part in first["loc"])
        return answer(request.scope, 422, "invalid_request", f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "http_error")
        return answer(request.scope, error.status_code, code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        _logger.error("%s failed", request.method, exc_info=error)
        return answer(request.scope, 500, "internal", "the server failed at this request; its log says why")
