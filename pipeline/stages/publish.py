"""Stage ``publish``: mirror the results into MLflow. A tracking failure costs no experiment."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.stages import common
from pipeline.tracking import away, client, mirror
from pipeline.tracking.threads import within

LONGEST = 600.0  # seconds; what is there by then stays, and the next publish goes on from it


def publish(params: Params) -> None:
    """Publish the compared runs and say how many; what MLflow does not take is a warning."""
    place = client.store(client.project_root())
    shown = client.shown(place.uri)
    try:
        done = within(LONGEST, lambda: mirror.publish(params, Path.cwd(), place))
        if done is None:
            raise client.TrackingError(f"not done after {LONGEST:g} s")
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
    away.forget(place)
    missing = f", {done.missing} without a record" if done.missing else ""
    print(
        f"MLflow: {done.created} runs created, {done.replaced} replaced, {done.kept} unchanged"
        f"{missing} in {shown} (experiment {client.RESULTS})"
    )


if __name__ == "__main__":
    common.main(publish)
