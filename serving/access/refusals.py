"""What a request gets that cannot be served, made in one place for all of HTTP, and counted.

``{"error": {"code": …, "message": …}}``, and under ``/v2`` as the Open Inference Protocol has it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import Scope

from serving.errors import (
    ForbiddenError,
    RateLimitedError,
    ServingError,
    TokenError,
    UnauthenticatedError,
)
from serving.interfaces.schemas import ErrorBody, ErrorDetail
from serving.telemetry.metrics import Metrics

RETRY_S = 2  # what a store, an engine or a provider that does not answer gets to come back
_logger = logging.getLogger(__name__)


def refusal(scope: Scope, error: ServingError) -> JSONResponse:
    """The answer to a request that an error stopped."""
    _count(scope, error)
    if error.status >= 500:
        _logger.error("%s: %s", error.code, error)
    return answer(scope, error.status, error.code, error.told, refusal_headers(error))


def answer(
    scope: Scope, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A refusal in the form of the protocol that the request came by."""
    if scope["path"] == "/v2" or scope["path"].startswith("/v2/"):
        return JSONResponse({"error": message, "code": code}, status, headers)
    return JSONResponse(ErrorBody(error=ErrorDetail(code=code, message=message)).model_dump(), status, headers)


def refusal_headers(error: ServingError) -> dict[str, str]:
    """The headers that belong to an error."""
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, UnauthenticatedError):
        reason = ', error="invalid_token"' if isinstance(error, TokenError) else ""
        headers["WWW-Authenticate"] = f'Bearer realm="csr"{reason}'
    if isinstance(error, RateLimitedError):
        headers["Retry-After"] = str(error.retry_after_s)
    elif error.status == 503:
        headers["Retry-After"] = str(RETRY_S)
    return headers


def _count(scope: Scope, error: ServingError) -> None:
    metrics: Metrics | None = scope.get("state", {}).get("metrics")
    if metrics is None:  # outside of `serving.telemetry.middleware`
        return
    metrics.refused(error)
    if isinstance(error, RateLimitedError):
        metrics.rate_limited()
    elif isinstance(error, UnauthenticatedError):
        metrics.unauthorised("unauthenticated")
    elif isinstance(error, ForbiddenError):
        metrics.unauthorised("forbidden")
