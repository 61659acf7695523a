"""Where a request carries its credential: the Authorization header, or the cookie of a browser that signed in.

Headers come as a mapping with lower-case names, or one that ignores case, so gRPC metadata will do as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.requests import cookie_parser

from serving.errors import CrossSiteError, UnauthenticatedError

SESSION_COOKIE = "csr_session"
_SECRET = r"[A-Za-z0-9._~+/-]{1,8192}=*"
_BEARER = re.compile(rf"bearer +({_SECRET}) *", re.IGNORECASE)


@dataclass(frozen=True)
class Credential:
    """What a request shows.

    Args:
        secret: an API key or a token; a session's secret if it came by cookie.
        by_cookie: the browser sent it, whoever made it ask.
    """

    secret: str = field(repr=False)
    by_cookie: bool


def read_credential(headers: Mapping[str, str]) -> Credential:
    """The request's credential; a Bearer header goes before a cookie, other kinds of header are not for us.

    Raises:
        UnauthenticatedError: there is none.
    """
    bearer = _BEARER.fullmatch(headers.get("authorization", ""))
    if bearer:
        return Credential(bearer[1], by_cookie=False)
    session = read_session(headers)
    if session is not None:
        return Credential(session, by_cookie=True)
    raise UnauthenticatedError("this needs a key: send it as 'Authorization: Bearer KEY', or sign in at /sign-in")


def read_session(headers: Mapping[str, str]) -> str | None:
    """What the cookie of a browser that signed in holds, if it may be a session's secret."""
    cookie = cookie_parser(headers.get("cookie", "")).get(SESSION_COOKIE, "")
    return cookie if re.fullmatch(_SECRET, cookie) else None


def require_same_site(headers: Mapping[str, str]) -> None:
    """Lets a state-changing request of a browser through only where our own page made it.

    Browsers say so in Sec-Fetch-Site, over plain HTTP only in Origin; what sends neither is no browser. This is the
    second lock: the first is the cookie's SameSite=Strict.

    Raises:
        CrossSiteError: another site's page made it.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site in ("same-origin", "none") or (site is None and origin is None):
        return
    try:
        ours = urlsplit(origin or "").netloc.lower() == headers.get("host", "").lower() != ""
    except ValueError:
        ours = False
    if not ours:
        raise CrossSiteError("another site's page sent this request; use this server's own page, or a key in a header")
