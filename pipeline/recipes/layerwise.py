"""Layer by layer: the last block first, then one block more in each round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from pipeline.errors import InputError
from pipeline.params import Classification, Classifying, Count, Rounds, rule
from pipeline.recipes.base import Baseline
from pipeline.training.budget import one_or_list

if TYPE_CHECKING:
    from torch import nn

    from pipeline.training.budget import Budget
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

    @model_validator(mode="after")
    def _a_value_a_round(self) -> Self:
        for key in ("epochs", "lr"):
            value = getattr(self, key)
            if self.rounds and isinstance(value, list) and len(value) > self.rounds:
                raise rule(f"has {len(value)} values of {key} for {self.rounds} rounds")
        return self

    def fit_to(self, network: nn.Module) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """More rounds than the network has blocks, or values of a key than rounds."""
        from pipeline.models.cut import block_ends

        blocks = len(block_ends(network)) + 1
        if self.rounds and self.rounds > blocks:
            yield ("rounds",), f"{self.rounds} are more than the network's {blocks} blocks"
        for key in ("epochs", "lr"):
            value = getattr(self, key)
            if isinstance(value, list) and len(value) > blocks:
                yield (key,), f"has {len(value)} values for {blocks} rounds, one a block"

    def epochs_in_all(self) -> int:
        """All rounds, as far as their number is known."""
        rounds = range(self.rounds or BLOCKS_GUESSED)
        return sum(self.at(number, Classification).epochs for number in rounds)

    def matched(self, budget: Budget) -> Self:
        """The passes on all rounds, as many as the network has blocks if none are asked for."""
        rounds = self.rounds or budget.blocks
        epochs = budget.share([self.at(number, Classification).epochs for number in range(rounds)])
        return self.model_copy(update={"epochs": one_or_list(epochs), "rounds": rounds})

    def phases(self, run: Run) -> Iterator[Phase]:
        """A phase a round: ``round_1``, ``round_2``, …"""
        from pipeline.models.cut import block_ends

        for (key,), problem in self.fit_to(run.network):
            raise InputError(f"params.yaml: methods.{run.method}.{key}: {problem}")
        blocks = len(block_ends(run.network)) + 1
        for number in range(self.rounds or blocks):
            frozen, module = run.last_blocks(number + 1)
            settings = self.at(number, Classification)
            yield run.classification(f"round_{number + 1}", module, settings, frozen=frozen)
