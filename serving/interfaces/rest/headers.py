"""What every answer over HTTP carries, whoever gives it: handlers, refusals, static files, redirects, Ray itself.

One id, and the headers that tell browsers to guess nothing, to load nothing from elsewhere, to show us in nobody's
frame and to tell other sites nothing. An answer that sets one of them itself keeps its own.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.telemetry.middleware import REQUEST_ID, settle_request_id

SECURITY = {
    b"content-security-policy": (
        b"default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    b"referrer-policy": b"same-origin",  # not no-referrer: see `serving.access.signin`
    b"x-content-type-options": b"nosniff",
}


class AnswerHeaders:
    """ASGI middleware, the outermost. Of two around one another the inner one changes nothing.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope, request_id = settle_request_id(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message.get("headers", ()) if name.lower() != REQUEST_ID]
                there = {name.lower() for name, _ in own}
                added = [(name, value) for name, value in SECURITY.items() if name not in there]
                message = {**message, "headers": [*own, *added, (REQUEST_ID, request_id.encode())]}
            await send(message)

        await self.app(scope, receive, send_with_headers)
