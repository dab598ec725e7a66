"""A Siamese network, end to end by binary cross-entropy on pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pipeline.params import Block, NonNegative, Optimization, PairHead, Task
from pipeline.recipes.base import Baseline

if TYPE_CHECKING:
    from torch import nn

    from pipeline.training.budget import Budget
    from pipeline.training.phase import Phase
    from pipeline.training.run import Run


class Siamese(Baseline, Optimization):
    """Both images of a pair through one encoder, and a head on the two encodings.

    Minimises ``mean BCE(head(f(x_1), f(x_2)), same) + sum_l l2_l |W_l|^2`` over the training
    pairs, ``batch_size`` of them at a time; f is the network up to ``latent``. ``l2`` gives layers
    of f, by the beginnings of their names, their strength. Source: Koch, Zemel and Salakhutdinov,
    "Siamese neural networks for one-shot image recognition" (ICML deep learning workshop 2015),
    section 3.2.
    """

    recipe: Literal["siamese"]
    latent: str
    head: PairHead = PairHead()
    l2: dict[str, NonNegative] = {}

    @property
    def task(self) -> Task:
        """Verification."""
        return "verification"

    def matched(self, budget: Budget) -> Self:
        """As many epochs of pairs as come nearest to the passes.

        An image that several pairs of a batch share goes through the encoder, and counts, once.
        """
        (epochs,) = budget.share([self.epochs], [budget.of_pairs(self)])
        return self.model_copy(update={"epochs": epochs})

    def layers(self, block: Block, network: nn.Module) -> nn.Module:
        """Those of the encoder, which end with the latent."""
        from pipeline.models.cut import cut

        return cut(network, self.latent)[0]

    def phases(self, run: Run) -> Iterator[Phase]:
        """One phase, ``end_to_end``."""
        verifier = run.verifier(self.latent, self.head)
        yield run.verification("end_to_end", verifier, self, l2=self.l2)

    def restore(self, network: nn.Module, path: Path) -> nn.Module:
        """The encoder of ``network`` and the head, as the file has them."""
        from pipeline.models.pairs import restore_verifier

        return restore_verifier(network, self.latent, self.head.kind, path)
