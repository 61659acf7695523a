"""How much one may ask: requests a minute and at once for each actor, refused credentials a minute for each address.

Each replica counts for itself, in memory: behind n replicas an actor has up to n times these limits, and counts are
gone with their replica. They are there so that one client's loop does not take the server from the others; they are not
a quota. A valid credential is never refused for others' wrong ones from its address: behind a proxy or a hospital's
gateway all readers have one.

Thread-safe.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import Counter

from cachetools import TTLCache
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from pydantic import BaseModel, ConfigDict, PositiveInt

from serving.errors import RateLimitedError

MAX_COUNTED = 100_000  # counters kept; where a flood comes from more addresses the least recent are forgotten
_WINDOW_S = 60
_SITE_BITS = 64  # of an IPv6 address: whoever has one has all others of its network


class RateLimits(BaseModel):
    """Limits of one replica. ``concurrent``: requests of one actor that are answered at the same time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: PositiveInt = 1200
    failures_per_minute: PositiveInt = 20
    concurrent: PositiveInt = 24


class Rates:
    """Counts, and refuses what is over the limits."""

    def __init__(self, limits: RateLimits | None = None) -> None:
        self._limits = limits or RateLimits()
        self._requests = _Window(self._limits.requests_per_minute)
        self._failures = _Window(self._limits.failures_per_minute)
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count_request(self, actor: str) -> None:
        """Counts one request.

        Raises:
            RateLimitedError: the actor had all of this minute's.
        """
        wait = self._requests.count(actor)
        if wait:
            limit = self._limits.requests_per_minute
            raise RateLimitedError(f"over {limit} requests a minute; try again in {wait} s", wait)

    def count_failure(self, address: str) -> None:
        """Counts one credential that was refused.

        Raises:
            RateLimitedError: too many of them from there.
        """
        wait = self._failures.count(_network(address))
        if wait:
            raise RateLimitedError(f"too many wrong credentials from your address; try again in {wait} s", wait)

    def enter(self, actor: str) -> None:
        """A request begins to be answered; to be paired with `leave`.

        Raises:
            RateLimitedError: as many of this actor's are under way as may be; `leave` must not follow.
        """
        with self._lock:
            if self._running[actor] >= self._limits.concurrent:
                limit = self._limits.concurrent
                raise RateLimitedError(f"{limit} of your requests are being answered; wait for one to end", 1)
            self._running[actor] += 1

    def leave(self, actor: str) -> None:
        """A request that was let in by `enter` has ended."""
        with self._lock:
            self._running[actor] -= 1
            if not self._running[actor]:
                del self._running[actor]


class _Window:
    """One limit a minute."""

    def __init__(self, limit: int) -> None:
        self._item = RateLimitItemPerMinute(limit)
        self._limiter = SlidingWindowCounterRateLimiter(_Counters())

    def count(self, who: str) -> int:
        """Counts one. Returns 0, or, where that is over the limit, the whole seconds until it is not."""
        if self._limiter.hit(self._item, who):
            return 0
        reset = self._limiter.get_window_stats(self._item, who).reset_time
        return max(1, math.ceil(reset - time.time()))


class _Counters(MemoryStorage):
    """The library's storage, without its sweeping: that starts a thread for nearly each request, 0.3 ms, and grows with
    the number of clients. Here the oldest counters leave instead."""

    def __init__(self) -> None:
        super().__init__()
        # A window's counter is read until the end of the next window.
        self._counts: TTLCache[str, int] = TTLCache(MAX_COUNTED, 2 * _WINDOW_S)
        self._lock = threading.Lock()

    def get(self, key: str) -> int:
        with self._lock:
            return self._counts.get(key, 0)

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        with self._lock:
            count = self._counts.get(key, 0) + amount
            self._counts[key] = count
            return count

    def decr(self, key: str, amount: int = 1) -> int:
        with self._lock:
            count = max(0, self._counts.get(key, 0) - amount)
            self._counts[key] = count
            return count


def _network(address: str) -> str:
    """What counts as one client: an address, in IPv6 its network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _SITE_BITS), strict=False))
