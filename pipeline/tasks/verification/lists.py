"""Disjoint splits, leakage checks, training images, pairs and trials of verification."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.data import identities, leaks, splits
from pipeline.data.identities import SPLITS, Array
from pipeline.data.near_duplicates import find_near_duplicates
from pipeline.data.pairs import (
    BLOCK,
    PairList,
    draw_pairs,
    in_blocks,
    pair_counts,
    say_missing,
    write_pairs,
)
from pipeline.errors import InputError
from pipeline.params import Episodes, Params
from pipeline.records import PAIRS, TRIAL_COLUMNS, VAL_TRIALS, RunId, write_json, write_table
from pipeline.tasks.trials import VAL_EPISODES, write_trials

TRIALS = Path("prepared/splits/trials.csv")
VAL_PAIRS = Path("prepared/pairs/val.csv")

MEND = {
    "train": "params.yaml: compare.shots: {lack}; raise it, or add images or classes to train on",
    "val": "params.yaml: data.splits.val: {lack}; raise it or data.val_per_class, change "
    "data.splits.seed, or bring validation classes",
    "test": "params.yaml: data.splits.test: {lack}; raise it, change data.splits.seed, or bring "
    "other test classes",
}


@dataclass(frozen=True)
class _Set:
    """What the lists are made from.

    ``images`` with the final splits; ``listed`` the pairs that the layout lists, by split, where
    it lists any; ``runs`` the trials of the episodes that it lists, all of the test split;
    ``pairs_left_out`` of the listed pairs are in no split.
    """

    images: pd.DataFrame
    listed: dict[str, PairList]
    runs: pd.DataFrame
    pairs_left_out: int

    def part(self, name: str) -> pd.DataFrame:
        """The images of one split."""
        return self.images[self.images["split"] == name]


def write(params: Params) -> None:
    """See ``pipeline.tasks.lists.Lists``."""
    images = splits.read_images("prepared/images.csv")
    trials = identities.read_listed("prepared/listed.csv")
    pixels = np.load("prepared/images.npy", mmap_mode="r")
    duplicates = splits.find_duplicates(pixels)
    made = _divide(params, images, trials, duplicates)
    found = find_near_duplicates(pixels).but_within(
        np.union1d(made.runs["left"], made.runs["right"])
    )
    near = leaks.check(
        images, made.images["split"], found, params.data.near_duplicates, can_group=False
    )

    for folder in ("prepared/train", "prepared/pairs", "prepared/trials"):
        shutil.rmtree(folder, ignore_errors=True)  # no list of a removed seed stays behind
    said = {
        "val": _write_val(params, made),
        "test": _write_test(params, made),
        **_write_runs(params, made),
    }
    say_missing(said)
    summary: dict[str, Any] = {
        "images": len(images),
        "classes": int(images["label"].nunique()),
        "splits": {name: _size(made.part(name)) for name in SPLITS},
        "groups": int(images.loc[images["group"] != "", "group"].nunique()),
        "groups_in_two_splits": _divided_groups(made.images),
        "left_out": int((made.images["split"] == "").sum()),
        "pairs_left_out": made.pairs_left_out,
        "identical_groups": len(duplicates.groups),
        "near_duplicates": leaks.counts(near),
        "labels_shuffled": params.data.shuffle_labels,
        "pairs": said,
        "analysis": _analysis(made, said),
        "trials": _trial_counts(TRIALS),
        "val_trials": _trial_counts(VAL_TRIALS) | _trial_counts(VAL_EPISODES),
    }
    leaks.write(near)
    write_json("prepared/summary.json", summary)
    shown = ", ".join(
        f"{of['images']} of {of['classes']} to {name}" for name, of in summary["splits"].items()
    )
    print(f"prepare: {len(images)} images of {summary['classes']} classes: {shown}")


def _divided_groups(images: pd.DataFrame) -> int:
    """Groups, such as alphabets, with classes in more than one split."""
    used = images[(images["group"] != "") & (images["split"] != "")]
    return int((used.groupby("group")["split"].nunique() > 1).sum())


def _divide(
    params: Params, images: pd.DataFrame, trials: pd.DataFrame, duplicates: splits.Duplicates
) -> _Set:
    """Splits of disjoint classes without copies, and the listed trials that they leave."""
    data = params.data
    pairs, runs = trials[trials["set"] == PAIRS], trials[trials["set"] != PAIRS]
    training = pairs[pairs["split"] == "train"]
    split = identities.assign(images, training, data.splits, data.val_per_class)
    identities.check_disjoint(images, split)
    repeated = np.union1d(runs["left"], runs["right"])
    split = identities.without_copies(images, split, duplicates, data.exact_duplicates, repeated)
    for name in SPLITS:
        if not (split == name).any():
            raise InputError(f"data.target: no image is left for {name}; add classes or images")

    part = identities.part_of(pairs, split)
    _say_left_out(pairs, part, split)
    named = set(pairs["split"]) | set(part) - {""}
    listed = {name: _as_pairs(pairs[part == name]) for name in SPLITS if name in named}
    return _Set(images.assign(split=split), listed, runs, int((part == "").sum()))


def _say_left_out(pairs: pd.DataFrame, part: pd.Series, split: pd.Series) -> None:
    out = pairs[part == ""]
    gone = (split[out["left"]] == "").to_numpy() | (split[out["right"]] == "").to_numpy()
    for count, why in (
        ((~gone).sum(), "across the cut between training and validation classes"),
        (gone.sum(), "with images that stay out of the splits"),
    ):
        if count:
            print(f"prepare: {count} of {len(pairs)} listed pairs are left out, {why}")


def _write_val(params: Params, made: _Set) -> dict[str, int]:
    """Validation images, pairs and episodes; how many pairs there are."""
    seed, images = params.data.splits.seed, made.part("val")
    rows, labels = _columns(images)
    episodes = _draw_episodes(params, images, "val")
    listed = made.listed.get("val")
    if params.data.shuffle_labels:
        # true labels here would choose the epoch, and so be learnt from
        labels = splits.shuffled_labels(labels, seed)
        listed = _shuffled(listed, seed)
    _write_images(Path("prepared/splits/val.csv"), rows, labels)
    pairs, counts = _pairs(params, listed, rows, labels, splits.generator("val pairs", seed))
    write_pairs(VAL_PAIRS, pairs)
    _write_trials(VAL_TRIALS, [_as_trials(pairs)], rows)
    _write_trials(VAL_EPISODES, episodes, rows)
    _check_kinds(pairs, "val", "validation pairs")
    return counts


def _write_test(params: Params, made: _Set) -> dict[str, int]:
    """Test images and trials; how many of these are verification pairs."""
    images = made.part("test")
    in_runs = images["row"].isin(np.union1d(made.runs["left"], made.runs["right"]))
    others = images[~in_runs]
    rows, labels = _columns(others)
    listed = made.listed.get("test")
    if listed is None and in_runs.all():
        listed = _as_pairs(made.runs)  # nothing else to draw from
    generator = splits.generator("test pairs", params.data.splits.seed)
    pairs, counts = _pairs(params, listed, rows, labels, generator)
    _check_kinds(pairs, "test", "test pairs")
    if len(others):
        episodes = _draw_episodes(params, others, "test")
    else:
        episodes = []
        if params.pairs.episodes:
            print("prepare: no test episodes are drawn: all test images stand in the listed runs")
    _write_images(Path("prepared/splits/test.csv"), *_columns(images))
    _write_trials(TRIALS, [_as_trials(pairs), made.runs, *episodes], images["row"])
    return counts


def _draw_episodes(params: Params, images: pd.DataFrame, part: str) -> list[pd.DataFrame]:
    """The trials of every set of ``pairs.episodes``, from the images of one split.

    A set's key is its ways and shots, so that another set beside it changes nothing.
    """
    rows, labels = _columns(images)
    groups = pd.factorize(images["group"], sort=True)[0]
    seed, drawn = params.data.splits.seed, []
    for number, kind in enumerate(params.pairs.episodes):
        pools = identities.episode_pools(rows, labels, groups, kind.shots)
        most = max(map(len, pools))
        if most < kind.ways:
            _say_too_few(f"pairs.episodes.{number}", kind, part, most, len(pools) > 1)
            continue
        stream = "episodes" if part == "test" else "val episodes"
        rng = splits.generator(stream, seed, kind.ways, kind.shots)
        chosen = identities.draw_episodes(pools, kind.ways, kind.shots, kind.count, rng)
        answers = None
        if part == "val" and params.data.shuffle_labels:
            ordered = np.tile(np.arange(kind.ways), (kind.count, 1))
            answers = splits.generator("shuffle", seed).permuted(ordered, axis=1)
        drawn.append(identities.episode_trials(kind.name, chosen, answers))
    return drawn


def _say_too_few(key: str, kind: Episodes, part: str, most: int, grouped: bool) -> None:
    """Say that there are too few classes for a set of episodes; for the test it is an error."""
    of = "test" if part == "test" else "validation"
    there = (
        f"{most} {of} classes at most{' of one group' if grouped else ''} have the "
        f"{kind.shots + 1} images needed, {kind.shots} to compare with and a query"
    )
    if part == "test":
        last, other = ("shots", "ways") if most < 2 else ("ways", "shots")
        raise InputError(
            f"params.yaml: {key}.{last}: {kind.name} asks for {kind.ways} classes, but {there}; "
            f"lower it or {other}"
        )
    print(f"prepare: {kind.name} is left out of validation: {there}")


def _write_runs(params: Params, made: _Set) -> dict[str, dict[str, int]]:
    """Training lists and pair lists of every (shots, seed); how many pairs each has."""
    said = {}
    rows, labels = _columns(made.part("train"))
    for seed in params.compare.seeds:
        taught, listed = labels, made.listed.get("train")
        if params.data.shuffle_labels:
            taught, listed = splits.shuffled_labels(labels, seed), _shuffled(listed, seed)
        order, of = splits.training_order(rows, taught, seed)
        for shots in params.compare.shots:
            run = RunId("", shots, seed)
            count = identities.count_at(labels, shots)
            mine, my_labels = order[:count], of[:count]
            _write_images(run.train_list, mine, my_labels)
            generator = splits.generator("pairs", seed)
            pairs, counts = _pairs(params, listed, mine, my_labels, generator)
            write_pairs(run.pair_list, pairs)
            _write_trials(run.trial_list, [_as_trials(pairs)], mine)
            _check_kinds(pairs, "train", f"pairs of {shots} training images a class")
            said[f"shots-{shots}/seed-{seed}"] = counts
    return said


def _pairs(
    params: Params, listed: PairList | None, rows: Array, labels: Array, rng: np.random.Generator
) -> tuple[PairList, dict[str, int]]:
    """The listed pairs or, where there are none, drawn ones; and their counts."""
    pairs, missing = listed, {"same_missing": 0, "different_missing": 0}
    if pairs is None:
        asked = params.pairs
        pairs, missing = draw_pairs(rows, labels, asked.per_image, asked.positive_fraction, rng)
    return pairs, pair_counts(pairs, missing)


def _as_trials(pairs: PairList) -> pd.DataFrame:
    columns = {"left": pairs.left, "right": pairs.right, "same": pairs.same}
    return pd.DataFrame({"set": PAIRS, "episode": "", **columns})


def _as_pairs(trials: pd.DataFrame) -> PairList:
    return PairList(*(trials[name].to_numpy(np.int64) for name in ("left", "right", "same")))


def _shuffled(pairs: PairList | None, seed: int) -> PairList | None:
    """Listed pairs with their answers in random order; drawn ones follow the shuffled labels."""
    if pairs is None:
        return None
    return PairList(pairs.left, pairs.right, splits.shuffled_labels(pairs.same, seed))


def _columns(table: pd.DataFrame) -> tuple[Array, Array]:
    return table["row"].to_numpy(np.int64), table["label"].to_numpy(np.int64)


def _write_images(path: Path, rows: Array, labels: Array) -> None:
    write_table(path, in_blocks(rows, labels), ("row", "label"))


def _write_trials(path: Path, tables: list[pd.DataFrame], rows: Array | pd.Series) -> None:
    for table in tables:
        _check_within(path, table["left"].to_numpy(), table["right"].to_numpy(), np.asarray(rows))
    lines = (
        line
        for table in tables
        for start in range(0, len(table), BLOCK)
        for line in table[list(TRIAL_COLUMNS)][start : start + BLOCK].itertuples(False, None)
    )
    write_trials(path, lines)


def _check_within(path: Path, left: Array, right: Array, rows: Array) -> None:
    """Refuse images of another split: the promise that the whole comparison rests on."""
    strange = [of[~np.isin(of, rows, kind="table")] for of in (left, right)]
    if any(map(len, strange)):
        first = np.concatenate(strange).min()
        raise InputError(
            f"{path}: image {first} would be compared, but is not in the split; make "
            "prepared/ anew with 'dvc repro --force prepare'"
        )


def _check_kinds(pairs: PairList, part: str, words: str) -> None:
    """Refuse pairs all of one class, or all of two."""
    for same, kind in ((1, "one class"), (0, "two classes")):
        if not (pairs.same == same).any():
            raise InputError(MEND[part].format(lack=f"the {words} have none of {kind}"))


def _size(images: pd.DataFrame) -> dict[str, int]:
    return {"images": len(images), "classes": int(images["label"].nunique())}


def _analysis(made: _Set, said: dict[str, dict[str, int]]) -> dict[str, Any]:
    """What each split holds; the training pairs are those of the largest list."""
    lists = [of for name, of in said.items() if name not in ("val", "test")]
    largest = max(lists, key=lambda of: of["same"] + of["different"])
    counted = {"train": largest, "val": said["val"], "test": said["test"]}
    analysis: dict[str, Any] = {}
    for name in SPLITS:
        sizes = made.part(name)["label"].value_counts().to_numpy()
        analysis[name] = {
            **_size(made.part(name)),
            "images_a_class": {
                "min": int(sizes.min()),
                "median": float(np.median(sizes)),
                "mean": float(sizes.mean()),
                "max": int(sizes.max()),
            },
            "pairs": {kind: counted[name][kind] for kind in ("same", "different")},
        }
    return analysis


def _trial_counts(path: Path) -> dict[str, dict[str, int]]:
    """Episodes, queries and trials of each set in a table of trials, in the order of the table."""
    trials = identities.read_listed(path)
    counts = {}
    for name, of in trials.groupby("set", sort=False):
        episodic = of[of["episode"] != ""]
        counts[str(name)] = {
            "episodes": int(episodic["episode"].nunique()),
            "queries": len(episodic[["episode", "left"]].drop_duplicates()),
            "trials": len(of),
        }
    return counts
