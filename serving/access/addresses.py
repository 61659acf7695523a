"""The client's address, which limits on wrong credentials go by, where proxies stand between the client and us.

A proxy appends to ``X-Forwarded-For`` the address that it was asked from; whatever stands before that, a client may
have written itself. So the list is read from its end, and an entry counts only if who wrote it is trusted: our own
HAProxy, which writes one entry, and the proxies that the configuration names. The first address that is none of those
is the client's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

FORWARDED = "x-forwarded-for"
UNKNOWN = "unknown"
Network = IPv4Network | IPv6Network
# As proxies and gRPC write them: with a port or without, IPv6 in brackets or, without a port, not.
_WITH_PORT = re.compile(r"(?:ipv[46]:)?(?:\[([^\]]*)\]|([0-9.]+))(?::[0-9]+)?")


class Addresses:
    """Tells clients' addresses. Immutable.

    Args:
        trusted: networks of proxies that say whom they were asked by.
        own_proxy: whether HAProxy on this machine is before us and says so, see `serving.deploy.cluster`.
    """

    def __init__(self, trusted: Sequence[Network] = (), own_proxy: bool = False) -> None:
        self._trusted = tuple(trusted)
        self._own_proxy = own_proxy

    def client(self, peer: str, forwarded: Sequence[str]) -> str:
        """The client's address.

        Args:
            peer: the other end of the connection.
            forwarded: all values of ``X-Forwarded-For`` in their order.
        """
        chain = [part for value in forwarded for part in value.split(",")]
        address = _parsed(peer)
        if address is None:
            return peer or UNKNOWN
        if self._own_proxy and address.is_loopback and chain:
            address = _parsed(chain.pop()) or address
        while chain and self._is_trusted(address):
            before = _parsed(chain.pop())
            if before is None:  # a trusted proxy that does not know
                break
            address = before
        return str(address)

    def _is_trusted(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


class ClientAddress:
    """ASGI middleware that puts the client's address in place of the connection's.

    Args:
        app: the application.
        addresses: knows it.
    """

    def __init__(self, app: ASGIApp, addresses: Addresses) -> None:
        self.app = app
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer, port = scope.get("client") or ("", 0)
            forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == FORWARDED.encode()]
            scope = {**scope, "client": (self._addresses.client(peer, forwarded), port)}
        await self.app(scope, receive, send)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    given = unquote(text.strip())
    if match := _WITH_PORT.fullmatch(given):
        given = match[1] or match[2] or ""
    try:
        address = ip_address(given)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address  # a socket for both versions writes IPv4 addresses so
