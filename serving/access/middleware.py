"""ASGI middleware: nobody gets past without a credential, but to what is open to all."""

from __future__ import annotations

import re
from asyncio import to_thread
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access.actors import Role
from serving.access.authenticator import Authenticator
from serving.access.signin import SIGN_IN, SIGN_OUT
from serving.errors import CrossSiteError, ServingError, UnauthenticatedError
from serving.rest.errors import refusal
from serving.telemetry.logs import note_key

OPEN = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", SIGN_IN, SIGN_OUT})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ABOVE_READER = (
    (re.compile(r"/v1/atlas/.+/review"), Role.reviewer),
    (re.compile(r"/metrics"), Role.admin),
)


class Access:
    """Puts the `serving.access.actors.Actor` into ``scope["state"]["actor"]``, or refuses. What is behind it is kept by
    no cache: it may be of a patient, and must be gone once somebody has signed out.

    Args:
        app: the application.
        authenticator: says who asks.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self.app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            await self._admit(scope, headers)
        except ServingError as error:
            answer: Response = refusal(scope, error)
            if isinstance(error, UnauthenticatedError) and _is_navigation(scope, headers):
                answer = RedirectResponse(SIGN_IN, 303)
            await answer(scope, receive, send)
            return

        async def private_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"cache-control", b"no-store")]
            await send(message)

        await self.app(scope, receive, private_send)

    async def _admit(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if "authorization" not in headers and scope["method"] not in _SAFE:
            _check_same_site(headers)
        role = next((role for path, role in _ABOVE_READER if path.fullmatch(scope["path"])), Role.reader)
        address = scope["client"][0] if scope.get("client") else "unknown"
        authorize: Any = self._authenticator.authorize
        if self._authenticator.remembers(headers):
            actor = authorize(headers, role, address)
        else:
            actor = await to_thread(authorize, headers, role, address)
        scope["state"]["actor"] = actor
        note_key(actor.name)


def _check_same_site(headers: Mapping[str, str]) -> None:
    """A browser sends the session's cookie by itself, so what changes something must come from our own page.

    Raises:
        CrossSiteError: it comes from elsewhere.
    """
    site = headers.get("sec-fetch-site", "same-origin")
    origin = headers.get("origin")
    if site not in ("same-origin", "none") or (origin and urlsplit(origin).netloc != headers.get("host")):
        raise CrossSiteError("a request with the page's session must come from the page itself")


def _is_navigation(scope: Scope, headers: Mapping[str, str]) -> bool:
    return scope["method"] == "GET" and scope["path"] == "/" and "text/html" in headers.get("accept", "")
