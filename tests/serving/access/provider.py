"""An identity provider: makes tokens, and serves its public keys on this machine."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from serving.access.oidc import OidcConfig

ISSUER = "https://login.hospital.test"
AUDIENCE = "csr"


@cache
def private_key(algorithm: str, name: str = "") -> Any:
    """A key pair for an algorithm; made once, RSA takes a while."""
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


def public_jwk(algorithm: str, key_id: str, **extra: Any) -> dict[str, Any]:
    kind: Any = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}[algorithm]
    jwk = kind.to_jwk(private_key(algorithm).public_key(), as_dict=True)
    return {**jwk, "kid": key_id, "use": "sig", **extra}


def config(folder: Path, **changed: Any) -> OidcConfig:
    salt = folder / "salt"
    salt.write_bytes(b"0123456789abcdef0123456789abcdef")
    settings: dict[str, Any] = {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "roles": {"csr-readers": "reader", "csr-admins": "admin"},
        "pseudonym_salt_file": salt,
    }
    return OidcConfig.model_validate({**settings, **changed})


class Provider:
    """Args:
    keys: what the JWKS holds; ``status`` and ``delay_s`` say how it is answered, ``asked`` counts.
    """

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [public_jwk("RS256", "rsa-1")]
        self.status, self.delay_s, self.asked = 200, 0.0, 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                time.sleep(provider.delay_s)
                body = json.dumps({"keys": provider.keys}).encode()
                self.send_response(provider.status)
                self.send_header("Content-Length", str(len(body)))
                if provider.status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                with suppress(BrokenPipeError):  # who asked did not wait
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/keys"

    def config(self, folder: Path, **changed: Any) -> OidcConfig:
        return config(folder, jwks_url=self.url, **changed)

    def token(self, algorithm: str = "RS256", key_id: str | None = "rsa-1", key: Any = None, **claims: Any) -> str:
        """A good token but for what is said; a claim that is None is left out."""
        told = {"iss": ISSUER, "aud": AUDIENCE, "sub": "jane.doe", "exp": time.time() + 60, "roles": ["csr-readers"]}
        payload = {name: value for name, value in {**told, **claims}.items() if value is not None}
        headers = {} if key_id is None else {"kid": key_id}
        return jwt.encode(payload, private_key(algorithm) if key is None else key, algorithm, headers)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
