"""Who asks, where proxies stand before us: what a client writes into X-Forwarded-For itself never counts."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from serving.access.addresses import Addresses, ClientAddress
from serving.access.keys import KeyStore
from tests.serving.access.conftest import bearer

Build = Callable[..., TestClient]
PROXIES = (ip_network("10.0.0.0/8"), ip_network("192.0.2.7"), ip_network("fd00::/8"))
WRONG = "csr_" + 43 * "A"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["1.1.1.1"], "203.0.113.9"),
        ("203.0.113.9", ["1.1.1.1, 10.0.0.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", ["9.9.9.9, 1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", ["9.9.9.9", "1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", ["9.9.9.9", "1.1.1.1,10.2.3.4 , 192.0.2.7"], "1.1.1.1"),
        ("10.0.0.1", ["10.2.3.4, 10.2.3.5"], "10.2.3.4"),
        ("10.0.0.1", ["1.1.1.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1,"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1:5000"], "1.1.1.1"),
        ("10.0.0.1", ["[2001:db8::1]:5000"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["::ffff:1.1.1.1"], "1.1.1.1"),
        ("fd00::1", ["1.1.1.1"], "1.1.1.1"),
        ("127.0.0.1", ["1.1.1.1"], "127.0.0.1"),
        ("ipv4:10.0.0.1:40000", ["1.1.1.1"], "1.1.1.1"),
        ("ipv6:[::1]:40000", [], "::1"),
        ("ipv6:%5Bfd00::1%5D:40000", ["1.1.1.1"], "1.1.1.1"),
        ("", ["1.1.1.1"], "unknown"),
        ("unix:", ["1.1.1.1"], "unix:"),
    ],
)
def test_only_trusted_proxies_say_who_asks(peer: str, forwarded: list[str], client: str) -> None:
    assert Addresses(PROXIES).client(peer, forwarded) == client


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["1.1.1.1", "127.0.0.1"], "127.0.0.1"),
        ("127.0.0.1", ["1.1.1.1, 10.0.0.1"], "1.1.1.1"),
        ("127.0.0.1", ["9.9.9.9, 1.1.1.1", "10.0.0.1"], "1.1.1.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("203.0.113.9", ["1.1.1.1"], "203.0.113.9"),
    ],
)
def test_our_own_proxy_writes_one_entry(peer: str, forwarded: list[str], client: str) -> None:
    assert Addresses(PROXIES, own_proxy=True).client(peer, forwarded) == client


@given(st.lists(st.text(max_size=40), max_size=4), st.booleans())
def test_whatever_a_client_writes_it_stays_what_our_proxy_saw(written: list[str], known: bool) -> None:
    addresses = Addresses(PROXIES if known else (), own_proxy=True)
    assert addresses.client("127.0.0.1", [*written, "203.0.113.9"]) == "203.0.113.9"
    assert Addresses().client("203.0.113.9", written) == "203.0.113.9"


def test_the_middleware_joins_all_headers_of_the_name() -> None:
    app = FastAPI()

    @app.get("/")
    async def asked_by(request: Request) -> list[str | int | None]:
        return list(request.client or ())

    client = TestClient(ClientAddress(app, Addresses(PROXIES)), client=("10.0.0.1", 5))
    headers = [("X-Forwarded-For", "9.9.9.9"), ("x-forwarded-for", "1.1.1.1, 10.0.0.2")]
    assert client.get("/", headers=headers).json() == ["1.1.1.1", 5]
    assert client.get("/").json() == ["10.0.0.1", 5]


@pytest.mark.timed
def test_forty_wrong_keys_with_forty_addresses_are_limited(build: Build, keys: KeyStore, secret: str) -> None:
    """Each request claims to come from somewhere else; that counts where a proxy says so, and only there."""

    def statuses(addresses: Addresses, peer: str) -> list[int]:
        client = TestClient(ClientAddress(build(failures_per_minute=20).app, addresses), client=(peer, 5))
        headers = [{**bearer(WRONG), "X-Forwarded-For": f"198.51.100.{number}"} for number in range(40)]
        found = [client.get("/v1/models", headers=each).status_code for each in headers]
        form = {"data": {"key": WRONG}}
        found += [
            client.post("/sign-in", headers={"X-Forwarded-For": f"1.1.1.{n}"}, **form).status_code for n in (1, 2)
        ]
        assert client.get("/v1/models", headers=bearer(secret)).status_code == 200
        return found

    assert statuses(Addresses(PROXIES), "203.0.113.9") == [401] * 20 + [429] * 22
    assert statuses(Addresses(), "127.0.0.1") == [401] * 20 + [429] * 22
    assert statuses(Addresses(PROXIES), "10.0.0.1") == [401] * 42
