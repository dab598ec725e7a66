"""Supervised contrastive loss (SupCon)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.params import Positive
from pipeline.training.losses.base import LossBlock, Objective, Setting
from pipeline.training.losses.distances import unit

if TYPE_CHECKING:
    from torch import Tensor


class SupCon(LossBlock):
    """Supervised contrastive loss on the directions of latents."""

    on: ClassVar[Literal["pairs", "images"]] = "images"
    name: Literal["supcon"] = "supcon"
    temperature: Positive = 0.1

    def make(self, setting: Setting) -> Objective:
        """``supcon`` with this temperature."""
        return Objective(of_images=partial(supcon, temperature=self.temperature))


def supcon(latents: Tensor, labels: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Supervised contrastive loss; latents (B, D) and labels (B,) to two (B,).

    With z the latents at length one and P(i) the other images of the class of i, image i pays

        -1/|P(i)| sum_{p in P(i)} log(exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t)),

    the L_out of Khosla et al., "Supervised contrastive learning" (NeurIPS 2020), equation 2. A
    latent of zeros stays zero, with gradient zero.

    Returns:
        the loss of each image, and whether another image shows its class; without one it is 0.
    """
    import torch

    directions = unit(latents)
    with torch.autocast(latents.device.type, enabled=False):  # bfloat16 has too few digits
        similar = directions @ directions.T / temperature  # (B, B)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    # the least number, not infinity, whose gradient would be NaN for a batch of one
    others = similar.masked_fill(itself, torch.finfo(similar.dtype).min)
    log_share = similar - others.logsumexp(dim=1, keepdim=True)
    counts = positive.any(dim=1)
    losses = -log_share.where(positive, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return losses, counts
