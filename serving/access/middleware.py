"""ASGI middleware that lets through whom the rules let through, and tells the application who asks.

Put it outside of everything that reads a body, so that strangers' bodies are not read, and inside of
`serving.access.addresses.ClientAddress`, which knows what is a proxy's address and what a client's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access.addresses import UNKNOWN
from serving.access.authenticator import Authenticator, asking
from serving.access.refusals import refusal
from serving.access.roles import Actor, Role
from serving.access.rules import READS, RULES, Rule, needed_role
from serving.errors import ServingError, UnauthenticatedError
from serving.store.entries import Caller
from serving.telemetry.logs import current_request_id, note_key

SIGN_IN = "/sign-in"
_POLICY_VIOLATION = 1008
_PLAIN_QUERY = re.compile(r"[A-Za-z0-9._~%&=+-]{1,500}")


class Access:
    """Requests need a credential, and a role by the rules; handlers find the `Actor` in ``request.state.actor``.

    Answers 401 to strangers, 403 to those whose role is less, 429 over the limits, 503 if it cannot be known. What it
    lets out no cache keeps: it must not be found again after a reader has signed out. An answer that sees to that
    itself says so.

    Args:
        app: the application.
        authenticator: knows who asks.
        rules: what needs which role.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator, rules: Sequence[Rule] = RULES) -> None:
        self.app = app
        self.authenticator = authenticator
        self.rules = tuple(rules)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":  # there are no web sockets here; should there ever be, they need a rule first
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            role = needed_role(self.rules, scope["method"], scope["path"])
            if role is None:
                await self.app(scope, receive, send)
            else:
                await self._guarded(scope, receive, send, role)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, role: Role) -> None:
        rates = self.authenticator.rates
        try:
            actor = await self._actor(scope, role)
            rates.enter(actor.name)
        except ServingError as error:
            await _refusal(scope, error)(scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {}), "actor": actor}
        note_key(actor.id)
        asking.set(Caller(actor.name, current_request_id() or ""))

        async def private_send(message: Message) -> None:
            if message["type"] == "http.response.start":  # what may be of a patient stays in no cache
                own = list(message.get("headers", ()))
                if not any(name.lower() == b"cache-control" for name, _ in own):
                    message = {**message, "headers": [*own, (b"cache-control", b"no-store")]}
            await send(message)

        try:
            await self.app(scope, receive, private_send)
        finally:
            rates.leave(actor.name)

    async def _actor(self, scope: Scope, role: Role) -> Actor:
        changes_state = scope["method"] not in READS
        headers = Headers(scope=scope)
        return await self.authenticator.authorize_soon(
            headers, role, client_address(scope), changes_state=changes_state
        )


def client_address(scope: Scope) -> str:
    """The client's address."""
    client = scope.get("client")
    return client[0] if client and client[0] else UNKNOWN


def asked_for(scope: Scope) -> str:
    """Which study a link to the page asks for, as its query with the question mark, so that it outlives the sign-in;
    nothing if it is not a plain query."""
    query = scope["query_string"].decode("latin-1")
    return f"?{query}" if _PLAIN_QUERY.fullmatch(query) else ""


def _refusal(scope: Scope, error: ServingError) -> Response:
    """What a request gets that is not let through; a browser that opens the page is led to the sign-in."""
    refused: Response = refusal(scope, error)
    if isinstance(error, UnauthenticatedError) and scope["path"] == "/" and _wants_page(scope):
        return RedirectResponse(SIGN_IN + asked_for(scope), 303, {"Cache-Control": "no-store"})
    return refused


def _wants_page(scope: Scope) -> bool:
    return scope["method"] in READS and "text/html" in Headers(scope=scope).get("accept", "")
