"""Who asks, and where in the request that is said."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response

from serving.steps import Steps
from serving.store.entries import Caller
from serving.telemetry.logs import current_request_id

PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
_NAME = r"^[\x21-\x7e]{1,128}$"


def caller(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(pattern=_NAME, description="a request that is repeated with the same key is put on record once"),
    ] = None,
) -> Caller:
    """From what the middlewares found out about the request."""
    return Caller(request.scope["state"]["actor"].name, current_request_id() or "", idempotency_key)


CallerOf = Annotated[Caller, Depends(caller)]


def png(data: bytes, steps: Steps) -> Response:
    """A picture, with the time of each step in ``Server-Timing``."""
    timing = ", ".join(f"{name};dur={spent}" for name, spent in steps.milliseconds.items())
    return Response(data, media_type="image/png", headers={"Server-Timing": timing} if timing else None)
