"""The process that follows one phase in MLflow; ``live`` starts it beside training.

    python -m pipeline.tracking.follower ROOT PID

A line of JSON on standard input says what to follow (``name``, ``tags``, ``params``, ``started``,
``sample_seconds``); each later one brings ``points``, and the last one the ``status`` to end with
and the ``patience`` of training, in seconds. Input that ends without it, or a parent that is no
longer PID, is of a process that was killed. What goes wrong is one line on standard output. This
process ends ``GRACE_SECONDS`` after that patience, whatever it waits for.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from pipeline.tracking import client as tracking
from pipeline.tracking.live import LivePoint

NICENESS = 10  # training goes first
GRACE_SECONDS = 4.0  # by which it may outlive training: two calls of two seconds each
PARENT_SECONDS = 1.0  # between looks at whether the parent is there
CHUNK = 1 << 16

Told = queue.SimpleQueue[dict[str, Any] | None]  # None: there is no more


def main() -> None:
    """Follow the phase that standard input tells of."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that trains says how it ends
    os.nice(NICENESS)
    place, parent = tracking.store(Path(sys.argv[1])), int(sys.argv[2])
    told: Told = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(parent, told), daemon=True).start()
    try:
        with redirect_stdout(sys.stderr):
            follow(place, gathered(told))
    except Exception as error:
        print(tracking.reason(error, place.uri), flush=True)


def _listen(parent: int, told: Told) -> None:
    """Take in what is told as it comes, so that who tells never waits; see to the end."""
    begun, patience = b"", 0.0
    while True:
        if select.select([0], [], [], PARENT_SECONDS)[0]:
            if not (got := os.read(0, CHUNK)):
                break
            *lines, begun = (begun + got).split(b"\n")  # of a killed process the last may be half
            messages = [json.loads(line) for line in lines]
            for message in messages:
                patience = message.get("patience", patience)
                told.put(message)
            if any("status" in message for message in messages):
                break
        elif os.getppid() != parent:  # a child of its own may hold the other end of the pipe
            break
    told.put(None)
    # needs no interpreter that still works
    faulthandler.dump_traceback_later(patience + GRACE_SECONDS, exit=True, file=2)


def gathered(told: Told) -> Iterator[dict[str, Any]]:
    """The first message, then of the later ones all that have come meanwhile as one.

    So a store that takes longer for a call than the calls are apart falls no further behind.
    """
    over = False
    if (about := told.get()) is not None:
        yield about
    while not over and about is not None:
        waiting = [told.get()]
        while not told.empty():
            waiting.append(told.get())
        over = None in waiting
        messages = [message for message in waiting if message is not None]
        status = {key: of[key] for of in messages for key in of if key == "status"}
        if messages:
            yield {"points": [point for of in messages for point in of["points"]], **status}


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
    if (about := next(told, None)) is None:
        return
    client = tracking.open_client(place)
    run_id = client.create_run(
        tracking.experiment(client, tracking.PHASES, place),
        start_time=about["started"],
        tags=about["tags"],
        run_name=about["name"],
    ).info.run_id
    tracking.send(client, run_id, params=about["params"])
    system = System(about["sample_seconds"])
    status = "KILLED"
    for message in told:
        status = message.get("status", status)
        machine = system.sample() if "status" in message else system.due()
        tracking.send(client, run_id, [*map(tuple, message["points"]), *machine])
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
