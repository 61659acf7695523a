"""The keys that an identity provider signs tokens with, from its JWKS, by address or file.

They are read when first needed, again once they are `FRESH_S` old, and for a key that is not known, since providers
change theirs; but never more often than each ``retry_s``, whatever tokens come. While the provider does not answer, the
keys in hand are used until they are `USABLE_S` old, and each failed attempt is logged.

Thread-safe; reading blocks, so use it in a thread. Who has the key they need does not wait for another's reading.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from jwt import PyJWK, PyJWKClient, PyJWKSet

from serving.errors import IdentityProviderError

FRESH_S = 300.0
USABLE_S = 3600.0
_NEVER = float("-inf")
_logger = logging.getLogger(__name__)


class SigningKeys:
    """The provider's public keys by their id.

    Args:
        read: gets the set; any error means that it could not.
        retry_s: the least time between two readings.
    """

    def __init__(self, read: Callable[[], PyJWKSet], retry_s: float) -> None:
        self._read = read
        self._retry_s = retry_s
        self._keys: dict[str, PyJWK] = {}
        self._read_at = self._tried_at = _NEVER
        self._lock = threading.Lock()

    def find(self, key_id: str) -> PyJWK | None:
        """The key, or None if the provider has none with this id.

        Raises:
            IdentityProviderError: the provider does not answer, and what is in hand does not tell.
        """
        if key_id not in self._keys or _age(self._read_at) > FRESH_S:
            self._read_again(wait=key_id not in self._keys)
        if _age(self._read_at) > USABLE_S or (key_id not in self._keys and self._tried_at > self._read_at):
            raise IdentityProviderError("the identity provider's keys cannot be read; try again in a moment")
        return self._keys.get(key_id)

    def _read_again(self, wait: bool) -> None:
        if not self._lock.acquire(blocking=wait):
            return  # another thread is at it
        try:
            if _age(self._tried_at) < self._retry_s:
                return
            tried_at = time.monotonic()
            try:
                keys = {key.key_id: key for key in self._read() if key.key_id and _signs(key)}
            except Exception as error:  # whatever a broken answer causes: what is in hand stays
                _logger.warning("the identity provider's keys cannot be read: %s", error)
                self._tried_at = time.monotonic()
                return
            self._keys, self._read_at, self._tried_at = keys, tried_at, tried_at
        finally:
            self._lock.release()


def read_address(url: str, timeout_s: float) -> Callable[[], PyJWKSet]:
    """Reads a JWKS over HTTP, following no redirects. ``timeout_s`` bounds each step of it."""
    return PyJWKClient(url, cache_jwk_set=False, timeout=timeout_s).get_jwk_set


def read_file(file: Path) -> Callable[[], PyJWKSet]:
    """Reads a JWKS that lies in a file, for networks where the provider cannot be reached from here."""
    return lambda: PyJWKSet.from_json(file.read_text())


def _age(at: float) -> float:
    return time.monotonic() - at


def _signs(key: PyJWK) -> bool:
    """Whether tokens may be checked with it: public, and not for encryption."""
    return key.key_type != "oct" and key.public_key_use in (None, "sig")
