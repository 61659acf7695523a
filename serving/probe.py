"""Asks a running server over HTTP whether it is ready and whether it can read a study. Standard library only."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from statistics import median
from typing import Any

from csr.errors import CSRError

_INTERACTIONS = 50
_BOUNDARY = "csr-probe"


class ProbeError(CSRError):
    """The server is not ready in time or does not answer as it should."""


def wait_until_ready(url: str, within_s: float) -> None:
    """Returns once ``/health/ready`` says so.

    Raises:
        ProbeError: it has not within ``within_s``, or the server says that it never will.
    """
    last = "no answer"
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            _request(f"{url}/health/ready")
            return
        except urllib.error.HTTPError as error:
            last = f"status {error.code}"
            if reason := _own_reason(error):
                raise ProbeError(f"not ready: {reason}") from None
        except OSError as error:
            last = str(error)
        time.sleep(0.1)
    raise ProbeError(f"{url}: not ready within {within_s:.0f} s ({last})")


def check_reading(url: str) -> str:
    """Uploads the first sample, interacts, and says how long that takes.

    Raises:
        ProbeError: an answer is not as it should be.
    """
    try:
        sample = _request(f"{url}/v1/samples/0.png")
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="sample.png"\r\n\r\n'
        body = head.encode() + sample + f"\r\n--{_BOUNDARY}--\r\n".encode()
        started = time.perf_counter()
        study = json.loads(_request(f"{url}/v1/studies", body, f"multipart/form-data; boundary={_BOUNDARY}"))
        uploaded = time.perf_counter() - started
        width, height = study["image"]["width"], study["image"]["height"]
        box = {"x_min": width / 4, "y_min": height / 4, "x_max": width / 2, "y_max": height / 2, "kind": "negative"}
        state = json.dumps({"boxes": [box], "rejected": [study["prediction"]["concepts"][0]["name"]]}).encode()
        times: list[float] = []
        for _ in range(_INTERACTIONS):
            started = time.perf_counter()
            answer = json.loads(_request(f"{url}/v1/studies/{study['digest']}/interactions", state, "application/json"))
            times.append(time.perf_counter() - started)
        summary = str(answer["changes"]["summary"])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ProbeError(f"{url}: the check failed ({error!r})") from error
    return f"upload {uploaded * 1000:.0f} ms, interaction {median(times) * 1000:.1f} ms (median): {summary}"


def _request(url: str, body: bytes | None = None, kind: str | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": kind} if kind else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a site's web proxy is not on the way to us
    with opener.open(request, timeout=10) as answer:
        return bytes(answer.read())


def _own_reason(error: urllib.error.HTTPError) -> str | None:
    """The message of our own 503; None for the proxy's, which only means that the replica is not up yet."""
    try:
        body: Any = json.loads(error.read())
        return str(body["error"]["message"]) if body["error"]["code"] == "not_ready" else None
    except (ValueError, KeyError, TypeError):
        return None
