"""Layer by layer: the last block first, then one block more in each round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pipeline.params import Classification, Classifying, Count, Rounds
from pipeline.recipes.base import Baseline

if TYPE_CHECKING:
    from pipeline.training.phase import Phase
    from pipeline.training.run import Run

BLOCKS_GUESSED = 8  # of a network that is not built yet, for the plan


class Layerwise(Baseline, Rounds, Classifying):
    """Round i minimises ``mean_i CE(network(x_i), y_i)`` over the last i blocks.

    Blocks are those of ``pipeline.models.cut.block_ends``: AlexNet has eight, ResNet-18 ten. There
    are as many ``rounds`` as blocks unless fewer are asked for. Gradual unfreezing: Howard and
    Ruder, "Universal Language Model Fine-tuning for Text Classification" (ACL 2018), section 3.3.
    """

    recipe: Literal["layerwise"]
    rounds: Count | None = None

    def epochs_in_all(self) -> int:
        """All rounds, as far as their number is known."""
        rounds = range(self.rounds or BLOCKS_GUESSED)
        return sum(self.at(number, Classification).epochs for number in rounds)

    def phases(self, run: Run) -> Iterator[Phase]:
        """A phase a round: ``round_1``, ``round_2``, …"""
        from pipeline.models.cut import block_ends

        blocks = len(block_ends(run.network)) + 1
        for number in range(min(self.rounds or blocks, blocks)):
            frozen, module = run.last_blocks(number + 1)
            settings = self.at(number, Classification)
            yield run.classification(f"round_{number + 1}", module, settings, frozen=frozen)
