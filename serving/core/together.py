"""The same for several things at once, in threads: for what waits, or computes without Python's lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

MOST = 8  # threads of one request
Thing = TypeVar("Thing")
Result = TypeVar("Result")


def together(do: Callable[[Thing], Result], things: Sequence[Thing]) -> list[Result]:
    """``do`` of each thing, in their order, in the caller's context: log lines and spans know the request.

    Raises:
        What ``do`` raises of the first thing of which it raises anything, after all have ended.
    """
    if len(things) < 2:
        return [do(each) for each in things]
    with ThreadPoolExecutor(min(len(things), MOST), "together") as threads:
        results = [threads.submit(copy_context().run, do, each) for each in things]
    return [each.result() for each in results]
