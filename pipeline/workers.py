"""Processes for runs side by side: one of its own for each, forked where torch is imported.

So every run is as apart as a command of ``dvc repro``, in its memory, its crash and its peak, but
starts in a tenth of a second. The server that forks them imports, and computes nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running, set_forkserver_preload
from pathlib import Path

from pipeline.errors import naming

GRACE = 1.5  # seconds that a process gets to end in, when it is told to
ROOM = 1 << 16  # bytes for what a process prints, to have them should the disk become full
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        name: of its job.
        status: as of a command; below zero: minus the signal that killed it.
        out, err: what it printed.
        seconds: from its start to its end.
    """

    name: str
    status: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class _Running:
    name: str
    process: ForkServerProcess
    place: int
    out: Path
    err: Path
    started: float


class Workers:
    """Up to a number of processes at a time, each at a place of its own, on a GPU if there are any.

    Places go round the GPUs: with three places and two GPUs, 0 1 0.
    """

    def __init__(self, number: int, folder: Path, modules: Sequence[str]):
        """Prepare; nothing is started.

        Args:
            number: of processes at a time.
            folder: for what they print while they run.
            modules: what the server imports.
        """
        self._number, self._folder = number, folder
        self._context = multiprocessing.get_context("forkserver")
        set_forkserver_preload(list(modules))
        self._running: list[_Running] = []
        self.gpus: list[str] = []  # as CUDA_VISIBLE_DEVICES names them; empty: nothing to choose

    def warm(self) -> None:
        """Start the server, which imports while we go on."""
        with _ignored(signal.SIGINT):  # Ctrl-C reaches all; it is we who tell them to end
            _start_tracker()
            ensure_running()

    def find_gpus(self) -> None:
        """Ask a process of its own which GPUs runs would see."""
        self.warm()
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_count_gpus, args=(writer,))
        process.start()
        writer.close()
        try:
            count = reader.recv()
        except EOFError:  # it died; a run will say of what
            count = 0
        process.join()
        self.gpus = gpu_names(count, os.environ.get(VISIBLE))

    @property
    def free(self) -> int:
        """How many more processes may be started."""
        return self._number - len(self._running)

    @property
    def idle(self) -> bool:
        """Whether nothing runs."""
        return not self._running

    def start(
        self, name: str, module: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Start ``python -m MODULE ARGUMENTS`` at a free place.

        Args:
            name: of the job, also of the files that hold what it prints.
            module: what is run.
            arguments: of its command line.
            environment: variables to set, beside those of this process.

        Raises:
            OSError: there is no room for what it prints.
        """
        self.warm()
        self._folder.mkdir(parents=True, exist_ok=True)
        out, err = (self._folder / f"{name}.{kind}" for kind in ("out", "err"))
        _take_room(out, err)
        place = min(set(range(self._number)) - {running.place for running in self._running})
        process = self._context.Process(
            target=_work,
            name=name,
            args=(module, tuple(arguments), {**environment, **gpu_of(place, self.gpus)}, out, err),
        )
        started = time.monotonic()
        process.start()
        self._running.append(_Running(name, process, place, out, err, started))

    def wait(self) -> list[Ended]:
        """Those that have ended, as soon as there is one."""
        connection.wait([running.process.sentinel for running in self._running])
        ended = [running for running in self._running if not running.process.is_alive()]
        self._running = [running for running in self._running if running not in ended]
        return [_ended(running) for running in ended]

    def end(self) -> None:
        """Tell all that run to end, and kill those that do not."""
        for running in self._running:
            running.process.terminate()
        deadline = time.monotonic() + GRACE
        for running in self._running:
            running.process.join(max(0.0, deadline - time.monotonic()))
            running.process.kill()
            running.process.join()
        self._running = []


def gpu_names(count: int, visible: str | None) -> list[str]:
    """The GPUs that CUDA sees, by the names that it would know them by.

    Args:
        count: how many there are to see.
        visible: ``CUDA_VISIBLE_DEVICES`` as it is set, indexes or UUIDs; None: it is not.
    """
    if visible is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in visible.split(",")][:count]  # CUDA stops at a wrong name


def gpu_of(place: int, gpus: Sequence[str]) -> dict[str, str]:
    """The variables that give a place its GPU, round-robin; none where there is no choice."""
    return {VISIBLE: gpus[place % len(gpus)]} if len(gpus) > 1 else {}


def _ended(running: _Running) -> Ended:
    status = running.process.exitcode
    assert status is not None
    seconds = time.monotonic() - running.started
    running.process.close()
    return Ended(running.name, status, _taken(running.out), _taken(running.err), seconds)


def _start_tracker() -> None:
    """Start what removes the semaphores that ended processes leave, as tqdm's, without a word."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _take_room(*paths: Path) -> None:
    """Make files of ``ROOM`` bytes, all of them or none."""
    try:
        for path in paths:
            with naming(path):
                path.write_bytes(bytes(ROOM))
    except OSError:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def _taken(path: Path) -> str:
    """A file's text, without what is left of its room; the file is gone then."""
    text = path.read_text(encoding="utf-8", errors="replace")
    path.unlink()
    return text.rstrip("\0")


def _work(
    module: str, arguments: tuple[str, ...], environment: Mapping[str, str], out: Path, err: Path
) -> None:
    """What ``python -m`` does, in a process that was just forked."""
    os.environ.update(environment)
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        with path.open("r+b") as file:
            os.dup2(file.fileno(), stream.fileno())
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # it is run, as a program, not imported
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _count_gpus(writer: connection.Connection) -> None:
    import torch

    writer.send(torch.cuda.device_count())


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    earlier = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, earlier)
