"""The page's sign-in: an API key, once, becomes a cookie that scripts cannot read.

The cookie holds the key itself, so that there are no sessions to keep, and a revoked key ends them all.
"""

from __future__ import annotations

import html
from asyncio import to_thread
from typing import Annotated

from fastapi import FastAPI, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from serving.access.authenticator import COOKIE, Authenticator
from serving.errors import UnauthenticatedError

SIGN_IN = "/sign-in"
SIGN_OUT = "/sign-out"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in · CSR reader</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; background: #14181d; color: #e8ecf0; display: grid; place-items: center;
  min-height: 100vh; margin: 0 }}
form {{ width: min(24rem, 90vw) }}
h1 {{ font-size: 1.25rem }}
label, input, button {{ display: block; width: 100%; box-sizing: border-box }}
input, button {{ font: inherit; padding: .5rem .75rem; margin: .25rem 0 1rem; border-radius: 6px;
  border: 1px solid #6b7785 }}
input {{ background: #0d1014; color: inherit }}
button {{ background: #2f6fed; color: #fff; border: 0; cursor: pointer }}
:focus-visible {{ outline: 3px solid #9ec1ff; outline-offset: 2px }}
[role=alert] {{ color: #ffb4a9 }}
</style>
</head>
<body>
<main>
<form method="post" action="/sign-in">
<h1>CSR reader</h1>
{problem}
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus maxlength="200">
<button>Sign in</button>
<p>Research use only. This is not a medical device.</p>
</form>
</main>
</body>
</html>
"""


def add_sign_in(app: FastAPI, authenticator: Authenticator, secure: bool) -> None:
    """Adds ``/sign-in`` and ``/sign-out``.

    Args:
        app: the application.
        authenticator: knows the keys.
        secure: the page is served by HTTPS, and the cookie must not leave by anything else.
    """

    @app.get(SIGN_IN, include_in_schema=False)
    async def form() -> Response:
        return _page()

    @app.post(SIGN_IN, include_in_schema=False)
    async def sign_in(request: Request, key: Annotated[str, Form(max_length=200)] = "") -> Response:
        address = request.client.host if request.client else "unknown"
        authenticator.rates.check_failures(address)
        try:
            await to_thread(authenticator.identify, key.strip())
        except UnauthenticatedError as error:
            authenticator.rates.count_failure(address)
            return _page(str(error), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, key.strip(), path="/", secure=secure, httponly=True, samesite="strict")
        return answer

    @app.post(SIGN_OUT, include_in_schema=False)
    async def sign_out() -> Response:
        answer = RedirectResponse(SIGN_IN, 303)
        answer.delete_cookie(COOKIE, path="/", secure=secure, httponly=True, samesite="strict")
        return answer


def _page(problem: str = "", status: int = 200) -> HTMLResponse:
    said = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    return HTMLResponse(_PAGE.format(problem=said), status, _HEADERS)
