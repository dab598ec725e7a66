"""Images by their bytes, to find those that are the very same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 24  # bytes of images that are read at once


def digests(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Two numbers for each image (N, C, H, W), (N, 2), equal where all its bytes are.

    A memory map is read in blocks, past the map.
    """
    found = np.empty((len(pixels), 2), np.uint64)
    for start, block in _blocks(pixels):
        for row, image in enumerate(block, start):
            digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            found[row] = np.frombuffer(digest, np.uint64)
    return found


def _blocks(pixels: npt.NDArray[np.uint8]) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The images a block at a time, each with its first row.

    What is read through a memory map stays in this process's memory, as long as there is room.
    """
    each = int(np.prod(pixels.shape[1:]))
    count = max(1, BLOCK // max(1, each))
    for start in range(0, len(pixels), count):
        block = pixels[start : start + count]
        if isinstance(pixels, np.memmap) and pixels.filename and pixels.flags.c_contiguous:
            offset = pixels.offset + start * each
            block = np.fromfile(pixels.filename, np.uint8, block.size, offset=offset)
            block = block.reshape(-1, *pixels.shape[1:])
        yield start, block
