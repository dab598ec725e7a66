"""A phase in MLflow while it trains: best effort, and never at the cost of training.

MLflow's import, its store and its calls take seconds of Python, in which a training loop in the
same process would stand still. So a process of its own talks to MLflow, ``follower``.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any

from pipeline.tracking import away
from pipeline.tracking import client as tracking

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

BATCH_SECONDS = 2.0
CLOSE_SECONDS = 4.5  # of two phases less than ten
KILLED_SECONDS = 1.0  # who ends a process does not want to wait
SAMPLE_SECONDS = 10.0
CODE = Path(__file__).parents[2]  # where a new process finds this package

# set by the first failure: a process loses time to tracking, and speaks of it, once
given_up = threading.Event()

LivePoint = tuple[str, float, int, int]  # name, value, milliseconds, step


class Live:
    """Follow one phase as a run of the experiment ``siamese-breakdown-phases``.

    A context manager around the phase. A thread waits ``after`` seconds, so that a short phase
    starts no process, then starts one that makes the run, and hands it what ``log`` has queued. The
    run ends FINISHED, FAILED by an exception, or KILLED by Ctrl-C, SIGTERM or SIGKILL. A tracking
    error is one line on stderr; after it nothing more is sent, nor any later phase of this process
    followed, nor another's for ``away.SECONDS``.
    """

    def __init__(
        self, name: str, tags: Mapping[str, str], params: Mapping[str, str], after: float | None
    ):
        """Prepare to follow.

        Args:
            name: of the run, such as ``breakdown-n10-s0-encoder``.
            tags: of the run; ``phase`` decides on the metrics' prefix.
            params: of the run, flat.
            after: seconds of training before anything is done; None: never.
        """
        self._name, self._tags, self._params, self._after = name, tags, params, after
        self._rows: queue.SimpleQueue[tuple[int, int, dict[str, float]]] = queue.SimpleQueue()
        self._done = threading.Event()
        self._status, self._patience = "FINISHED", CLOSE_SECONDS
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._silent = after is None or given_up.is_set()
        self._earlier: Any = None
        self._place: tracking.Store | None = None

    def __enter__(self) -> Live:
        """Start to wait."""
        if not self._silent:
            self._started = _milliseconds()
            self._catch_sigterm()
            self._thread = threading.Thread(target=self._follow, daemon=True, name="mlflow-live")
            self._thread.start()
        return self

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue values for ``step`` (images seen); costs microseconds and never raises."""
        if not self._silent:
            self._rows.put((step, _milliseconds(), dict(metrics)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the run; waits at most ``CLOSE_SECONDS``, or ``KILLED_SECONDS``."""
        if kind is None:
            self._close("FINISHED")
        else:
            self._close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _close(self, status: str) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._status = status
            self._patience = KILLED_SECONDS if status == "KILLED" else CLOSE_SECONDS
            self._done.set()
            thread.join(self._patience)
            if thread.is_alive() and status != "KILLED":  # the other process ends by itself
                self._warn(f"no answer within {CLOSE_SECONDS:g} s at the end of {self._name}")
        finally:
            self._release_sigterm()

    def _follow(self) -> None:
        try:
            self._place = tracking.store(tracking.project_root())
            pause = max(self._after or 0.0, away.left(self._place))
            if pause and self._done.wait(pause):
                return
            self._hand_over(_start_follower(self._place.root))
        except Exception as error:
            self._warn(tracking.reason(error))

    def _hand_over(self, process: subprocess.Popen[str]) -> None:
        """Tell the other process of the phase until it ends; then hear what went wrong there."""
        self._process = process
        with process:
            assert process.stdin and process.stdout
            with suppress(BrokenPipeError):  # it gave up, and says why
                self._tell(process.stdin)
            with suppress(BrokenPipeError):
                process.stdin.close()
            problem = process.stdout.readline().strip()
            if problem or process.wait():
                self._warn(problem or f"its process ended with status {process.returncode}")

    def _tell(self, to: IO[str]) -> None:
        tags = {**self._tags, **tracking.process_tags()}
        about = {"name": self._name, "tags": tags, "params": dict(self._params)}
        _send(to, {**about, "started": self._started, "sample_seconds": SAMPLE_SECONDS})
        while not self._done.wait(BATCH_SECONDS):
            _send(to, {"points": self._points()})
        ended = {"status": self._status, "patience": self._patience}
        _send(to, {"points": self._points(), **ended})

    def _points(self) -> list[LivePoint]:
        points: list[LivePoint] = []
        phase = self._tags.get("phase", "")
        while not self._rows.empty():
            step, when, metrics = self._rows.get()
            points += [
                (tracking.metric_name(phase, name), value, when, step)
                for name, value in metrics.items()
            ]
        return points

    def _warn(self, problem: str) -> None:
        if not self._silent:
            self._silent = True
            given_up.set()
            if self._place:
                away.note(self._place)
            print(f"warning: MLflow: {problem}; training goes on", file=sys.stderr)

    def _catch_sigterm(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) not in (None, signal.SIG_IGN):
            self._earlier = signal.signal(signal.SIGTERM, self._terminated)

    def _release_sigterm(self) -> None:
        earlier, self._earlier = self._earlier, None
        if earlier is not None:
            signal.signal(signal.SIGTERM, earlier)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        # close the run, then let the signal do what it would have done without us
        self._close("KILLED")
        self._release_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)


def _start_follower(root: Path) -> subprocess.Popen[str]:
    """The process that talks to MLflow; no signal to the group of this one reaches it."""
    paths = [str(CODE), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking.follower", str(root), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        start_new_session=True,
    )


def _send(to: IO[str], message: dict[str, Any]) -> None:
    to.write(json.dumps(message) + "\n")
    to.flush()


def close_leftovers(client: MlflowClient) -> int:
    """Mark KILLED what a dead process of this machine has left RUNNING.

    Returns:
        how many phases are still RUNNING, here or elsewhere.
    """
    found = client.get_experiment_by_name(tracking.PHASES)
    if found is None:
        return 0
    running = client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'")
    dead = [
        run
        for run in running
        if tracking.is_local(run.data.tags) and not tracking.is_alive(run.data.tags)
    ]
    for run in dead:
        client.set_terminated(run.info.run_id, "KILLED")
    return len(running) - len(dead)


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
