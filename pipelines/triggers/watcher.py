"""The feedback threshold: how much readers signed that no training was started for, asked of the server's API."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import httpx2 as httpx
from pydantic import BaseModel, Field, ValidationError

from csr.errors import CSRError
from pipelines.triggers.config import FeedbackConfig, secret
from pipelines.triggers.outbox import Outbox

KEY = "CSR_API_KEY"
_log = logging.getLogger(__name__)


class WatchError(CSRError):
    """The server was not asked, or did not say."""


class Counted(BaseModel):
    """The answer of ``GET /v1/feedback``."""

    after: int = Field(ge=0)
    through: int = Field(ge=0)
    readings: int = Field(ge=0)
    reviews: int = Field(ge=0)


def ask(config: FeedbackConfig, after: int) -> Counted:
    """How much is newer than a ledger entry.

    Raises:
        WatchError: the server does not answer, or refuses.
        ConfigError: there is no key.
    """
    headers = {"Authorization": f"Bearer {secret(config.key_file, KEY)}"}
    url = f"{config.url.rstrip('/')}/v1/feedback"
    try:
        response = httpx.get(url, params={"after": after}, headers=headers, timeout=config.timeout_s)
        if response.is_success:
            return Counted.model_validate_json(response.content)
    except httpx.HTTPError as error:
        raise WatchError(f"{config.url} does not answer ({error or type(error).__name__})") from None
    except ValidationError:
        raise WatchError(f"{url}: this is not the reading API's answer; is the address right?") from None
    hint = "; is the key a reader's of this server, and not revoked?" if response.status_code in (401, 403) else ""
    raise WatchError(f"{url}: refused with status {response.status_code}{hint}")


def look(config: FeedbackConfig, outbox: Outbox) -> bool:
    """Asks once, and takes the event on if there is enough. Returns whether there was.

    Where to count from next is noted in the same transaction as the event, so a crossing is dispatched once.

    Raises:
        WatchError, ConfigError: the server did not say.
        OutboxError: the outbox cannot be used.
    """
    before = outbox.counted()
    after = config.after if before is None else before
    found = ask(config, after)
    if found.through < after:
        _log.warning(
            "the server's ledger ends at entry %d, before entry %d which was counted to: it was put back, or is "
            "another; counting from its end",
            found.through,
            after,
        )
        outbox.count(before, found.through)
        return False
    if found.readings < config.readings and found.reviews < config.reviews:
        return False
    payload = {"source": "feedback", **found.model_dump()}
    return outbox.count(before, found.through, config.event, payload)


class Watcher:
    """Looks again and again, from a thread of its own.

    Args:
        told: is called when an event was taken on.
    """

    def __init__(self, config: FeedbackConfig, outbox: Outbox, told: Callable[[], None]) -> None:
        self._config = config
        self._outbox = outbox
        self._told = told
        self._stop = threading.Event()
        self.problem: str | None = None  # why the last look failed
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """The first look is now."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the look that it is at."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if look(self._config, self._outbox):
                    _log.info("there is enough feedback: %s", self._config.event)
                    self._told()
                self.problem = None
            except CSRError as error:
                self.problem = str(error)
                _log.warning("%s", error)
            self._stop.wait(self._config.every_s)
