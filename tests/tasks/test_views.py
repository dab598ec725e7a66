"""Views of an image against numbers read point by point."""

import math

import numpy as np
import pytest
import torch

from pipeline.tasks.verification.views import mean_encoding, views

SIDE = 11
MIDDLE = (SIDE - 1) / 2


def noise(count=3, channels=1):
    shape = (count, channels, SIDE, SIDE)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def read(image, x, y):
    """An image (H, W) at a point in pixels, bilinearly; outside, its border."""
    x, y = np.clip([x, y], 0, SIDE - 1)
    x0, y0 = min(int(x), SIDE - 2), min(int(y), SIDE - 2)
    a, b = x - x0, y - y0
    top = (1 - a) * image[y0, x0] + a * image[y0, x0 + 1]
    return (1 - b) * top + b * ((1 - a) * image[y0 + 1, x0] + a * image[y0 + 1, x0 + 1])


def turned(degrees):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return lambda x, y: (cos * x - sin * y, sin * x + cos * y)


def stretched(across, down):
    return lambda x, y: (across * x, down * y)


# from a point of the view, seen from the middle, to the point of the image that it shows
BY_HAND = [
    stretched(1, 1),
    turned(10),
    turned(-10),
    stretched(1.12, 1),
    stretched(1, 1.12),
    stretched(1 / 1.12, 1 / 1.12),
    stretched(1.12, 1.12),
]


@pytest.mark.parametrize("number", range(7))
def test_a_view_is_read_point_by_point(number):
    images = noise()
    view = list(views(images, 7))[number]
    for image, found in zip(
        images[:, 0].double().numpy(), view[:, 0].double().numpy(), strict=True
    ):
        for row in range(SIDE):
            for column in range(SIDE):
                x, y = BY_HAND[number](column - MIDDLE, row - MIDDLE)
                naive = read(image, x + MIDDLE, y + MIDDLE)
                assert found[row, column] == pytest.approx(naive, abs=0.05)


def test_one_view_is_the_image_itself():
    images = noise()
    (only,) = views(images, 1)
    first, *others = views(images, 7)
    assert only is images and first is images and len(others) == 6


def test_channels_and_images_are_seen_alike_and_apart():
    images = noise(3, channels=3)
    together = torch.stack([view.float() for view in views(images, 7)])
    for image in range(3):
        for channel in range(3):
            alone = views(images[image : image + 1, channel : channel + 1], 7)
            for view, of_all in zip(alone, together, strict=True):
                assert torch.allclose(view.float()[0, 0], of_all[image, channel], atol=1e-3)
    assert together.min() >= 0 and together.max() <= 255


def test_a_plain_image_looks_the_same_from_everywhere():
    images = torch.full((2, 1, SIDE, SIDE), 200, dtype=torch.uint8)
    for view in views(images, 7):
        assert torch.allclose(view.float(), torch.tensor(200.0), atol=1e-3)


@pytest.mark.parametrize("count", [1, 7])
def test_the_encoding_is_the_mean_over_the_views(count):
    images = noise(4)
    matrix = torch.randn(SIDE * SIDE, 3, generator=torch.Generator().manual_seed(1)) / 255

    def encode(view):
        return (view.float().flatten(1) @ matrix).tanh()

    found = mean_encoding(encode, images, count)
    assert found.shape == (4, 3)
    for place in range(4):
        one = [encode(view)[0].tolist() for view in views(images[place : place + 1], count)]
        assert found[place].tolist() == pytest.approx(np.mean(one, axis=0).tolist(), abs=1e-5)
