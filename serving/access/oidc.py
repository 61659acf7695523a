"""Bearer tokens of an OpenID Connect provider: signature, issuer, audience and times are checked, a role is read.

A token's key comes from the provider's JWKS (`serving.access.jwks`) by the token's ``kid`` and verifies with that key's
own algorithm, which must be one of the configured ones; all of them are asymmetric. So neither ``none`` nor a public
key taken for an HMAC secret gets in. Who somebody is stays with the provider: an actor's name is a keyed hash of issuer
and subject, the same each time, which only who has the salt can follow back.

Not covered: sign-in flows, refreshing, introspection and revocation. A token counts until it expires; make them short.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import jwt
from cachetools import TTLCache
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

from csr.errors import ConfigError
from serving.access.jwks import SigningKeys, read_address, read_file
from serving.access.roles import Actor, Role
from serving.access.secrets import read_secret
from serving.errors import ForbiddenError, TokenError

REMEMBERED = 1024
REMEMBERED_S = 5.0
_CLAIMS = ["exp", "iss", "aud", "sub"]
_REASONS: tuple[tuple[type[Exception], str, str], ...] = (
    (jwt.ExpiredSignatureError, "token_expired", "the token has expired; get a new one"),
    (jwt.ImmatureSignatureError, "token_not_yet_valid", "the token is not valid yet; compare the clocks"),
    (jwt.InvalidAudienceError, "token_wrong_audience", "the token was made for another service"),
    (jwt.InvalidIssuerError, "token_wrong_issuer", "the token is from another issuer"),
    (jwt.InvalidAlgorithmError, "token_wrong_algorithm", "the token is signed by an algorithm not accepted here"),
    (jwt.InvalidSignatureError, "token_wrong_signature", "the token's signature is wrong"),
    (jwt.MissingRequiredClaimError, "token_incomplete", f"the token lacks one of {', '.join(_CLAIMS)}"),
    (Exception, "token_malformed", "this is no token that can be read"),
)
NonEmpty = Annotated[str, Field(min_length=1)]


class OidcConfig(BaseModel):
    """Whose tokens are accepted, and what they allow.

    Args:
        issuer, audience: what ``iss`` must be and ``aud`` must hold, to the letter.
        jwks_url, jwks_file: where the provider's public keys are; one of the two.
        role_claim: the claim with the role; dots lead into objects, as in ``realm_access.roles``. A name that has dots
            itself is tried first. One value or a list; ``scope`` is split at spaces.
        roles: from the claim's values to roles; the highest counts.
        algorithms: of signatures.
        leeway_s: how far clocks may be apart.
        retry_s: the least time between two readings of the keys.
        timeout_s: for each step of reading them.
        pseudonym_salt_file: of the pseudonyms, if ``CSR_ACTORS_SALT`` does not hold it; made at the first start if it
            is missing. With another salt everybody has another pseudonym, so keep it as long as the ledger.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: NonEmpty
    audience: NonEmpty
    jwks_url: str | None = None
    jwks_file: Path | None = None
    role_claim: NonEmpty = "roles"
    roles: dict[str, Role] = Field(min_length=1)
    algorithms: tuple[Literal["RS256", "ES256", "EdDSA"], ...] = Field(default=("RS256",), min_length=1)
    leeway_s: NonNegativeFloat = Field(default=30.0, le=300)
    retry_s: NonNegativeFloat = 15.0
    timeout_s: PositiveFloat = 3.0
    pseudonym_salt_file: Path = Path(".state/serving/actors.key")

    def pseudonym_salt(self, make: bool = True) -> bytes:
        """See `serving.access.secrets.read_secret`."""
        return read_secret(self.pseudonym_salt_file, "CSR_ACTORS_SALT", make)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("give one of jwks_url and jwks_file")
        if self.jwks_url is not None:
            url = urlsplit(self.jwks_url)
            here = url.hostname in ("localhost", "127.0.0.1", "::1")
            if not url.hostname or not (url.scheme == "https" or (url.scheme == "http" and here)):
                raise ValueError("jwks_url must begin with https://; whoever can change the keys can be anybody")
        return self


