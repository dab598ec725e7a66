"""Batches of images composed so that their pairs share images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.batches import batch_count
from pipeline.data.pairs import PairList

Array = npt.NDArray[np.int64]
Group = tuple[Array, list[int]]  # images of several batches one after another, and their sizes
Keys = dict[int, int]  # by place in an epoch's order; the smallest comes next

FEW_IMAGES = 4096  # up to which epochs are composed side by side
PADDED_ELEMENTS = 2**21  # of a table of neighbours as wide as the image with the most pairs
FIRST_EPOCHS, MOST_EPOCHS = 8, 64  # composed side by side at first, and later on
GROUP_IMAGES = 8192  # whose pairs are looked up together
OUTSIDE = -1
PLACED = 2**30  # the key of an image that has its batch: above all others


@dataclass(frozen=True)
class PairBatch:
    """Images of a batch and the listed pairs among them, as positions in the batch."""

    images: Tensor  # (B,) positions in the image set
    left: Tensor  # (P,) positions in the batch
    right: Tensor  # (P,)
    same: Tensor  # (P,) bool


class PairBatches:
    """Batches of images that share their pairs: one pass of an image serves all its pairs.

    An epoch puts every image into one batch. Batches grow greedily over the graph whose edges are
    the pairs: next comes the image with the most pairs into the batch, of one class or of two by
    turns, so that a batch has both kinds in the list's proportion; of equals, and where no image
    has any, the one that comes first in a random order. A pair whose images fall into two batches
    rests for that epoch; where one batch holds the whole set, none does.

    Time is linear in images and pairs, but for the logarithm of a batch's neighbours; memory is
    some 60 bytes a pair while the graph is made and 20 later on, beside the list. Some thousand
    images are composed at a time, when they are asked for, so that a device trains on those before
    in the meantime. Of few images, several epochs are composed side by side, which takes a
    fraction of the time.

    Args:
        pairs: positions of images, from 0.
        images: how many there are.
        batch_size: images a batch at most.
        generator: of the CPU; draws the orders, of some epochs ahead, and nothing else may draw
            from it in between.
    """

    def __init__(self, pairs: PairList, images: int, batch_size: int, generator: torch.Generator):
        self.images = images
        self.batches = batch_count(images, batch_size)
        self._generator = generator
        self._sizes = [len(cut) for cut in np.array_split(np.arange(images), self.batches)]
        self._positive = float(pairs.same.mean())
        self._pairs = _Pairs(pairs, images)
        self._graph = _Graph(pairs, images) if self.batches > 1 else None
        self._table = self._graph.table() if self._graph and images <= FEW_IMAGES else None
        self._ahead: list[Array] = []  # orders of epochs to come, the next one last
        self._next_epochs = FIRST_EPOCHS

    def epoch(self) -> Iterator[list[PairBatch]]:
        """The batches of the next epoch, in groups of some thousand images.

        A batch without any pair is left out.
        """
        for images, sizes in self._compose():
            yield [batch for batch in self._pairs.among(images, sizes) if len(batch.left)]

    def state_dict(self) -> dict[str, Any]:
        """What the epochs to come depend on, between two epochs."""
        ahead = np.stack(self._ahead) if self._ahead else np.empty((0, self.images), np.int64)
        return {
            "generator": self._generator.get_state(),
            "ahead": torch.from_numpy(ahead.astype(np.int32)),
            "next_epochs": self._next_epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self._generator.set_state(state["generator"])
        self._ahead = list(state["ahead"].numpy().astype(np.int64))
        self._next_epochs = state["next_epochs"]

    def _compose(self) -> Iterable[Group]:
        """The images of the batches of an epoch."""
        if self._graph is None:
            return [(self._random_order(), self._sizes)]
        if self._table is None:
            return _grouped(self._greedy(self._graph, self._random_order()))
        if not self._ahead:
            orders = [self._random_order() for _ in range(self._next_epochs)]
            self._ahead = list(self._greedy_side_by_side(self._table, np.stack(orders)))[::-1]
            self._next_epochs = min(2 * self._next_epochs, MOST_EPOCHS)
        return [(self._ahead.pop(), self._sizes)]

    def _random_order(self) -> Array:
        return torch.randperm(self.images, generator=self._generator).numpy()

    def _greedy(self, graph: _Graph, order: Array) -> Iterator[Array]:
        """Each batch of one epoch, from heaps of the images that have pairs into it.

        Images go by their place in ``order``. A heap's key is the place less ``images`` for each
        pair into the batch: the smallest has the most pairs, and of those the first place. A key
        that an image no longer has stays in the heap and is passed over.
        """
        count, positive = self.images, self._positive
        near, bounds = _places(order)[graph.near], graph.bounds
        placed = bytearray(count)
        for size in self._sizes:
            keys: tuple[Keys, Keys] = ({}, {})  # by kind of pair: of two classes, of one
            heaps: tuple[list[int], list[int]] = ([], [])
            different = same = 0  # pairs within the batch
            batch: list[int] = []
            while len(batch) < size:
                wanted = same <= positive * (same + different)
                place = _first(heaps[wanted], keys[wanted], count)
                if place < 0:
                    place = _first(heaps[not wanted], keys[not wanted], count)
                if place < 0:
                    place = placed.find(0)
                placed[place] = 1
                batch.append(place)
                different -= keys[0].pop(place, 0) // count
                same -= keys[1].pop(place, 0) // count
                row = 2 * order[place]
                start, middle, end = bounds[row : row + 3].tolist()
                _link(near[start:middle].tolist(), keys[0], heaps[0], placed, count)
                _link(near[middle:end].tolist(), keys[1], heaps[1], placed, count)
            yield order[batch]

    def _greedy_side_by_side(self, table: Array, orders: Array) -> Array:
        """The images of several epochs, batch after batch, by the same keys in arrays.

        Args:
            table: (N, W), see ``_Graph.table``.
            orders: (E, N).

        Returns:
            (E, N).
        """
        epochs, count = orders.shape
        width = count + 1
        start = np.full((epochs, 2, width), PLACED, dtype=np.int32)  # keys in an empty batch
        for of, order in zip(start, orders, strict=True):
            of[:, :count] = _places(order)
        keys = start.copy()
        rows, flat, empty = keys.reshape(2 * epochs, width), keys.reshape(-1), start.reshape(-1)
        row = np.arange(2 * epochs)  # one for each epoch and kind
        first_of_row = row * width
        first_of_kind = first_of_row.reshape(epochs, 2).T  # (2, E)
        first_of_epoch = first_of_row[::2, None]
        composed = np.empty((count, epochs), dtype=np.int64)
        steps = iter(composed)
        for size in self._sizes:
            np.copyto(keys, start)
            links = np.zeros((2, epochs), dtype=np.int64)
            for _ in range(size):
                best = rows.argmin(axis=1)  # (2E,)
                linked = flat[first_of_row + best] < 0
                wanted = row[::2] + (links[1] <= self._positive * links.sum(axis=0))
                image = best[np.where(linked[wanted], wanted, wanted ^ 1)]  # (E,)
                next(steps)[:] = image
                places = first_of_kind + image
                links += (empty[places] - flat[places]) // count
                flat[places] = empty[places] = PLACED
                flat[first_of_epoch + table[image]] -= count
        return np.ascontiguousarray(composed.T)


class _Graph:
    """Neighbours of each image by kind of pair.

    Attributes:
        near: (2P,) int32 neighbours, by image and then kind.
        bounds: (2N + 1,) where those of row 2 * image + kind begin.
    """

    def __init__(self, pairs: PairList, images: int):
        ends = np.stack([pairs.left, pairs.right]).astype(np.int32)
        rows = (2 * ends + pairs.same.astype(np.int32)).reshape(-1)
        self.images = images
        self.bounds = _bounds(rows, 2 * images)
        self.near = ends[::-1].reshape(-1)[np.argsort(rows, kind="stable")]

    def table(self) -> Array | None:
        """Neighbours (N, W) as places in a row of N + 1 of each kind; the rest names a place more.

        None where a few images have so many that it would be large, or a pair is listed twice.
        """
        rows = np.repeat(np.arange(2 * self.images), np.diff(self.bounds))
        image, kind = rows // 2, rows % 2
        degree = np.bincount(image, minlength=self.images)
        listed = rows * self.images + self.near
        if self.images * int(degree.max()) > PADDED_ELEMENTS or _has_equals(listed):
            return None
        table = np.full((self.images, degree.max()), self.images)
        column = np.arange(len(rows)) - self.bounds[:-1:2][image]
        table[image, column] = kind * (self.images + 1) + self.near
        return table


class _Pairs:
    """Listed pairs, to be found by the images that they are of."""

    def __init__(self, pairs: PairList, images: int):
        self._left, self._right, self._same = pairs.left, pairs.right, pairs.same == 1
        self._by_left = np.argsort(pairs.left, kind="stable").astype(np.int32)
        self._bounds = _bounds(pairs.left, images)
        self._batch = np.full(images, OUTSIDE)  # of the batches at hand, the one an image is in
        self._place = np.empty(images, dtype=np.int64)  # and its place there

    def among(self, images: Array, sizes: list[int]) -> list[PairBatch]:
        """Batches of ``images``, cut into ``sizes``, each with its pairs in the list's order."""
        numbers = np.repeat(np.arange(len(sizes)), sizes)
        starts = np.cumsum(sizes) - sizes
        self._batch[images], self._place[images] = numbers, np.arange(len(images)) - starts[numbers]
        pairs = self._from(images)
        number_of = self._batch[self._left[pairs]]
        inside = number_of == self._batch[self._right[pairs]]
        pairs, number_of = pairs[inside], number_of[inside]
        pairs = pairs[np.lexsort((pairs, number_of))]
        self._batch[images] = OUTSIDE
        counts = np.bincount(number_of, minlength=len(sizes)).tolist()
        left, right = self._place[self._left[pairs]], self._place[self._right[pairs]]
        parts = (
            torch.from_numpy(images).split(sizes),
            *(torch.from_numpy(part).split(counts) for part in (left, right, self._same[pairs])),
        )
        return [PairBatch(*of) for of in zip(*parts, strict=True)]

    def _from(self, images: Array) -> Array:
        """The pairs whose first image is among ``images``, or all of them for all images."""
        if len(images) == len(self._batch):
            return np.arange(len(self._left))
        lengths = self._bounds[images + 1] - self._bounds[images]
        shift = np.repeat(self._bounds[images] - np.cumsum(lengths) + lengths, lengths)
        return self._by_left[shift + np.arange(len(shift))].astype(np.int64)


