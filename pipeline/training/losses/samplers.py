"""Batches with the same number of images of each of their classes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def m_per_class_batches(
    labels: Tensor, batch_size: int, per_class: int, batches: int, generator: torch.Generator
) -> list[Tensor]:
    """Batches of ``per_class`` random images of each of some random classes.

    As many classes as fit in a batch are drawn anew for each. Where there are too few classes to
    fill it, a batch has more images a class, so that its size, and with it the images that an
    epoch sees, stays what was asked for; what ``per_class`` or the classes leave over is cut off.
    A class with fewer images than it gives is drawn from with repetition. The draws are those of
    ``MPerClassSampler`` of pytorch-metric-learning.

    Args:
        labels: (N,) int64, on any device.
        batch_size: the most images a batch.
        per_class: images a class and batch, at least.
        batches: how many.
        generator: on the CPU; one number is taken from it.

    Returns:
        positions in ``labels``, (B,) int64 on the CPU each, classes one after the other.

    Raises:
        InputError: no second class would fit into a batch.
    """
    import torch

    together, each = class_batch(len(labels.unique()), batch_size, per_class)
    size = together * each
    sampler = importlib.import_module("pytorch_metric_learning.samplers").MPerClassSampler
    with _numpy_random(int(torch.randint(2**32, (), generator=generator))):
        drawn = sampler(labels.cpu(), each, size, length_before_new_iter=batches * size)
        return list(torch.tensor(list(drawn), dtype=torch.int64).split(size))


def class_batch(
    classes: int, batch_size: int, per_class: int, where: str = "per_class"
) -> tuple[int, int]:
    """How many classes are together in a batch of ``m_per_class_batches``, and images of each.

    Args:
        classes: how many there are.
        batch_size: the most images a batch.
        per_class: images a class and batch, at least.
        where: the key that says so, for the error.

    Raises:
        InputError: no second class would fit into a batch.
    """
    if 2 * per_class > batch_size:
        raise InputError(
            f"params.yaml: {where}: {per_class} of a class leave no second class in a batch of "
            f"{batch_size}; use at most {batch_size // 2}, or larger batches"
        )
    together = min(classes, batch_size // per_class)
    return together, max(per_class, batch_size // together if together == classes else 0)


@contextmanager
def _numpy_random(seed: int) -> Iterator[None]:
    """Let pytorch-metric-learning draw from a generator of its own, not from NumPy's global one."""
    common: Any = importlib.import_module("pytorch_metric_learning.utils.common_functions")
    before = common.NUMPY_RANDOM
    common.NUMPY_RANDOM = np.random.RandomState(seed)
    try:
        yield
    finally:
        common.NUMPY_RANDOM = before
