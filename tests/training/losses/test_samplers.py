"""Batches of so many images a class."""

from collections import Counter

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils import common_functions

from pipeline.errors import InputError
from pipeline.training.losses import m_per_class_batches


def draw(labels, batch_size, per_class, batches, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return m_per_class_batches(labels, batch_size, per_class, batches, generator)


@pytest.mark.parametrize(
    ("classes", "batch_size", "per_class", "together", "each"),
    [
        (15, 32, 4, 8, 4),  # more classes than fit
        (8, 32, 4, 8, 4),
        (2, 32, 4, 2, 16),  # too few to fill the batch
        (5, 32, 4, 5, 6),
        (15, 32, 5, 6, 5),  # what is left over is cut off
        (3, 7, 3, 2, 3),
    ],
)
def test_each_batch_has_so_many_images_of_each_of_its_classes(
    classes, batch_size, per_class, together, each
):
    labels = torch.arange(classes * 20) % classes
    found = draw(labels, batch_size, per_class, 6)
    assert len(found) == 6
    for batch in found:
        assert batch.dtype == torch.int64
        assert set(Counter(labels[batch].tolist()).values()) == {each}
        assert len(labels[batch].unique()) == together
        assert len(batch.unique()) == together * each


def test_all_classes_take_their_turn():
    labels = torch.arange(150) % 15
    seen = torch.cat(draw(labels, 8, 4, 30))
    assert len(labels[seen].unique()) == 15


def test_a_small_class_is_repeated():
    labels = torch.tensor([0, 1, 1, 1, 1, 1, 1])
    (batch,) = draw(labels, 8, 4, 1)
    assert sorted(labels[batch].tolist()) == [0] * 4 + [1] * 4
    assert (batch == 0).sum() == 4 and len(batch.unique()) == 5


def test_the_generator_alone_decides():
    labels = torch.arange(60) % 6
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    first, again, other = draw(labels, 12, 3, 5), draw(labels, 12, 3, 5), draw(labels, 12, 3, 5, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert (np.random.get_state()[1] == before).all()
    assert common_functions.NUMPY_RANDOM is np.random


def test_one_generator_goes_on():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 6
    (first,) = m_per_class_batches(labels, 12, 3, 1, generator)
    (second,) = m_per_class_batches(labels, 12, 3, 1, generator)
    assert not torch.equal(first, second)


def test_a_batch_needs_two_classes():
    with pytest.raises(InputError, match="at most 4"):
        draw(torch.arange(20) % 2, 8, 5, 1)
