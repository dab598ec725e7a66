"""The data set: counts by class and split, balance, duplicates, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluation.collect import SUMMARY
from pipeline.records import OFFICIAL
from pipeline.report import words
from pipeline.report.page import near
from pipeline.report.page.document import (
    Block,
    Column,
    Facts,
    Fold,
    Section,
    Table,
    bullets,
    cell,
)
from pipeline.report.page.report import Report

SPLITS = {"train": "training", "val": "validation", "test": "test"}
# of prepared, shown in tables and sentences of their own
TOLD = ("analysis", "trials", "val_trials", "splits", "images", "classes", "left_out",
        "identical_groups", "near_duplicates", "labels_shuffled", "groups")  # fmt: skip
UNEVEN = 1.5  # times as many images in the largest class as in the smallest
LISTED_ITEMS = 12
LISTED_ROWS = 60


def section(report: Report) -> Section:
    """What was compared on, as far as its preparation counted it."""
    prepared = report.evidence.prepared
    counts = {
        split: of["by_class"]
        for split, of in prepared.get("splits", {}).items()
        if split in SPLITS and "by_class" in of
    }
    blocks: list[Block] = []
    if "analysis" in prepared:
        blocks += _analysis(prepared)
    elif counts:
        blocks.append(_split_table(counts))
        blocks.append(_class_fold(counts, report.evidence.tested.classes))
    blocks.append(bullets(list(_sentences(report, counts))))
    blocks += near.blocks(report)
    facts = _facts(prepared)
    if facts:
        blocks.append(Fold(("More about how it was prepared",), [Facts(facts)]))
    return Section("data", "The data", blocks)


def _split_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    columns = [
        Column("Split", number=False),
        *(Column("Images"), Column("Classes")),
        *(Column("Images a class", "least to most", place="wide"), Column("Median")),
    ]
    rows = []
    for split, title in SPLITS.items():
        sizes = sorted(counts.get(split, {}).values())
        if sizes:
            middle = (sizes[(len(sizes) - 1) // 2] + sizes[len(sizes) // 2]) / 2
            texts = (title, words.count(sum(sizes)), words.count(sum(map(bool, sizes))))
            rows.append([*map(cell, (*texts, _range(sizes[0], sizes[-1]), f"{middle:g}"))])
    return Table(columns, rows, dense=True)


def _class_fold(counts: Mapping[str, Mapping[str, int]], order: Sequence[str]) -> Fold:
    """Images of each class and split; first the tested classes, in their order."""
    splits = [split for split in SPLITS if split in counts]
    counted = dict.fromkeys(name for of in counts.values() for name in of)
    classes = list(dict.fromkeys([*(name for name in order if name in counted), *counted]))
    columns = [Column("Class", number=False), *(Column(words.capital(SPLITS[s])) for s in splits)]
    rows = [
        [cell(name), *(cell(words.count(counts[split].get(name, 0))) for split in splits)]
        for name in classes
    ]
    title = f"Images of each of {words.count(len(classes))} classes"
    return Fold((title,), [Table(columns, rows, dense=True)])


def _range(low: int, high: int) -> str:
    return words.count(low) if low == high else f"{words.count(low)} to {words.count(high)}"


def _sentences(report: Report, counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    prepared, data = report.evidence.prepared, report.params.data
    shade = "grey" if data.channels == 1 else "colour"
    if "images" in prepared:
        yield (
            f"{words.images(prepared['images'])} in all, each {data.image_size} × "
            f"{data.image_size} pixels in {shade} for the network "
            f"({data.resize} where another size was given)."
        )
    if counts.get("train"):
        yield _balance([size for size in counts["train"].values() if size])
    yield from _duplicates(prepared, data.exact_duplicates)
    if prepared.get("groups"):
        divided = prepared.get("groups_in_two_splits", 0)
        yield (
            f"{words.count(prepared['groups'])} groups of images; "
            f"{words.count(divided) if divided else 'no group'} "
            f"{'stand' if divided > 1 else 'stands'} in two splits"
            f"{', as data.splits.whole: classes allows' if divided else ''}."
        )
    if "analysis" in prepared:
        yield "No class stands in two splits. Training pairs are those of the run that has most."


def _balance(sizes: Sequence[int]) -> str:
    ratio = max(sizes) / min(sizes)
    if ratio < UNEVEN:
        return "The classes are about balanced."
    return (
        f"The classes are unbalanced: the largest has {ratio:.2g} times as many training images "
        "as the smallest, so that accuracy speaks mostly of the large ones, and macro-F1 of all."
    )


def _duplicates(prepared: Mapping[str, Any], rule: str) -> Iterator[str]:
    if "identical_groups" in prepared:
        groups = prepared["identical_groups"]
        if groups:
            many = "One group" if groups == 1 else f"{words.count(groups)} groups"
            yield f"{many} of images with identical pixels; none stands in two splits."
        else:
            yield "No two images have identical pixels."
    if prepared.get("left_out"):
        left = prepared["left_out"]
        yield (
            f"{words.images(left)} {'was' if left == 1 else 'were'} left out of the splits "
            f"(exact duplicates: {rule})."
        )


def _analysis(prepared: Mapping[str, Any]) -> list[Block]:
    """Of verification: images, classes and pairs of each split, and the sets of episodes."""
    columns = [
        Column("Split", number=False),
        *(Column("Images"), Column("Classes")),
        Column("Images a class", "least to most", place="wide"),
        *(Column("Median"), Column("Mean")),
        *(Column("Pairs of one class", place="wide"), Column("Pairs of two", place="wide")),
    ]
    rows = []
    for split, title in SPLITS.items():
        if split in prepared["analysis"]:
            of = prepared["analysis"][split]
            sizes = of["images_a_class"]
            texts = (
                *(title, words.count(of["images"]), words.count(of["classes"])),
                *(f"{words.count(sizes['min'])} to {words.count(sizes['max'])}",),
                *(f"{sizes['median']:g}", f"{sizes['mean']:.1f}"),
                *(words.count(of["pairs"][kind]) for kind in ("same", "different")),
            )
            rows.append([*map(cell, texts)])
    episodes = _episodes(prepared)
    return [Table(columns, rows, dense=True), *([episodes] if episodes else [])]


def _episodes(prepared: Mapping[str, Any]) -> Table | None:
    """The sets of episodes of validation and test, and how much is asked in each."""
    rows = [
        [
            cell("official runs" if name == OFFICIAL else words.episodes(name)),
            cell(SPLITS[split]),
            *(cell(words.count(of[what])) for what in ("episodes", "queries", "trials")),
        ]
        for split, key in (("val", "val_trials"), ("test", "trials"))
        for name, of in prepared.get(key, {}).items()
        if of["episodes"]
    ]
    titles = ("Episodes", "Images to classify", "Comparisons")
    columns = [
        *(Column("Set", number=False), Column("Split", number=False, place="wide")),
        *(Column(title, place="wide") for title in titles),
    ]
    return Table(columns, rows, dense=True) if rows else None


def _facts(prepared: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = list(_flat({key: of for key, of in prepared.items() if key not in TOLD}))
    more = len(rows) - LISTED_ROWS
    return rows if more <= 0 else [*rows[:LISTED_ROWS], ("…", f"{more} more lines in {SUMMARY}")]


def _flat(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as (path, text): a row a leaf, or a row a mapping of numbers."""
    if path and all(isinstance(value, int) for value in node.values()):
        yield path, listed([f"{key.replace('_', ' ')} {_leaf(of)}" for key, of in node.items()])
        return
    for key, value in node.items():
        below = f"{path}, {key}" if path else key.replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, below)
        else:
            yield below, listed(value) if isinstance(value, list) else _leaf(value)


def listed(items: Sequence[Any]) -> str:
    """The first items, and how many more there are."""
    shown = ", ".join(_leaf(item) for item in items[:LISTED_ITEMS])
    more = len(items) - LISTED_ITEMS
    return f"{shown} and {more} more" if more > 0 else shown or "none"


def _leaf(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return words.count(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return words.NONE if value is None else str(value)
