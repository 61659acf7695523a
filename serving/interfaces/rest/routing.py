"""Routes that are strict with bodies: of the content type that they read, and no JSON with a key twice."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response, params
from fastapi.routing import APIRoute
from starlette.convertors import IntegerConvertor, register_url_convertor

from serving.access.content_types import require_content_type
from serving.interfaces import strict_json

JSON = ("application/json", "application/*+json")
FORM = ("multipart/form-data",)


class _Index(IntegerConvertor):
    """A number that can be a place in a list: Starlette's own convertor fails at one of thousands of digits."""

    regex = "[0-9]{1,9}"


register_url_convertor("index", _Index())


class _StrictRequest(Request):
    async def json(self) -> Any:
        return strict_json.parse(await self.body())


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        kinds: tuple[str, ...] = ()
        if self.body_field is not None:
            kinds = FORM if isinstance(self.body_field.field_info, params.Form) else JSON

        async def strict(request: Request) -> Response:
            if kinds:
                require_content_type(request.headers, *kinds)
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


def strict_router() -> APIRouter:
    """An empty one, for ``/v1``."""
    return APIRouter(prefix="/v1", route_class=_StrictRoute)
