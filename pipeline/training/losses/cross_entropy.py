"""Softmax cross-entropy, the loss of every classifier here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy; (B, C) and (B,) to (B,), in nats.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        label_smoothing: the share of the target that is spread evenly over all classes; Szegedy
            et al., "Rethinking the Inception architecture for computer vision" (CVPR 2016),
            section 7.
        class_weights: (C,); an image's loss is multiplied by its class's.
    """
    from torch.nn import functional

    losses = functional.cross_entropy(
        logits.float(), labels, reduction="none", label_smoothing=label_smoothing
    )
    return losses if class_weights is None else losses * class_weights[labels]


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Class weights that give every class the same sum; (N,) to (C,).

    ``N / (K n_c)`` for the ``n_c`` images of class c and K classes with images, so that the mean
    weight of the images is 1; scikit-learn's ``balanced``, after King and Zeng, "Logistic
    regression in rare events data" (2001). A class without images gets 0.
    """
    counts = labels.cpu().bincount(minlength=classes)
    present = counts > 0
    weights = len(labels) / (present.sum() * counts.clamp(min=1)).float()
    return weights.where(present, 0.0).to(labels.device)
