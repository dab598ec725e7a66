"""Work beside other work, in threads that no process waits for when it ends.

MLflow's calls mostly wait, for a disk or an answer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def within(seconds: float, work: Callable[[], Result]) -> Result | None:
    """What ``work`` returns or raises; None when it takes longer, and is left to itself.

    No timeout of a single call does as much: a server may send a byte now and then for ever.
    """
    done: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            errors.append(error)

    thread = _start(run)
    thread.join(seconds)
    if errors:
        raise errors[0]
    return done[0] if done else None


def each(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """What ``work`` returns for each item, in their order, several at a time.

    Raises:
        BaseException: the first that ``work`` raises; what is begun by then is ended, and no more
            begun.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(len(items)):
        waiting.put(place)
    done: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run() -> None:
        with suppress(queue.Empty):
            while not errors:
                place = waiting.get_nowait()
                try:
                    done[place] = work(items[place])
                except BaseException as error:
                    errors.append(error)

    for thread in [_start(run) for _ in range(min(threads, len(items)))]:
        thread.join()
    if errors:
        raise errors[0]
    return [done[place] for place in range(len(items))]


def _start(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True, name="publish")
    thread.start()
    return thread
