"""Triplet loss of all, semi-hard or hardest triplets of a batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.params import Positive
from pipeline.training.losses.base import LossBlock, Objective, Setting
from pipeline.training.losses.distances import rms_distances

if TYPE_CHECKING:
    from torch import Tensor

Mining = Literal["all", "semihard", "hard"]


class Triplet(LossBlock):
    """Triplet loss; ``margin`` in root-mean-square distance, ``mining`` says which triplets."""

    on: ClassVar[Literal["pairs", "images"]] = "images"
    name: Literal["triplet"] = "triplet"
    margin: Positive = 1.0
    mining: Mining = "all"

    def make(self, setting: Setting) -> Objective:
        """``triplet`` with these settings."""
        return Objective(of_images=partial(triplet, margin=self.margin, mining=self.mining))


def triplet(
    latents: Tensor, labels: Tensor, *, margin: float, mining: Mining = "all"
) -> tuple[Tensor, Tensor]:
    """Triplet loss on root-mean-square distances d; latents (B, D) and labels (B,) to two (B,).

    An anchor a pays ``relu(margin + d(a, p) - d(a, n))``, with p of its class and n of another:

    - ``all``: the mean over all its (p, n), "batch all" of Hermans, Beyer and Leibe, "In defense
      of the triplet loss for person re-identification" (2017), equation 6;
    - ``hard``: of its farthest p and its nearest n, "batch hard", equation 5 there;
    - ``semihard``: the mean over its p, each with the nearest n that is farther than p, or else
      the farthest n; Schroff, Kalenichenko and Philbin, "FaceNet" (CVPR 2015), section 3.2.

    Latents at the same place have gradient zero. Memory grows with B^3, for ``hard`` with B^2.

    Returns:
        the loss of each anchor, and whether it has a triplet; without one the loss is 0.
    """
    distances = rms_distances(latents)  # (B, B)
    same = labels[:, None] == labels[None, :]
    negative = ~same
    positive = same.fill_diagonal_(False)
    counts = positive.any(dim=1) & negative.any(dim=1)
    if mining == "all":
        losses = _all(distances, positive, negative, margin)
    elif mining == "semihard":
        losses = _semihard(distances, positive, negative, margin)
    else:
        losses = _hard(distances, positive, negative, margin)
    return losses.where(counts, 0.0), counts


def _all(distances: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    paid = (margin + distances[:, :, None] - distances[:, None, :]).relu()  # (B, P, N)
    triplets = positive[:, :, None] & negative[:, None, :]
    return paid.where(triplets, 0.0).sum(dim=(1, 2)) / triplets.sum(dim=(1, 2)).clamp(min=1)


def _hard(distances: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    farthest = distances.where(positive, -1.0).amax(dim=1)  # (B,)
    nearest = distances.where(negative, float("inf")).amin(dim=1)
    return (margin + farthest - nearest).relu()


def _semihard(distances: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    # (B, P, N): negatives n of anchor a that are farther from it than its positive p
    farther = negative[:, None, :] & (distances[:, None, :] > distances[:, :, None])
    nearest = distances[:, None, :].where(farther, float("inf")).amin(dim=2)  # (B, P)
    farthest = distances.where(negative, -1.0).amax(dim=1, keepdim=True)  # (B, 1)
    chosen = nearest.where(farther.any(dim=2), farthest)
    paid = (margin + distances - chosen).relu().where(positive, 0.0)
    return paid.sum(dim=1) / positive.sum(dim=1).clamp(min=1)
