"""DVC's stages of single runs, apart from running them: which are stale, and what they made kept.

``dvc repro`` takes one stage at a time, from the look whether it changed to the keeping of its
outputs (``Stage.reproduce`` in DVC's sources). Here the same steps of DVC's own code come in two
halves, ``begin`` and ``finish``, so that several commands can run between them.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import InputError, naming

if TYPE_CHECKING:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

STAGES = "pipeline.stages."
ARGUMENTS = 3  # of a stage of one run: METHOD SHOTS SEED
PAUSE = 10  # dvc.lock is written a tenth of the time at most: its YAML takes seconds when long
LOCK_FILE = "dvc.lock"
IN_USE = Path(".dvc/tmp/rwlock")  # which files DVC's commands are at work on, as JSON
BUSY = "another DVC command is at work in this project; wait for it to end"

State = Literal["unchanged", "restored", "stale"]


@dataclass(frozen=True)
class Cell:
    """A stage of one run, such as ``head@breakdown-10-0``.

    Attributes:
        name: DVC's.
        module: what ``python -m`` runs.
        arguments: of its command line.
        needs: names of the cells whose outputs it reads.
        chain: how many cells follow one another from here on, this one included.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    needs: frozenset[str]
    chain: int


class Project:
    """The stages of the project in this folder, while DVC's lock is held.

    Attributes:
        cells: by name, in the order of ``dvc repro``.
        before: names of the stages that lie before any cell, in that order.
        after: those of all others.
    """

    def __init__(self, repo: Repo):
        from dvc.repo.reproduce import get_active_graph, plan_repro

        self._repo = repo
        graph = get_active_graph(repo.index.graph)
        asked = [stage for stage in graph if not stage.is_data_source]
        order = plan_repro(graph, asked)
        self._stages = {stage.addressing: stage for stage in order}
        self.cells = _cells(graph, order)
        above = _above(graph, (self._stages[name] for name in self.cells))
        others = [name for name in self._stages if name not in self.cells]
        self.before = [name for name in others if name in above]
        self.after = [name for name in others if name not in above]
        self._done: set[str] = set()  # stages that dvc.lock is to tell of
        self._found: bytes | None = None  # dvc.lock as it was before the first of them
        self._written, self._rest = 0, 0.0  # of them in dvc.lock; when to write it next

    @property
    def root(self) -> str:
        """The project's folder."""
        return str(self._repo.root_dir)

    def reproduce(self, names: Iterable[str]) -> None:
        """Let DVC reproduce stages one after the other, as ``dvc repro`` does.

        Raises:
            InputError: one failed.
        """
        from dvc.exceptions import DvcException
        from dvc.logger import set_loggers_level

        for name in names:
            stage = self._stages[name]
            try:
                with set_loggers_level(logging.INFO):
                    changed = stage.reproduce()
                if changed:
                    self._tell(name)
            except DvcException as error:
                raise InputError(f"failed to reproduce '{name}': {error}") from None

    def any_new(self) -> bool:
        """Whether dvc.lock lacks a cell; no file is looked at."""
        return any(self._stages[name].changed_stage() for name in self.cells)

    def begin(self, name: str) -> State:
        """Look at a cell, as DVC does before it runs the command.

        Returns:
            ``unchanged``; ``restored``, if the outputs are back from DVC's run cache; or
            ``stale``: then they are removed, and the command is to be run.

        Raises:
            dvc.exceptions.DvcException: a dependency is missing, or another DVC command is at
                work on the files.
        """
        from dvc.stage.cache import RunCacheNotFoundError

        stage = self._stages[name]
        if not stage.changed():
            return "unchanged"
        stage.remove_outs(ignore_remove=False, force=False)
        try:
            self._repo.stage_cache.restore(stage)
        except RunCacheNotFoundError:
            return "stale"
        self.finish(name)
        return "restored"

    def finish(self, name: str) -> None:
        """Keep what a cell's command made, in DVC's cache and its run cache.

        With that nothing is lost, whatever happens next; dvc.lock tells of it soon after.

        Raises:
            dvc.exceptions.DvcException: an output is missing.
        """
        stage = self._stages[name]
        stage.save()
        stage.commit()
        self._note(name)
        if time.monotonic() >= self._rest:
            self.write_lock()

    def _tell(self, name: str) -> None:
        """Let DVC's files tell of a stage that was reproduced.

        DVC empties dvc.lock before it writes it again, which a full disk makes the end of it.
        """
        stage = self._stages[name]
        if stage.is_data_source:  # has a file of its own
            stage.dump(update_pipeline=False)
            return
        self._note(name)
        self.write_lock()

    def _note(self, name: str) -> None:
        """Remember that dvc.lock is to tell of a stage."""
        if self._found is None:
            self._found = self._lock.read_bytes() if self._lock.exists() else b""
        self._done.add(name)

    def write_lock(self) -> None:
        """Tell dvc.lock of all stages that are finished.

        It is made from what it was at first, so that cells come in the order of ``dvc repro``
        whichever ended first; and put in place whole.

        Raises:
            OSError: it cannot be written; it stays as it was then.
        """
        from dvc.dvcfile import Lockfile

        if len(self._done) == self._written:
            return
        started = time.monotonic()
        beside = Path(self._repo.tmp_dir, f"{self._lock.name}.{os.getpid()}")
        try:
            with naming(self._lock, beside):
                if self._found:
                    beside.write_bytes(self._found)
                made = [stage for name, stage in self._stages.items() if name in self._done]
                Lockfile(self._repo, str(beside)).dump_stages(made)
                os.replace(beside, self._lock)
        finally:
            beside.unlink(missing_ok=True)
        self._written = len(self._done)
        ended = time.monotonic()
        self._rest = ended + PAUSE * (ended - started)

    @property
    def _lock(self) -> Path:
        return Path(self._repo.root_dir, LOCK_FILE)


