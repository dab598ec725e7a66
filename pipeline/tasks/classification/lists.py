"""Splits, leakage checks, the training images of each run, pair lists."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.data import leaks, splits
from pipeline.data.near_duplicates import find_near_duplicates
from pipeline.data.pairs import draw_pairs, in_blocks, pair_counts, say_missing, write_pairs
from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.records import RunId, write_json, write_table
from pipeline.tasks.trials import write_none, write_trials


def write(params: Params) -> None:
    """See ``pipeline.tasks.lists.Lists``."""
    images = splits.read_images("prepared/images.csv")
    pixels = np.load("prepared/images.npy", mmap_mode="r")
    duplicates = splits.find_duplicates(pixels)
    near, choice = find_near_duplicates(pixels), params.data.near_duplicates
    together = leaks.joined(images, near) if choice == "group" else images
    split = splits.assign(together, params.data.splits, params.data.val_per_class)
    split = splits.without_duplicates(images, split, duplicates, params.data.exact_duplicates)
    listed_near = leaks.check(images, split, near, choice)
    counts = {name: splits.class_counts(images, split, name) for name in ("train", "val", "test")}
    splits.check_shots(list(params.compare.shots), counts["train"])
    _check_pairs(params, counts)
    _check_positive(params, list(counts["train"]))

    for name in ("val", "test"):
        rows, labels = _columns(images[split == name])
        if name == "val" and params.data.shuffle_labels:
            # true labels here would choose the epoch, and so be learnt from
            labels = splits.shuffled_labels(labels, params.data.splits.seed)
        write_table(f"prepared/splits/{name}.csv", in_blocks(rows, labels), ("row", "label"))
    missing = _write_runs(params, images[split == "train"])
    _write_no_trials(params)
    summary = {
        "images": len(images),
        "classes": len(counts["train"]),
        "splits": {
            name: {"images": sum(of.values()), "by_class": of} for name, of in counts.items()
        },
        "groups": int(images.loc[images["group"] != "", "group"].nunique()),
        "left_out": int((split == "").sum()),
        "identical_groups": len(duplicates.groups),
        "near_duplicates": leaks.counts(listed_near),
        "labels_shuffled": params.data.shuffle_labels,
        "pairs": missing,
    }
    leaks.write(listed_near)
    write_json("prepared/summary.json", summary)
    shown = ", ".join(f"{sum(of.values())} to {name}" for name, of in counts.items())
    print(f"prepare: {len(images)} images of {summary['classes']} classes: {shown}")


def _write_runs(params: Params, training: pd.DataFrame) -> dict[str, Any]:
    """Training lists and pair lists of every (shots, seed); what is said of them in the summary."""
    for folder in ("prepared/train", "prepared/pairs"):
        shutil.rmtree(folder, ignore_errors=True)  # no list of a removed seed stays behind
    said: dict[str, Any] = {}
    val_rows, val_labels = _columns(pd.read_csv("prepared/splits/val.csv"))
    pairs, missing = draw_pairs(
        val_rows, val_labels, params.pairs.per_image, params.pairs.positive_fraction,
        splits.generator("val pairs", params.data.splits.seed),
    )  # fmt: skip
    write_pairs(Path("prepared/pairs/val.csv"), pairs)
    said["val"] = pair_counts(pairs, missing)
    rows, labels = _columns(training)
    for seed in params.compare.seeds:
        taught = splits.shuffled_labels(labels, seed) if params.data.shuffle_labels else labels
        order, of = splits.training_order(rows, taught, seed)
        for shots in params.compare.shots:
            run = RunId("", shots, seed)
            count = len(order) if shots == "all" else int(shots) * len(np.unique(labels))
            mine, my_labels = order[:count], of[:count]
            write_table(run.train_list, in_blocks(mine, my_labels), ("row", "label"))
            pairs, missing = draw_pairs(
                mine, my_labels, params.pairs.per_image, params.pairs.positive_fraction,
                splits.generator("pairs", seed),
            )  # fmt: skip
            write_pairs(run.pair_list, pairs)
            said[f"shots-{shots}/seed-{seed}"] = pair_counts(pairs, missing)
    if params.compare.breakdowns:
        say_missing(said)
    return said


def _write_no_trials(params: Params) -> None:
    """The files that verification fills, with a header alone."""
    shutil.rmtree("prepared/trials", ignore_errors=True)
    write_none(params.compare)
    write_trials(Path("prepared/splits/trials.csv"), ())


def _columns(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return table["row"].to_numpy(np.int64), table["label"].to_numpy(np.int64)


def _check_positive(params: Params, classes: list[str]) -> None:
    """Before hours of training, not only when ``evaluate`` needs it."""
    positive = params.compare.positive
    if positive is not None and positive not in classes:
        raise InputError(
            f"params.yaml: compare.positive: '{positive}' is no class; the classes are "
            f"{', '.join(classes)}"
        )


def _check_pairs(params: Params, counts: dict[str, dict[str, int]]) -> None:
    if not params.compare.breakdowns:
        return
    for name, count in counts["train"].items():
        if count < 2:
            raise InputError(
                f"data.target: class '{name}' has one training image, and a breakdown needs two "
                "to make a pair; add images or compare no breakdowns"
            )
    if max(counts["val"].values()) < 2:
        raise InputError(
            "params.yaml: data.splits.val: no class has two validation images, so that a "
            "breakdown's pairs cannot be validated; raise it or data.val_per_class"
        )
