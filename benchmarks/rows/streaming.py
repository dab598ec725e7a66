"""The encoder phase with its images streamed from the file, against all of them on the device."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.measure import Row
from benchmarks.rows.encoder import PAIRS_PER_IMAGE, images_of, phase_of
from benchmarks.rows.made import AUGMENTED, Setting, without_validation
from pipeline.data.batches import load_images
from pipeline.params import Placement
from pipeline.training.phase import Phase


@contextmanager
def against_resident(
    setting: Setting, latent: str, epochs: int, wanted: float | None = None
) -> Iterator[Row]:
    """Images a second of one phase by where its images lie: ``data.placement``.

    Both ways train on the same pairs and batches of the same file, which was written just before,
    so that the disk cache holds it. Neither validates.

    Args:
        setting: network, images and device.
        latent: where the encoder ends.
        epochs: that are trained in one repetition.
        wanted: the ratio that is asked for.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "images.npy")
        write_images(file, setting)
        streamed, resident = (
            phase_from(file, setting, latent, epochs, placement)
            for placement in ("streamed", "resident")
        )
        yield Row(
            name=f"encoder phase, images streamed, {setting.name}",
            against="all images on the device",
            ours=lambda: images_of(setting, streamed),
            other=lambda: images_of(setting, resident),
            unit="images",
            wanted=wanted,
            note=f"batches of {setting.batch_size}, {file.stat().st_size / 1e6:.0f} MB of images",
        )


def write_images(file: Path, setting: Setting) -> None:
    """Write random images as stage ``images`` lays them out, without holding them all."""
    shape = (setting.images, setting.channels, setting.side, setting.side)
    content = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    generator = np.random.default_rng(0)
    for image in content:
        image[:] = generator.integers(0, 256, image.shape, dtype=np.uint8)
    content.flush()


def phase_from(
    file: Path, setting: Setting, latent: str, epochs: int, placement: Placement
) -> Phase:
    """The encoder phase on all images of a file, which lie where ``placement`` says."""
    labels = np.arange(setting.images) % setting.classes
    rows = np.arange(setting.images)
    train = load_images(file, rows, labels, setting.device, placement)
    made = setting.run(AUGMENTED, PAIRS_PER_IMAGE, train=train)
    return without_validation(phase_of(made, latent, epochs))
