"""Stage ``images``: decode the target and the source set once; alone to read the raw folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.data.digests import digests
from pipeline.data.images import decode_all
from pipeline.data.items import printable
from pipeline.data.omniglot import RUNS
from pipeline.data.sources import LABELLED, Item, Trial, class_names, find
from pipeline.errors import InputError
from pipeline.params import Data, Params, Task
from pipeline.records import PAIRS, TRIAL_COLUMNS, write_table
from pipeline.stages import common

HEADER = ("row", "image", "label", "class", "split", "group")
LISTED = ("split", *TRIAL_COLUMNS)


def images(params: Params) -> None:
    """Write ``prepared/images.{npy,csv}`` of the target set and ``prepared/source.{npy,csv}``.

    ``prepared/listed.csv`` gets the trials that the target's layout brings, by rows of images.
    What there is none of has a file too, with no rows.

    Raises:
        InputError: a folder outside ``data/``, or, unless ``data.allow_outside``, an image; target
            and source in one, or with an image in common, or in verification a class, that is or
            may be tested on; no usable images in them; files that cannot be decoded.
    """
    data = params.data
    target = _inside("data.target", data.target)
    source = _inside("data.source", data.source) if data.source else None
    if source and (target.is_relative_to(source) or source.is_relative_to(target)):
        raise InputError(
            f"params.yaml: data.source: '{source}' and data.target '{target}' share images; "
            "name two folders, neither inside the other, or set data.source to null"
        )
    within = None if data.allow_outside else Path("data")
    found = find(target, data.layout, params.task, within)
    further = _further(source, data.layout, within) if source else []
    _check_apart(found.items, further, params.task)
    _write(data, found.items, Path("prepared/images"))
    _write_listed(found.items, found.trials)
    _write(data, further, Path("prepared/source"))
    _check_pixels(found.items, further)
    print(f"{target}: {_told(found.items)}{_told_trials(found.trials)}")
    if data.layout == "omniglot" and not found.trials:
        print(f"{target}: no all_runs….zip, so that no official run is tested")
    if source:
        print(f"{source}: {_told(further)}")


def _inside(key: str, value: str) -> Path:
    """The folder, zip or table that a parameter names, which must lie under ``data/``."""
    parts = PurePosixPath(value).parts
    if parts[:1] != ("data",) or ".." in parts:
        raise InputError(
            f"params.yaml: {key}: must lie under data/, which DVC tracks, such as data/target; "
            f"but it is '{value}'"
        )
    if printable(value) != value:
        raise InputError(f"params.yaml: {key}: '{printable(value)}' has control characters")
    return Path(*parts)


def _further(source: Path, layout: str, within: Path | None) -> list[Item]:
    """The images of the source set, whose classes are learnt as such whatever the task."""
    task: Task = "classification" if layout in LABELLED else "verification"
    return find(source, layout, task, within).items


def _check_apart(target: list[Item], source: list[Item], task: Task) -> None:
    """Refuse what both sets name: an image, as lists and tables of two folders may, or a person."""
    judged = {item.class_name for item in target if item.split != "train"}
    both = sorted({item.class_name for item in source} & judged) if task == "verification" else []
    if both:
        raise InputError(
            f"params.yaml: data.source: has class '{both[0]}', as data.target has, and what start "
            "weights learn must not be tested on; rename it if it is another, or remove it"
        )
    known = {os.path.abspath(item.place) for item in target} if source else set()
    for item in source:
        if os.path.abspath(item.place) in known:
            raise InputError(
                f"params.yaml: data.source: data.target has its image '{item.place}' too; keep it "
                "in one of them, or set data.source to null"
            )


def _check_pixels(target: list[Item], source: list[Item]) -> None:
    """Refuse images, as decoded, that start weights would learn and that may be tested on."""
    if not source:
        return
    ours, theirs = (
        list(map(bytes, digests(np.load(f"prepared/{name}.npy", mmap_mode="r"))))
        for name in ("images", "source")
    )
    judged = {of: item for of, item in zip(ours, target, strict=True) if item.split != "train"}
    both = [(judged[of], item) for of, item in zip(theirs, source, strict=True) if of in judged]
    if both:
        (first, same), more = both[0], len(both) - 1
        raise InputError(
            f"params.yaml: data.source: its image '{same.image}' is '{first.image}' of data.target "
            f"too{f', and so are {more} more' if more else ''}, and what start weights learn must "
            "not be tested on; remove such images from one of the two"
        )


def _write(data: Data, items: Sequence[Item], stem: Path) -> None:
    labels = {name: label for label, name in enumerate(class_names(items))}
    decode_all(items, stem.with_suffix(".npy"), data.image_size, data.resize, data.channels)
    rows = (
        (row, item.image, labels[item.class_name], item.class_name, item.split, item.group)
        for row, item in enumerate(items)
    )
    write_table(stem.with_suffix(".csv"), rows, HEADER)


def _write_listed(items: Sequence[Item], trials: Sequence[Trial]) -> None:
    at = {item.image: row for row, item in enumerate(items)} if trials else {}
    rows = (
        (trial.split, trial.set, trial.episode, at[trial.left], at[trial.right], int(trial.same))
        for trial in trials
    )
    write_table("prepared/listed.csv", rows, LISTED)


def _told(items: Sequence[Item]) -> str:
    """What a set holds, for people."""
    counts = Counter(item.split for item in items if item.split)
    groups = len({item.group for item in items if item.group})
    splits = ", ".join(f"{split} {counts[split]}" for split in ("train", "val", "test"))
    return (
        f"{len(items)} images, {len(class_names(items))} classes, "
        f"{f'{groups} groups, ' if groups else ''}"
        f"{f'splits brought: {splits}' if counts else 'splits to be drawn'}"
    )


def _told_trials(trials: Sequence[Trial]) -> str:
    """The pairs of each split and the episodes of each set, where there are any."""
    pairs = Counter(trial.split for trial in trials if trial.set == PAIRS)
    counts = ", ".join(f"{split} {pairs[split]}" for split in ("train", "val", "test"))
    episodes = {(trial.set, trial.episode) for trial in trials if trial.set != PAIRS}
    runs = Counter(name for name, _ in sorted(episodes))
    told = [f"; pairs brought: {counts}"] if pairs else []
    for name, count in runs.items():
        told.append(f"; {count} {name} runs{f' ({RUNS} are published)' if count != RUNS else ''}")
    return "".join(told)


if __name__ == "__main__":
    common.main(images)
