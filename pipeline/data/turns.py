"""Turned and mirrored images as classes of their own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import ImageSet
from pipeline.data.pairs import PairList
from pipeline.data.rows import Rows, turned


def with_turns(images: ImageSet, pairs: PairList, turns: int) -> tuple[ImageSet, PairList]:
    """A set with its turned copies, and its pairs once for each turn.

    The copies of turn k follow those of turn k - 1. Class c of turn k is ``turns * c + k``. Turns
    0 to 3 are quarter turns, 4 to 7 those of the mirror image.

    Args:
        images: (N, C, H, W) and classes (N,).
        pairs: positions in ``images``.
        turns: 1, 4 or 8.
    """
    labels = [images.labels * turns + turn for turn in range(turns)]
    left, right = (
        np.concatenate([ends + turn * len(images) for turn in range(turns)])
        for ends in (pairs.left, pairs.right)
    )
    return (
        ImageSet(_with_turns(images.pixels, turns), torch.cat(labels)),
        PairList(left, right, np.tile(pairs.same, turns)),
    )


def _with_turns(pixels: Rows, turns: int) -> Rows:
    if isinstance(pixels, Tensor):
        return torch.cat([turned(pixels, turn) for turn in range(turns)])
    return pixels.turned(turns)