def _grouped(batches: Iterable[Array]) -> Iterator[Group]:
    """Batches one after another, until they hold ``GROUP_IMAGES`` images."""
    group: list[Array] = []
    held = 0
    for batch in batches:
        group.append(batch)
        held += len(batch)
        if held >= GROUP_IMAGES:
            yield np.concatenate(group), [len(of) for of in group]
            group, held = [], 0
    if group:
        yield np.concatenate(group), [len(of) for of in group]


def _link(near: list[int], keys: Keys, heap: list[int], placed: bytearray, count: int) -> None:
    """Lower the keys of an image's neighbours by a pair."""
    for place in near:
        if not placed[place]:
            keys[place] = key = keys.get(place, place) - count
            heappush(heap, key)


def _first(heap: list[int], keys: Keys, count: int) -> int:
    """The place with the smallest key, taken from the heap; -1 without any."""
    while heap:
        key = heappop(heap)
        place = key % count
        if keys.get(place) == key:
            return place
    return -1


def _places(order: Array) -> npt.NDArray[np.int32]:
    """The inverse of a permutation."""
    places = np.empty(len(order), dtype=np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    return places


def _bounds(rows: npt.NDArray[np.integer], count: int) -> Array:
    """Where each row's entries begin among those sorted by row, and where the last one's end."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])


def _has_equals(values: Array) -> bool:
    values = np.sort(values)
    return bool((values[1:] == values[:-1]).any())
