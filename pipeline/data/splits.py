"""Who trains, who validates, who tests: splits, duplicates and the training images of a run."""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.errors import InputError
from pipeline.params import Splits

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

    Raises:
        InputError: a class has too few images.
    """
    split = images["split"].where(images["split"] != "", "train").copy()
    draw = {"test": settings.test, "val": settings.val}
    draw = {name: share for name, share in draw.items() if not (split == name).any()}
    if sum(draw.values()) >= 1:
        raise InputError(
            "params.yaml: data.splits: val and test together must leave images to train on; "
            "their sum must be below 1"
        )
    for label, of_class in _by_label(images[split == "train"]):
        rows = of_class.index.to_numpy()
        shuffled = generator("split", settings.seed, label).permutation(rows)
        taken = 0
        for name, share in draw.items():
            count = max(1, round(share * len(rows)))
            if name == "val" and val_per_class is not None:
                count = min(count, val_per_class)
            split.loc[shuffled[taken : taken + count]] = name
            taken += count
        if taken >= len(rows):
            raise InputError(
                f"{_place(draw)}: class '{of_class['class'].iloc[0]}' has only "
                f"{len(rows)} images to cut {' and '.join(draw)} from; one at least must be left "
                "to train on"
            )
    if val_per_class is not None and "val" not in draw:
        for label, of_class in _by_label(images[split == "val"]):
            rows = generator("val", settings.seed, label).permutation(of_class.index)
            split.loc[rows[val_per_class:]] = ""
    _check_classes(images, split)
    return split


def _by_label(images: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    for label in sorted(images["label"].unique()):
        yield int(label), images[images["label"] == label]


def _place(draw: dict[str, float]) -> str:
    """The key that a wrong share of a split is to be mended at."""
    return f"params.yaml: data.splits.{next(iter(draw))}" if draw else "data.target"


def _check_classes(images: pd.DataFrame, split: pd.Series) -> None:
    names = images.drop_duplicates("label").set_index("label")["class"]
    training = set(images.loc[split == "train", "label"])
    for label, name in names.items():
        if label not in training:
            raise InputError(f"data.target: class '{name}' has no training image")


@dataclass(frozen=True)
class Duplicates:
    """Groups of images with the very same pixels, as lists of rows."""

    groups: list[list[int]]


def find_duplicates(pixels: npt.NDArray[np.uint8]) -> Duplicates:
    """Find images that are the same to the byte once decoded and resized. (N, C, H, W)."""
    seen: dict[bytes, list[int]] = defaultdict(list)
    for row in range(len(pixels)):
        seen[hashlib.blake2b(pixels[row].tobytes(), digest_size=16).digest()].append(row)
    return Duplicates([rows for rows in seen.values() if len(rows) > 1])


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
    wrong: list[tuple[str, list[int]]] = []
    for group in duplicates.groups:
        rows = [row for row in group if split[row] != ""]
        if images.loc[rows, "label"].nunique() > 1:
            wrong.append(("under two labels", rows))
            dropped = rows
        elif split[rows].nunique() > 1:
            wrong.append(("in two splits", rows))
            keep = next(name for name in ("test", "val") if (split[rows] == name).any())
            dropped = [row for row in rows if split[row] != keep]
        else:
            continue
        if choice == "drop":
            split.loc[dropped] = ""
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


def training_order(rows: Array, labels: Array, seed: int) -> tuple[Array, Array]:
    """All training images in the order in which ``seed`` takes them, one of each class in turn.

    The first ``n x classes`` rows are the run's images at n shots, so that fewer shots are a
    prefix of more. Classes that have run out are skipped.

    Returns:
        rows and their labels, each (N,).
    """
    turns, picked, of = [], [], []
    for label in np.unique(labels):
        mine = generator("train", seed, int(label)).permutation(rows[labels == label])
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
    for wanted in shots:
        for name, count in counts.items():
            if wanted != "all" and int(wanted) > count:
                raise InputError(
                    f"params.yaml: compare.shots: {wanted} images a class are asked for, but "
                    f"class '{name}' has only {count} to train on; use at most "
                    f"{min(counts.values())} or all"
                )


def read_images(path: Path | str) -> pd.DataFrame:
    """Read ``images.csv``; names stay text whatever they look like."""
    text = {"image": str, "class": str, "split": str, "group": str}
    return pd.read_csv(path, dtype={"row": int, "label": int, **text}, keep_default_na=False)


def class_counts(images: pd.DataFrame, split: pd.Series, name: str) -> dict[str, int]:
    """Images of each class, by class name, in one split."""
    classes = images.drop_duplicates("label").sort_values("label")["class"]
    count = images.loc[split == name, "class"].value_counts()
    return {of: int(count.get(of, 0)) for of in classes}


def cut_validation(images: pd.DataFrame, share: float, seed: int) -> pd.Series:
    """Split into ``train`` and ``val`` alone, ``share`` of each class and at least one image.

    Raises:
        InputError: a class has a single image.
    """
    split = pd.Series("train", index=images.index)
    for label, of_class in _by_label(images):
        count = max(1, round(share * len(of_class)))
        if count >= len(of_class):
            raise InputError(
                f"data.source: class '{of_class['class'].iloc[0]}' has {len(of_class)} image(s); "
                "it needs at least two, one of them for validation"
            )
        rows = generator("split", seed, label).permutation(of_class.index.to_numpy())
        split.loc[rows[:count]] = "val"
    return split
