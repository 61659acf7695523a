from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from http.cookies import SimpleCookie

import pytest
from fastapi.testclient import TestClient

from serving.access.credentials import SESSION_COOKIE
from serving.access.keys import FRESH_S, KeyStore
from serving.access.oidc import TokenVerifier
from serving.access.roles import Role
from tests.serving.access.conftest import Clock, bearer, open_session
from tests.serving.access.provider import Provider

Build = Callable[..., TestClient]
WRONG = "csr_" + 43 * "A"
FILE = b'--x\r\nContent-Disposition: form-data; name="key"; filename="f"\r\n\r\na\r\n--x--\r\n'
OWN = {"Sec-Fetch-Site": "same-origin"}


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def sign_in(client: TestClient, key: str) -> SimpleCookie:
    answer = client.post("/sign-in", data={"key": key}, headers=OWN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return SimpleCookie(answer.headers["set-cookie"])


def test_the_form_is_accessible_and_bare(build: Build) -> None:
    answer = build().get("/sign-in")
    assert answer.status_code == 200
    page = Elements(answer.text)
    (form,), (field,), (label,) = page.of("form"), page.of("input"), page.of("label")
    assert (form["method"], form["action"]) == ("post", "/sign-in")
    assert (field["name"], field["type"], field["autocomplete"]) == ("key", "password", "current-password")
    assert label["for"] == field["id"]
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("main")) == len(page.of("h1")) == len(page.of("title")) == 1
    assert not page.of("script") and not page.of("link") and not page.of("img")
    assert "style=" not in answer.text
    assert "aria-invalid" not in answer.text


def test_the_policy_allows_its_own_style_and_nothing_else(build: Build) -> None:
    answer = build().get("/sign-in")
    style = re.search(r"<style>(.*)</style>", answer.text, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("secure", [False, True])
def test_a_right_key_opens_a_session(build: Build, secret: str, secure: bool) -> None:
    client = build(secure=secure)
    (cookie,) = sign_in(client, f" {secret}\r\n").values()
    assert cookie.key == SESSION_COOKIE and re.fullmatch("csr_session_[A-Za-z0-9_-]{43}", cookie.value)
    assert secret.removeprefix("csr_") not in cookie.value
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")
    assert bool(cookie["secure"]) is secure
    assert not cookie["domain"]
    assert int(cookie["max-age"]) == 12 * 3600
    assert client.get("/", headers={"Accept": "text/html"}).json()["actor"] == "key:reader-1"


def test_signing_out_ends_it_and_not_only_in_the_browser(build: Build, secret: str) -> None:
    client = build()
    (cookie,) = sign_in(client, secret).values()
    copied = {"Cookie": f"{SESSION_COOKIE}={cookie.value}"}
    assert client.get("/v1/models", headers=copied).status_code == 200
    answer = client.post("/sign-out", headers=OWN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert SESSION_COOKIE not in client.cookies
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers=copied).status_code == 401
    assert build().post("/sign-out").status_code == 303, "who has no session may too"


def test_a_session_that_cannot_be_ended_leaves_the_browser_all_the_same(
    build: Build, secret: str, lose: Callable[[], None]
) -> None:
    client = build()
    sign_in(client, secret)
    lose()
    answer = client.post("/sign-out", headers=OWN)
    assert answer.status_code == 503
    assert "its session could not be ended and stays open until it expires" in answer.text
    assert SESSION_COOKIE not in client.cookies


def test_revoking_the_key_ends_it(build: Build, keys: KeyStore, secret: str, clock: Clock) -> None:
    client = build()
    sign_in(client, secret)
    assert client.get("/v1/models").status_code == 200
    keys.revoke(keys.list()[0].id)
    clock.now += FRESH_S
    assert client.get("/", headers={"Accept": "text/html"}).headers["location"] == "/sign-in"


def test_a_session_is_no_key_and_a_key_no_session(build: Build, secret: str) -> None:
    client = build()
    session = open_session(client, secret)
    assert client.get("/v1/models", headers={"Cookie": f"{SESSION_COOKIE}={session}"}).status_code == 200
    assert client.get("/v1/models", headers=bearer(session)).status_code == 401
    assert client.get("/v1/models", headers={"Cookie": f"{SESSION_COOKIE}={secret}"}).status_code == 401
    assert client.post("/sign-in", data={"key": session}, headers=OWN).status_code == 401


def test_a_token_opens_a_session_too(build: Build, tokens: TokenVerifier, provider: Provider) -> None:
    client = build(tokens)
    token = provider.token()
    (cookie,) = sign_in(client, token).values()
    assert client.get("/v1/models").json()["actor"].startswith("oidc:")
    assert cookie.value not in token and token not in cookie.value
    client.cookies.clear()
    assert client.get("/v1/models", headers={"Cookie": f"{SESSION_COOKIE}={token}"}).status_code == 401


@pytest.mark.parametrize(
    "key", [WRONG, "", "  ", "wrong", "ä", "<script>alert(1)</script>", 9000 * "a", "a\nb", "\x00"]
)
def test_a_wrong_key_gets_the_page_again(build: Build, key: str) -> None:
    answer = build().post("/sign-in", data={"key": key}, headers=OWN)
    assert answer.status_code == 401
    assert "www-authenticate" in answer.headers
    assert "set-cookie" not in answer.headers
    page = Elements(answer.text)
    (told,) = [paragraph for paragraph in page.of("p") if paragraph.get("role") == "alert"]
    (field,) = page.of("input")
    assert (field["aria-invalid"], field["aria-describedby"]) == ("true", told["id"])
    assert "This key is not valid: mistyped, or revoked." in answer.text
    assert "value" not in field
    assert not page.of("script")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/x-www-form-urlencoded"),
        (b"%ff%00&&==", "application/x-www-form-urlencoded"),
        (b"key=a&key=b", "application/x-www-form-urlencoded"),
        (b'{"key": "a"}', "application/json"),
        (b"\xff\xfe", "multipart/form-data"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (FILE, "multipart/form-data; boundary=x"),
    ],
)
def test_a_form_of_another_kind_is_a_clients_mistake(build: Build, body: bytes, kind: str) -> None:
    answer = build().post("/sign-in", content=body, headers={**OWN, "Content-Type": kind})
    assert answer.status_code in (400, 401, 415)


