"""From the headers of a request, HTTP or gRPC, to an actor who may do it, or to the reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

from serving.access.actors import Actor, Role
from serving.access.keys import KEY, KeyStore
from serving.access.oidc import OIDCVerifier
from serving.access.rates import Rates
from serving.errors import ForbiddenError, UnauthenticatedError

COOKIE = "csr_session"


class Authenticator:
    """Thread-safe; blocks while it asks the store or the issuer.

    Args:
        keys: API keys.
        rates: how often somebody may ask.
        oidc: tokens of an issuer, if there is one.
    """

    def __init__(self, keys: KeyStore, rates: Rates, oidc: OIDCVerifier | None = None) -> None:
        self.keys = keys
        self.rates = rates
        self._oidc = oidc

    def authorize(self, headers: Mapping[str, str], role: Role, address: str) -> Actor:
        """Who asks.

        Args:
            headers: by lower-case name; ``authorization`` or ``cookie`` is read.
            role: that is needed.
            address: the client's, for counting failures.

        Raises:
            UnauthenticatedError: no credential, or one that is not valid.
            ForbiddenError: a valid one of somebody who may not.
            RateLimitedError: too many requests, or too many failures from that address.
            StoreError, IssuerError: it cannot be said who asks.
        """
        self.rates.check_failures(address)
        try:
            actor = self.identify(_credential(headers))
        except UnauthenticatedError:
            self.rates.count_failure(address)
            raise
        self.rates.count(actor.name)
        if actor.role < role:
            raise ForbiddenError(f"this needs the role {role.name}; yours is {actor.role.name}")
        return actor

    def remembers(self, headers: Mapping[str, str]) -> bool:
        """Whether `authorize` will answer from memory, without waiting for anybody."""
        try:
            return self.keys.remembers(_credential(headers))
        except UnauthenticatedError:
            return True

    def identify(self, credential: str) -> Actor:
        """Whose key or token it is.

        Raises:
            UnauthenticatedError, StoreError, IssuerError: see `authorize`.
        """
        if KEY.fullmatch(credential):
            actor = self.keys.find(credential)
            if actor is None:
                raise UnauthenticatedError("the API key is unknown or was revoked")
            return actor
        if self._oidc is not None and credential.count(".") == 2:
            return self._oidc.verify(credential)
        raise UnauthenticatedError("the credential is neither an API key nor a token that this server takes")


def _credential(headers: Mapping[str, str]) -> str:
    if "authorization" in headers:
        scheme, _, value = headers["authorization"].partition(" ")
        if scheme.lower() != "bearer" or not value.strip():
            raise UnauthenticatedError("Authorization: must be 'Bearer' and an API key or token")
        return value.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    if cookie is None:
        raise UnauthenticatedError("no credential; send 'Authorization: Bearer' and an API key or token")
    return cookie.value
