"""OIDC bearer tokens: a JSON Web Token that a trusted issuer signed says who somebody is (OpenID Connect Core 1.0).

Only signatures by a private key count. The issuer's public keys come from a file or from its JWKS address, which only
the configuration can name. The ledger never sees the issuer's name for a person, but a salted digest of it.
"""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any, Literal

import jwt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from csr.errors import ConfigError
from serving.access.actors import Actor, Role
from serving.errors import IssuerError, UnauthenticatedError

_FETCH_S = 3
_KEYS_S = 300  # that fetched keys are kept; an unknown one is asked for at once


class OIDCConfig(BaseModel):
    """The issuer, and what its tokens must say.

    Args:
        issuer, audience: that tokens must name.
        jwks_url, jwks_file: where its public keys are; one of the two.
        role_claim: the claim that holds a person's groups; dots lead into objects, as in ``realm_access.roles``.
        roles: our role by the issuer's name for a group; who is in none is refused.
        algorithms: of signatures.
        leeway_s: that clocks may differ by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str
    audience: str
    jwks_url: str | None = Field(default=None, pattern="^https?://")
    jwks_file: Path | None = None
    role_claim: str = "roles"
    roles: dict[str, Literal["reader", "reviewer", "admin"]]
    algorithms: tuple[Literal["RS256", "ES256", "EdDSA"], ...] = ("RS256", "ES256")
    leeway_s: float = Field(default=30, ge=0, le=300)

    @model_validator(mode="after")
    def _one_of_two(self) -> OIDCConfig:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("name either jwks_url or jwks_file")
        return self


class OIDCVerifier:
    """Thread-safe.

    Args:
        config: of the issuer.
        salt: of the pseudonyms; the same for all replicas.

    Raises:
        ConfigError: ``jwks_file`` holds no keys.
    """

    def __init__(self, config: OIDCConfig, salt: bytes) -> None:
        self._config = config
        self._salt = salt
        self._fetched: jwt.PyJWKClient | None = None
        self._keys: dict[str | None, jwt.PyJWK] = {}
        if config.jwks_url is not None:
            self._fetched = jwt.PyJWKClient(config.jwks_url, lifespan=_KEYS_S, timeout=_FETCH_S)
        else:
            assert config.jwks_file is not None
            self._keys = _read_keys(config.jwks_file)

    def verify(self, token: str) -> Actor:
        """Whose token it is.

        Raises:
            UnauthenticatedError: it is not valid, or not for us, or gives no role.
            IssuerError: the issuer's keys cannot be fetched.
        """
        config = self._config
        try:
            claims = jwt.decode(
                token,
                self._key(token),
                algorithms=list(config.algorithms),
                audience=config.audience,
                issuer=config.issuer,
                leeway=config.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWKClientConnectionError:
            raise IssuerError("the issuer's keys cannot be fetched; try again later") from None
        except (jwt.PyJWTError, ValueError) as error:
            raise UnauthenticatedError(f"the token is refused: {type(error).__name__}") from None
        groups = _lookup(claims, config.role_claim)
        roles = [Role[config.roles[group]] for group in groups if group in config.roles]
        if not roles:
            raise UnauthenticatedError(f"the token is refused: its {config.role_claim} give no role here")
        subject = json.dumps([claims["iss"], claims["sub"]]).encode()
        return Actor(f"oidc:{hmac.digest(self._salt, subject, 'sha256').hex()[:16]}", max(roles))

    def _key(self, token: str) -> jwt.PyJWK:
        if self._fetched is not None:
            return self._fetched.get_signing_key_from_jwt(token)
        kid = jwt.get_unverified_header(token).get("kid")
        if kid not in self._keys:
            raise jwt.InvalidKeyError("unknown key")
        return self._keys[kid]


def _read_keys(file: Path) -> dict[str | None, jwt.PyJWK]:
    try:
        keys = jwt.PyJWKSet.from_json(file.read_text()).keys
    except (OSError, jwt.PyJWTError, ValueError) as error:
        raise ConfigError(f"{file}: holds no JSON Web Key Set ({type(error).__name__})") from None
    return {key.key_id: key for key in keys}


def _lookup(claims: dict[str, Any], path: str) -> list[str]:
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]
