"""What rows share: runs made without files, photos on a disk, equal conditions for both sides."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.measure import Taken
from pipeline.data.batches import ImageSet
from pipeline.data.pairs import PairList, draw_pairs
from pipeline.models import architectures
from pipeline.params import Augmentation, Runtime, Training
from pipeline.training import runtime
from pipeline.training.phase import Phase
from pipeline.training.run import Run

CPU = torch.device("cpu")
LR = 1e-6  # so small that random images never make a network diverge
MOMENTUM = 0.9
PHOTO = (500, 375)
VAL_IMAGES = 2  # as few as there can be: validation is no part of what is timed
AUGMENTED = Augmentation(flip=True, rotation=10.0, zoom=0.1, shift=0.05)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A network, its images and where it is trained.

    Attributes:
        architecture: a name that ``pipeline.models.architectures`` knows.
        side: of the square images, in pixels.
        images: how many there are to train on.
        batch_size: images a batch.
        channels, classes: of the images.
        device, precision, channels_last, cuda_graphs: as in ``runtime`` of params.yaml, our way
            alone.
    """

    architecture: str
    side: int
    images: int
    batch_size: int
    channels: int = 3
    classes: int = 2
    device: torch.device = CPU
    precision: str = "fp32"
    channels_last: bool = False
    cuda_graphs: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.architecture} at {self.side}"

    @property
    def arithmetic(self) -> str:
        """What is said of it behind a row's name."""
        return f"{self.precision}, CUDA graphs" if self.cuda_graphs else self.precision

    def network(self) -> nn.Module:
        """The network with random weights, on the device."""
        network = architectures.build(
            self.architecture, self.classes, self.channels, self.side, None, generator_seed=0
        )
        return self.laid_out(network).to(self.device)

    def laid_out(self, what: nn.Module) -> nn.Module:
        """A network in the memory format asked for."""
        if not self.channels_last:
            return what
        return what.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def random_inputs(self, count: int) -> Tensor:
        """Normalised random images (count, C, side, side) on the device."""
        inputs = architectures.normalise(self._pixels(count, seed=2), self.architecture)
        inputs = inputs.to(self.device)
        return (
            inputs.contiguous(memory_format=torch.channels_last) if self.channels_last else inputs
        )

    def image_set(self, count: int, seed: int) -> ImageSet:
        """Random images of all classes in turn, on the device."""
        labels = torch.arange(count) % self.classes
        return ImageSet(self._pixels(count, seed).to(self.device), labels.to(self.device))

    def run(
        self,
        augmentation: Augmentation,
        pairs_per_image: int = 0,
        network: nn.Module | None = None,
        train: ImageSet | None = None,
    ) -> Run:
        """A run on random images, or on ``train``; with listed pairs where an image is to have any.

        Args:
            augmentation: of the training images.
            pairs_per_image: half of them of one class.
            network: on the device; None: one with random weights.
            train: images on the device.
        """
        train = train or self.image_set(self.images, seed=0)
        made = Run(
            network=self.network() if network is None else network,
            architecture=self.architecture,
            classifier=architectures.classifier_keys(self.architecture, self.channels, self.side),
            classes=self.classes,
            train=train,
            val=self.image_set(VAL_IMAGES, seed=1),
            training=Training(batch_size=self.batch_size, augmentation=augmentation),
            seed=0,
            device=self.device,
            placement="resident",  # what auto asks of a CPU is not told by PyTorch
        )
        if pairs_per_image:
            made.pairs = drawn_pairs(train.labels.cpu().numpy(), pairs_per_image)
            first, second = np.zeros(1, np.int64), np.ones(1, np.int64)
            made.val_pairs = PairList(first, second, first)
        return made

    def _pixels(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (count, self.channels, self.side, self.side)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def drawn_pairs(labels: np.ndarray, per_image: int) -> PairList:
    """Pairs of images, by position, half of them of one class; drawn as stage ``prepare`` does."""
    rows, generator = np.arange(len(labels)), np.random.default_rng(0)
    return draw_pairs(rows, labels, per_image, 0.5, generator)[0]


def without_validation(phase: Phase) -> Phase:
    """The phase with a validation that costs nothing, as the other side has none."""
    device = next(phase.module.parameters()).device
    nothing = {"val/loss": torch.zeros((), device=device)}
    return dataclasses.replace(phase, validate=lambda: nothing, rule="val_loss")


@contextmanager
def as_a_run(setting: Setting) -> Iterator[None]:
    """torch's switches as a run sets them, and as they were afterwards."""
    with _switches_kept():
        runtime.start(
            Runtime(
                device=str(setting.device),
                precision=setting.precision,  # type: ignore[arg-type]
                threads=torch.get_num_threads(),
                channels_last=setting.channels_last,
            )
        )
        yield


@contextmanager
def as_a_loop(setting: Setting) -> Iterator[None]:
    """torch's switches as they come, with the arithmetic asked for: nothing need be repeatable."""
    with _switches_kept():
        tf32 = setting.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        yield


@contextmanager
def _switches_kept() -> Iterator[None]:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    kept = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = kept


def timed(work: Callable[[], float], device: torch.device) -> Taken:
    """Time ``work``, which says how much it did, with all that it left the device to do."""
    _wait(device)
    start = time.perf_counter()
    amount = work()
    _wait(device)
    return Taken(time.perf_counter() - start, amount)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_place(network: nn.Module) -> nn.Module:
    """Activations in place, as torchvision's networks come; runs keep what lies before them."""
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return network


def write_photos(folder: Path, count: int, classes: int) -> None:
    """Write JPEG photos of smooth random content, ``<class>/<number>.jpg``."""
    generator = np.random.default_rng(0)
    width, height = PHOTO
    for number in range(count):
        coarse = generator.integers(0, 256, (18, 24, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(PHOTO, Image.Resampling.BICUBIC))
        noise = generator.normal(0, 6, (height, width, 1))  # else a JPEG of it is far too small
        photo = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
        path = _place(folder, number, classes, "jpg")
        photo.save(path, quality=90)


def write_drawings(folder: Path, count: int, classes: int, side: int) -> None:
    """Write grey PNG images of random pixels, ``<class>/<number>.png``."""
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (side, side), dtype=np.uint8)
        Image.fromarray(pixels).save(_place(folder, number, classes, "png"))


def _place(folder: Path, number: int, classes: int, suffix: str) -> Path:
    path = folder / f"class{number % classes}" / f"{number:05}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
