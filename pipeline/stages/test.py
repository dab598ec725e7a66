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
    """Write the run's predictions on the test split."""
    device = runtime.start(params.runtime)
    images, seconds = predictions.BY_TASK[params.task].write(params, run, device, TEST_LIST, TRIALS)
    taken = Result("test", "", images_seen=images, seconds=seconds)
    taken.peak_memory_mb = runtime.peak_memory_mb(device)
    write_json(run.test_timing, {"phases": [taken.timing()]})


if __name__ == "__main__":
    common.main_run(test)
