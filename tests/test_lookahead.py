"""Reading ahead: the same items in the same order, faults where they are asked for, and bounded memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from clgym.lookahead import Lookahead


@contextmanager
def ahead(read: Callable[[int], int], length: int = 50, depth: int = 4, stride: int = 1) -> Iterator[Lookahead[int]]:
    def following(position: int) -> int | None:
        return position + stride if position + stride < length else None

    made = Lookahead(read, following, depth)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("depth", [1, 4, 100])
@pytest.mark.parametrize("stride", [1, 3])
def test_items_in_order_each_read_once(depth: int, stride: int) -> None:
    reads: Counter[int] = Counter()

    def read(position: int) -> int:
        reads[position] += 1
        return -position

    with ahead(read, 50, depth, stride) as items:
        assert [items.get(i) for i in range(0, 50, stride)] == [-i for i in range(0, 50, stride)]
    assert reads == Counter(range(0, 50, stride))


def test_never_more_than_depth_ahead() -> None:
    begun: list[int] = []

    def read(position: int) -> int:
        begun.append(position)
        return position

    with ahead(read, depth=3) as items:
        for i in range(20):
            items.get(i)
            assert max(begun) <= i + 3
            assert len(items._ready) <= 3


def test_items_are_read_while_the_caller_is_busy() -> None:
    later = threading.Event()

    def read(position: int) -> int:
        if position == 2:
            later.set()
        return position

    with ahead(read) as items:
        items.get(0)
        assert later.wait(10)


def test_a_fault_is_raised_where_it_is_asked_for_and_the_rest_stands() -> None:
    faults = [3]

    def read(position: int) -> int:
        if position in faults:
            raise OSError(f"cannot decode {position}")
        return position

    with ahead(read) as items:
        assert [items.get(i) for i in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="cannot decode 3"):
            items.get(3)
        assert items.get(4) == 4
        faults.clear()
        assert items.get(3) == 3


def test_jumps_forget_what_is_no_longer_ahead() -> None:
    with ahead(lambda position: position, depth=4) as items:
        for i in (0, 40, 41, 10, 10, 49, 0):
            assert items.get(i) == i
            assert set(items._ready) == set(range(i + 1, min(i + 5, 50)))


def test_close_stops_the_threads_and_may_be_repeated() -> None:
    def mine() -> int:
        return sum(thread.name.startswith("clgym-decode") for thread in threading.enumerate())

    before = mine()
    with ahead(lambda position: position) as items:
        items.get(0)
        assert mine() > before
        items.close()
        assert mine() == before
        items.close()
        assert items.get(7) == 7
    assert mine() == before
