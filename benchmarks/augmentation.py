"""Time a batch's augmentation: ours, torchvision's image by image, and kornia's if installed.

``python -m benchmarks.augmentation`` prints milliseconds a batch, each the median of repetitions
that take turns. Each image has its own draw under all of them. They start from uint8 images; what
they return is float. torchvision is timed on uint8 and on float images, since it is faster now on
one, now on the other.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from pipeline.data.augmentation import augment
from pipeline.params import Augmentation

Change = Callable[[Tensor], Tensor]

SHAPES = ((32, 3, 128, 128), (64, 1, 8, 8))
GEOMETRY: dict[str, Any] = {"rotation": 15.0, "zoom": 0.1, "shear": 5.0, "shift": 0.1, "crop": 0.7}
COLOUR: dict[str, Any] = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
SETTINGS = {
    "flip": Augmentation(flip=True),
    "geometry": Augmentation(**GEOMETRY),
    "colour": Augmentation(**COLOUR),
    "erasing": Augmentation(erasing=0.5),
    "all": Augmentation(flip=True, **GEOMETRY, **COLOUR, erasing=0.5),
}


def ours(settings: Augmentation) -> Change:
    """The project's augmentation, on a generator of its own."""
    generator = torch.Generator().manual_seed(0)
    return lambda pixels: augment(pixels, settings, generator)


def torchvision_steps(settings: Augmentation, side: int) -> list[Any]:
    """The same ranges as transforms of torchvision; affine map and crop are two resamplings."""
    from torchvision.transforms import v2

    steps: list[Any] = []
    if settings.flip:
        steps.append(v2.RandomHorizontalFlip())
    if settings.rotation:
        affine = v2.RandomAffine(
            degrees=settings.rotation,
            translate=(settings.shift, settings.shift),
            scale=(1 - settings.zoom, 1 + settings.zoom),
            shear=settings.shear,
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        steps += [affine, v2.RandomResizedCrop(side, scale=(settings.crop, 1.0), antialias=False)]
    if settings.brightness:
        jitter = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
        steps.append(v2.ColorJitter(*jitter))
    if settings.erasing:
        steps.append(v2.RandomErasing(p=settings.erasing))
    return steps


def torchvision_bytes(settings: Augmentation, side: int) -> Change:
    """torchvision on each uint8 image."""
    steps = torchvision_steps(settings, side)
    return lambda pixels: _each(pixels, steps).to(torch.float32)


def torchvision_floats(settings: Augmentation, side: int) -> Change:
    """torchvision on each float image from 0 to 1."""
    steps = torchvision_steps(settings, side)
    return lambda pixels: _each(pixels.to(torch.float32) / 255, steps)


def kornia(settings: Augmentation, side: int, channels: int) -> Change:
    """kornia's batched transforms; saturation and hue only where it takes them, on three channels.

    Raises:
        ImportError: kornia is not installed.
    """
    from kornia import augmentation as transforms  # type: ignore[import-not-found]

    steps: list[Any] = []
    if settings.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if settings.rotation:
        affine = transforms.RandomAffine(
            degrees=settings.rotation,
            translate=(settings.shift, settings.shift),
            scale=(1 - settings.zoom, 1 + settings.zoom),
            shear=settings.shear,
            padding_mode="border",
            p=1.0,
        )
        crop = transforms.RandomResizedCrop((side, side), scale=(settings.crop, 1.0))
        steps += [affine, crop]
    if settings.brightness and channels == 3:
        jitter = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
        steps.append(transforms.ColorJitter(*jitter, p=1.0))
    elif settings.brightness:
        brightness = (1 - settings.brightness, 1 + settings.brightness)
        contrast = (1 - settings.contrast, 1 + settings.contrast)
        steps.append(transforms.RandomBrightness(brightness, p=1.0))
        steps.append(transforms.RandomContrast(contrast, p=1.0))
    if settings.erasing:
        steps.append(transforms.RandomErasing(value=0.5, p=settings.erasing))
    chain = torch.nn.Sequential(*steps)
    return lambda pixels: chain(pixels.to(torch.float32) / 255)


def contenders(settings: Augmentation, shape: tuple[int, ...]) -> dict[str, Change]:
    """All that can run here, by name."""
    _, channels, side, _ = shape
    found = {
        "ours": ours(settings),
        "torchvision uint8": torchvision_bytes(settings, side),
        "torchvision float": torchvision_floats(settings, side),
    }
    with contextlib.suppress(ImportError):
        found["kornia"] = kornia(settings, side, channels)
    return found


def milliseconds(changes: dict[str, Change], pixels: Tensor, repetitions: int) -> dict[str, float]:
    """Median time of each, which take turns so that a busy machine slows all alike."""
    taken: dict[str, list[float]] = {name: [] for name in changes}
    for change in changes.values():
        change(pixels)
    for _ in range(repetitions):
        for name, change in changes.items():
            start = time.perf_counter()
            change(pixels)
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time augmentation on the CPU")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)  # for torchvision and kornia, which draw from the global generator
    print(_versions(), f"{arguments.threads} thread(s), ms a batch", sep=", ")
    for shape in SHAPES:
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        for name, settings in SETTINGS.items():
            changes = contenders(settings, shape)
            taken = milliseconds(changes, pixels, arguments.repetitions)
            cells = (f"{contender} {time:8.2f}" for contender, time in taken.items())
            print(f"{' x '.join(map(str, shape)):18}", f"{name:9}", *cells, sep="  ")


def _each(images: Tensor, steps: list[Any]) -> Tensor:
    changed = []
    for image in images:
        for step in steps:
            image = step(image)
        changed.append(image)
    return torch.stack(changed)


def _versions() -> str:
    found = []
    for package in ("torch", "torchvision", "kornia"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


if __name__ == "__main__":
    main()
