"""Networks by name: our own ``small``, ``bvlc_alexnet``, ``koch``, and torchvision's classifiers.

torchvision takes seconds to import: only what really needs it does so, inside functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from pipeline.errors import InputError
from pipeline.models.bvlc import BVLC, MEAN_BGR, BVLCAlexNet
from pipeline.models.koch import Koch
from pipeline.params import nearest

SMALL = "small"
DRAWINGS = "drawings"
KOCH = "koch"
OWN = (SMALL, BVLC, KOCH, DRAWINGS)  # all others are torchvision's
SMALLEST_SIDE = 4
DRAWINGS_WIDTHS = (32, 64, 128, 256)


class _Pixels(NamedTuple):
    """The pixels that a network wants: (value - mean) / std of those from 0 to 255.

    One mean and one std serve all channels of the images, as many as there are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False


_OWN_PIXELS = {
    SMALL: _Pixels(mean=(255 * 0.5,), std=(255 * 0.5,)),
    DRAWINGS: _Pixels(mean=(255.0,), std=(-255.0,)),  # white is 0, as what pads a convolution
    BVLC: _Pixels(mean=MEAN_BGR, std=(1.0, 1.0, 1.0), bgr=True),
    KOCH: _Pixels(mean=(0.0,), std=(255.0,)),
}
_IMAGENET_PIXELS = _Pixels(
    mean=(255 * 0.485, 255 * 0.456, 255 * 0.406), std=(255 * 0.229, 255 * 0.224, 255 * 0.225)
)
# Without auxiliary classifiers the output is plain logits in train mode, too. Their ImageNet
# weights want pixels in [-1, 1], which ``transform_input`` makes of ImageNet's normalisation.
_INCEPTION = {"aux_logits": False, "init_weights": True, "transform_input": True}


def names() -> list[str]:
    """Every architecture: our own, then torchvision's classification networks."""
    import torchvision

    listed: list[str] = torchvision.models.list_models(module=torchvision.models)
    return [*OWN, *listed]


def is_known(architecture: str) -> bool:
    """Whether there is an architecture of this name; our own are known without torchvision."""
    return architecture in OWN or architecture in names()


def check_known(architecture: str) -> None:
    """Check the name of an architecture.

    Raises:
        InputError: it is unknown, with the nearest name.
    """
    if not is_known(architecture):
        raise InputError(
            f"params.yaml: model.architecture: there is no '{architecture}'; "
            f"{nearest(architecture, names())}"
        )


def build(
    architecture: str,
    classes: int,
    channels: int,
    image_size: int,
    dropout: float | None,
    generator_seed: int,
) -> nn.Module:
    """A randomly initialised network, in train mode on the CPU.

    The initialisation depends on ``generator_seed`` alone; the global generators stay untouched.
    In-place activations are switched off and adaptive average pooling is ``AdaptiveAveragePool``;
    neither alters a state-dict key.

    Args:
        architecture: one of ``names()``.
        classes: outputs of the last layer.
        channels: of the images, 1 or 3; all networks but ``small``, ``drawings`` and ``koch`` have
            three input channels all the same (``normalise`` makes three of one).
        image_size: side of the square images in pixels.
        dropout: probability for every dropout layer; None keeps the architecture's own.
        generator_seed: seeds the initialisation.

    Returns:
        A module that maps (B, C, H, W), as ``normalise`` gives it, to logits (B, classes).

    Raises:
        InputError: unknown architecture, one that cannot be built for ``image_size``, or a
            dropout that it has no layer for.
    """
    check_known(architecture)
    with torch.random.fork_rng(devices=[]):
        # of the CPU alone: torch.manual_seed would reset every GPU's generator too
        torch.default_generator.manual_seed(generator_seed)
        try:
            network = _construct(architecture, classes, channels, image_size)
        except (ValueError, AssertionError) as error:
            problem = _one_line(error)
            raise _size_error(architecture, image_size, channels, problem) from None
    _set_dropout(network, architecture, dropout)
    _switch_off_in_place(network)
    _replace_pooling(network)
    return network


def check_size(architecture: str, image_size: int, channels: int) -> None:
    """Check that the network takes images of this size, by a forward pass without arithmetic.

    Raises:
        InputError: it does not, with the next size that it takes; or unknown architecture.
    """
    check_known(architecture)
    problem = _size_problem(architecture, image_size, channels)
    if problem:
        raise _size_error(architecture, image_size, channels, problem)


def classifier_keys(architecture: str, channels: int, image_size: int) -> set[str]:
    """The state-dict keys whose shape depends on the number of classes: the last layer's."""
    check_known(architecture)
    few, more = (
        _construct_on_meta(architecture, classes, channels, image_size).state_dict()
        for classes in (2, 3)
    )
    return {key for key, tensor in few.items() if tensor.shape != more[key].shape}


