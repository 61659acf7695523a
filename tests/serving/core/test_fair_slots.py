"""Who waits for a decoder, and in which order they are served."""

from __future__ import annotations

import threading
import time

from serving.core.fair_slots import FairSlots


def waiting(slots: FairSlots[int], order: list[str], callers: list[str]) -> list[threading.Thread]:
    """One thread a request, in this order; each notes whose turn it was, holding a slot for a moment."""

    def request(caller: str) -> None:
        slot = slots.take(caller)
        order.append(caller)
        slots.give(slot)

    threads = []
    for number, caller in enumerate(callers):
        threads.append(threading.Thread(target=request, args=(caller,)))
        threads[-1].start()
        deadline = time.monotonic() + 5
        while sum(map(len, slots._waiting.values())) <= number and time.monotonic() < deadline:
            time.sleep(0.001)
    return threads


def test_callers_take_turns_however_many_requests_one_has():
    slots, order = FairSlots([0]), []
    held = slots.take("a")
    threads = waiting(slots, order, ["a", "a", "a", "b", "c", "b"])
    slots.give(held)
    for thread in threads:
        thread.join(5)
    assert order == ["a", "b", "c", "a", "b", "a"]


def test_every_thing_is_lent_once_at_a_time_and_comes_back():
    slots = FairSlots([1, 2])
    first, second = slots.take("a"), slots.take("c")
    assert {first, second} == {1, 2}
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.append(slots.take("b")))
    thread.start()
    time.sleep(0.05)
    assert not taken
    slots.give(first)
    thread.join(5)
    assert taken == [first]
    slots.give(second)
    assert slots.take("c") == second


def test_one_caller_never_has_all_of_them():
    slots, order = FairSlots([1, 2, 3]), []
    first = slots.take("a")
    slots.take("a")
    (third,) = waiting(slots, order, ["a"])
    assert not order, "there is a free one, but not for this caller"
    slots.give(slots.take("b"))
    assert not order
    slots.give(first)
    third.join(5)
    assert order == ["a"]
