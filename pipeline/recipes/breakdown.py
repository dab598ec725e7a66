"""Optimisation objective breakdown: a Siamese loss before the cut, cross-entropy after it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.params import NonNegative, Optimization
from pipeline.recipes import base

if TYPE_CHECKING:
    from torch import nn

    from pipeline.training.phase import Phase
    from pipeline.training.run import Run

PerClass = NonNegative | Annotated[list[NonNegative], Field(min_length=2)]


class Encoder(Optimization):
    """The part before ``latent``, trained on pairs; margins in root-mean-square distance."""

    latent: str
    margin_same: PerClass = 0.0
    margin_different: NonNegative = 1.0
    weight_same: PerClass = 1.0
    weight_different: NonNegative = 1.0
    dropout: bool = False


class Breakdown(base.Breakdown):
    """Cut the network at ``encoder.latent`` into ``head(encoder(x))``.

    First the encoder minimises the mean contrastive loss of the listed pairs on the latent
    (``pipeline.training.losses.contrastive``); then it is fixed and the head minimises
    ``mean_i CE(head(encoder(x_i)), y_i)``.
    """

    recipe: Literal["breakdown"]
    encoder: Encoder
    head: Optimization

    def cut(self, run: Run) -> tuple[nn.Module, nn.Module]:
        """Encoder and head, sharing the network's parameters."""
        from pipeline.models.cut import cut

        return cut(run.network, self.encoder.latent)

    def encoder_module(self, run: Run) -> nn.Module:
        """The part before the latent."""
        return self.cut(run)[0]

    def encoder_phases(self, run: Run) -> Iterator[Phase]:
        """One phase, ``encoder``."""
        from pipeline.training.losses import contrastive

        encoder, _ = self.cut(run)
        loss = partial(
            contrastive,
            margin_same=run.per_class(self.encoder.margin_same, "encoder.margin_same"),
            margin_different=self.encoder.margin_different,
            weight_same=run.per_class(self.encoder.weight_same, "encoder.weight_same"),
            weight_different=self.encoder.weight_different,
        )
        groups = [{"params": list(encoder.parameters()), "lr": self.encoder.lr}]
        yield run.siamese("encoder", encoder, groups, self.encoder, loss, self.encoder.dropout)

    def head_phases(self, run: Run) -> Iterator[Phase]:
        """One phase, ``head``."""
        encoder, head = self.cut(run)
        groups = [{"params": list(head.parameters()), "lr": self.head.lr}]
        yield run.classification("head", head, groups, self.head, frozen=encoder)