def normalise(images: Tensor, architecture: str) -> Tensor:
    """Pixels as the network wants them, on the images' device.

    torchvision's networks: to [0, 1], then ImageNet's mean and standard deviation.
    ``bvlc_alexnet``: blue, green, red, from 0 to 255 less ImageNet's mean. For both, one grey
    channel serves as all three. ``small``: to [-1, 1]. ``koch``: to [0, 1].
    ``drawings``: to [0, 1], white being 0.

    Args:
        images: (B, C, H, W) uint8, or float from 0 to 255; three channels are red, green, blue.
        architecture: one of ``names()``.

    Returns:
        (B, C', H, W) float32; C' is C for ``small``, ``drawings`` and ``koch`` and 3 for all
        others.
    """
    pixels = _pixels(architecture)
    scale, shift = _affine(pixels, images.device)
    if pixels.bgr:
        images = images.flip(1)
    return torch.addcmul(shift, images.to(torch.float32), scale)


class Small(nn.Module):
    """A small convolutional network for small images, such as 8 x 8 digits.

    Blocks of 3 x 3 convolution, batch norm, relu and 2 x 2 max pooling, the first 32 channels
    wide, each next one twice as wide up to 128, until 2 or 3 pixels a side are left; then an
    embedding of 64 units and the classifier.

    Args:
        channels: of the images.
        image_size: side of the square images in pixels, from 4 on.
        classes: number of outputs.
    """

    def __init__(self, channels: int, image_size: int, classes: int):
        """Raises ValueError if the image is too small."""
        super().__init__()
        if image_size < SMALLEST_SIDE:
            raise ValueError(f"the smallest side is {SMALLEST_SIDE} pixels")
        layers: list[nn.Module] = []
        width, side = channels, image_size
        while side > 3:
            wider = min(2 * width, 128) if layers else 32
            layers += [
                nn.Conv2d(width, wider, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            width, side = wider, side // 2
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.embedding = nn.Linear(width * side**2, 64)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        flat = self.flatten(self.features(images))
        logits: Tensor = self.classifier(self.dropout(self.relu(self.embedding(flat))))
        return logits


class Drawings(nn.Module):
    """A small residual network for drawings, whose last maps say where on the paper a stroke is.

    A block of 3 x 3 convolution, batch norm, relu and 2 x 2 max pooling, then three residual blocks
    of two such convolutions beside a 1 x 1 convolution (He et al., "Deep residual learning", CVPR
    2016, figure 2), the first two pooled; then the classifier on the flat maps. Few-shot learning
    often pools the maps away; for characters the place of a stroke tells more.

    Args:
        channels: of the images.
        image_size: side of the square images in pixels, from 8 on.
        classes: number of outputs.
    """

    def __init__(self, channels: int, image_size: int, classes: int):
        """Raises ValueError if the image is too small."""
        super().__init__()
        side = image_size // 8  # after three poolings
        if not side:
            raise ValueError("the smallest side is 8 pixels")
        first, second, third, last = DRAWINGS_WIDTHS
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            _Residual(first, second),
            nn.MaxPool2d(2),
            _Residual(second, third),
            nn.MaxPool2d(2),
            _Residual(third, last),
        )
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(last * side**2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        logits: Tensor = self.classifier(self.dropout(self.flatten(self.features(images))))
        return logits


class _Residual(nn.Module):
    """relu(two convolutions with batch norm + one of 1 x 1 with batch norm)."""

    def __init__(self, width: int, wider: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, wider, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
            nn.Conv2d(wider, wider, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(wider),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(width, wider, kernel_size=1, bias=False), nn.BatchNorm2d(wider)
        )
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, width, H, W) to (B, wider, H, W)."""
        summed: Tensor = self.relu(self.convolutions(maps) + self.shortcut(maps))
        return summed


class AdaptiveAveragePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` whose gradient is deterministic on CUDA, too.

    Output cell i of n averages the inputs from floor(i N / n) up to ceil((i + 1) N / n). Cells
    are rectangles, so rows and columns are averaged one after the other.

    Args:
        output_size: (h, w); None keeps the input's side, one number serves for both.
    """

    def __init__(self, output_size: int | tuple[int | None, int | None] | None):
        """Take the size as ``nn.AdaptiveAvgPool2d`` does."""
        super().__init__()
        both = output_size if isinstance(output_size, tuple) else (output_size, output_size)
        self.output_size = both

    def forward(self, maps: Tensor) -> Tensor:
        """Pooled maps (B, C, h, w) of maps (B, C, H, W)."""
        if self.output_size == (1, 1):
            return maps.mean((-2, -1), keepdim=True)
        height, width = self.output_size
        return _pool_last(_pool_last(maps, width).mT, height).mT

    def extra_repr(self) -> str:
        """The output size, as ``nn.AdaptiveAvgPool2d`` prints it."""
        return f"output_size={self.output_size}"


def _pixels(architecture: str) -> _Pixels:
    return _OWN_PIXELS.get(architecture, _IMAGENET_PIXELS)


def _construct(architecture: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """The network with its own settings; ValueError or AssertionError for a wrong size."""
    if architecture == SMALL:
        return Small(channels, image_size, classes)
    if architecture == DRAWINGS:
        return Drawings(channels, image_size, classes)
    if architecture == BVLC:
        return BVLCAlexNet(image_size, classes)
    if architecture == KOCH:
        return Koch(channels, image_size, classes)
    import torchvision

    settings = _constructor_arguments(architecture, image_size)
    network: nn.Module = torchvision.models.get_model(
        architecture, weights=None, num_classes=classes, **settings
    )
    return network


def _constructor_arguments(architecture: str, image_size: int) -> Mapping[str, Any]:
    if architecture in ("googlenet", "inception_v3"):
        return _INCEPTION
    if architecture.startswith("vit_"):
        return {"image_size": image_size}
    if architecture.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}


def _set_dropout(network: nn.Module, architecture: str, dropout: float | None) -> None:
    if dropout is None:
        return
    layers = [module for module in network.modules() if isinstance(module, _DropoutNd)]
    if dropout > 0 and not layers:
        raise InputError(
            f"params.yaml: model.dropout: {architecture} has no dropout layer; leave it out"
        )
    for layer in layers:
        layer.p = dropout


def _switch_off_in_place(network: nn.Module) -> None:
    # a head would overwrite the latents it is given, which are computed once and used again
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010 (no declared attribute of nn.Module)


def _replace_pooling(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.AdaptiveAvgPool2d):
                setattr(parent, name, AdaptiveAveragePool(module.output_size))


def _pool_last(maps: Tensor, size: int | None) -> Tensor:
    """Adaptive average pooling of the last axis: (..., N) to (..., size)."""
    side = maps.shape[-1]
    if size is None or size == side:
        return maps
    if side % size == 0:
        return maps.reshape(*maps.shape[:-1], size, side // size).mean(-1)
    averages: Tensor = _averages(side, size, maps.device, maps.dtype)
    return maps @ averages


def _constant(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make it once for each arguments, as ordinary tensors even under ``inference_mode``."""

    @functools.cache
    def cached(*arguments: Any) -> Any:
        # an inference tensor could serve no later training step
        with torch.inference_mode(False):
            return make(*arguments)

    return cached


@_constant
def _averages(side: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(side, size) matrix whose column i averages the inputs of output cell i."""
    matrix = torch.zeros(side, size, dtype=torch.float64)
    for cell in range(size):
        first, end = cell * side // size, -(-(cell + 1) * side // size)
        matrix[first:end, cell] = 1 / (end - first)
    return matrix.to(device, dtype)


@_constant
def _affine(pixels: _Pixels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift, each (C', 1, 1), that normalise pixels from 0 to 255."""
    mean, std = (torch.tensor(part, dtype=torch.float64) for part in (pixels.mean, pixels.std))
    scale, shift = 1 / std, -mean / std
    return (
        scale.view(-1, 1, 1).to(device, torch.float32),
        shift.view(-1, 1, 1).to(device, torch.float32),
    )


def _size_error(architecture: str, image_size: int, channels: int, problem: str) -> InputError:
    larger = (side for side in range(32, 1025, 32) if side > image_size)
    fits = next((s for s in larger if not _size_problem(architecture, s, channels)), None)
    advice = f"; {fits} would do" if fits else ""
    return InputError(
        f"params.yaml: data.image_size: {architecture} cannot take images of "
        f"{image_size} x {image_size} pixels ({problem}){advice}"
    )


def _size_problem(architecture: str, image_size: int, channels: int) -> str | None:
    """Why the network cannot take the size, or None if it can."""
    try:
        network = _construct_on_meta(architecture, 2, channels, image_size).eval()
        if architecture in OWN:
            return None  # refused above if at all; the pass below imports torch's compiler: 2 s
        width = max(channels, len(_pixels(architecture).mean))  # as ``normalise`` broadcasts
        with torch.no_grad():
            network(torch.empty(1, width, image_size, image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        return _one_line(error)
    return None


def _construct_on_meta(
    architecture: str, classes: int, channels: int, image_size: int
) -> nn.Module:
    with empty_on_meta(), torch.random.fork_rng(devices=[]):
        return _construct(architecture, classes, channels, image_size).to("meta")


@contextmanager
def empty_on_meta() -> Iterator[None]:
    """Parameters made inside have shapes but no memory.

    ``torch.device("meta")`` would also take the sums by which RegNet finds its widths.
    """

    class EmptyOnMeta(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func is nn.init.normal_ and kwargs["tensor"].is_meta:
                return kwargs["tensor"]  # nothing to fill; torch would import its compiler
            if func is torch.empty:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    with EmptyOnMeta():
        yield


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
