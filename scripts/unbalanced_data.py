"""Write an unbalanced set: three classes of 5, 20 and 200 training images, from data/target.

python -m scripts.unbalanced_data [SEED=0]

One digit becomes the class ``rare``, one ``uncommon`` and all others together ``common``: a finding
that hardly ever shows, one that shows now and then, and all the rest. A single digit would not do
as ``common``: it has no 200 images left once test and validation images are taken. SEED says which
images train, validate and test.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.data.sources import Item, class_names, find_images
from pipeline.data.splits import generator
from pipeline.errors import InputError, command

TARGET, UNBALANCED = Path("data/target"), Path("data/unbalanced")
TRAIN = {"rare": 5, "uncommon": 20, "common": 200}
# As many of each class: cross-entropy on the validation images then chooses the epoch by all
# classes alike, and each class's recall is known equally well.
VAL, TEST = 10, 150
SPLITS = ("train", "val", "test")


def write(target: Path, folder: Path, seed: int) -> dict[str, int]:
    """Copy images to ``folder/<split>/<class>/<path in target>``.

    Args:
        target: class folders, or a ``.zip`` of them; the first class by name becomes ``rare``, the
            second ``uncommon``, all others ``common``. Splits that it brings are ignored.
        folder: a new or empty one.
        seed: draws the images of each split; the same seed, the same files.

    Returns:
        images by ``<split>/<class>``.

    Raises:
        InputError: the folder holds something, or the target has too few classes or images.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is in use; remove it first")
    images = _by_class(target, find_images(target, "folders"))
    drawn = {
        f"{split}/{name}": part
        for number, name in enumerate(TRAIN)
        for split, part in _draw(target, name, images[name], seed, number).items()
    }
    for place, items in drawn.items():
        for item in items:
            path = folder / place / item.image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(item.read())
    return {place: len(items) for place, items in drawn.items()}


def _by_class(target: Path, items: list[Item]) -> dict[str, list[Item]]:
    """The images of rare, uncommon and common."""
    first, second, *others = class_names(items)
    if not others:
        raise InputError(f"{target}: has 2 classes; three at least make {', '.join(TRAIN)}")
    of = {first: "rare", second: "uncommon"}
    found: dict[str, list[Item]] = {name: [] for name in TRAIN}
    for item in items:
        found[of.get(item.class_name, "common")].append(item)
    return found


def _draw(
    target: Path, name: str, items: list[Item], seed: int, number: int
) -> dict[str, list[Item]]:
    """The images of one class in each split."""
    sizes = (TRAIN[name], VAL, TEST)
    if len(items) < sum(sizes):
        raise InputError(
            f"{target}: has {len(items)} images for '{name}' ({', '.join(class_names(items))}), "
            f"but {sum(sizes)} are needed: {sizes[0]} to train, {VAL} to validate, {TEST} to test"
        )
    order = iter(generator("unbalanced", seed, number).permutation(len(items)).tolist())
    return {
        split: [items[next(order)] for _ in range(size)]
        for split, size in zip(SPLITS, sizes, strict=True)
    }


def main() -> None:
    """Write the set and say what is in it."""
    given = sys.argv[1:]
    if len(given) > 1 or not all(text.isdecimal() for text in given):
        raise InputError("usage: python -m scripts.unbalanced_data [SEED=0], a whole number")
    counts = write(TARGET, UNBALANCED, int(given[0]) if given else 0)
    print(f"{UNBALANCED}: {', '.join(f'{place} {count}' for place, count in counts.items())}")


if __name__ == "__main__":
    command(main)
