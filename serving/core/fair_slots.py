"""A few things that many want: whoever waits is served in turns of whom it is for.

A reader who sends a thousand files waits behind himself, not everybody else behind him: the next turn is that of the
caller who has waited longest since his last one, and within one caller's requests it is first come, first served.
Thread-safe.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Thing = TypeVar("Thing", bound=Hashable)


class _Turn(Generic[Thing]):
    """One request that waits."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.thing: Thing | None = None


class FairSlots(Generic[Thing]):
    """Lends each of some things to one request at a time, and never all of them to one caller, if there are several:
    what one caller's requests hold for long, others need not wait for.

    Args:
        things: what is lent; hashable.
    """

    def __init__(self, things: Iterable[Thing]) -> None:
        self._guard = threading.Lock()
        self._free = list(things)
        self._most = max(1, len(self._free) - 1)  # of one caller
        self._lent: dict[Thing, str] = {}
        self._waiting: OrderedDict[str, deque[_Turn[Thing]]] = OrderedDict()

    def take(self, caller: str) -> Thing:
        """Waits for a thing; give it back by `give`."""
        turn: _Turn[Thing] = _Turn()
        with self._guard:
            self._waiting.setdefault(caller, deque()).append(turn)
            self._serve()
        turn.come.wait()
        assert turn.thing is not None
        return turn.thing

    def give(self, thing: Thing) -> None:
        """Takes a thing back, for the next in turn."""
        with self._guard:
            del self._lent[thing]
            self._free.append(thing)
            self._serve()

    def _serve(self) -> None:
        """Lends what is free to those whose turn it is."""
        while self._free and (caller := self._next()) is not None:
            turns = self._waiting.pop(caller)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns  # to the end: others first
            turn.thing = self._free.pop()  # the last one used is the warmest
            self._lent[turn.thing] = caller
            turn.come.set()

    def _next(self) -> str | None:
        held = Counter(self._lent.values())
        return next((caller for caller in self._waiting if held[caller] < self._most), None)
