"""Distances and directions of latents, with gradients that are finite everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def rms_distance(left: Tensor, right: Tensor) -> Tensor:
    """Root-mean-square distance of latents; (P, D) twice to (P,).

    The root's slope is infinite at zero, where autograd would make NaN of it; here the gradient
    of two equal latents is zero.
    """
    square = (left - right).square().mean(dim=1)
    apart = square != 0  # NaN too, which must stay NaN
    return square.where(apart, 1.0).sqrt().where(apart, 0.0)


def rms_distances(latents: Tensor) -> Tensor:
    """Root-mean-square distance of all pairs; (B, D) to (B, B). Equal latents: gradient zero."""
    import torch

    # by differences, as matrix products would lose the distances of near latents to rounding
    distances = torch.cdist(latents, latents, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / latents.shape[1] ** 0.5


def unit(latents: Tensor) -> Tensor:
    """Latents (B, D) at length one; a latent of zeros stays zero, with gradient zero."""
    square = latents.square().sum(dim=1, keepdim=True)
    long = square != 0  # NaN too, which must stay NaN
    return latents * square.where(long, 1.0).rsqrt().where(long, 0.0)
