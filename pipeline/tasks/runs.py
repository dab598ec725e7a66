"""The runs of each task: how one is loaded, and what its record says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pipeline.params import Params, Task
from pipeline.records import RunId
from pipeline.tasks.classification import runs as classification
from pipeline.tasks.verification import runs as verification
from pipeline.training.run import Run

if TYPE_CHECKING:  # what it trains is not a task's business
    from pipeline.recipes import Recipe


class Runs(Protocol):
    """What a task's ``runs`` does."""

    def load(
        self, params: Params, run: RunId, recipe: Recipe, pairs: bool
    ) -> tuple[Run, dict[str, str]]:
        """Build a run's network with its starting weights and bring its data to the device.

        Args:
            params: the whole of params.yaml.
            run: which one.
            recipe: of its method.
            pairs: whether a recipe of two stages trains on pairs in this one.

        Returns:
            the run and the MD5 of each of its inputs by role: ``images`` (the pixels it uses),
            ``train``, ``val``, ``start``, ``pairs``.
        """

    def metrics(self, chosen: dict[str, Any]) -> dict[str, float]:
        """Metrics of ``record.json`` that training knows and every finished run of the task has.

        Args:
            chosen: the record of the phase that left the run's weights.
        """


BY_TASK: dict[Task, Runs] = {"classification": classification, "verification": verification}
