"""The images of a run as a phase takes them: augmented, or as latents of a frozen part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.data.augmentation import changes
from pipeline.data.rows import Rows, in_order, stream
from pipeline.models import architectures
from pipeline.training.phase import EVALUATION_BATCH

if TYPE_CHECKING:
    from pipeline.training.run import Run


class Feed:
    """Training images by position, and all validation images, as a phase's module takes them.

    ``frozen`` is what lies before the trained module. It stays fixed, in evaluation mode. Its
    latents of the validation images are computed once, and without augmentation those of the
    training images, too. Images themselves are kept as bytes and normalised batch by batch.
    """

    def __init__(self, run: Run, frozen: nn.Module | None, changing: bool = False):
        """``changing`` says that the phase alters images, so that no latent can be kept."""
        self._run, self._frozen = run, frozen
        self._generator = run.generator("augmentation")
        self._latents: Rows | None = None
        self._val_latents: Rows | None = None
        if frozen is not None:
            frozen.requires_grad_(False).eval()
            if run.training.augmentation.off and not changing:
                self._latents = run.keep(frozen, run.train)
            self._val_latents = run.keep(frozen, run.val)

    def stream(self, drawn: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """The images of an epoch (B, C, H, W), or their latents, for ``inputs`` to finish.

        Args:
            drawn: positions of each batch (B,), on the CPU, and the same on the device.
        """
        if self._latents is not None:
            yield from stream(self._latents, drawn)
            return
        for images in self._changed(drawn):
            yield architectures.normalise(images, self._run.architecture)

    def inputs(self, taken: Tensor) -> Tensor:
        """What the trained module takes, of what ``stream`` gave."""
        if self._frozen is None or self._latents is not None:
            return taken
        with torch.no_grad():
            latents: Tensor = self._frozen(taken)
        return latents

    def _changed(self, drawn: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Images of an epoch (B, C, H, W), augmented."""
        run, settings = self._run, self._run.training.augmentation
        if settings.off:
            yield from stream(run.train.pixels, drawn)
            return
        drawn, again = tee(drawn)
        height, width = run.train.pixels.shape[2:]
        counts = (len(index) for index, _ in again)
        changing = changes(counts, (height, width), settings, self._generator, run.device)
        for pixels, change in zip(stream(run.train.pixels, drawn), changing, strict=True):
            yield change(pixels)

    def val(self) -> Iterator[Tensor]:
        """Validation inputs in order, in batches."""
        if self._val_latents is not None:
            return in_order(self._val_latents, EVALUATION_BATCH)
        return self._run.encode(None, self._run.val)
