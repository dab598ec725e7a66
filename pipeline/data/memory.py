"""What this process can have: memory, within a container's limits, and cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/")
MOUNTED = "sys/fs/cgroup"


class Room:
    """A bound on what threads have in work at once, in a unit of their own.

    Args:
        size: of all together; what is larger comes alone.
    """

    def __init__(self, size: int):
        self._size, self._taken = size, 0
        self._turn, self._freed = threading.Lock(), threading.Condition()

    @contextmanager
    def of(self, amount: int) -> Iterator[None]:
        """Wait until there is room for so much, and hold it; nobody overtakes who waits."""
        amount = min(amount, self._size)
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._taken + amount <= self._size)
            self._taken += amount
        try:
            yield
        finally:
            with self._freed:
                self._taken -= amount
                self._freed.notify()


def cores() -> int:
    """How many cores this process may use: it can be bound to less than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(root: Path = ROOT) -> int:
    """Bytes that this process can still have: the least of the machine's and its control groups'.

    Linux holds the processes of a container, a batch job or a service to the limit of a control
    group, and kills what exceeds it. Cached files that are not in use count as free.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    import psutil  # here, as benchmarks.gpu runs without it

    return min([int(psutil.virtual_memory().available), *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group that this process is in, and each around it, has left."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, group = line.partition(":")
        controllers, _, path = group.partition(":")
        if group.startswith(":"):  # version 2; beside version 1 it is mounted in a folder there
            names = ("memory.max", "memory.current", "inactive_file")
            mounts = [root / MOUNTED, root / MOUNTED / "unified"]
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mounts = [root / MOUNTED / controllers]
        else:
            continue
        for mount in mounts:
            # within a container the path may be that outside of it: then only the mount is there
            inner = mount / path.strip("/")
            around = [folder for folder in inner.parents if folder.is_relative_to(mount)]
            for folder in (inner, *around):
                yield from _left(folder, *names)


def _left(folder: Path, limit: str, used: str, cached: str) -> Iterator[int]:
    """What one control group has left, where it has a limit."""
    most, now = _number(_text(folder / limit)), _number(_text(folder / used))
    if most is not None and now is not None:
        stat = (line.partition(" ") for line in _text(folder / "memory.stat").splitlines())
        found = [_number(value) for name, _, value in stat if name == cached]
        yield max(0, most - now + sum(value or 0 for value in found))


def _number(text: str) -> int | None:
    """A count of bytes; None where it is none, such as ``max``."""
    return int(text) if text.strip().isdecimal() else None


def _text(path: Path) -> str:
    """A file's text, empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
