"""The lists of each task."""

from __future__ import annotations

from typing import Protocol

from pipeline.params import Params, Task
from pipeline.tasks.classification import lists as classification
from pipeline.tasks.verification import lists as verification


class Lists(Protocol):
    """What a task's ``lists`` does."""

    def write(self, params: Params) -> None:
        """Read ``prepared/images.*`` and write the lists that training and test stages read.

        Raises:
            InputError: the images do not allow the splits, pairs or shots that are asked for.
        """


BY_TASK: dict[Task, Lists] = {"classification": classification, "verification": verification}
