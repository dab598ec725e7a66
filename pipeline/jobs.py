"""``dvc repro`` with runs side by side: ``python -m pipeline.jobs N``, or ``make repro JOBS=N``.

What lies before the runs is reproduced by DVC; then the stages of single runs, N at a time, each in
a process of its own; then, if none failed, the rest by DVC. What is stale is DVC's to say, and what
a finished stage made is kept by DVC's code, in this one process, under DVC's lock.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from pipeline import check
from pipeline.cells import Cell, Project, opened
from pipeline.data.memory import cores
from pipeline.errors import InputError, command, exit_as_told, refusal
from pipeline.params import Params, Runtime
from pipeline.workers import Ended, Workers

FOLDER = Path(".dvc/tmp/jobs")
MODULES = ("encoder", "head", "baseline", "test")
Code = dict[str, tuple[int, int]]


class Pool:
    """The cells of a project on their way through the workers.

    Attributes:
        failed: why, by name.
    """

    def __init__(self, project: Project, workers: Workers, device: str, code: Code):
        """Take all cells.

        Args:
            project: whose cells.
            workers: that run them.
            device: ``runtime.device``.
            code: as ``loaded_code`` found it before the workers loaded it.
        """
        self._project, self._workers, self._code = project, workers, code
        self._waiting = dict(project.cells)
        self._there: set[str] = set()  # cells whose outputs are
        self._counts = {"run": 0, "restored": 0, "unchanged": 0}
        self._gpus_wanted = device in ("auto", "cuda")
        self.failed: dict[str, str] = {}

    @property
    def skipped(self) -> list[str]:
        """What was not run, since something that it needs failed."""
        return list(self._waiting)

    def run(self) -> None:
        """Run what is stale, until nothing is left that can be run."""
        ended: list[Ended] = []
        while True:
            self._fill()  # first, so that no place is empty while outputs are kept
            for each in ended:
                self._take(each)
            self._fill()
            if self._workers.idle:
                return
            ended = self._workers.wait()

    def summary(self) -> str:
        """What became of all cells, in a line."""
        counts = {**self._counts, "failed": len(self.failed), "skipped": len(self.skipped)}
        told = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
        return f"{len(self._project.cells)} stages of single runs: {told}"

    def _fill(self) -> None:
        """Start cells while there are places, those with most to follow first."""
        while self._workers.free:
            ready = [cell for cell in self._waiting.values() if cell.needs <= self._there]
            if not ready:
                return
            self._begin(max(ready, key=lambda cell: cell.chain))  # of equals the first

    def _begin(self, cell: Cell) -> None:
        from dvc.exceptions import DvcException

        del self._waiting[cell.name]
        try:
            state = self._project.begin(cell.name)
        except (DvcException, OSError) as error:
            self._fail(cell.name, _told(error))
            return
        if state == "stale":
            self._start(cell)
            return
        self._there.add(cell.name)
        self._counts[state] += 1
        if state == "restored":
            self._say(cell.name, "from DVC's run cache")

    def _start(self, cell: Cell) -> None:
        if self._edited(cell.name):
            return
        if self._gpus_wanted:
            self._workers.find_gpus()
            self._gpus_wanted = False
        # as DVC sets them for a command
        root = os.environ.get("DVC_ROOT", self._project.root)
        environment = {"DVC_ROOT": root, "DVC_STAGE": cell.name}
        try:
            self._workers.start(cell.name, cell.module, cell.arguments, environment)
        except OSError as error:
            self._fail(cell.name, _told(error))

    def _take(self, ended: Ended) -> None:
        from dvc.exceptions import DvcException

        for line in ended.err.splitlines():
            print(f"{ended.name}: {line}", file=sys.stderr, flush=True)
        if ended.status:
            self._fail(ended.name, _why(ended))
            return
        if self._edited(ended.name):
            return
        try:
            self._project.finish(ended.name)
        except (DvcException, OSError) as error:
            self._fail(ended.name, _told(error))
            return
        self._there.add(ended.name)
        self._counts["run"] += 1
        self._say(ended.name, f"{ended.seconds:.1f} s", _last_line(ended.out))

    def _edited(self, name: str) -> bool:
        """Fail a cell whose outputs would go under the hash of code that is not what ran."""
        edited = loaded_code() != self._code
        if edited:
            self._fail(name, "code under pipeline/ was edited meanwhile; runs here have the old")
        return edited

    def _fail(self, name: str, why: str) -> None:
        self.failed[name] = why
        self._say(name, "failed", why)

    def _say(self, name: str, *told: str) -> None:
        everything = len(self._project.cells)
        done = sum(self._counts.values()) + len(self.failed)
        print(f"[{done}/{everything}] {': '.join([name, *filter(None, told)])}", flush=True)


def loaded_code() -> Code:
    """What changes where a module of ours is edited: its time and size."""
    found = Path(__file__).parent.rglob("*.py")
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def reproduce(params: Params, number: int) -> int:
    """Do what ``dvc repro`` does, with a number of runs at a time.

    Args:
        params: of the project in this folder.
        number: of runs at a time.

    Returns:
        the status of a command: 1 if a run failed.

    Raises:
        InputError: there is no project here, DVC or another of us is at work in it, or a stage
            that is of no single run failed.
    """
    code = loaded_code()
    workers = Workers(number, FOLDER, [f"pipeline.stages.{name}" for name in MODULES])
    with _alone(), opened() as project:
        if project.any_new():
            workers.warm()  # it imports while DVC reproduces what lies before
        project.reproduce(project.before)
        started = time.monotonic()
        pool = Pool(project, workers, params.runtime.device, code)
        try:
            pool.run()
        finally:
            workers.end()
            project.write_lock()
        print(f"{pool.summary()}; {time.monotonic() - started:.1f} s", flush=True)
        if pool.failed:
            _report(pool, project.after)
            return 1
        project.reproduce(project.after)
    return 0


def number_of(text: str) -> int:
    """How many runs go at a time, as it is given on the command line.

    Raises:
        InputError: it is no whole number above 0.
    """
    if not (text.isascii() and text.isdigit() and int(text)):
        raise InputError(
            f"JOBS: '{text}' must be a whole number above 0: how many runs go at a time"
        )
    return int(text)


def advice(number: int, runtime: Runtime, cores: int) -> str:
    """A line where runs ask for more threads than there are cores; else nothing."""
    wanted = number * runtime.threads
    if wanted <= cores:
        return ""
    return (
        f"advice: {number} runs at a time with runtime.threads: {runtime.threads} ask for "
        f"{wanted} threads, and there are {cores} cores; JOBS={max(1, cores // runtime.threads)} "
        "may be as fast"
    )


@contextmanager
def _alone() -> Iterator[None]:
    """Be the only one of us in this project."""
    if not Path(".dvc").is_dir():
        raise InputError(".dvc: there is no such folder; run in the project's folder")
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(FOLDER / "lock")
    try:
        lock.acquire(timeout=0)
        for left in (*FOLDER.glob("*.out"), *FOLDER.glob("*.err")):
            left.unlink()  # of one that was killed
    except filelock.Timeout:
        raise InputError(
            "runs are going side by side in this project already; wait for them to end"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _report(pool: Pool, left: list[str]) -> None:
    """Name what failed, what was skipped for it and what was not done."""
    lines = [f"{len(pool.failed)} failed:"]
    lines += [f"  {name}: {why}" for name, why in pool.failed.items()]
    if pool.skipped:
        lines.append(f"skipped, since what they need failed: {', '.join(pool.skipped)}")
    lines.append(
        f"not done, since runs are missing: {', '.join(left)}; what is finished is kept, and the "
        "same command goes on from there"
    )
    print("\n".join(lines), file=sys.stderr, flush=True)


def _told(error: Exception) -> str:
    """What went wrong, in words of ours where it is the file system that refused."""
    return (isinstance(error, OSError) and refusal(error)) or str(error)


def _why(ended: Ended) -> str:
    if ended.status < 0:
        killed = f"killed by {signal.Signals(-ended.status).name}"
        return f"{killed}; out of memory?" if ended.status == -signal.SIGKILL else killed
    return _last_line(ended.err) or f"ended with status {ended.status}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def main() -> None:
    """Reproduce the project in this folder as the command line asks."""
    if len(sys.argv) != 2:
        raise InputError("usage: python -m pipeline.jobs N, the number of runs at a time")
    number = number_of(sys.argv[1])
    params = check.load()
    if told := advice(number, params.runtime, cores()):
        print(told, flush=True)
    signal.signal(signal.SIGTERM, exit_as_told)  # so that runs are told to end
    sys.exit(reproduce(params, number))


if __name__ == "__main__":
    command(main)
