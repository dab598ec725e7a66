"""A breakdown, and then all layers released at a small learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from pipeline.params import Classification, Task, rule
from pipeline.recipes import breakdown

if TYPE_CHECKING:
    from pipeline.training.phase import Phase
    from pipeline.training.run import Run


class Head(breakdown.Head):
    """The part after the last latent, and how all layers go on after it."""

    release: Classification

    @model_validator(mode="after")
    def _classifies(self) -> Self:
        if self.pairs:
            raise rule("pairs is for the recipe breakdown; here all layers learn to classify")
        return self


class BreakdownFinetune(breakdown.Breakdown):
    """After encoder and head, minimise ``mean_i CE(network(x_i), y_i)`` over all parameters.

    Of the head alone and the released network, the later one is taken: the epoch is chosen within
    the release.
    """

    recipe: Literal["breakdown_finetune"]  # type: ignore[assignment]
    head: Head

    @property
    def task(self) -> Task:
        """Classification, whatever the head."""
        return "classification"

    def _head_epochs(self) -> list[int]:
        return [self.head.epochs, self.head.release.epochs]

    def _head_with(self, epochs: list[int]) -> Head:
        release = self.head.release.model_copy(update={"epochs": epochs[1]})
        return self.head.model_copy(update={"epochs": epochs[0], "release": release})

    def head_phases(self, run: Run) -> Iterator[Phase]:
        """Two phases, ``head`` and ``release``."""
        yield from super().head_phases(run)
        yield run.classification("release", run.network, self.head.release)
