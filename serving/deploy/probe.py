"""Asks a server that was just started whether it is ready."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx

from csr.errors import CSRError


class ProbeError(CSRError):
    """The server is not ready in time."""


def wait_until_ready(url: str, within_s: float, certificate: Path | None = None) -> None:
    """Returns once ``/health/ready`` says so.

    Args:
        url: of the server.
        within_s: seconds.
        certificate: that the server shows, if it ends TLS: it is trusted whatever name it is made out to.

    Raises:
        ProbeError: it is not ready in time, or says why it will not be.
    """
    last = "no answer"
    deadline = time.monotonic() + within_s
    # A site's web proxy is not on the way to us.
    with httpx.Client(base_url=url, verify=_trust(certificate), trust_env=False, timeout=10) as client:
        while time.monotonic() < deadline:
            try:
                answer = client.get("/health/ready")
                if answer.is_success:
                    return
                last = f"status {answer.status_code}"
                if reason := _own_reason(answer):
                    raise ProbeError(f"not ready: {reason}")
            except httpx.TransportError as error:
                last = str(error) or type(error).__name__
            time.sleep(0.1)
    raise ProbeError(f"{url}: not ready within {within_s:.0f} s ({last})")


def _trust(certificate: Path | None) -> ssl.SSLContext | bool:
    if certificate is None:
        return True
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    return context


def _own_reason(answer: httpx.Response) -> str | None:
    """The message of our own 503; None for the proxy's, which only means that the replica is not up yet."""
    try:
        body: Any = answer.json()
        return str(body["error"]["message"]) if body["error"]["code"] == "not_ready" else None
    except (ValueError, KeyError, TypeError):
        return None
