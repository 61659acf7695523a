"""What Ray Serve puts around every request that it takes: in replicas, and in its Python proxy."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.access.refusals import answer
from serving.deploy.cluster import uses_haproxy
from serving.deploy.haproxy import NO_HOST, RAYS_ROUTES
from serving.interfaces.rest.headers import AnswerHeaders


class RefuseAsHAProxy:
    """ASGI middleware for Ray's Python proxy, which refuses there what `serving.deploy.haproxy` refuses.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and scope["path"].lower().startswith(RAYS_ROUTES):
            app = answer(scope, 404, "not_found", "Not Found")
        elif scope["type"] == "http" and _names_no_host(scope):
            app = answer(scope, 400, "bad_request", NO_HOST)
        await app(scope, receive, send)


def of_ray() -> list[Middleware]:
    """Ray adds an id of its own to what the application answers, and answers some requests itself.

    With HAProxy only replicas ask for this: what HAProxy refuses does not come so far, and its own questions must.
    """
    return [Middleware(AnswerHeaders), *([] if uses_haproxy() else [Middleware(RefuseAsHAProxy)])]


def _names_no_host(scope: Scope) -> bool:
    return scope["http_version"] == "1.1" and all(name != b"host" for name, _ in scope["headers"])
