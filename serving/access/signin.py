"""The sign-in page: a reader types their key or token once, and the browser keeps a session in a cookie that no script
can read.

What was typed is checked and forgotten: the cookie holds the session's own secret (`serving.access.sessions`), which
``/sign-out`` ends in the store and not only in the browser.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Literal, TypedDict

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from serving.access.authenticator import Authenticator
from serving.access.content_types import require_content_type
from serving.access.credentials import SESSION_COOKIE, read_session, require_same_site
from serving.access.middleware import SIGN_IN, asked_for, client_address
from serving.access.refusals import refusal_headers
from serving.errors import ServingError, StoreError, UnauthenticatedError

MAX_KEY = 8192  # characters; tokens are long
_STYLE = """
:root { color-scheme: dark; font: 16px/1.5 system-ui, sans-serif; }
body { display: grid; place-content: center; min-height: 100vh; margin: 0; background: #0b0f14; color: #e4eaf0; }
main { width: min(22rem, 88vw); padding: 2rem; background: #121920; border: 1px solid #2a3641; border-radius: 10px; }
h1 { margin: 0 0 1rem; font-size: 1.25rem; }
label { display: block; margin-bottom: 0.35rem; }
input, button { box-sizing: border-box; width: 100%; padding: 0.6rem; font: inherit; border-radius: 6px; }
input { background: #0b0f14; color: inherit; border: 1px solid #6b7b8a; }
button { margin-top: 1rem; background: #7fd1cb; color: #06110f; border: 0; font-weight: 600; cursor: pointer; }
:focus-visible { outline: 3px solid #7fd1cb; outline-offset: 2px; }
.error { margin: 0 0 1rem; padding: 0.5rem 0.75rem; background: #3b1b1f; border-radius: 6px; }
.quiet { margin: 1.25rem 0 0; color: #9dabb8; font-size: 0.875rem; }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in to the CSR reading room</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>CSR reading room</h1>
{error}<form method="post" action="/sign-in{query}">
<label for="key">Your key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus{state}>
<button type="submit">Sign in</button>
</form>
<p class="quiet">Keys are handed out by who runs this server. Research use only, not a medical device.</p>
</main>
</body>
</html>
"""
_UNCHECKED = "keys cannot be checked now; try again in a moment"
_STILL_OPEN = "this browser is signed out, but its session could not be ended and stays open until it expires"
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    # Not no-referrer: with that, browsers write "Origin: null" on the form, and over plain HTTP nothing else tells us
    # that it is our own.
    "Referrer-Policy": "same-origin",
}


class _Cookie(TypedDict):
    path: str
    secure: bool
    httponly: bool
    samesite: Literal["strict"]


def add_sign_in(app: FastAPI, authenticator: Authenticator, secure: bool) -> None:
    """Adds ``/sign-in`` and ``/sign-out``, which the rules must leave open.

    Args:
        app: the application.
        authenticator: knows the keys.
        secure: whether browsers come by TLS; then the cookie never goes over plain HTTP.
    """

    cookie: _Cookie = {"path": "/", "secure": secure, "httponly": True, "samesite": "strict"}

    @app.get(SIGN_IN, include_in_schema=False)
    async def form(request: Request) -> Response:
        return _page(query=asked_for(request.scope))

    @app.post(SIGN_IN, include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        try:
            require_same_site(request.headers)
            key = await _typed_key(request)
            session = await authenticator.sign_in(key, client_address(request.scope))
        except ServingError as error:
            return _page(error, query=asked_for(request.scope))
        response = RedirectResponse(f"/{asked_for(request.scope)}", 303, {"Cache-Control": "no-store"})
        lasts = int(authenticator.sessions.limits.hours * 3600)
        response.set_cookie(SESSION_COOKIE, session, max_age=lasts, **cookie)
        return response

    @app.post("/sign-out", include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        try:
            require_same_site(request.headers)
        except ServingError as error:
            return _page(error)
        response: Response = RedirectResponse(SIGN_IN, 303, {"Cache-Control": "no-store"})
        session = read_session(request.headers)
        try:
            if session is not None:
                await authenticator.sign_out(session)
        except StoreError as error:  # whoever sits down here next must not be signed in all the same
            response = _page(error, _STILL_OPEN)
        response.delete_cookie(SESSION_COOKIE, **cookie)
        return response


async def _typed_key(request: Request) -> str:
    """Raises:
    UnsupportedMediaTypeError: what was sent is no form.
    UnauthenticatedError: the form has none that could be one.
    """
    require_content_type(request.headers, "application/x-www-form-urlencoded", "multipart/form-data")
    async with request.form(max_files=0, max_fields=4) as fields:
        value = fields.get("key")
    key = value.strip() if isinstance(value, str) else ""
    if not key.isascii() or not 0 < len(key) <= MAX_KEY:
        raise UnauthenticatedError("this key is not valid: mistyped, or revoked")
    return key


def _page(error: ServingError | None = None, instead: str = _UNCHECKED, query: str = "") -> Response:
    """The form, above it what went wrong; ``instead`` of what the store says. ``query``: of the page that follows."""
    query = escape(query)
    if error is None:
        return HTMLResponse(_PAGE.format(style=_STYLE, error="", state="", query=query), headers=_HEADERS)
    sentence = instead if isinstance(error, StoreError) else error.told
    told = f'<p class="error" id="error" role="alert">{escape(sentence[0].upper() + sentence[1:])}.</p>\n'
    state = ' aria-invalid="true" aria-describedby="error"'
    page = _PAGE.format(style=_STYLE, error=told, state=state, query=query)
    return HTMLResponse(page, error.status, {**_HEADERS, **refusal_headers(error)})
