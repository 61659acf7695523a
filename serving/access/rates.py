"""How often somebody may ask: counted by each replica for itself, in memory.

So the limit of a deployment is that of a replica times their number; it keeps one client from taking all, and guessing
from being free. It is no accounting.
"""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from serving.errors import RateLimitedError

FAILURES_PER_MINUTE = 30


class Rates:
    """Thread-safe.

    Args:
        per_minute: requests of one actor.
    """

    def __init__(self, per_minute: int) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(per_minute, namespace="requests")
        self._failures = RateLimitItemPerMinute(FAILURES_PER_MINUTE, namespace="failures")

    def count(self, actor: str) -> None:
        """Counts a request.

        Raises:
            RateLimitedError: it is one too many.
        """
        if not self._limiter.hit(self._requests, actor):
            raise self._refusal(self._requests, actor)

    def count_failure(self, address: str) -> None:
        """Counts a failed sign-in from an address."""
        self._limiter.hit(self._failures, address)

    def check_failures(self, address: str) -> None:
        """Raises:
        RateLimitedError: too many sign-ins failed from there.
        """
        if not self._limiter.test(self._failures, address):
            raise self._refusal(self._failures, address)

    def _refusal(self, item: RateLimitItemPerMinute, name: str) -> RateLimitedError:
        reset = self._limiter.get_window_stats(item, name).reset_time
        seconds = max(1, math.ceil(reset - time.time()))
        return RateLimitedError(f"more than {item.amount} a minute; ask again in {seconds} s", seconds)
