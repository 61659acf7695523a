from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import ValidationError

from serving.access.rates import RateLimits, Rates
from serving.errors import RateLimitedError


def passes(ask: object, *arguments: str) -> bool:
    try:
        ask(*arguments)  # type: ignore[operator]
    except RateLimitedError as error:
        assert 1 <= error.retry_after_s <= 60
        return False
    return True


def test_an_actor_has_so_many_requests_a_minute() -> None:
    rates = Rates(RateLimits(requests_per_minute=5))
    assert [passes(rates.count_request, "key:a") for _ in range(7)] == 5 * [True] + 2 * [False]
    assert passes(rates.count_request, "key:b"), "others are not touched"
    assert passes(rates.count_failure, "key:a"), "nor are failures"


def test_a_window_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 60_000.0
    monkeypatch.setattr("time.time", lambda: now)
    rates = Rates(RateLimits(requests_per_minute=6))
    assert sum(passes(rates.count_request, "key:a") for _ in range(10)) == 6
    now += 61  # all of the last window still count
    assert sum(passes(rates.count_request, "key:a") for _ in range(10)) <= 1
    now += 29  # and now half of them
    assert 2 <= sum(passes(rates.count_request, "key:a") for _ in range(10)) <= 3
    now += 120
    assert sum(passes(rates.count_request, "key:a") for _ in range(10)) == 6


def test_threads_together_get_no_more() -> None:
    rates = Rates(RateLimits(requests_per_minute=50))
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda _: passes(rates.count_request, "key:a"), range(200))) == 50


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("testclient", "another", False),
        ("unknown", "unknown", True),
    ],
)
def test_failures_count_for_addresses(first: str, second: str, same: bool) -> None:
    rates = Rates(RateLimits(failures_per_minute=1))
    assert passes(rates.count_failure, first)
    assert passes(rates.count_failure, second) is not same


def test_as_many_at_once() -> None:
    rates = Rates(RateLimits(concurrent=2))
    assert [passes(rates.enter, "key:a") for _ in range(3)] == [True, True, False]
    assert passes(rates.enter, "key:b")
    rates.leave("key:a")
    assert [passes(rates.enter, "key:a") for _ in range(2)] == [True, False]


def test_what_is_counted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.access.rates.MAX_COUNTED", 100)
    rates = Rates(RateLimits(failures_per_minute=1, concurrent=1))
    for number in range(1000):
        rates.count_failure(f"10.0.{number // 256}.{number % 256}")
        rates.enter(f"key:{number}")
        rates.leave(f"key:{number}")
    assert len(rates._failures._limiter.storage._counts) <= 100  # type: ignore[attr-defined]
    assert len(rates._running) == 0


@pytest.mark.parametrize("changed", [{"concurrent": 0}, {"requests_per_minute": -1}, {"per_hour": 5}])
def test_limits_that_are_refused(changed: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        RateLimits.model_validate(changed)


def test_counting_starts_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates()
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    for _ in range(5):
        time.sleep(0.012)  # by when the library's own storage starts its next
        rates.count_request("key:a")
        rates.count_failure("10.0.0.1")
    assert started == []
