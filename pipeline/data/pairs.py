"""Pair lists: which pairs of training images the Siamese losses see."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.records import write_table

BLOCK = 1 << 16  # rows of a table that are numbers of Python's own at once

Array = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


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
    are taken. Every image stands in a pair, as far as so many pairs reach. Time and memory are
    linear in N + P: pairs are drawn by their rank, and no more than 20 ranks are held for each
    that is drawn.

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
    return _ordered(rows[order[first]], rows[order[second]], is_same), missing


def write_pairs(path: Path, pairs: PairList) -> None:
    """Write ``left,right,same``."""
    write_table(path, in_blocks(pairs.left, pairs.right, pairs.same), ("left", "right", "same"))


def in_blocks(*columns: Array) -> Iterator[tuple[int, ...]]:
    """The rows of columns of one length as plain numbers, made a block at a time."""
    for start in range(0, len(columns[0]), BLOCK):
        yield from zip(*(of[start : start + BLOCK].tolist() for of in columns), strict=True)


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


def _ordered(one: Array, other: Array, same: Bools) -> PairList:
    """Distinct pairs with their lower row on the left, ordered by it, then by the higher row.

    They are sorted as one number each, which has room for two billion rows.
    """
    span = 1 + max(one.max(initial=0), other.max(initial=0))
    packed = (np.minimum(one, other) * span + np.maximum(one, other)) * 2 + same
    packed.sort()
    both, kind = np.divmod(packed, 2)
    left, right = np.divmod(both, span)
    return PairList(left, right, kind)


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
    left: Array, right: Array, same: Bools, labels: Array, generator: np.random.Generator
) -> None:
    """Give each image that no pair has the place of a pair whose two images have others.

    A pair of two classes where there is one to spare, else one of its own class. ``labels``
    ascend. Pairs change in place; time and memory are linear in images and pairs.
    """
    degree = np.bincount(np.concatenate([left, right]), minlength=len(labels))
    lonely = np.flatnonzero(degree == 0)
    if not len(lonely):
        return
    starts = np.searchsorted(labels, labels[lonely]).tolist()
    ends = np.searchsorted(labels, labels[lonely], side="right").tolist()
    pairs = _Pairs(left, right, same, degree)
    for image, start, end in zip(lonely.tolist(), starts, ends, strict=True):
        if degree[image]:  # it became the partner of one before it
            continue
        for kind, partners in ((False, len(labels) - (end - start)), (True, end - start - 1)):
            spare = pairs.spare(kind)
            if partners and spare:
                place = pairs.nth_spare(kind, int(generator.integers(spare)))
                nth = int(generator.integers(partners))
                if kind:
                    partner = start + nth + (start + nth >= image)
                else:
                    partner = nth + (end - start) * (nth >= start)
                pairs.replace(place, image, partner)
                break


class _Pairs:
    """Pairs that change one by one, and which of each kind are to spare: both images have others.

    Those to spare are counted in blocks, so that the n-th is found by looking at one number a
    block and at one block, with blocks of about as many pairs as there are blocks.
    """

    def __init__(self, left: Array, right: Array, same: Bools, degree: Array):
        self.left, self.right, self.same, self.degree = left, right, same, degree
        self.block = max(1, int(np.sqrt(len(left))))
        self.to_spare = (degree[left] > 1) & (degree[right] > 1)
        firsts = np.arange(0, len(left), self.block)
        self.counts = [
            np.add.reduceat(self.to_spare & (same == kind), firsts, dtype=np.int64)
            for kind in (False, True)
        ]
        self.totals = [int(of.sum()) for of in self.counts]
        # where each image's pairs stand, once and for all; later ones by image
        self.order = np.argsort(np.concatenate([left, right]), kind="stable")
        self.begins = np.concatenate([[0], np.cumsum(degree)])
        self.later: dict[int, list[int]] = {}

    def spare(self, kind: bool) -> int:
        """How many pairs of a kind are to spare."""
        return self.totals[kind]

    def nth_spare(self, kind: bool, number: int) -> int:
        """The place of one of them, in the order of places."""
        ends = np.cumsum(self.counts[kind])
        block = int(np.searchsorted(ends, number, side="right"))
        first = block * self.block
        mine = slice(first, first + self.block)
        inside = np.flatnonzero(self.to_spare[mine] & (self.same[mine] == kind))
        return first + int(inside[number - (ends[block - 1] if block else 0)])

    def replace(self, place: int, image: int, partner: int) -> None:
        """Put a pair in the place of another."""
        gone = (int(self.left[place]), int(self.right[place]))
        self.degree[[*gone]] -= 1
        self.left[place], self.right[place] = image, partner
        self.degree[[image, partner]] += 1
        for new in (image, partner):
            self.later.setdefault(new, []).append(place)
        self._count(place)
        for changed in (*gone, partner):
            if self.degree[changed] <= 2:  # its other pair may be spared no more, or anew
                for other in self._places(changed):
                    self._count(other)

    def _places(self, image: int) -> list[int]:
        """Where an image's pairs stand, and perhaps stood."""
        first = self.order[self.begins[image] : self.begins[image + 1]] % len(self.left)
        return [*first.tolist(), *self.later.get(image, [])]

    def _count(self, place: int) -> None:
        """Count a pair anew."""
        degree = self.degree
        now = bool(degree[self.left[place]] > 1 and degree[self.right[place]] > 1)
        if now != self.to_spare[place]:
            self.to_spare[place] = now
            kind = bool(self.same[place])
            self.counts[kind][place // self.block] += 1 if now else -1
            self.totals[kind] += 1 if now else -1
