"""Optimisation objective breakdown: Siamese losses before the cut, cross-entropy after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.params import (
    Block,
    Classification,
    Classifying,
    Count,
    Optimization,
    Optimizer,
    PairHead,
    Rounds,
    Task,
    rule,
)
from pipeline.recipes import base
from pipeline.training.budget import apportion, one_or_list
from pipeline.training.losses import Contrastive, Loss

if TYPE_CHECKING:
    from torch import nn

    from pipeline.training.budget import Budget
    from pipeline.training.phase import Phase
    from pipeline.training.run import Run


class Encoder(Rounds):
    """The part before ``latent``; several latents cut it into parts, trained one after the other.

    Each part has its own ``loss`` where there is a list of them. ``freeze_to`` fixes everything
    up to a layer at its starting weights. ``per_class`` draws that many images of a class for
    each batch, for losses on images. The ``keep`` best epochs of the last part each get a head.
    """

    latent: str | Annotated[list[str], Field(min_length=1)]
    loss: Loss | Annotated[list[Loss], Field(min_length=1)] = Contrastive(name="contrastive")
    freeze_to: str | None = None
    per_class: Annotated[int, Field(ge=2)] | None = None
    keep: Count = 1
    dropout: bool = False

    @model_validator(mode="after")
    def _parts_and_losses(self) -> Self:
        losses = self.loss if isinstance(self.loss, list) else [self.loss]
        if len(losses) not in (1, len(self.latents)):
            raise rule(
                f"has {len(losses)} losses for {len(self.latents)} latents; give one for all, or "
                "one for each"
            )
        parts = len(self.latents)
        for key in ("epochs", "lr"):
            value = getattr(self, key)
            if isinstance(value, list) and len(value) > parts:
                raise rule(
                    f"has {len(value)} values of {key} for {parts} latents; give at most one each"
                )
        if self.keep > self.at(parts - 1, Optimization).epochs:
            raise rule(f"keep: {self.keep} is more than the epochs of the last part")
        if self.per_class and all(loss.on == "pairs" for loss in losses):
            names = ", ".join(loss.name for loss in losses)
            raise rule(f"per_class is for losses on images; {names} takes the listed pairs")
        return self

    @property
    def latents(self) -> list[str]:
        """Where the network is cut, in order."""
        return self.latent if isinstance(self.latent, list) else [self.latent]

    def epochs_of_parts(self) -> list[int]:
        """Epochs of each part."""
        return [self.at(number, Optimization).epochs for number in range(len(self.latents))]

    def passes_of_parts(self, of_classes: Callable[[Optimizer, int], float]) -> list[float]:
        """Passes of an epoch of each part: of every image once, or of ``per_class`` a class.

        Args:
            of_classes: as of ``pipeline.training.budget.Budget``.
        """
        return [
            of_classes(self, per_class) if (per_class := self.per_class_of(loss)) else 1
            for _, loss in self.losses()
        ]

    def per_class_of(self, loss: Loss) -> int | None:
        """Images of a class in a batch of a part with this loss; None where they are shuffled."""
        return self.per_class if loss.on == "images" else None

    def losses(self) -> list[tuple[str, Loss]]:
        """The loss of each part, and where it stands in the block."""
        if not isinstance(self.loss, list):
            return [("encoder.loss", self.loss)] * len(self.latents)
        named = [(f"encoder.loss.{number}", loss) for number, loss in enumerate(self.loss)]
        return named if len(named) > 1 else named * len(self.latents)


class Head(Classification):
    """The part after the last latent; ``freeze_to`` fixes more of it, as it started.

    In verification a head on ``pairs`` of latents takes the place of that part.
    """

    freeze_to: str | None = None
    pairs: PairHead | None = None

    @model_validator(mode="after")
    def _pairs_have_no_classes(self) -> Self:
        for key in ("freeze_to", "weight_decays", *Classifying.model_fields) if self.pairs else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise rule(f"{key} is for a head that classifies; one on pairs has none")
        return self


class Breakdown(base.Breakdown):
    """Cut the network at ``encoder.latent`` into ``head(encoder(x))``.

    First the encoder minimises the mean Siamese loss on its latent (``pipeline.training.losses``),
    part by part where there are several latents; then it is fixed and the head minimises
    ``mean_i CE(head(encoder(x_i)), y_i)``. In verification a head on pairs of latents minimises
    binary cross-entropy instead.
    """

    recipe: Literal["breakdown"]
    encoder: Encoder
    head: Head

    @property
    def task(self) -> Task:
        """By the head."""
        return "verification" if self.head.pairs else "classification"

    def epochs_in_all(self) -> int:
        """All parts of the encoder, and a head for each encoder that is kept."""
        return sum(self.encoder.epochs_of_parts()) + self.encoder.keep * sum(self._head_epochs())

    def matched(self, budget: Budget) -> Self:
        """Half of the passes for all parts of the encoder, half for the heads on all that are kept.

        So a changed head needs no new encoder. Epochs of pairs, or of ``per_class`` images a class,
        are as many as come nearest to their share.
        """
        one = budget.of_pairs(self.head) if self.head.pairs else 1
        heads = self._head_epochs()
        parts, passes = budget.halves(
            self.encoder.epochs_of_parts(),
            self.encoder.passes_of_parts(budget.of_classes),
            least=self.encoder.keep,
            needed=math.ceil(one) * len(heads),
            times=self.encoder.keep,
        )
        encoder = self.encoder.model_copy(update={"epochs": one_or_list(parts)})
        epochs = apportion(passes, heads, costs=[one] * len(heads))
        return self.model_copy(update={"encoder": encoder, "head": self._head_with(epochs)})

    def _head_epochs(self) -> list[int]:
        """Epochs of the phases of one head."""
        return [self.head.epochs]

    def _head_with(self, epochs: list[int]) -> Head:
        """The head's block with other epochs of its phases."""
        return self.head.model_copy(update={"epochs": epochs[0]})

    def cuts(self) -> Iterator[tuple[tuple[str | int, ...], list[str]]]:
        """Those of the encoder, and the head's ``freeze_to`` after them."""
        yield from (found for found in super().cuts() if found[0][0] != "head")
        if self.head.freeze_to:
            yield ("head", "freeze_to"), [self.encoder.latents[-1], self.head.freeze_to]

    def fit_to(self, network: nn.Module) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """In verification, losses that validation classes, which are others, have no value of."""
        for key, loss in self.encoder.losses() if self.head.pairs else ():
            if loss.learns_classes():
                place = tuple(int(part) if part.isdigit() else part for part in key.split("."))
                yield (
                    (*place, "name"),
                    f"{loss.name} learns weights of the training classes, by which validation "
                    "classes cannot be judged; use contrastive, supcon or triplet",
                )

    def layers(self, block: Block, network: nn.Module) -> nn.Module:
        """The encoder's block names layers of the encoder, the head's those after it."""
        from pipeline.models.cut import cut

        if block is not self.encoder and block is not self.head:
            return network
        return cut(network, self.encoder.latents[-1])[block is self.head]

    def encoder_module(self, run: Run) -> nn.Module:
        """The part before the last latent."""
        return run.part(upto=self.encoder.latents[-1])

    def encoder_phases(self, run: Run) -> Iterator[Phase]:
        """A phase for each latent: ``encoder``, or ``encoder_1``, ``encoder_2``, …"""
        asked = self.encoder
        bounds = pairwise([asked.freeze_to, *asked.latents])
        last = len(asked.latents) - 1
        for number, ((after, upto), (key, loss)) in enumerate(
            zip(bounds, asked.losses(), strict=True)
        ):
            yield run.siamese(
                f"encoder_{number + 1}" if last else "encoder",
                run.part(after, upto),
                asked.at(number, Optimization),
                loss,
                frozen=run.before(after),
                dropout=asked.dropout,
                per_class=asked.per_class_of(loss),
                keep=asked.keep if number == last else 1,
                key=key,
            )

    def head_phases(self, run: Run) -> Iterator[Phase]:
        """One phase, ``head``."""
        if self.head.pairs:
            verifier = run.verifier(self.encoder.latents[-1], self.head.pairs)
            yield run.verification("head", verifier, self.head, frozen=True)
            return
        after = self.head.freeze_to or self.encoder.latents[-1]
        yield run.classification("head", run.part(after), self.head, frozen=run.before(after))

    def restore(self, network: nn.Module, path: Path) -> nn.Module:
        """The whole network, or its encoder with a head on pairs."""
        from pipeline.models.pairs import restore_verifier

        if not self.head.pairs:
            return super().restore(network, path)
        return restore_verifier(network, self.encoder.latents[-1], self.head.pairs.kind, path)
