"""Limits the size of request bodies, and the time that a client may take to send them, before anything reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access.refusals import refusal
from serving.errors import ServingError, TooLargeError, TooSlowError

JSON_BYTES = 1 << 20  # two hundred boxes and every concept fit many times over
FORM_OVERHEAD = 1 << 16  # a multipart body is its files and a few headers


class LimitBody:
    """ASGI middleware that answers 413 once a body is over its limit, by its header or by what has arrived, and 408
    once it takes too long to arrive.

    Args:
        app: the application.
        limit: bytes that the body of a request may have.
        seconds: within which it must have arrived.
    """

    def __init__(self, app: ASGIApp, limit: Callable[[Scope], int], seconds: float) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limit(scope)
        too_large = TooLargeError(f"the request is over this server's limit of {limit:,} bytes")
        too_slow = TooSlowError(f"the request did not arrive within {self.seconds:g} seconds")
        declared = Headers(scope=scope).get("content-length", "")
        if _is_over(declared, limit):
            await _refusal(scope, too_large)(scope, receive, send)
            return

        arrived, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self.seconds
        broken: ServingError | None = None

        async def counted_receive() -> Message:
            nonlocal arrived, broken, whole
            if whole:  # what comes now is the client's leaving, which may take as long as it likes
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                broken = too_slow
                raise too_slow from None
            arrived += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if arrived > limit:
                broken = too_large
                raise too_large
            return message

        async def guarded_send(message: Message) -> None:
            if broken is None:  # else the application answers to a body it did not get: ours replaces it
                await send(message)

        try:
            await self.app(scope, counted_receive, guarded_send)
        except ServingError as raised:
            if raised is not broken:
                raise
        if broken is not None:
            await _refusal(scope, broken)(scope, receive, send)


def _is_over(declared: str, limit: int) -> bool:
    """Whether a Content-Length is. By its digits first: Python refuses to read numbers of thousands of them."""
    digits = declared.lstrip("0")
    return digits.isdecimal() and (len(digits) > len(str(limit)) or int(digits) > limit)


def _refusal(scope: Scope, error: ServingError) -> Response:
    refused = refusal(scope, error)
    refused.headers["Connection"] = "close"  # the rest of the body is not read, so it cannot be used again
    return refused
