"""From a credential to an actor: one decision for HTTP, gRPC and the sign-in page.

Concurrency: what was decided a moment ago is answered at once. What must ask the database or the identity provider
runs in a few threads of its own, so that neither a flood of wrong credentials nor a provider that hangs takes the event
loop, or the threads that compute.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

from serving.access.credentials import Credential, read_credential, require_same_site
from serving.access.keys import PREFIX, KeyStore
from serving.access.oidc import TokenVerifier
from serving.access.rates import Rates
from serving.access.roles import Actor, Role
from serving.errors import ForbiddenError, UnauthenticatedError
from serving.store.entries import Caller

UNKNOWN_ADDRESS = "unknown"
_THREADS = 4
asking: ContextVar[Caller] = ContextVar("csr_asking")  # who is being answered, set by whoever let the request in
_logger = logging.getLogger(__name__)


class Authenticator:
    """Knows who asks, and lets them do what their role allows.

    Args:
        keys: the API keys.
        tokens: verifies OIDC tokens, where they are accepted.
        rates: limits of this replica.
    """

    def __init__(self, keys: KeyStore, tokens: TokenVerifier | None = None, rates: Rates | None = None) -> None:
        self.rates = rates or Rates()
        self._keys = keys
        self._tokens = tokens
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="access")

    def close(self) -> None:
        """Ends the threads; those that wait end within the store's and the provider's time limits."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def authenticate(self, secret: str, address: str = UNKNOWN_ADDRESS) -> Actor:
        """Whose key or token it is; may wait.

        Args:
            secret: the key or token.
            address: the client's, for the limit on wrong ones.

        Raises:
            UnauthenticatedError: nobody's.
            ForbiddenError: a token without a role here.
            RateLimitedError: nobody's, and one of too many from this address.
            StoreError, IdentityProviderError: it cannot be known now.
        """
        actor = self._recall(secret)
        if actor is not None:
            return actor
        try:
            return self._find(secret)
        except UnauthenticatedError as error:
            self.rates.count_failure(address)
            _logger.warning("a credential from %s was refused: %s", address, error.code)
            raise

    async def authenticate_soon(self, secret: str, address: str = UNKNOWN_ADDRESS) -> Actor:
        """`authenticate` for an event loop."""
        actor = self._recall(secret)
        if actor is not None:
            return actor
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.authenticate, secret, address)

    def authorize(self, headers: Mapping[str, str], role: Role, address: str = UNKNOWN_ADDRESS) -> Actor:
        """Who asks, if they may; may wait. For gRPC: its metadata, as a mapping.

        Args:
            headers: with lower-case names.
            role: what is needed.
            address: the client's.

        Raises:
            UnauthenticatedError, ForbiddenError, RateLimitedError, StoreError, IdentityProviderError: they may not.
        """
        credential = _checked(headers, changes_state=True)
        return self._admit(self.authenticate(credential.secret, address), role)

    async def authorize_soon(
        self, headers: Mapping[str, str], role: Role, address: str = UNKNOWN_ADDRESS, *, changes_state: bool = True
    ) -> Actor:
        """`authorize` for an event loop. ``changes_state``: another site's page must not have made the browser ask."""
        credential = _checked(headers, changes_state)
        return self._admit(await self.authenticate_soon(credential.secret, address), role)

    def _recall(self, secret: str) -> Actor | None:
        if secret.startswith(PREFIX):
            key = self._keys.recall(secret)
            return key.actor if key else None
        return self._tokens.recall(secret) if self._tokens else None

    def _find(self, secret: str) -> Actor:
        if self._tokens and not secret.startswith(PREFIX):
            return self._tokens.verify(secret)
        key = self._keys.find(secret)
        if key is None:
            raise UnauthenticatedError("this key is not valid: mistyped, or revoked")
        return key.actor

    def _admit(self, actor: Actor, role: Role) -> Actor:
        self.rates.count_request(actor.name)
        if not actor.role.allows(role):
            raise ForbiddenError(f"this needs the role {role}, and yours is {actor.role}")
        return actor


def _checked(headers: Mapping[str, str], changes_state: bool) -> Credential:
    credential = read_credential(headers)
    if credential.by_cookie and changes_state:
        require_same_site(headers)
    return credential
