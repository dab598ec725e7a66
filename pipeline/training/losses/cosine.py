"""Cosine contrastive loss of pairs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.training.losses.base import LossBlock, Objective, Setting
from pipeline.training.losses.distances import unit

if TYPE_CHECKING:
    from torch import Tensor


class Cosine(LossBlock):
    """Contrastive loss on the cosine of two latents; ``margin`` is a cosine."""

    on: ClassVar[Literal["pairs", "images"]] = "pairs"
    name: Literal["cosine"] = "cosine"
    margin: Annotated[float, Field(ge=-1, lt=1)] = 0.0

    def make(self, setting: Setting) -> Objective:
        """``cosine`` with this margin."""
        return Objective(of_pairs=partial(cosine, margin=self.margin))


def cosine(
    left: Tensor, right: Tensor, left_class: Tensor, same: Tensor, *, margin: float
) -> Tensor:
    """Contrastive loss on cosines; latents (P, D) to (P,).

    A pair of one class pays ``1 - cos``, a pair of two classes ``relu(cos - margin)``, as
    ``torch.nn.CosineEmbeddingLoss`` has it. A latent of zeros has cosine 0 with all others, and
    gradient zero.

    Args:
        left, right: latents of the pairs' images.
        left_class: not used.
        same: whether the pair shows one class, (P,) bool.
        margin: the cosine up to which a pair of two classes is free.
    """
    cosines = (unit(left) * unit(right)).sum(dim=1)
    return (1 - cosines).where(same, (cosines - margin).relu())
