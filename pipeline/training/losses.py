"""Losses: one function each, one value per pair or image; the loop takes their mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy; (B, C) and (B,) to (B,), in nats."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def rms_distance(left: Tensor, right: Tensor) -> Tensor:
    """Root-mean-square distance of latents; (P, D) twice to (P,).

    The root's slope is infinite at zero, where autograd would make NaN of it; here the gradient
    of two equal latents is zero.
    """
    square = (left - right).square().mean(dim=1)
    apart = square != 0  # NaN too, which must stay NaN
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)


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
    return torch.where(same, pull, push)
