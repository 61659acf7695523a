"""A few things that many want: whoever waits is served in turns of whom it is for.

A reader who sends a thousand files waits behind himself, not everybody else behind him: the next turn is that of the
caller who has waited longest since his last one, and within one caller's requests it is first come, first served.
Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class _Turn(Generic[Thing]):
    """One request that waits."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.thing: Thing | None = None


class FairSlots(Generic[Thing]):
    """Lends each of some things to one request at a time.

    Args:
        things: what is lent.
    """

    def __init__(self, things: Iterable[Thing]) -> None:
        self._guard = threading.Lock()
        self._free = list(things)
        self._waiting: OrderedDict[str, deque[_Turn[Thing]]] = OrderedDict()

    def take(self, caller: str) -> Thing:
        """Waits for a thing; give it, or what takes its place, back by `give`."""
        with self._guard:
            if self._free:
                return self._free.pop()  # the last one used is the warmest
            turn: _Turn[Thing] = _Turn()
            self._waiting.setdefault(caller, deque()).append(turn)
        turn.come.wait()
        assert turn.thing is not None
        return turn.thing

    def give(self, thing: Thing) -> None:
        """Hands a thing to the next in turn."""
        with self._guard:
            if not self._waiting:
                self._free.append(thing)
                return
            caller, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns  # to the end: others first
        turn.thing = thing
        turn.come.set()
