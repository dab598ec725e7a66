"""What every stage does around its work: checked parameters, one-line errors, no orphans."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import psutil

from pipeline import check
from pipeline.errors import InputError, command
from pipeline.params import Params
from pipeline.records import RunId

LESS = "lower data.image_size or compare.shots, or run fewer JOBS"  # needs less memory
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh"}


def main(stage: Callable[[Params], None]) -> None:
    """Run a stage that takes no arguments as a command."""

    def work() -> None:
        params = check.load()
        with _within_memory(Path(sys.argv[0]).stem):
            stage(params)

    _run(work, sys.argv[1:], ())


def main_run(stage: Callable[[Params, RunId], None]) -> None:
    """Run a stage of one (method, shots, seed) as a command: ``METHOD SHOTS SEED``."""

    def work() -> None:
        method, shots, seed = sys.argv[1:]
        params = check.load()
        if method not in params.methods:
            raise InputError(f"params.yaml: methods: there is no method '{method}'")
        check.check_models(params, methods=[method])  # before hours of training
        run = RunId(method, shots if shots == "all" else _whole(shots), _whole(seed))
        with lock(run.folder), _within_memory(run.name):
            stage(params, run)

    _run(work, sys.argv[1:], ("METHOD", "SHOTS", "SEED"))


@contextmanager
def _within_memory(what: str) -> Iterator[None]:
    """See ``pipeline.training.runtime.in_one_line``; some stages never load PyTorch."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if "torch" not in sys.modules:  # and there may be no memory to load it
            if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
                raise InputError(f"{what}: out of memory; {LESS}") from None
            raise
        from pipeline.training.runtime import in_one_line

        with in_one_line(what):
            raise error


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise InputError(
            f"{folder}: another process is working on this run; wait for it to end"
        ) from None


def _run(work: Callable[[], None], given: list[str], wanted: tuple[str, ...]) -> None:
    if len(given) != len(wanted):
        name = Path(sys.argv[0]).stem
        usage = " ".join((f"python -m pipeline.stages.{name}", *wanted))
        print(f"usage: {usage}", file=sys.stderr)
        sys.exit(2)
    _end_with_parent()
    command(work)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"command line: '{text}' must be a whole number") from None


def _end_with_parent() -> None:
    """End this process when the one that started it dies, as a killed ``dvc`` would leave it.

    In a process of ``pipeline.workers`` that is not its parent, which only forks. A shell between
    the two is looked through: it would wait for us.
    """
    starter = multiprocessing.parent_process()
    parent = None if starter else psutil.Process().parent()
    watched = [parent] if parent else []
    if parent and parent.name() in SHELLS and (above := parent.parent()):
        watched.append(above)

    def watch() -> None:
        if starter:
            starter.join()
        else:
            while all(_is_alive(process) for process in watched):
                time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    if starter or watched:
        threading.Thread(target=watch, daemon=True).start()


def _is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; what is dead but not waited for, as in many containers, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
