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

    def outcome(self, params: Params, made: Run, chosen: dict[str, Any]) -> dict[str, Any]:
        """What ``record.json`` says of a trained run beside what every task's says.

        Args:
            params: the whole of params.yaml.
            made: the run, with the weights that it leaves.
            chosen: the record of the phase that left them.
        """


BY_TASK: dict[Task, Runs] = {"classification": classification, "verification": verification}
