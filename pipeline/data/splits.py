"""Who trains, who validates, who tests: splits, duplicates and the training images of a run."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data import groups
from pipeline.data.digests import digests
from pipeline.errors import InputError
from pipeline.params import Splits
from pipeline.records import places_of

Array = npt.NDArray[np.int64]


def generator(stream: str, *key: int) -> np.random.Generator:
    """A generator of its own for each named stream and key (seed, class, …)."""
    return np.random.default_rng([zlib.crc32(stream.encode()), *key])


def assign(images: pd.DataFrame, settings: Splits, val_per_class: int | None) -> pd.Series:
    """The split of every image: the layout's where it brings one, the rest drawn by class.

    Test and validation images are drawn from each class in the shares ``settings`` asks for, at
    least one of each; where the layout brings a test (or validation) set, only the other is cut
    from its training images. Validation images above ``val_per_class`` train if they were drawn
    and stay out (an empty split) if the layout brought them.

    Groups stay whole. Drawn splits then come as near to the shares, and validation to
    ``val_per_class``, as whole groups can, above or below, with an image of each class in every
    split. Of a validation set that the layout brought, groups are kept in random order while no
    class exceeds ``val_per_class``; a class of which none would be left keeps the group that
    exceeds it least.

    Raises:
        InputError: a class has too few images or stands in too few groups.
    """
    split = images["split"].where(images["split"] != "", "train").copy()
    draw = {"test": settings.test, "val": settings.val}
    draw = {name: share for name, share in draw.items() if not (split == name).any()}
    if sum(draw.values()) >= 1:
        raise InputError(
            "params.yaml: data.splits: val and test together must leave images to train on; "
            "their sum must be below 1"
        )
    pool = images[split == "train"]
    if groups.has_groups(pool):
        rng = generator("groups", settings.seed)
        drawn = groups.divide(pool, draw, val_per_class, "data.target", rng)
    else:
        drawn = _draw_images(pool, draw, val_per_class, settings.seed)
    split.loc[drawn.index] = drawn
    if val_per_class is not None and "val" not in draw:
        brought = images[split == "val"]
        split.loc[_above(brought, val_per_class, settings.seed)] = ""
    _check_classes(images, split)
    return split


def _draw_images(
    images: pd.DataFrame, draw: dict[str, float], val_per_class: int | None, seed: int
) -> pd.Series:
    """The split of each image, drawn class by class."""
    split = np.full(len(images), "train", dtype=object)
    for label, places in by_label(images["label"].to_numpy()):
        shuffled = generator("split", seed, label).permutation(places)
        taken = 0
        for name, share in draw.items():
            count = max(1, round(share * len(places)))
            if name == "val" and val_per_class is not None:
                count = min(count, val_per_class)
            split[shuffled[taken : taken + count]] = name
            taken += count
        if taken >= len(places):
            raise InputError(
                f"{_place(draw)}: class '{images['class'].iloc[places[0]]}' has only "
                f"{len(places)} images to cut {' and '.join(draw)} from; one at least must be left "
                "to train on"
            )
    return pd.Series(split, index=images.index)


def _above(images: pd.DataFrame, most: int, seed: int) -> list[int]:
    """The rows to drop so that at most ``most`` images of each class stay; near it, of groups."""
    if groups.has_groups(images):
        return groups.rows_above(images, most, generator("val groups", seed))
    index = images.index.to_numpy()
    dropped: list[int] = []
    for label, places in by_label(images["label"].to_numpy()):
        dropped += generator("val", seed, label).permutation(index[places])[most:].tolist()
    return dropped


def by_label(labels: Array) -> Iterator[tuple[int, Array]]:
    """Each label (of N) with the places where it stands, both ascending; one sort for them all."""
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=False)


def _place(draw: dict[str, float]) -> str:
    """The key that a wrong share of a split is to be mended at."""
    return f"params.yaml: data.splits.{next(iter(draw))}" if draw else "data.target"


def _check_classes(images: pd.DataFrame, split: pd.Series) -> None:
    names = images.drop_duplicates("label").set_index("label")["class"]
    training = set(images.loc[split == "train", "label"].unique().tolist())
    for label, name in names.items():
        if label not in training:
            raise InputError(f"data.target: class '{name}' has no training image")


SHOWN = 3  # names of images in a line


@dataclass(frozen=True)
class Duplicates:
    """Groups of images with the very same pixels, as lists of rows."""

    groups: list[list[int]]


def find_duplicates(pixels: npt.NDArray[np.uint8]) -> Duplicates:
    """Find images that are the same to the byte once decoded and resized. (N, C, H, W).

    Groups are in the order of their first image.
    """
    found = digests(pixels)
    order = np.lexsort((found[:, 1], found[:, 0]))  # stable: rows of a group ascend
    again = (found[order[1:]] == found[order[:-1]]).all(axis=1)
    edges = np.flatnonzero(np.diff(again.astype(np.int8), prepend=0, append=0))
    runs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)  # of neighbours alike
    return Duplicates(sorted(order[first : last + 1].tolist() for first, last in runs))


def without_duplicates(
    images: pd.DataFrame, split: pd.Series, duplicates: Duplicates, choice: str
) -> pd.Series:
    """The splits once no image stands in two of them or under two labels.

    With ``drop``, copies under two labels all leave (which label is right cannot be known); of
    copies in several splits those in the test split stay, else those in the validation split.

    Raises:
        InputError: with ``error``, naming the first group and how many there are.
    """
    split = split.copy()
    at, labels = split.to_numpy(object), images["label"].to_numpy()
    wrong: list[tuple[str, list[int]]] = []
    dropped: list[int] = []
    for group in duplicates.groups:
        rows = [row for row in group if at[row] != ""]
        splits = {at[row] for row in rows}
        if len({labels[row] for row in rows}) > 1:
            wrong.append(("under two labels", rows))
            dropped += rows
        elif len(splits) > 1:
            wrong.append(("in two splits", rows))
            keep = next(name for name in ("test", "val") if name in splits)
            dropped += [row for row in rows if at[row] != keep]
    if choice == "drop":
        split.loc[dropped] = ""
        say_dropped(images, dropped)
    if wrong and choice == "error":
        how, rows = wrong[0]
        named = ", ".join(f"{images['image'][r]} ({images['class'][r]}, {split[r]})" for r in rows)
        more = f", and {len(wrong) - 1} more such groups" if len(wrong) > 1 else ""
        raise InputError(
            f"data.target: identical images stand {how}: {named}{more}; remove them, or set "
            "data.exact_duplicates: drop"
        )
    _check_classes(images, split)
    return split


def say_dropped(images: pd.DataFrame, rows: Sequence[int]) -> None:
    """Name the first of the images that are left out as copies."""
    if not rows:
        return
    shown = ", ".join(images["image"][list(rows[:SHOWN])])
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    print(f"prepare: left out as copies (data.exact_duplicates: drop): {shown}{more}")


def training_order(rows: Array, labels: Array, seed: int) -> tuple[Array, Array]:
    """All training images in the order in which ``seed`` takes them, one of each class in turn.

    The first ``n x classes`` rows are the run's images at n shots, so that fewer shots are a
    prefix of more. Classes that have run out are skipped.

    Returns:
        rows and their labels, each (N,).
    """
    turns, picked, of = [], [], []
    for label, places in by_label(labels):
        mine = generator("train", seed, label).permutation(rows[places])
        turns.append(np.arange(len(mine)))
        picked.append(mine)
        of.append(np.full(len(mine), label))
    order = np.lexsort((np.concatenate(of), np.concatenate(turns)))
    return np.concatenate(picked)[order], np.concatenate(of)[order]


def shuffled_labels(labels: Array, seed: int) -> Array:
    """The labels in random order: the control in which there is nothing to learn."""
    return generator("shuffle", seed).permutation(labels)


def check_shots(shots: list[int | str], counts: dict[str, int]) -> None:
    """Refuse more shots than a class has training images.

    Raises:
        InputError: naming the class and its count.
    """
    name, count = min(counts.items(), key=lambda item: item[1])
    for wanted in shots:
        if wanted != "all" and int(wanted) > count:
            raise InputError(
                f"params.yaml: compare.shots: {wanted} images a class are asked for, but class "
                f"'{name}' has only {count} to train on; use at most {count} or all"
            )


def read_images(path: Path | str) -> pd.DataFrame:
    """Read ``images.csv``; names stay text whatever they look like.

    Raises:
        InputError: it is of another form.
    """
    kinds = {"row": int, "label": int} | dict.fromkeys(("image", "class", "split", "group"), str)
    table = pd.read_csv(path, dtype=kinds, keep_default_na=False)
    places_of(path, list(table.columns), list(kinds))
    return table


def class_counts(images: pd.DataFrame, split: pd.Series, name: str) -> dict[str, int]:
    """Images of each class, by class name, in one split."""
    classes = images.drop_duplicates("label").sort_values("label")["class"]
    count = images.loc[split == name, "class"].value_counts()
    return {of: int(count.get(of, 0)) for of in classes}


def cut_validation(images: pd.DataFrame, share: float, seed: int) -> pd.Series:
    """Split into ``train`` and ``val`` alone, ``share`` of each class and at least one image.

    Groups stay whole; the shares are then as near as whole groups can come.

    Raises:
        InputError: a class has a single image or stands in a single group.
    """
    if groups.has_groups(images):
        return groups.divide(images, {"val": share}, None, "data.source", generator("groups", seed))
    split = np.full(len(images), "train", dtype=object)
    for label, places in by_label(images["label"].to_numpy()):
        count = max(1, round(share * len(places)))
        if count >= len(places):
            raise InputError(
                f"data.source: class '{images['class'].iloc[places[0]]}' has {len(places)} "
                "image(s); it needs at least two, one of them for validation"
            )
        split[generator("split", seed, label).permutation(places)[:count]] = "val"
    return pd.Series(split, index=images.index)
