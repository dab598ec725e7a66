"""How much memory there still is: for the machine, and within a container's limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path("/")
MOUNTED = "sys/fs/cgroup"


def available_memory(root: Path = ROOT) -> int:
    """Bytes that this process can still have: the least of the machine's and its control groups'.

    Linux holds the processes of a container, a batch job or a service to the limit of a control
    group, and kills what exceeds it. Cached files that are not in use count as free.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
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
