"""Pair lists: which pairs of training images the Siamese losses see."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.records import write_table

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairList:
    """Unordered pairs of images: ``left``, ``right`` and ``same`` (1 or 0), each (P,)."""

    left: Array
    right: Array
    same: Array


def draw_pairs(
    rows: Array,
    labels: Array,
    per_image: int,
    positive_fraction: float,
    generator: np.random.Generator,
) -> tuple[PairList, dict[str, int]]:
    """Draw ``per_image x N`` distinct pairs of N images, ``positive_fraction`` of one class.

    Uniform without replacement: each class gives same-class pairs in proportion to its images,
    and pairs of two classes are drawn from all there are. Where there are fewer than asked, all
    are taken. Every image stands in at least one pair. Memory is linear in N + P: pairs are drawn
    by their rank and never enumerated.

    Returns:
        The pairs, ordered by row, and how many same-class and different-class pairs are missing
        from what was asked (``same_missing``, ``different_missing``).
    """
    order = np.argsort(labels, kind="stable")
    count = len(rows)
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    left, right, missing = [], [], {"same_missing": 0, "different_missing": 0}
    for start, size in zip(starts, sizes, strict=True):
        wanted = round(per_image * size * positive_fraction)
        ranks = _choose(size * (size - 1) // 2, wanted, generator)
        first, second = _triangle(ranks)
        left.append(start + first)
        right.append(start + second)
        missing["same_missing"] += wanted - len(ranks)
    same = sum(len(part) for part in left)

    ends = np.repeat(starts + sizes, sizes)  # (N,) where the class of each sorted image ends
    before = np.concatenate([[0], np.cumsum(count - ends)])  # ranks of pairs (i, later class)
    wanted = round(per_image * count * (1 - positive_fraction))
    ranks = _choose(int(before[-1]), wanted, generator)
    first = np.searchsorted(before, ranks, side="right") - 1
    left.append(first)
    right.append(ends[first] + ranks - before[first])
    missing["different_missing"] = wanted - len(ranks)

    first, second = np.concatenate(left), np.concatenate(right)
    is_same = np.arange(len(first)) < same
    _use_every_image(first, second, is_same, labels[order], generator)
    one, two = rows[order[first]], rows[order[second]]
    low, high = np.minimum(one, two), np.maximum(one, two)
    sort = np.lexsort((high, low))
    return PairList(low[sort], high[sort], is_same[sort].astype(np.int64)), missing


def write_pairs(path: Path, pairs: PairList) -> None:
    """Write ``left,right,same``."""
    columns = zip(pairs.left.tolist(), pairs.right.tolist(), pairs.same.tolist(), strict=True)
    write_table(path, columns, ("left", "right", "same"))


def pair_counts(pairs: PairList, missing: Mapping[str, int]) -> dict[str, int]:
    """How many pairs of each kind there are, and how many of those asked for are missing."""
    same = int(pairs.same.sum())
    return {"same": same, "different": len(pairs.same) - same, **missing}


def say_missing(lists: Mapping[str, Mapping[str, int]]) -> None:
    """Say, on the error stream, how many pair lists lack pairs; ``pair_counts`` by list."""
    for kind, words in (("same", "of one class"), ("different", "of two classes")):
        short = {n: of[f"{kind}_missing"] for n, of in lists.items() if of[f"{kind}_missing"]}
        if short:
            worst = max(short, key=lambda name: short[name])
            print(
                f"prepare: there are too few pairs {words} in {len(short)} of {len(lists)} pair "
                f"lists, which take all there are; {worst} lacks most, {short[worst]} of those "
                "that pairs.per_image asks for",
                file=sys.stderr,
            )


def _choose(population: int, wanted: int, generator: np.random.Generator) -> Array:
    if wanted >= population:
        return np.arange(population)
    return generator.choice(population, wanted, replace=False, shuffle=False)


def _triangle(ranks: Array) -> tuple[Array, Array]:
    """Rank r = i (i - 1) / 2 + j back to (i, j) with j < i."""
    i = ((1 + np.sqrt(1 + 8 * ranks.astype(np.float64))) / 2).astype(np.int64)
    i -= i * (i - 1) // 2 > ranks  # the root may round either way
    i += i * (i + 1) // 2 <= ranks
    return i, ranks - i * (i - 1) // 2


def _use_every_image(
    left: Array,
    right: Array,
    same: npt.NDArray[np.bool_],
    labels: Array,
    generator: np.random.Generator,
) -> None:
    """Give each image that no pair has the place of a pair whose two images have others."""
    degree = np.bincount(np.concatenate([left, right]), minlength=len(labels))
    for image in np.flatnonzero(degree == 0):
        if degree[image]:  # it became the partner of one before it
            continue
        for kind in (False, True):
            partners = np.flatnonzero((labels == labels[image]) == kind)
            partners = partners[partners != image]
            spare = np.flatnonzero((same == kind) & (degree[left] > 1) & (degree[right] > 1))
            if len(partners) and len(spare):
                place, partner = generator.choice(spare), generator.choice(partners)
                degree[[left[place], right[place]]] -= 1
                left[place], right[place] = image, partner
                degree[[image, partner]] += 1
                break
