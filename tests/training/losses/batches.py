"""Batches of latents that losses must bear, and slow obvious arithmetic."""

import math

import torch

KINDS = ["mixed", "all same", "all different", "equal latents", "zero latents", "one image"]


def batch(kind, dimension=5):
    """Latents (B, D) in float64 that want a gradient, and labels (B,)."""
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(9, dimension, dtype=torch.float64, generator=random)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 3])
    if kind == "all same":
        labels = torch.zeros(9, dtype=torch.int64)
    if kind == "all different":
        labels = torch.arange(9)
    if kind == "equal latents":
        latents = latents[:1].expand(9, -1).clone()
    if kind == "zero latents":
        latents[::2] = 0
    if kind == "one image":
        latents, labels = latents[:1], labels[:1]
    return latents.requires_grad_(), labels


def backward_is_finite(losses, latents):
    losses.sum().backward()
    return latents.grad is not None and bool(torch.isfinite(latents.grad).all())


def rms(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))


def cos(a, b):
    long = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / long if long else 0.0
