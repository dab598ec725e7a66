"""Decoding photos in threads, against one after another."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, Taken
from benchmarks.rows.made import PHOTO, write_photos
from pipeline.data import sources
from pipeline.data.images import decode, decode_all


@contextmanager
def in_threads(photos: int, side: int, wanted: float | None = None) -> Iterator[Row]:
    """Photos a second, decoded, resized and packed into one file, and one after another.

    Both decode with the same function and write the same ``.npy``.

    Args:
        photos: JPEG files, made here.
        side: of the images that are packed.
        wanted: the ratio that is asked for.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photos(folder / "photos", photos, classes=2)
        items = sources.find(folder / "photos", "folders", "classification").items

        def ours() -> Taken:
            start = time.perf_counter()
            decode_all(items, folder / "ours.npy", side, "crop", 3, progress=False)
            return Taken(time.perf_counter() - start, photos)

        def other() -> Taken:
            start = time.perf_counter()
            packed = np.lib.format.open_memmap(
                folder / "other.npy", mode="w+", dtype=np.uint8, shape=(photos, 3, side, side)
            )
            for row, item in enumerate(items):
                packed[row] = decode(item.read(), side, "crop", 3)
            return Taken(time.perf_counter() - start, photos)

        width, height = PHOTO
        yield Row(
            name=f"decode and pack photos of {width} x {height} to {side}",
            against="one process, Pillow, one after another",
            ours=ours,
            other=other,
            unit="photos",
            wanted=wanted,
        )
