"""BVLC AlexNet: the network, and its published weights under our names and in torch's layouts.

Krizhevsky, Sutskever, Hinton 2012, "ImageNet Classification with Deep Convolutional Neural
Networks" (NeurIPS), as Caffe's ``models/bvlc_alexnet`` replicates it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.params import nearest

BVLC = "bvlc_alexnet"
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)  # of ImageNet's training images, 0 to 255
SMALLEST_SIDE = 67
LAST_CHANNELS = 256


class Layer(NamedTuple):
    """A layer with weights: its name here, and how ``train_val.prototxt`` initialises it."""

    module: str
    std: float
    bias: float


# By their names in Caffe. The paper starts the non-zero biases from 1, BVLC from 0.1.
LAYERS = {
    "conv1": Layer("features.0", 0.01, 0.0),
    "conv2": Layer("features.4", 0.01, 0.1),
    "conv3": Layer("features.8", 0.01, 0.0),
    "conv4": Layer("features.10", 0.01, 0.1),
    "conv5": Layer("features.12", 0.01, 0.1),
    "fc6": Layer("classifier.0", 0.005, 0.1),
    "fc7": Layer("classifier.3", 0.005, 0.1),
    "fc8": Layer("classifier.6", 0.01, 0.0),
}
LAST_LAYER = "fc8"


class LocalResponseNorm(nn.LocalResponseNorm):
    """``nn.LocalResponseNorm`` whose gradient is deterministic on CUDA, too.

    Krizhevsky et al. 2012, section 3.3: b_c = a_c / (k + alpha / n * sum_j a_j^2)^beta, with the
    sum over the n = ``size`` channels around c, as far as there are any. Caffe and torch divide
    alpha by n, the paper does not, nor does TensorFlow, whose ``depth_radius`` is (n - 1) / 2:
    size 5 and alpha 1e-4 here are its radius 2 and alpha 2e-5.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalised maps (B, C, H, W) of maps (B, C, H, W)."""
        channels = maps.shape[1]
        around = (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2)
        squares = functional.pad(maps.square(), around)
        # torch's own is a pooling in three dimensions, which has no deterministic gradient
        energy = squares.narrow(1, 0, channels)
        for offset in range(1, self.size):
            energy = energy + squares.narrow(1, offset, channels)
        return maps * (self.k + self.alpha / self.size * energy).pow(-self.beta)


class BVLCAlexNet(nn.Module):
    """BVLC AlexNet, whose convolutions 2, 4 and 5 are in two groups.

    Pooling rounds down, as in torchvision and TensorFlow; Caffe rounds up, which makes no
    difference at 227 pixels, the published network's size.

    ============  =======================  ==============  ============================
    module        layer in Caffe           module          layer in Caffe
    ============  =======================  ==============  ============================
    features.0    conv1, 96 of 11 x 11     features.10     conv4, 384 of 3 x 3, grouped
    features.1    relu1                    features.11     relu4
    features.2    norm1                    features.12     conv5, 256 of 3 x 3, grouped
    features.3    pool1                    features.13     relu5
    features.4    conv2, 256 of 5 x 5,     features.14     pool5
                  grouped                  classifier.0    fc6, 4096
    features.5    relu2                    classifier.1    relu6
    features.6    norm2                    classifier.2    drop6, the first dropout
    features.7    pool2                    classifier.3    fc7, 4096
    features.8    conv3, 384 of 3 x 3      classifier.4    relu7
    features.9    relu3                    classifier.5    drop7
                                           classifier.6    fc8, the classes
    ============  =======================  ==============  ============================

    Args:
        image_size: side of the square images in pixels, from 67 on.
        classes: number of outputs.
    """

    def __init__(self, image_size: int, classes: int):
        """Raises ValueError if the image is too small."""
        super().__init__()
        if image_size < SMALLEST_SIDE:
            raise ValueError(f"the smallest side is {SMALLEST_SIDE} pixels")
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, kernel_size=11, stride=4),
            nn.ReLU(),
            LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
            nn.ReLU(),
            LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(256, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(384, LAST_CHANNELS, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
        )
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(LAST_CHANNELS * _last_side(image_size) ** 2, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, classes),
        )
        for layer in LAYERS.values():
            weight, bias = self.get_submodule(layer.module).parameters()
            nn.init.normal_(weight, std=layer.std)
            nn.init.constant_(bias, layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W): BGR from 0 to 255 less ``MEAN_BGR``."""
        logits: Tensor = self.classifier(self.flatten(self.features(images)))
        return logits


def state_dict(layers: Mapping[Any, Any], origin: str) -> dict[str, Tensor]:
    """A state dict of ``BVLCAlexNet`` from layers as converters from Caffe to NumPy write them.

    Args:
        layers: by Caffe's names; each a list of weights and biases, or a dict of ``weights`` and
            ``biases``. Weights of convolutions (H, W, in / groups, out), of others (in, out),
            where fc6 takes its inputs in the order (H, W, C). fc8 may be absent.
        origin: where the layers are from, for messages.

    Raises:
        InputError: a layer is absent, unknown or no pair of arrays of floats, or its weights have
            another number of axes. That shapes suit a network is for ``weights.fit`` to check.
    """
    for name in layers:
        if name not in LAYERS:
            raise InputError(
                f"{origin}: {str(name)[:60]!r} is no layer of {BVLC}; "
                f"{nearest(str(name), list(LAYERS))}"
            )
    absent = [name for name in LAYERS if name not in layers and name != LAST_LAYER]
    if absent:
        raise InputError(f"{origin}: has no layer {', '.join(absent)}; {BVLC} needs it")
    tensors = {}
    for name in (name for name in LAYERS if name in layers):
        weights, biases = _arrays(layers[name], name, origin)
        key = LAYERS[name].module
        tensors[f"{key}.weight"] = _tensor(_channels_first(name, weights, origin))
        tensors[f"{key}.bias"] = _tensor(biases)
    return tensors


def _last_side(image_size: int) -> int:
    """Side of the maps that pool5 returns."""
    side = (image_size - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


def _arrays(layer: Any, name: str, origin: str) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(layer, Mapping) and layer.keys() == {"weights", "biases"}:
        layer = [layer["weights"], layer["biases"]]
    pair = isinstance(layer, list | tuple) and len(layer) == 2
    if not pair or not all(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in layer):
        raise InputError(
            f"{origin}: layer {name} must be two arrays of floats, as [weights, biases] or "
            "{'weights': …, 'biases': …}"
        )
    return layer[0], layer[1]


def _channels_first(name: str, weights: np.ndarray, origin: str) -> np.ndarray:
    """Weights (out, in / groups, H, W) or (out, in), where the inputs of fc6 are (C, H, W)."""
    convolution = name.startswith("conv")
    if weights.ndim != (4 if convolution else 2):
        axes = "height, width, in and out" if convolution else "in and out"
        raise InputError(
            f"{origin}: layer {name} has weights of shape {weights.shape}; right are {axes}"
        )
    if convolution:
        return weights.transpose(3, 2, 0, 1)
    inputs, outputs = weights.shape
    side = math.isqrt(inputs // LAST_CHANNELS)
    if name != "fc6" or inputs != side**2 * LAST_CHANNELS:
        return weights.T
    maps = weights.reshape(side, side, LAST_CHANNELS, outputs)
    return maps.transpose(3, 2, 0, 1).reshape(outputs, inputs)


def _tensor(array: np.ndarray) -> Tensor:
    """In the machine's byte order and writable, since torch takes no other."""
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
