"""The network of Koch, Zemel and Salakhutdinov for one-shot recognition.

Koch, Zemel, Salakhutdinov 2015, "Siamese neural networks for one-shot image recognition" (ICML
deep learning workshop), as its Keras replications for LFW-a read it.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

SMALLEST_SIDE = 65
UNITS = 4096
LAST_CHANNELS = 256

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Koch(nn.Module):
    """Four valid convolutions and 4,096 sigmoid units, here with a classifier after them.

    The paper's Siamese network is what comes before the classifier, cut at ``embedding``, twice,
    and ``pairs.Difference`` on the two encodings. Unlike the paper, and like its replications, it
    has batch norm before each ReLU, and draws the weights of dense layers as narrowly as those of
    convolutions.

    ============  ================================  =======================
    module        layer                             output at 105 pixels
    ============  ================================  =======================
    features.0    64 of 10 x 10, batch norm, ReLU   96 x 96 x 64
    features.3    2 x 2 max pooling                 48 x 48 x 64
    features.4    128 of 7 x 7, batch norm, ReLU    42 x 42 x 128
    features.7    2 x 2 max pooling                 21 x 21 x 128
    features.8    128 of 4 x 4, batch norm, ReLU    18 x 18 x 128
    features.11   2 x 2 max pooling                 9 x 9 x 128
    features.12   256 of 4 x 4, batch norm, ReLU    6 x 6 x 256
    units         dense                             4,096
    embedding     sigmoid                           4,096
    classifier    dense                             the classes
    ============  ================================  =======================

    Args:
        channels: of the images.
        image_size: side of the square images in pixels, from 65 on; the paper's have 105.
        classes: number of outputs.
    """

    def __init__(self, channels: int, image_size: int, classes: int):
        """Raises ValueError if the image is too small."""
        super().__init__()
        if image_size < SMALLEST_SIDE:
            raise ValueError(f"the smallest side is {SMALLEST_SIDE} pixels")
        self.features = nn.Sequential(
            *_convolution(channels, 64, kernel=10),
            nn.MaxPool2d(2),
            *_convolution(64, 128, kernel=7),
            nn.MaxPool2d(2),
            *_convolution(128, 128, kernel=4),
            nn.MaxPool2d(2),
            *_convolution(128, LAST_CHANNELS, kernel=4),
        )
        self.flatten = nn.Flatten()
        self.units = draw(nn.Linear(LAST_CHANNELS * _last_side(image_size) ** 2, UNITS))
        self.embedding = nn.Sigmoid()
        self.classifier = draw(nn.Linear(UNITS, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) with pixels in [0, 1]."""
        units = self.units(self.flatten(self.features(images)))  # (B, 4096)
        logits: Tensor = self.classifier(self.embedding(units))
        return logits


def draw(layer: Layer) -> Layer:
    """Draw a layer anew from torch's generator: weights N(0, 0.01), biases N(0.5, 0.01).

    Koch et al. 2015, section 3.2; the second numbers are standard deviations.
    """
    nn.init.normal_(layer.weight, mean=0.0, std=0.01)
    assert layer.bias is not None
    nn.init.normal_(layer.bias, mean=0.5, std=0.01)
    return layer


def _convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [
        draw(nn.Conv2d(inputs, outputs, kernel)),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),  # Keras' own; its momentum is 0.99
        nn.ReLU(),
    ]


def _last_side(image_size: int) -> int:
    """Side of the maps that the last convolution returns."""
    side = image_size
    for kernel in (10, 7, 4):
        side = (side - kernel + 1) // 2
    return side - 3
