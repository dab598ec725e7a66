"""The process that follows one phase in MLflow; ``live`` starts it beside training.

    python -m pipeline.tracking.follower ROOT

A line of JSON on standard input says what to follow (``name``, ``tags``, ``params``, ``started``,
``sample_seconds``); each later one brings ``points``, and the last one the ``status`` to end with.
Input that ends without it is of a process that was killed. What goes wrong is one line on standard
output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from pipeline.tracking import client as tracking
from pipeline.tracking.live import LivePoint

NICENESS = 10  # training goes first


def main() -> None:
    """Follow the phase that standard input tells of."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that trains says how it ends
    os.nice(NICENESS)
    place = tracking.store(Path(sys.argv[1]))
    try:
        with redirect_stdout(sys.stderr):
            follow(place, map(json.loads, sys.stdin))
    except Exception as error:
        print(tracking.reason(error, place.uri), flush=True)


def follow(place: tracking.Store, messages: Iterable[dict[str, Any]]) -> None:
    """Make a run of a phase and keep it up to date until the messages end.

    Args:
        place: the store.
        messages: as standard input brings them.

    Raises:
        TrackingError: the store cannot be used.
        Exception: whatever MLflow raises.
    """
    told = iter(messages)
    about = next(told)
    client = tracking.open_client(place)
    run_id = client.create_run(
        tracking.experiment(client, tracking.PHASES, place),
        start_time=about["started"],
        tags=about["tags"],
        run_name=about["name"],
    ).info.run_id
    tracking.send_params(client, run_id, about["params"])
    system = System(about["sample_seconds"])
    status = "KILLED"
    for message in told:
        status = message.get("status", status)
        tracking.send_points(client, run_id, [*map(tuple, message["points"]), *system.due()])
    tracking.send_points(client, run_id, system.sample())
    client.set_terminated(run_id, status)


class System:
    """What the machine is busy with: processor, memory, disk, network and, where ``nvidia-ml-py``
    is installed, NVIDIA's GPUs.

    By MLflow's own monitors, and under their names, which MLflow shows on a page apart; but they
    are read between the messages, so that one thread does all that may fail. The user's
    ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` are the seconds between samples, and
    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`` switches them off.
    """

    def __init__(self, seconds: float):
        """Take a sample every so many seconds, unless the user says otherwise."""
        from mlflow import environment_variables as variables

        self._seconds = variables.MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or seconds
        self._monitors = _monitors() if variables.MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() else []
        self._step, self._latest = 0, time.monotonic()
        self._read()  # the processor's load is that since the last reading

    def due(self) -> list[LivePoint]:
        """A sample, if the last one is long enough ago."""
        return self.sample() if time.monotonic() - self._latest >= self._seconds else []

    def sample(self) -> list[LivePoint]:
        """The values now, numbered by sample."""
        now, step = time.time_ns() // 1_000_000, self._step
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


if __name__ == "__main__":
    main()
