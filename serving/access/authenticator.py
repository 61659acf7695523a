"""From a credential to an actor: one decision for HTTP, gRPC and the sign-in page.

Concurrency: what was decided a moment ago is answered at once. What must ask the database or the identity provider
runs in a few threads of its own, so that neither a flood of wrong credentials nor a provider that hangs takes the event
loop, or the threads that compute.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from serving.access.addresses import UNKNOWN
from serving.access.credentials import Credential, read_credential, require_same_site
from serving.access.keys import PREFIX, KeyStore
from serving.access.oidc import TokenVerifier
from serving.access.rates import Rates
from serving.access.roles import Actor, Role
from serving.access.sessions import SessionStore
from serving.errors import ForbiddenError, UnauthenticatedError
from serving.store.entries import Caller

_THREADS = 4
asking: ContextVar[Caller] = ContextVar("csr_asking")  # who is being answered, set by whoever let the request in
_logger = logging.getLogger(__name__)
T = TypeVar("T")


class Authenticator:
    """Knows who asks, and lets them do what their role allows.

    Args:
        keys: the API keys.
        sessions: of browsers that signed in.
        tokens: verifies OIDC tokens, where they are accepted.
        rates: limits of this replica.
    """

    def __init__(
        self,
        keys: KeyStore,
        sessions: SessionStore,
        tokens: TokenVerifier | None = None,
        rates: Rates | None = None,
    ) -> None:
        self.rates = rates or Rates()
        self.sessions = sessions
        self._keys = keys
        self._tokens = tokens
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="access")

    def close(self) -> None:
        """Ends the threads; those that wait end within the store's and the provider's time limits."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def authorize(self, headers: Mapping[str, str], role: Role, address: str = UNKNOWN) -> Actor:
        """Who asks, if they may; may wait. For gRPC: its metadata, as a mapping.

        Args:
            headers: with lower-case names.
            role: what is needed.
            address: the client's, for the limit on wrong credentials.

        Raises:
            UnauthenticatedError: nobody known asks.
            ForbiddenError: whoever asks may not, or another site's page makes their browser ask.
            RateLimitedError: too many requests of theirs, or too many wrong credentials from this address.
            StoreError, IdentityProviderError: it cannot be known now.
        """
        credential = _checked(headers, changes_state=True)
        return self._admit(self._recall(credential) or self._find(credential, address), role)

    async def authorize_soon(
        self, headers: Mapping[str, str], role: Role, address: str = UNKNOWN, *, changes_state: bool = True
    ) -> Actor:
        """`authorize` for an event loop. ``changes_state``: another site's page must not have made the browser ask."""
        credential = _checked(headers, changes_state)
        actor = self._recall(credential)
        if actor is None:
            actor = await self._in_thread(self._find, credential, address)
        return self._admit(actor, role)

    async def sign_in(self, secret: str, address: str = UNKNOWN) -> str:
        """Opens a session for whoever's key or token this is, and returns its secret.

        Raises:
            UnauthenticatedError, ForbiddenError, RateLimitedError, StoreError, IdentityProviderError: see `authorize`.
        """

        def open_session() -> str:
            with self._counted(address):
                actor, until = self._verify(secret)
            self.rates.count_request(actor.name)
            return self.sessions.open(actor, until)

        return await self._in_thread(open_session)

    async def sign_out(self, secret: str) -> None:
        """Ends a session, if this is the secret of one.

        Raises:
            StoreError: it goes on.
        """
        await self._in_thread(self.sessions.end, secret)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _recall(self, credential: Credential) -> Actor | None:
        secret = credential.secret
        if credential.by_cookie:
            session = self.sessions.recall(secret)
            return session.actor if session else None
        if secret.startswith(PREFIX):
            key = self._keys.recall(secret)
            return key.actor if key else None
        return self._tokens.recall(secret) if self._tokens else None

    def _find(self, credential: Credential, address: str) -> Actor:
        with self._counted(address):
            if not credential.by_cookie:
                return self._verify(credential.secret)[0]
            session = self.sessions.find(credential.secret)
            if session is None:
                raise UnauthenticatedError("this session has ended; sign in again at /sign-in")
            return session.actor

    def _verify(self, secret: str) -> tuple[Actor, float | None]:
        """Whose key or token it is, and the Unix time at which it ends by itself, if it does."""
        if self._tokens and not secret.startswith(PREFIX):
            return self._tokens.verify_until(secret)
        key = self._keys.find(secret)
        if key is None:
            raise UnauthenticatedError("this key is not valid: mistyped, or revoked")
        return key.actor, None

    @contextmanager
    def _counted(self, address: str) -> Iterator[None]:
        """Counts a credential that is refused inside."""
        try:
            yield
        except UnauthenticatedError as error:
            self.rates.count_failure(address)
            _logger.warning("a credential from %s was refused: %s", address, error.code)
            raise

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
