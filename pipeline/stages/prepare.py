"""Stage ``prepare``: splits, leakage checks, the training images of each run, pair lists."""

from __future__ import annotations

from pipeline.params import Params
from pipeline.stages import common
from pipeline.tasks import lists


def prepare(params: Params) -> None:
    """Write ``prepared/`` but for the images themselves, as the task needs it."""
    lists.BY_TASK[params.task].write(params)


if __name__ == "__main__":
    common.main(prepare)
