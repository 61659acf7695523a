from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from serving.access.credentials import SESSION_COOKIE, read_credential, require_same_site
from serving.errors import CrossSiteError, UnauthenticatedError

KEY = "csr_" + 43 * "k"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_a_bearer_header(scheme: str) -> None:
    credential = read_credential({"authorization": f"{scheme} {KEY}"})
    assert (credential.secret, credential.by_cookie) == (KEY, False)


def test_a_session_cookie() -> None:
    credential = read_credential({"cookie": f"theme=dark; {SESSION_COOKIE}={KEY}; last=1"})
    assert (credential.secret, credential.by_cookie) == (KEY, True)


def test_a_bearer_header_goes_before_a_cookie() -> None:
    headers = {"authorization": "Bearer other", "cookie": f"{SESSION_COOKIE}={KEY}"}
    assert read_credential(headers).secret == "other"


def test_a_header_of_another_kind_is_for_somebody_else() -> None:
    headers = {"authorization": "Basic dXNlcjpwYXNz", "cookie": f"{SESSION_COOKIE}={KEY}"}
    assert read_credential(headers).secret == KEY


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", KEY, f"Bearer{KEY}", f"Bearer {KEY} {KEY}", f"Bearer\t{KEY}", f"Bearer {KEY}\n",
     f"Token {KEY}", "Bearer =", "Bearer ä", "Bearer " + 8193 * "a", f"Bearer {KEY}, Bearer {KEY}"],
)  # fmt: skip
def test_what_is_no_bearer_header(header: str) -> None:
    with pytest.raises(UnauthenticatedError):
        read_credential({"authorization": header})


@pytest.mark.parametrize(
    "cookie", ["", "=", ";;", "csr_session", "csr_session=", "csr_session=a b", "csr_session=ä", 'csr_session="\\012"']
)
def test_what_is_no_session(cookie: str) -> None:
    assert SESSION_COOKIE == "csr_session"
    with pytest.raises(UnauthenticatedError):
        read_credential({"cookie": cookie})


@given(st.binary(), st.binary(), st.sampled_from([b"", b"Bearer ", b"bearer csr_"]))
def test_any_bytes_are_a_credential_or_none(authorization: bytes, cookie: bytes, prefix: bytes) -> None:
    session = SESSION_COOKIE.encode() + b"=" + cookie
    headers = Headers(raw=[(b"authorization", prefix + authorization), (b"cookie", session)])
    try:
        credential = read_credential(headers)
    except UnauthenticatedError as error:
        assert "Bearer KEY" in str(error)
    else:
        assert credential.secret.isascii()
        assert credential.secret.isprintable()


def test_a_credential_does_not_print_its_secret() -> None:
    assert KEY not in repr(read_credential({"authorization": f"Bearer {KEY}"}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin", "origin": "https://csr.test"},
        {"origin": "http://csr.test"},
        {"origin": "https://CSR.test"},
        {"sec-fetch-site": "cross-site", "origin": "http://csr.test"},
    ],
)
def test_our_own_page_may_ask(headers: dict[str, str]) -> None:
    require_same_site({"host": "csr.test", **headers})


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": ""},
        {"sec-fetch-site": "cross-site", "origin": "https://evil.test"},
        {"origin": "https://evil.test"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "https://csr.test.evil.test"},
        {"origin": "https://csr.test:8443"},
        {"origin": "https://[csr"},
        {"origin": "null", "host": ""},
    ],
)
def test_another_sites_page_may_not(headers: dict[str, str]) -> None:
    with pytest.raises(CrossSiteError):
        require_same_site({"host": "csr.test", **headers})
