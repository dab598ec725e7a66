"""Training from scratch: all layers by cross-entropy, from a random start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.params import Classification
from pipeline.recipes.base import Baseline

if TYPE_CHECKING:
    from pipeline.training.phase import Phase
    from pipeline.training.run import Run


class Scratch(Baseline, Classification):
    """Minimise ``mean_i CE(network(x_i), y_i)`` from the seed's random initialisation alone."""

    recipe: Literal["scratch"]
    blocks_are_phases: ClassVar[bool] = True
    uses_start: ClassVar[bool] = False

    def phases(self, run: Run) -> Iterator[Phase]:
        """One phase, ``end_to_end``."""
        yield run.classification("end_to_end", run.network, self)