class TokenVerifier:
    """Says whose token it is. Thread-safe; `verify` may wait for the provider, `recall` never waits.

    Raises:
        ConfigError: the salt or the keys' file cannot be used.
    """

    def __init__(self, config: OidcConfig) -> None:
        self._config = config
        self._salt = config.pseudonym_salt()
        if config.jwks_file is not None:
            read = read_file(config.jwks_file)
            try:
                read()
            except (OSError, ValueError, TypeError, AttributeError, jwt.PyJWTError) as error:
                raise ConfigError(f"{config.jwks_file}: is not a JWKS that can be read ({error})") from None
        else:
            read = read_address(str(config.jwks_url), config.timeout_s)
        self._keys = SigningKeys(read, config.retry_s)
        # A signature takes a hundred microseconds, and a page asks in bursts.
        self._remembered: TTLCache[bytes, tuple[float, Actor]] = TTLCache(REMEMBERED, REMEMBERED_S)
        self._lock = threading.Lock()

    def recall(self, token: str) -> Actor | None:
        """Whose token it is if it was verified a moment ago; None says nothing: ask `verify`."""
        with self._lock:
            until, actor = self._remembered.get(_digest(token), (0.0, None))
        return actor if time.time() < until else None

    def verify(self, token: str) -> Actor:
        """Whose token it is; raises as `verify_until` does."""
        return self.verify_until(token)[0]

    def verify_until(self, token: str) -> tuple[Actor, float]:
        """Whose token it is, and until when, in Unix time.

        Raises:
            TokenError: it is not accepted; the code says why.
            ForbiddenError: it is, but gives no role here.
            IdentityProviderError: the provider's keys cannot be had.
        """
        key = self._key(token)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=self._config.algorithms,
                issuer=self._config.issuer,
                audience=self._config.audience,
                leeway=self._config.leeway_s,
                options={"require": _CLAIMS, "enforce_minimum_key_length": True},
            )
        except Exception as error:  # a token is a stranger's: whatever it breaks is its own fault
            raise _refusal(error) from None
        name = "oidc:" + self._pseudonym(claims)
        actor = Actor(name, name, self._role(claims))
        until = float(claims["exp"]) + self._config.leeway_s
        with self._lock:
            self._remembered[_digest(token)] = (until, actor)
        return actor, until

    def _key(self, token: str) -> jwt.PyJWK:
        """The key that the token says it is signed with. What can be refused without the provider is refused first."""
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in self._config.algorithms:
                raise jwt.InvalidAlgorithmError
        except Exception as error:
            raise _refusal(error) from None
        key = self._keys.find(header.get("kid", ""))
        if key is None:
            raise TokenError("token_unknown_key", "the token is signed with a key that its issuer does not name")
        return key

    def _pseudonym(self, claims: Mapping[str, Any]) -> str:
        person = f"{claims['iss']}|{claims['sub']}".encode()
        return hmac.new(self._salt, person, hashlib.sha256).hexdigest()[:16]

    def _role(self, claims: Mapping[str, Any]) -> Role:
        given = _values(claims, self._config.role_claim)
        roles = [role for value, role in self._config.roles.items() if value in given]
        if not roles:
            raise ForbiddenError("your account has no role here; ask who administers it for one")
        return max(roles, key=list(Role).index)


def _values(claims: Mapping[str, Any], path: str) -> list[Any]:
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        return found.split() if path == "scope" else [found]
    return found if isinstance(found, list) else []


def _refusal(error: Exception) -> TokenError:
    """The error for the client: never the library's sentence, which quotes the token."""
    code, message = next((code, message) for kind, code, message in _REASONS if isinstance(error, kind))
    return TokenError(code, message)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
