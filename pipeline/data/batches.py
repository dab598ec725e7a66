"""Training data on the device: images, lists, batches of images and of pairs."""

from __future__ import annotations

import csv
import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.pairs import PairList

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Images of one list on the device: ``pixels`` uint8 (N, C, H, W), ``labels`` int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def read_list(path: Path | str) -> tuple[Array, Array]:
    """Rows and labels of a ``row,label`` list, each (N,)."""
    with open(path, newline="", encoding="utf-8") as file:
        table = [(int(line["row"]), int(line["label"])) for line in csv.DictReader(file)]
    rows, labels = np.array(table, dtype=np.int64).reshape(-1, 2).T
    return rows, labels


def load_images(images: Path | str, rows: Array, labels: Array, device: torch.device) -> ImageSet:
    """Bring the listed rows of ``images.npy`` to the device; nothing else is read."""
    pixels = np.load(images, mmap_mode="r")[rows]
    return ImageSet(torch.from_numpy(pixels).to(device), torch.from_numpy(labels).to(device))


def read_pairs(path: Path | str, rows: Array) -> PairList:
    """Read ``left,right,same``; the rows of ``images.npy`` become positions in ``rows``."""
    with open(path, newline="", encoding="utf-8") as file:
        table = [
            (int(line["left"]), int(line["right"]), int(line["same"]))
            for line in csv.DictReader(file)
        ]
    left, right, same = np.array(table, dtype=np.int64).reshape(-1, 3).T
    order = np.argsort(rows)
    left, right = (order[np.searchsorted(rows, ends, sorter=order)] for ends in (left, right))
    return PairList(left, right, same)


@dataclass(frozen=True)
class Trials:
    """Comparisons of a set: episode, ``left`` and ``right`` as positions, ``same``; each (T,)."""

    episode: npt.NDArray[np.str_]
    left: Array
    right: Array
    same: Array


def read_trials(path: Path | str, rows: Array) -> dict[str, Trials]:
    """Read ``set,episode,left,right,same`` by set; images become positions in ``rows``."""
    by_set: dict[str, list[dict[str, str]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            by_set.setdefault(line["set"], []).append(line)
    order = np.argsort(rows)
    found = {}
    for name, lines in by_set.items():
        left, right, same = (
            np.array([int(line[key]) for line in lines], dtype=np.int64)
            for key in ("left", "right", "same")
        )
        left, right = (order[np.searchsorted(rows, ends, sorter=order)] for ends in (left, right))
        episode = np.array([line["episode"] for line in lines], dtype=np.str_)
        found[name] = Trials(episode, left, right, same)
    return found


def batch_count(images: int, batch_size: int) -> int:
    """Batches an epoch: each of two images at least, where there are two."""
    return max(1, min(math.ceil(images / batch_size), images // 2))


def image_batches(images: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """One epoch of positions in random order, cut into batches as equal in size as can be.

    Equal batches weigh all images alike, and none is left with a single image, on which batch
    normalisation has nothing to normalise by.
    """
    order = torch.randperm(images, generator=generator)
    return list(order.tensor_split(batch_count(images, batch_size)))


def balanced_batches(labels: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """One epoch of positions in which every class is equally likely, cut as ``image_batches`` does.

    As many positions are drawn as there are images, with replacement: those of a large class come
    less than once an epoch on average, those of a small one more often.

    Args:
        labels: (N,) classes from 0; one without images is never drawn.
        batch_size: images a batch at most, unless that leaves a batch of one.
        generator: of the CPU.

    Returns:
        Positions (B,) of each batch, on the CPU.
    """
    labels = labels.cpu()
    weights = labels.bincount()[labels].double().reciprocal()
    drawn = weights.multinomial(len(labels), replacement=True, generator=generator)
    return list(drawn.tensor_split(batch_count(len(labels), batch_size)))


def auto_batch_size(images: int) -> int:
    """About a tenth of the images: the power of two at or below it, from 8 to 128."""
    power = 1 << max(images // 10, 1).bit_length() - 1
    return min(max(power, 8), 128)


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
    turns, so that a batch has both kinds in the list's proportion. A pair whose images fall into
    two batches rests for that epoch; where one batch holds the whole set, none does.
    """

    def __init__(self, pairs: PairList, images: int, batch_size: int):
        self.pairs = pairs
        self.images = images
        self.batches = batch_count(images, batch_size)
        ends = np.concatenate([pairs.left, pairs.right])
        order = np.argsort(ends, kind="stable")
        self._neighbours = np.concatenate([pairs.right, pairs.left])[order].tolist()
        self._kinds = np.concatenate([pairs.same, pairs.same])[order].tolist()
        self._start = [0, *np.cumsum(np.bincount(ends, minlength=images)).tolist()]

    def epoch(self, generator: torch.Generator) -> Iterator[PairBatch]:
        """The batches of one epoch; a batch without any pair is left out."""
        cuts = self._compose(torch.randperm(self.images, generator=generator).numpy())
        batch_of, place = np.empty((2, self.images), dtype=np.int64)
        for number, images in enumerate(cuts):
            batch_of[images], place[images] = number, np.arange(len(images))
        inside = np.flatnonzero(batch_of[self.pairs.left] == batch_of[self.pairs.right])
        number_of = batch_of[self.pairs.left[inside]]
        inside = inside[np.argsort(number_of, kind="stable")]
        bounds = np.cumsum(np.bincount(number_of, minlength=self.batches))[:-1]
        for images, pairs in zip(cuts, np.split(inside, bounds), strict=True):
            if len(pairs):
                yield PairBatch(
                    torch.from_numpy(images),
                    torch.from_numpy(place[self.pairs.left[pairs]]),
                    torch.from_numpy(place[self.pairs.right[pairs]]),
                    torch.from_numpy(self.pairs.same[pairs] == 1),
                )

    def _compose(self, random_order: Array) -> list[Array]:
        """The images of each batch; ``random_order`` gives the starts and breaks ties."""
        sizes = [len(cut) for cut in np.array_split(random_order, self.batches)]
        if self.batches == 1:
            return [random_order]
        rank = np.argsort(random_order).tolist()
        starts = iter(random_order.tolist())
        positive = float(self.pairs.same.mean())
        placed = bytearray(self.images)
        cuts = []
        for size in sizes:
            links: tuple[dict[int, int], ...] = ({}, {})  # pairs into the batch, by kind
            heaps: tuple[list[tuple[int, int, int]], ...] = ([], [])
            count = [0, 0]
            batch: list[int] = []
            while len(batch) < size:
                wanted = int(count[1] <= positive * sum(count))
                image = _most_linked(heaps[wanted], links[wanted], placed)
                if image is None:
                    image = _most_linked(heaps[1 - wanted], links[1 - wanted], placed)
                if image is None:
                    image = next(start for start in starts if not placed[start])
                placed[image] = True
                batch.append(image)
                for kind in (0, 1):
                    count[kind] += links[kind].get(image, 0)
                for edge in range(self._start[image], self._start[image + 1]):
                    near, kind = self._neighbours[edge], self._kinds[edge]
                    if not placed[near]:
                        links[kind][near] = links[kind].get(near, 0) + 1
                        heapq.heappush(heaps[kind], (-links[kind][near], rank[near], near))
            cuts.append(np.array(batch, dtype=np.int64))
        return cuts


def _most_linked(
    heap: list[tuple[int, int, int]], links: dict[int, int], placed: bytearray
) -> int | None:
    while heap:
        count, _, image = heapq.heappop(heap)
        if not placed[image] and links[image] == -count:  # else an entry that was overtaken
            return image
    return None
