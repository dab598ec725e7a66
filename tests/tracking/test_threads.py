"""Work in threads: order, the first error, and patience."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.tracking.threads import each, within


def test_what_each_returns_is_in_order() -> None:
    def work(number: int) -> int:
        time.sleep(0.01 * (number == 0))
        return number**2

    assert each(work, range(20), 3) == [number**2 for number in range(20)]
    assert each(work, [], 3) == []


def test_as_many_at_once_as_asked() -> None:
    together = threading.Barrier(3, timeout=10)
    assert each(lambda _: together.wait() in range(3), range(6), 3) == [True] * 6


def test_after_the_first_error_no_more_are_begun() -> None:
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise KeyboardInterrupt
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        each(work, range(100), 2)
    assert len(begun) < 5


def test_patience() -> None:
    assert within(10, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 // 0)
    stop = threading.Event()
    start = time.monotonic()
    assert within(0.05, lambda: stop.wait(60)) is None
    stop.set()
    assert time.monotonic() - start < 5
