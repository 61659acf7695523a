"""Limits the size of request bodies before anything reads them whole."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import TooLargeError
from serving.schemas import ErrorBody

JSON_BYTES = 1 << 20  # two hundred boxes and every concept fit many times over
FORM_OVERHEAD = 1 << 16  # a multipart body is its file and a few headers


class LimitBody:
    """ASGI middleware that answers 413 once a body is over its limit, by its header or by what has arrived.

    Args:
        app: the application.
        upload_bytes: the limit for the file in a multipart body; other bodies may have `JSON_BYTES`.
    """

    def __init__(self, app: ASGIApp, upload_bytes: int) -> None:
        self.app = app
        self.upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        upload = headers.get("content-type", "").startswith("multipart/form-data")
        limit = self.upload_bytes + FORM_OVERHEAD if upload else JSON_BYTES
        error = TooLargeError(f"the request is over this server's limit of {limit:,} bytes")
        refuse = JSONResponse(ErrorBody.of(error).model_dump(), error.status)
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            await refuse(scope, receive, send)
            return

        arrived = 0

        async def counted_receive() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > limit:
                raise error
            return message

        async def guarded_send(message: Message) -> None:
            if arrived <= limit:  # else the application answers to a body it did not get: ours replaces it
                await send(message)

        try:
            await self.app(scope, counted_receive, guarded_send)
        except TooLargeError as raised:
            if raised is not error:
                raise
        if arrived > limit:
            await refuse(scope, receive, send)
