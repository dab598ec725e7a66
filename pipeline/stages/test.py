"""Stages ``test_breakdown`` and ``test_baseline``: the only readers of the test split."""

from __future__ import annotations

from pathlib import Path

from pipeline.params import Params
from pipeline.records import RunId, write_json
from pipeline.stages import common
from pipeline.tasks import predictions
from pipeline.training import runtime
from pipeline.training.loop import Result

TEST_LIST = Path("prepared/splits/test.csv")
TRIALS = Path("prepared/splits/trials.csv")


def test(params: Params, run: RunId) -> None:
    """Write the run's predictions on the test split, and what its network is like inside."""
    device = runtime.start(params.runtime)
    tested = predictions.BY_TASK[params.task].write(params, run, device, TEST_LIST, TRIALS)
    taken = Result("test", "", images_seen=tested.images, seconds=tested.seconds)
    taken.peak_memory_mb = runtime.peak_memory_mb(device)
    times = {"phases": [taken.timing()], "one_image_seconds": tested.one_image_seconds}
    write_json(run.test_timing, times)


if __name__ == "__main__":
    common.main_run(test)
