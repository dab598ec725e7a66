"""The images of a run as a phase takes them: augmented, or as latents of a frozen part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.data.augmentation import augment
from pipeline.models import architectures

if TYPE_CHECKING:
    from pipeline.training.run import Run


class Feed:
    """Training images by position, and all validation images, as a phase's module takes them.

    ``frozen`` is what lies before the trained module. It stays fixed, in evaluation mode. Without
    augmentation its latents are computed once, for all training images together.

    Attributes:
        val: validation inputs in order, in batches.
    """

    def __init__(self, run: Run, frozen: nn.Module | None, changing: bool = False):
        """``changing`` says that the phase alters images, so that no latent can be kept."""
        self._run, self._frozen = run, frozen
        self._generator = run.generator("augmentation")
        self._latents: Tensor | None = None
        if frozen is not None:
            frozen.requires_grad_(False).eval()
            if run.training.augmentation.off and not changing:
                self._latents = torch.cat(list(run.encode(frozen, run.train)))
        self.val = list(run.encode(frozen, run.val))

    def take(self, index: Tensor) -> Tensor:
        """Images (B, C, H, W), or their latents if those are kept, for ``inputs`` to finish."""
        if self._latents is not None:
            return self._latents[index]
        run = self._run
        pixels = augment(run.train.pixels[index], run.training.augmentation, self._generator)
        return architectures.normalise(pixels, run.architecture)

    def inputs(self, taken: Tensor) -> Tensor:
        """What the trained module takes, of what ``take`` gave."""
        if self._frozen is None or self._latents is not None:
            return taken
        with torch.no_grad():
            latents: Tensor = self._frozen(taken)
        return latents
