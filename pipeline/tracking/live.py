"""A phase in MLflow while it trains: best effort, and never at the cost of training."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.tracking import client as tracking

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

BATCH_SECONDS = 2.0
CLOSE_SECONDS = 5.0
SAMPLE_SECONDS = 10.0

LivePoint = tuple[str, float, int, int]  # name, value, milliseconds, step


class Live:
    """Follow one phase as a run of the experiment ``siamese-breakdown-phases``.

    A context manager around the phase. A thread of its own waits ``after`` seconds, so that a
    short phase never imports MLflow, then makes the run and sends what ``log`` has queued. The
    run ends FINISHED, FAILED by an exception, or KILLED by Ctrl-C or SIGTERM. A tracking error is
    one line on stderr; after it nothing more is sent.
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
        self._status = "FINISHED"
        self._thread: threading.Thread | None = None
        self._silent = after is None
        self._earlier: Any = None

    def __enter__(self) -> Live:
        """Start to wait."""
        if self._after is not None:
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
        """End the run; waits at most ``CLOSE_SECONDS``."""
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
            self._done.set()
            thread.join(CLOSE_SECONDS)
            if thread.is_alive():
                self._warn(f"no answer within {CLOSE_SECONDS:g} s at the end of {self._name}")
        finally:
            self._release_sigterm()

    def _follow(self) -> None:
        uri = ""
        try:
            if self._after and self._done.wait(self._after):
                return
            place = tracking.store(tracking.project_root())
            uri = place.uri
            self._track(place)
        except Exception as error:
            self._warn(tracking.reason(error, uri))

    def _track(self, place: tracking.Store) -> None:
        client = tracking.open_client(place)
        run_id = client.create_run(
            tracking.experiment(client, tracking.PHASES, place),
            start_time=self._started,
            tags={**self._tags, **tracking.process_tags()},
            run_name=self._name,
        ).info.run_id
        tracking.send_params(client, run_id, self._params)
        system = System()
        while not self._done.wait(BATCH_SECONDS):
            self._send(client, run_id, system.due())
        self._send(client, run_id, system.sample())
        client.set_terminated(run_id, self._status)

    def _send(self, client: MlflowClient, run_id: str, points: list[LivePoint]) -> None:
        phase = self._tags.get("phase", "")
        while not self._rows.empty():
            step, when, metrics = self._rows.get()
            points += [
                (tracking.metric_name(phase, name), value, when, step)
                for name, value in metrics.items()
            ]
        tracking.send_points(client, run_id, points)

    def _warn(self, problem: str) -> None:
        if not self._silent:
            self._silent = True
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


class System:
    """What the machine is busy with: processor, memory, disk, network and, where ``nvidia-ml-py``
    is installed, NVIDIA's GPUs.

    By MLflow's own monitors, and under their names, which MLflow shows on a page apart; but they
    are read in the thread that follows a phase, so that one thread does all that may fail. The
    user's ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` are the seconds between samples, and
    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`` switches them off.
    """

    def __init__(self) -> None:
        from mlflow import environment_variables as variables

        self._seconds = variables.MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or SAMPLE_SECONDS
        self._monitors = _monitors() if variables.MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() else []
        self._step, self._latest = 0, time.monotonic()
        self._read()  # the processor's load is that since the last reading

    def due(self) -> list[LivePoint]:
        """A sample, if the last one is long enough ago."""
        return self.sample() if time.monotonic() - self._latest >= self._seconds else []

    def sample(self) -> list[LivePoint]:
        """The values now, numbered by sample."""
        now, step = _milliseconds(), self._step
        self._step, self._latest = step + 1, time.monotonic()
        return [(f"system/{name}", value, now, step) for name, value in self._read().items()]

    def _read(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return values


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics import (
        cpu_monitor,
        disk_monitor,
        gpu_monitor,
        network_monitor,
    )

    monitors: list[Any] = [
        cpu_monitor.CPUMonitor(),
        disk_monitor.DiskMonitor(),
        network_monitor.NetworkMonitor(),
    ]
    with suppress(ImportError, RuntimeError):  # what MLflow raises where there is none
        monitors.append(gpu_monitor.GPUMonitor())
    return monitors


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
