"""What is read ahead comes in order, is read once, and nothing is left of it afterwards."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.training.read_ahead import AHEAD, read_ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@settings(deadline=None)  # of a loaded machine
@given(st.lists(st.integers(), max_size=20))
def test_items_come_in_order_each_with_what_was_read_for_it(items):
    read = []
    with read_ahead(iter(items), lambda item: read.append(item) or -item) as pairs:
        assert list(pairs) == [(item, -item) for item in items]
    assert read == items and not threads()


def test_it_reads_in_another_thread_while_the_item_before_is_in_use():
    reading, names = threading.Event(), []

    def read(item: int) -> int:
        names.append(threading.current_thread().name)
        if item == AHEAD:
            reading.set()
        return item

    with read_ahead(range(5), read) as pairs:
        next(pairs)
        assert reading.wait(5)  # nobody has asked for it yet
        time.sleep(0.05)
        assert len(names) == 1 + AHEAD
        assert sum(1 for _ in pairs) == 4
    assert all(name.startswith("read-ahead") for name in names)


def test_an_error_comes_where_its_item_would_have_and_with_its_words():
    def read(item: int) -> int:
        if item == 3:
            raise OSError("images/00003.npy: the disk is gone")
        return item

    seen = []
    with pytest.raises(OSError, match=r"images/00003.npy: the disk is gone"), read_ahead(range(9), read) as pairs:
        for item, _ in pairs:
            seen.append(item)
    assert seen == [0, 1, 2] and not threads()


def test_the_thread_ends_with_the_block_though_items_are_left():
    read = []
    with pytest.raises(KeyError), read_ahead(range(1000), read.append) as pairs:
        next(pairs)
        raise KeyError
    assert not threads() and len(read) <= 1 + AHEAD
