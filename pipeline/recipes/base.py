"""What a recipe is: the typed fields of its method block, and the phases it trains in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pipeline.params import Block

if TYPE_CHECKING:  # recipes are read without torch, to check params.yaml in no time
    from torch import nn

    from pipeline.training.phase import Phase
    from pipeline.training.run import Run


class Recipe(Block):
    """A way of training. Its fields are the keys that a method of this recipe may have."""

    recipe: str
    uses_start: ClassVar[bool] = True  # whether the network gets the starting weights


class Baseline(Recipe):
    """A recipe that is trained in one stage, whatever its phases."""

    def phases(self, run: Run) -> Iterator[Phase]:
        """The phases in order; each is trained before the next is asked for."""
        raise NotImplementedError


class Breakdown(Recipe):
    """A recipe that is trained in two stages, with blocks ``encoder`` and ``head`` of its own."""

    encoder: Block
    head: Block

    def encoder_module(self, run: Run) -> nn.Module:
        """The part of ``run.network`` that the encoder stage trains."""
        raise NotImplementedError

    def encoder_phases(self, run: Run) -> Iterator[Phase]:
        """The phases before the cut; they need ``run.pairs``."""
        raise NotImplementedError

    def head_phases(self, run: Run) -> Iterator[Phase]:
        """The phases after the cut, on the encoder as it was left."""
        raise NotImplementedError
