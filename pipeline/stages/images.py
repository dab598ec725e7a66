"""Stage ``images``: decode the target and the source set once; alone to read the raw folder."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePosixPath

from pipeline.data.images import decode_all
from pipeline.data.sources import Item, class_names, find_images
from pipeline.errors import InputError
from pipeline.params import Data, Params
from pipeline.records import write_table
from pipeline.stages import common

HEADER = ("row", "image", "label", "class", "split", "group")


def images(params: Params) -> None:
    """Write ``prepared/images.{npy,csv}`` of the target set and ``prepared/source.{npy,csv}``.

    Without a source set its two files are there, with no rows.

    Raises:
        InputError: a folder outside ``data/``, target and source in one or with an image in
            common, no usable images in them, or files that cannot be decoded.
    """
    data = params.data
    target = _inside("data.target", data.target)
    source = _inside("data.source", data.source) if data.source else None
    if source and (target.is_relative_to(source) or source.is_relative_to(target)):
        raise InputError(
            f"params.yaml: data.source: '{source}' and data.target '{target}' share images; "
            "name two folders, neither inside the other, or set data.source to null"
        )
    found = find_images(target, data.layout)
    further = find_images(source, data.layout) if source else []
    _check_apart(found, further)
    _write(data, target, found, Path("prepared/images"))
    _write(data, source, further, Path("prepared/source"))


def _inside(key: str, value: str) -> Path:
    """The folder, zip or table that a parameter names, which must lie under ``data/``."""
    parts = PurePosixPath(value).parts
    if parts[:1] != ("data",) or ".." in parts:
        raise InputError(
            f"params.yaml: {key}: must lie under data/, which DVC tracks, such as data/target; "
            f"but it is '{value}'"
        )
    return Path(*parts)


def _check_apart(target: list[Item], source: list[Item]) -> None:
    """Refuse an image that both sets name, as lists and tables of two folders may."""
    known = {os.path.abspath(item.place) for item in target}
    for item in source:
        if os.path.abspath(item.place) in known:
            raise InputError(
                f"params.yaml: data.source: data.target has its image '{item.place}' too; keep it "
                "in one of them, or set data.source to null"
            )


def _write(data: Data, place: Path | None, items: list[Item], stem: Path) -> None:
    names = class_names(items)
    labels = {name: label for label, name in enumerate(names)}
    decode_all(items, stem.with_suffix(".npy"), data.image_size, data.resize, data.channels)
    rows = (
        (row, item.image, labels[item.class_name], item.class_name, item.split, item.group)
        for row, item in enumerate(items)
    )
    write_table(stem.with_suffix(".csv"), rows, HEADER)
    if place:
        counts = Counter(item.split for item in items if item.split)
        groups = len({item.group for item in items if item.group})
        splits = ", ".join(f"{split} {counts[split]}" for split in ("train", "val", "test"))
        print(
            f"{place}: {len(items)} images, {len(names)} classes, "
            f"{f'{groups} groups, ' if groups else ''}"
            f"{f'splits brought: {splits}' if counts else 'splits to be drawn'}"
        )


if __name__ == "__main__":
    common.main(images)
