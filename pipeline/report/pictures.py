"""Small pictures of prepared images, by their names."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.evaluation.collect import read_text_table
from pipeline.records import REMAKE

LEAST, MOST = 64, 96  # sides of a small picture, in pixels


@dataclass(frozen=True)
class Album:
    """The prepared images: their names, and their pixels, of which only those shown are read."""

    names: Path = Path("prepared/images.csv")
    pixels: Path = Path("prepared/images.npy")

    def small(self, images: Sequence[str]) -> list[bytes]:
        """A small PNG of each named image, in the order asked for; errors as of ``read``."""
        return [small_picture(pixels) for pixels in self.read(images)]

    def read(self, images: Sequence[str]) -> list[NDArray[np.uint8]]:
        """The pixels (C, H, W) of each named image, in the order asked for.

        Raises:
            InputError: a file is missing or damaged, or has no such image.
        """
        if not images:
            return []
        rows, pixels = self._rows(), self._pixels()
        unknown = [name for name in images if not 0 <= rows.get(name, -1) < len(pixels)]
        if unknown:
            raise InputError(f"{self.names}: there is no image '{unknown[0]}': {REMAKE}")
        return [np.asarray(pixels[rows[name]]) for name in images]

    def _rows(self) -> dict[str, int]:
        table = read_text_table(self.names)
        try:
            return dict(zip(table["image"], table["row"].astype(int), strict=True))
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{self.names}: columns must be row,image… ({error}): {REMAKE}"
            ) from None

    def _pixels(self) -> NDArray[np.uint8]:
        try:
            pixels: NDArray[np.uint8] = np.load(self.pixels, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            said = " ".join(str(error).split())
            raise InputError(f"{self.pixels}: no readable images ({said}): {REMAKE}") from None
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[1] not in (1, 3):
            raise InputError(f"{self.pixels}: must be uint8 images (N, C, H, W): {REMAKE}")
        return pixels


def small_picture(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of about ``LEAST`` to ``MOST`` pixels a side of pixels (C, H, W), C of 1 or 3.

    Pixels of a smaller image stay squares; a larger one is averaged.
    """
    planes = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(planes))
    side = max(picture.size)
    if side < LEAST:
        scale = math.ceil(LEAST / side)
        size = (picture.width * scale, picture.height * scale)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    elif side > MOST:
        picture.thumbnail((MOST, MOST), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    picture.save(encoded, "PNG", optimize=True)
    return encoded.getvalue()