def test_guessing_is_limited(build: Build, secret: str) -> None:
    client = build(failures_per_minute=2)
    answers = [client.post("/sign-in", data={"key": WRONG}, headers=OWN) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [401, 401, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert "Too many wrong credentials" in answers[-1].text
    sign_in(client, secret)


def test_a_store_that_is_gone_is_said(build: Build, secret: str, lose: Callable[[], None]) -> None:
    client = build()
    lose()
    answer = client.post("/sign-in", data={"key": secret}, headers=OWN)
    assert answer.status_code == 503
    assert "Keys cannot be checked now; try again in a moment." in answer.text
    assert "sqlite" not in answer.text


@pytest.mark.parametrize("path", ["/sign-in", "/sign-out"])
@pytest.mark.parametrize("foreign", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.test"}])
def test_another_site_can_sign_nobody_in_or_out(build: Build, secret: str, path: str, foreign: dict[str, str]) -> None:
    answer = build().post(path, data={"key": secret}, headers=foreign)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_the_paths_are_in_no_schema(build: Build, secret: str) -> None:
    client = build()
    sign_in(client, secret)
    assert client.get("/openapi.json").json()["paths"] == {}


@pytest.mark.parametrize("query", ["node=pacs&study=1.2.840.1", "node=pacs&accession=A%2F1"])
def test_a_link_to_a_study_outlives_the_sign_in(build: Build, keys: KeyStore, query: str) -> None:
    secret = keys.create("dr-lee", Role.READER)[1]
    client = build()
    client.follow_redirects = False
    answer = client.get(f"/?{query}", headers={"Accept": "text/html"})
    assert answer.headers["location"] == f"/sign-in?{query}"
    (form,) = Elements(client.get(f"/sign-in?{query}").text).of("form")
    assert form["action"] == f"/sign-in?{query}"
    assert Elements(client.post(f"/sign-in?{query}", data={"key": WRONG}, headers=OWN).text).of("form") == [form]
    answer = client.post(str(form["action"]), data={"key": secret}, headers=OWN)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/?{query}")


@pytest.mark.parametrize("query", ["next=//elsewhere.example", "a=%22>", "a=" + 600 * "b"])
def test_a_query_that_is_not_plain_is_dropped(build: Build, query: str) -> None:
    answer = build().get(f"/sign-in?{query}")
    (form,) = Elements(answer.text).of("form")
    assert "elsewhere" not in str(form["action"]) and '"' not in str(form["action"])
