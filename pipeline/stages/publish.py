"""Stage ``publish``: mirror the results into MLflow. A tracking failure costs no experiment."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.stages import common
from pipeline.tracking import client, mirror

LONGEST = 600.0  # seconds; what is there by then stays, and the next publish goes on from it
Result = TypeVar("Result")


def publish(params: Params) -> None:
    """Publish the compared runs and say how many; what MLflow does not take is a warning."""
    place = client.store(client.project_root())
    shown = client.shown(place.uri)
    try:
        done = _within(LONGEST, lambda: mirror.publish(params, Path.cwd(), place))
    except InputError:
        raise
    except Exception as error:
        why = client.reason(error, place.uri)
        print(
            f"warning: MLflow: not all runs are in {shown}: {why}; the results are safe in their "
            "files, and dvc repro publish tries again",
            file=sys.stderr,
        )
        return
    missing = f", {done.missing} without a record" if done.missing else ""
    print(
        f"MLflow: {done.created} runs created, {done.replaced} replaced, {done.kept} unchanged"
        f"{missing} in {shown} (experiment {client.RESULTS})"
    )


def _within(seconds: float, work: Callable[[], Result]) -> Result:
    """What ``work`` returns or raises; it is left to itself when it takes too long.

    No timeout of a single call does as much: a server may send a byte now and then for ever.

    Raises:
        TrackingError: it takes longer.
    """
    answers: queue.SimpleQueue[tuple[list[Result], BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(([work()], None))
        except BaseException as error:
            answers.put(([], error))

    threading.Thread(target=run, daemon=True, name="publish").start()
    try:
        results, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise client.TrackingError(f"not done after {seconds:g} s") from None
    if error:
        raise error
    return results[0]


if __name__ == "__main__":
    common.main(publish)
