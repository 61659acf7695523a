"""Reads what the next steps need while the device computes this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

AHEAD = 2  # items that are read, or being read, beside the one in use


@contextmanager
def read_ahead(items: Iterable[Item], read: Callable[[Item], Value]) -> Iterator[Iterator[tuple[Item, Value]]]:
    """Gives each item with what ``read`` makes of it, in order; a thread reads up to `AHEAD` items ahead.

    Items are taken in the caller's thread. What ``read`` raises is raised where its item's turn has come. The thread
    ends with the block, however that is left; what it is reading then it reads to the end.

    Args:
        read: must not draw random numbers that others draw, too: when it is called is not known.
    """
    with ThreadPoolExecutor(1, "read-ahead") as thread:

        def pairs() -> Iterator[tuple[Item, Value]]:
            waiting: deque[tuple[Item, Future[Value]]] = deque()
            for item in items:
                waiting.append((item, thread.submit(read, item)))
                if len(waiting) > AHEAD:
                    first, value = waiting.popleft()
                    yield first, value.result()
            for first, value in waiting:
                yield first, value.result()

        try:
            yield pairs()
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
