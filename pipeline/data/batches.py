"""Training data for the device: images, lists, batches of images."""

from __future__ import annotations

import csv
import math
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.pairs import PairList
from pipeline.data.rows import Rows, Streamed, resident
from pipeline.errors import InputError
from pipeline.params import Placement
from pipeline.records import REMAKE, TRIAL_COLUMNS, places_of

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Images of one list: ``pixels`` uint8 (N, C, H, W), ``labels`` int64 (N,) on the device."""

    pixels: Rows
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def read_list(path: Path | str) -> tuple[Array, Array]:
    """Rows and labels of a ``row,label`` list, each (N,)."""
    rows, labels = _columns(path, "row", "label")
    return rows, labels


def load_images(
    images: Path | str,
    rows: Array,
    labels: Array,
    device: torch.device,
    placement: Placement = "resident",
) -> ImageSet:
    """The listed rows of ``images.npy`` for the device; nothing else is read."""
    (loaded,) = load_sets(images, [(rows, labels)], device, placement)
    return loaded


def load_sets(
    images: Path | str,
    lists: Sequence[tuple[Array, Array]],
    device: torch.device,
    placement: Placement,
    copies: int = 1,
) -> list[ImageSet]:
    """Sets that are used together: all are brought to the device, or all are streamed to it.

    Args:
        images: ``images.npy``.
        lists: rows and labels of each set.
        device: where they are used.
        placement: as of ``pipeline.data.rows.resident``.
        copies: how many of each image there will be.

    Raises:
        InputError: the file is damaged or of another form.
    """
    content = _mapped(images)
    size = sum(len(rows) for rows, _ in lists) * content[:1].nbytes * copies
    stays = resident(size, device, placement)
    return [
        ImageSet(
            torch.from_numpy(content[rows]).to(device)
            if stays
            else Streamed(
                content.reshape(len(content), -1), rows, content.shape[1:], torch.uint8, device
            ),
            torch.from_numpy(labels).to(device),
        )
        for rows, labels in lists
    ]


def _mapped(path: Path | str) -> npt.NDArray[np.uint8]:
    """``images.npy``, mapped into memory."""
    try:
        content: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path}: no readable images ({said}): {REMAKE}") from None
    if content.ndim != 4 or content.dtype != np.uint8:
        raise InputError(f"{path}: must be uint8 images (N, C, H, W): {REMAKE}")
    return content


def read_pairs(path: Path | str, rows: Array) -> PairList:
    """Read ``left,right,same``; the rows of ``images.npy`` become positions in ``rows``."""
    left, right, same = _columns(path, "left", "right", "same")
    left, right = _positions(rows, left, right)
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
    by_set: dict[str, tuple[list[str], array[int]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        order = places_of(path, next(lines, []), TRIAL_COLUMNS)
        for line in lines:
            name, episode, *numbers = (line[place] for place in order)
            episodes, flat = by_set.setdefault(name, ([], array("q")))
            episodes.append(episode)
            flat.extend(map(int, numbers))
    found = {}
    for name, (episodes, flat) in by_set.items():
        left, right, same = np.array(flat, dtype=np.int64).reshape(-1, 3).T.copy()
        left, right = _positions(rows, left, right)
        found[name] = Trials(np.array(episodes, dtype=np.str_), left, right, same)
    return found


def _columns(path: Path | str, *names: str) -> Array:
    """Columns of whole numbers of a table with a header line, (K, N).

    Raises:
        InputError: the header lacks one.
    """
    with open(path, encoding="utf-8") as file:
        places = places_of(path, file.readline().strip().split(","), names)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*input contained no data")
            table = np.loadtxt(file, np.int64, delimiter=",", usecols=places, ndmin=2)
    return table.reshape(-1, len(names)).T.copy()


def _positions(rows: Array, *ends: Array) -> Iterator[Array]:
    """Where each of ``ends`` stands in ``rows``."""
    order = np.argsort(rows)
    return (order[np.searchsorted(rows, of, sorter=order)] for of in ends)


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
