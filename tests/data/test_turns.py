"""Turned and mirrored classes against numpy, image by image."""

import numpy as np
import pytest
import torch

from pipeline.data.batches import ImageSet
from pipeline.data.pairs import PairList
from pipeline.data.turns import with_turns

IMAGES = 5
LABELS = [0, 0, 1, 2, 2]
PAIRS = [(0, 1, 1), (1, 2, 0), (3, 4, 1)]


def turned(turns, channels=3, side=4):
    pixels = torch.randint(0, 256, (IMAGES, channels, side, side), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))  # fmt: skip
    pairs = PairList(*(np.array(column) for column in zip(*PAIRS, strict=True)))
    return pixels, *with_turns(ImageSet(pixels, torch.tensor(LABELS)), pairs, turns)


def by_numpy(image, turn):
    """One image (C, H, W): mirrored from the fifth turn on, then quarter turns."""
    image = image[:, :, ::-1] if turn >= 4 else image
    return np.rot90(image, turn % 4, axes=(1, 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("turns", [1, 4, 8])
def test_each_copy_is_the_image_turned_by_numpy(turns, channels):
    pixels, images, _ = turned(turns, channels)
    assert len(images) == turns * IMAGES and images.pixels.dtype == torch.uint8
    for place, found in enumerate(images.pixels.numpy()):
        expected = by_numpy(pixels[place % IMAGES].numpy(), place // IMAGES)
        assert np.array_equal(found, expected), place


def test_the_eight_turns_of_an_image_are_all_there_are():
    """The symmetries of the square, each once: transposing gives one of them again."""
    pixels, images, _ = turned(8)
    copies = {images.pixels[turn * IMAGES].numpy().tobytes() for turn in range(8)}
    assert len(copies) == 8
    assert pixels[0].transpose(1, 2).contiguous().numpy().tobytes() in copies


@pytest.mark.parametrize("turns", [1, 4, 8])
def test_every_turn_of_a_class_is_a_class_of_its_own(turns):
    _, images, _ = turned(turns)
    of = {(LABELS[n % IMAGES], n // IMAGES): int(label) for n, label in enumerate(images.labels)}
    assert sorted(of.values()) == list(range(3 * turns))
    for place, label in enumerate(images.labels.tolist()):
        assert label == of[LABELS[place % IMAGES], place // IMAGES]


@pytest.mark.parametrize("turns", [1, 4, 8])
def test_pairs_come_once_a_turn_and_say_the_truth(turns):
    _, images, pairs = turned(turns)
    found = list(zip(*(of.tolist() for of in vars(pairs).values()), strict=True))
    assert found == [
        (left + turn * IMAGES, right + turn * IMAGES, same)
        for turn in range(turns)
        for left, right, same in PAIRS
    ]
    labels = images.labels.tolist()
    assert all((labels[left] == labels[right]) == same for left, right, same in found)
