"""Contrastive loss of pairs with a margin on both sides."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.errors import InputError
from pipeline.params import NonNegative
from pipeline.training.losses.base import LossBlock, Objective, Setting
from pipeline.training.losses.distances import rms_distance

if TYPE_CHECKING:
    from torch import Tensor

PerClass = NonNegative | Annotated[list[NonNegative], Field(min_length=2)]


class Contrastive(LossBlock):
    """Double-margin contrastive loss; margins in root-mean-square distance.

    ``margin_same`` and ``weight_same`` are one number, or one a class in the labels' order.
    """

    on: ClassVar[Literal["pairs", "images"]] = "pairs"
    name: Literal["contrastive"] = "contrastive"
    margin_same: PerClass = 0.0
    margin_different: NonNegative = 1.0
    weight_same: PerClass = 1.0
    weight_different: NonNegative = 1.0

    def make(self, setting: Setting) -> Objective:
        """``contrastive`` with these settings; an InputError if a list does not fit the classes."""
        return Objective(
            of_pairs=partial(
                contrastive,
                margin_same=_per_class(self.margin_same, "margin_same", setting),
                margin_different=self.margin_different,
                weight_same=_per_class(self.weight_same, "weight_same", setting),
                weight_different=self.weight_different,
            )
        )


def contrastive(
    left: Tensor,
    right: Tensor,
    left_class: Tensor,
    same: Tensor,
    *,
    margin_same: Tensor,
    margin_different: float,
    weight_same: Tensor,
    weight_different: float,
) -> Tensor:
    """Contrastive loss with a margin on both sides; latents (P, D) to (P,).

    With d the root-mean-square distance of the two latents, a pair of class c pays
    ``weight_same[c] * relu(d - margin_same[c])^2`` and a pair of two classes
    ``weight_different * relu(margin_different - d)^2``. With ``margin_same`` zero and weights one
    half this is equation 4 of Hadsell, Chopra and LeCun, "Dimensionality reduction by learning an
    invariant mapping" (CVPR 2006), on the root-mean-square distance.

    Args:
        left, right: latents of the pairs' images.
        left_class: label of the left image, (P,); for a pair of one class it is the pair's.
        same: whether the pair shows one class, (P,) bool.
        margin_same, weight_same: a value a class, (C,).
        margin_different, weight_different: scalars.
    """
    distance = rms_distance(left, right)
    pull = weight_same[left_class] * (distance - margin_same[left_class]).relu().square()
    push = weight_different * (margin_different - distance).relu().square()
    return pull.where(same, push)


def _per_class(value: float | list[float], key: str, setting: Setting) -> Tensor:
    """A scalar, or a value a class, as a tensor (C,) on the device."""
    import torch

    values = value if isinstance(value, list) else [value] * setting.classes
    if len(values) != setting.classes:
        raise InputError(
            f"params.yaml: {setting.key}.{key}: has {len(values)} values for "
            f"{setting.classes} classes; give one number, or one a class in the labels' order"
        )
    return torch.tensor(values, dtype=torch.float32, device=setting.device)
