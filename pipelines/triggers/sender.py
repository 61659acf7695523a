"""Tells GitHub: ``POST /repos/{owner}/{repo}/dispatches`` with ``{"event_type": …, "client_payload": …}``.

What fails is tried again, later each time, until GitHub takes it: also what only a person can mend, such as a token
that has run out, for they will.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

import httpx2 as httpx

from csr.errors import CSRError
from pipelines.triggers.config import GithubConfig, secret
from pipelines.triggers.outbox import Dispatch, Outbox

TOKEN = "CSR_GITHUB_TOKEN"
LONGEST_WAIT_S = 900.0
_HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28", "User-Agent": "csr-triggers"}
_log = logging.getLogger(__name__)


class RefusedError(CSRError):
    """GitHub was not told.

    Attributes:
        wait_s: that GitHub asks for before the next try; None: it says nothing.
    """

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Github:
    """One repository. The token is read anew for each call, so that a new one needs no restart."""

    def __init__(self, config: GithubConfig) -> None:
        self._config = config
        self._client = httpx.Client(timeout=config.timeout_s, headers=_HEADERS)

    def tell(self, dispatch: Dispatch) -> None:
        """Raises:
        RefusedError: GitHub did not take it, for the reason given.
        ConfigError: there is no token.
        """
        token = secret(self._config.token_file, TOKEN)
        url = f"{self._config.api.rstrip('/')}/repos/{self._config.repository}/dispatches"
        payload = {**dispatch.payload, "dispatch": dispatch.number}
        body = {"event_type": dispatch.event, "client_payload": payload}
        try:
            response = self._client.post(url, json=body, headers={"Authorization": f"Bearer {token}"})
        except httpx.HTTPError as error:
            raise RefusedError(f"{self._config.api} does not answer ({error or type(error).__name__})") from None
        if not response.is_success:
            raise RefusedError(self._why(response), _asked_wait(response))

    def close(self) -> None:
        """Ends its connections."""
        self._client.close()

    def _why(self, response: httpx.Response) -> str:
        where, status = self._config.repository, response.status_code
        try:
            said = str(response.json()["message"])
        except (ValueError, KeyError, TypeError):
            said = response.reason_phrase
        if status in (403, 429) and _asked_wait(response) is not None:
            return f"GitHub asks to wait ({said})"
        hints = {
            401: "the token is none, or has run out: make another",
            403: "the token may not do that: it needs the permission Contents, read and write",
            404: f"there is no repository {where}, or the token may not see it",
            422: "GitHub does not take the event as it is",
        }
        return f"{hints.get(status, 'GitHub did not take it')} (status {status}: {said})"


def _asked_wait(response: httpx.Response) -> float | None:
    """Seconds; see GitHub's "Rate limits for the REST API"."""
    headers = response.headers
    if headers.get("retry-after", "").isdecimal():
        return float(headers["retry-after"])
    if headers.get("x-ratelimit-remaining") == "0" and headers.get("x-ratelimit-reset", "").isdecimal():
        return max(0.0, float(headers["x-ratelimit-reset"]) - time.time())
    return None


class Sender:
    """Tells GitHub what is in the outbox, from a thread of its own.

    Args:
        outbox: is read at the start, and when `wake` is called.
        tell: tells one event, or raises.
        first_wait_s: before the second try; doubled each time, up to `LONGEST_WAIT_S`.
    """

    def __init__(self, outbox: Outbox, tell: Callable[[Dispatch], None], first_wait_s: float = 2.0) -> None:
        self._outbox = outbox
        self._tell = tell
        self._first_wait_s = first_wait_s
        self._due: dict[int, float] = {}
        self._wake = threading.Event()
        self._stopped = False
        self.problem: str | None = None  # what a person should know; None if all was told
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        """Begins with what the last process left."""
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the outbox."""
        self._wake.set()

    def stop(self) -> None:
        """Ends after the try that it is at; what is unsent stays in the outbox."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def send_due(self) -> float | None:
        """Tries everything whose time has come. Returns the seconds until the next try; None: nothing is left.

        Raises:
            OutboxError: the outbox cannot be used.
        """
        problems, waits = [], []
        for dispatch in self._outbox.unsent():
            refused, wait = dispatch.refused, self._due.get(dispatch.number, 0.0) - time.monotonic()
            if wait <= 0:
                refused, wait = self._try(dispatch)
                self._due[dispatch.number] = time.monotonic() + wait
            if refused is not None:
                problems.append(refused)
                waits.append(wait)
        self.problem = problems[0] if problems else None
        return min(waits, default=None)

    def _try(self, dispatch: Dispatch) -> tuple[str | None, float]:
        refused: str | None = None
        asked: float | None = None
        try:
            self._tell(dispatch)
        except CSRError as error:
            refused, asked = str(error), getattr(error, "wait_s", None)
        self._outbox.tried(dispatch.number, refused)
        if refused is None:
            _log.info("told GitHub: %s, dispatch %d", dispatch.event, dispatch.number)
            return None, 0.0
        own = min(LONGEST_WAIT_S, self._first_wait_s * 2 ** min(dispatch.tries, 16)) * random.uniform(0.75, 1.0)
        wait = own if asked is None else max(own, asked)
        _log.warning("%s, dispatch %d: %s; again in %.0f s", dispatch.event, dispatch.number, refused, wait)
        return refused, wait

    def _run(self) -> None:
        while True:
            self._wake.clear()
            if self._stopped:
                return
            try:
                wait = self.send_due()
            except CSRError as error:
                self.problem, wait = str(error), self._first_wait_s
                _log.error("%s", error)
            self._wake.wait(wait)
