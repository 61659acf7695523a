"""Who asks, and where in the request that is said."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response

from serving.access.roles import Actor, Role
from serving.core.timing import Timing
from serving.interfaces.schemas.base import Answer
from serving.store.entries import Caller
from serving.telemetry.logs import current_request_id

PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
_NAME = r"^[\x21-\x7e]{1,128}$"


async def actor(request: Request) -> Actor:
    """As the middleware found out."""
    found: Actor = request.scope["state"]["actor"]
    return found


ActorOf = Annotated[Actor, Depends(actor)]


def sees_all(actor: Actor) -> bool:
    """Whether they need not have signed a study to see what others signed."""
    return actor.role is Role.ADMIN


async def caller(  # a coroutine only because FastAPI runs functions in threads, which takes longer than this does
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(pattern=_NAME, description="a request that is repeated with the same key is put on record once"),
    ] = None,
) -> Caller:
    """From what the middlewares found out about the request."""
    return Caller(request.scope["state"]["actor"].name, current_request_id() or "", idempotency_key)


CallerOf = Annotated[Caller, Depends(caller)]


def answered(answer: Answer, status: int = 200) -> Response:
    """An answer as JSON. Made here and not by FastAPI, which would check what we built against what we said."""
    return Response(answer.model_dump_json(), status, media_type="application/json")


def png(data: bytes, timing: Timing) -> Response:
    """A picture, with the time of each step in ``Server-Timing``."""
    header = ", ".join(f"{name};dur={spent}" for name, spent in timing.milliseconds.items())
    return Response(data, media_type="image/png", headers={"Server-Timing": header} if header else None)