@contextmanager
def opened() -> Iterator[Project]:
    """The project in this folder; no other DVC command comes between until it is left.

    Raises:
        InputError: there is no project, its dvc.yaml or dvc.lock is wrong, or DVC is at work in it.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.logger import set_loggers_level
    from dvc.repo import Repo, lock_repo

    with ExitStack() as stack:
        stack.enter_context(set_loggers_level(logging.WARNING))
        try:
            repo = stack.enter_context(Repo("."))
            stack.enter_context(lock_repo(repo))
            mend()
            project = Project(repo)
        except LockError:
            raise InputError(BUSY) from None
        except DvcException as error:
            raise InputError(wrong_files(error)) from None
        yield project


def mend() -> None:
    """Remove what a full disk left half of, and DVC would never get past: its list of files in use.

    That list is of the commands at work, so that it is for who holds the project's lock.
    """
    try:
        json.loads(IN_USE.read_bytes())
    except ValueError:
        IN_USE.unlink(missing_ok=True)
    except OSError:  # there is none
        pass


def wrong_files(error: DvcException) -> str:
    """Which of DVC's files is wrong, in a line, and what to do."""
    if LOCK_FILE not in str(error):
        return f"dvc.yaml: {error}"
    return (
        f"{LOCK_FILE}: is damaged, as a full disk may leave it; git checkout {LOCK_FILE}, or "
        "remove it: what is finished comes back from DVC's run cache"
    )


def _cells(graph: Any, order: list[Any]) -> dict[str, Cell]:
    """The cells of a graph whose edges go from a stage to those it needs."""
    words = {stage: _words(stage) for stage in order}
    found: dict[str, Cell] = {}
    chains: dict[Any, int] = {}
    for stage in reversed(order):  # what follows a stage comes before it
        if words[stage]:
            chains[stage] = 1 + max((chains.get(user, 0) for user in graph.predecessors(stage)),
                                    default=0)  # fmt: skip
    for stage in chains:
        module, *arguments = words[stage]
        needs = frozenset(need.addressing for need in graph.successors(stage) if words[need])
        found[stage.addressing] = Cell(
            stage.addressing, module, tuple(arguments), needs, chains[stage]
        )
    return dict(reversed(found.items()))


def _words(stage: Any) -> list[str]:
    """Module and arguments of a cell's command; empty: the stage is no cell."""
    if stage.frozen or not isinstance(stage.cmd, str):
        return []
    program, *words = shlex.split(stage.cmd) or [""]
    is_cell = (
        (program, words[:1]) == ("python", ["-m"])
        and len(words) == 2 + ARGUMENTS
        and words[1].startswith(STAGES)
    )
    return words[1:] if is_cell else []


def _above(graph: Any, stages: Iterable[Any]) -> set[str]:
    """Names of all that stages need, near and far."""
    found: set[Any] = set()
    waiting = list(stages)
    while waiting:
        needs = set(graph.successors(waiting.pop())) - found
        found |= needs
        waiting += needs
    return {stage.addressing for stage in found}
