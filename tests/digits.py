"""A tiny project on real images, made on the fly: scikit-learn's digits in a folder of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.data.batches import ImageSet, load_images
from pipeline.data.pairs import draw_pairs
from pipeline.models import architectures
from pipeline.params import Augmentation, Placement, Training
from pipeline.training import runtime
from pipeline.training.run import Run


def write_digits(folder: Path, digits: list[int], each: int) -> None:
    """``each`` images of each digit as ``folder/<digit>/<n>.png``."""
    found = load_digits()
    for digit in digits:
        for n, index in enumerate(np.flatnonzero(found.target == digit)[:each]):
            path = folder / str(digit) / f"{n:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((found.images[index] * 15).astype(np.uint8)).save(path)


@contextmanager
def switches_kept() -> Iterator[None]:
    """What a run sets for its process is set back."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept
        torch.set_num_threads(threads)


def move(run: Run, device: torch.device, folder: Path, placement: Placement) -> None:
    """Take a run to a device, its images from files in ``folder``."""
    run.device, run.placement = device, placement
    run.network.to(device)
    for name in ("train", "val"):
        images, file = getattr(run, name), folder / f"{name}.npy"
        np.save(file, images.pixels.numpy())
        rows, labels = np.arange(len(images)), images.labels.numpy()
        setattr(run, name, load_images(file, rows, labels, device, placement))


def make_run(classes=3, per_class=6, seed=0, batch_size=4, augmentation=None, pairs=False) -> Run:
    """A run of the small network in memory; classes above ten repeat digits, mirrored."""
    torch.use_deterministic_algorithms(True)
    found = load_digits()
    pixels, labels = [], []
    for label in range(classes):
        images = found.images[found.target == label % 10][: per_class + 4] * 15
        pixels.append(images[:, :, ::-1] if label >= 10 else images)
        labels.append(np.full(len(images), label))
    stacked = torch.from_numpy(np.concatenate(pixels).astype(np.uint8))[:, None]
    of = torch.from_numpy(np.concatenate(labels))
    mine = torch.arange(len(of)) % (per_class + 4) < per_class
    network = architectures.build("small", classes, 1, 8, None, runtime.stream_seed(seed, "init"))
    made = Run(
        network=network,
        architecture="small",
        classifier=architectures.classifier_keys("small", 1, 8),
        classes=classes,
        train=ImageSet(stacked[mine], of[mine]),
        val=ImageSet(stacked[~mine], of[~mine]),
        training=Training(batch_size=batch_size, augmentation=augmentation or Augmentation()),
        seed=seed,
        device=torch.device("cpu"),
    )
    if pairs:
        drawn = [
            draw_pairs(np.arange(len(s)), s.labels.numpy(), 4, 0.5, np.random.default_rng(seed))[0]
            for s in (made.train, made.val)
        ]
        made.pairs, made.val_pairs = drawn
    return made
