"""The scores of each task."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pipeline.evaluation.collect import Scored, UnitInterval
from pipeline.params import Compare, Task
from pipeline.tasks.classification import scores as classification
from pipeline.tasks.verification import scores as verification


class Scores(Protocol):
    """What a task's ``scores`` does, without torch."""

    def read(self, path: Path, compare: Compare) -> Scored:
        """Read a run's predictions, and score them.

        Raises:
            InputError: the file is missing or damaged, or ``compare`` does not go with it.
        """

    def intervals(self, compare: Compare) -> list[UnitInterval]:
        """How far each method's scores hang on what is tested; none where that is no sample.

        In compare order: methods, shots, metrics.

        Raises:
            InputError: a predictions file is missing or damaged.
        """


BY_TASK: dict[Task, Scores] = {"classification": classification, "verification": verification}
