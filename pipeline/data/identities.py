"""Lists of verification: splits, copies, pairs and episodes of classes that are identities.

A class is a person or a character here, and the classes of training, validation and test are
disjoint. Functions on tables alone; ``images`` are those of ``prepared/images.csv``, whose index
is the row in ``images.npy``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.data.splits import Duplicates, by_label, generator, say_dropped
from pipeline.errors import InputError
from pipeline.params import Splits
from pipeline.records import TRIAL_COLUMNS, places_of

SPLITS = ("train", "val", "test")
ORDERS = 20  # random orders that are tried before listed pairs count as indivisible
NEAR = 0.05  # a share of the listed pairs that is no further from what was asked is near enough

Array = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def read_listed(path: Path | str) -> pd.DataFrame:
    """Read ``listed.csv``, the trials of a layout; names stay text whatever they look like.

    Raises:
        InputError: it is of another form.
    """
    text = {"split": str, "set": str, "episode": str}
    kinds = text | dict.fromkeys(("left", "right", "same"), np.int64)
    table = pd.read_csv(path, dtype=kinds, keep_default_na=False)
    places_of(path, list(table.columns), TRIAL_COLUMNS)  # some have a split, too
    return table


def assign(
    images: pd.DataFrame, pairs: pd.DataFrame, settings: Splits, val_per_class: int | None
) -> pd.Series:
    """The split of every image: the layout's where it brings one, the rest drawn by whole classes.

    A share of the training classes becomes test and validation classes, two of each at least; or
    with ``whole: groups`` a share of the groups, one at least, together with what a class with
    images in several groups ties to them. Where ``pairs``, the training pairs that the layout
    lists, are there, validation is a share of them: see ``_draw_listed``. Validation images above
    ``val_per_class`` stay out (an empty split), as their class may not train.

    Args:
        images: the images, with the splits that the layout brings.
        pairs: listed training pairs, ``left,right,same``; may be empty.

    Raises:
        InputError: too few classes, groups or pairs for the shares.
    """
    split = images["split"].where(images["split"] != "", "train").copy()
    draw = {"test": settings.test, "val": settings.val}
    draw = {name: share for name, share in draw.items() if not (split == name).any()}
    pool = images[split == "train"]
    if draw and len(pairs):
        if "test" in draw:
            raise InputError(
                "data.target: training pairs are listed, but there are no test images; "
                "list test pairs too"
            )
        drawn = _draw_listed(pool["label"], pairs, draw["val"], settings.seed)
        split.loc[drawn] = "val"
    elif draw:
        split.loc[pool.index] = _draw_whole(pool, draw, settings)
    if val_per_class is not None:
        split.loc[_above(images[split == "val"], val_per_class, settings.seed)] = ""
    return split


def _draw_whole(pool: pd.DataFrame, draw: dict[str, float], settings: Splits) -> pd.Series:
    """The split of each training image, whole classes or groups drawn."""
    if sum(draw.values()) >= 1:
        raise InputError(
            "params.yaml: data.splits: val and test together must leave classes to train on; "
            "their sum must be below 1"
        )
    if settings.whole == "groups":
        units, least = _tied_by_groups(pool), 1
    else:
        units, least = np.unique(pool["label"], return_inverse=True)[1], 2
    count = int(units.max()) + 1
    order = generator("split", settings.seed).permutation(count)
    of = np.full(count, "train", dtype=object)
    taken = 0
    for name, share in draw.items():
        number = max(least, round(share * count))
        of[order[taken : taken + number]] = name
        taken += number
    if taken + least > count:
        raise InputError(
            f"params.yaml: data.splits.{next(iter(draw))}: {count} training {settings.whole} are "
            f"too few to cut {' and '.join(draw)} from: train, {', '.join(draw)} need {least} "
            f"each, and the shares take {taken}; add {settings.whole}, lower the shares, or bring "
            "the splits"
        )
    return pd.Series(of[units], index=pool.index)


def _tied_by_groups(pool: pd.DataFrame) -> Array:
    """The unit of each image: the groups that classes tie together; (N,), from 0 on.

    A class without a group is a unit of its own.
    """
    if not (pool["group"] != "").any():
        raise InputError(
            "params.yaml: data.splits.whole: groups are asked for, but the training images have "
            "none; use classes"
        )
    found, of_class = np.unique(pool["label"], return_inverse=True)
    of_group, names = pd.factorize(pool["group"], sort=True)
    grouped = (pool["group"] != "").to_numpy()
    nodes = len(found) + len(names)
    part = connected(of_class[grouped], len(found) + of_group[grouped], nodes)[of_class]
    return np.unique(part, return_inverse=True)[1]


def connected(left: Array, right: Array, count: int) -> Array:
    """The connected component of each of ``count`` nodes, from 0 on, by edges (E,); (count,)."""
    edges = coo_matrix((np.ones(len(left), bool), (left, right)), shape=(count, count))
    return connected_components(edges, directed=False)[1].astype(np.int64)


def _draw_listed(labels: pd.Series, pairs: pd.DataFrame, share: float, seed: int) -> list[int]:
    """The rows that go to validation so that near ``share`` of the listed pairs do.

    Classes that pairs connect stay together, so that no pair is lost. Where no such division
    comes within ``NEAR`` of the share (one component holds nearly all) or has pairs of both kinds
    on both sides, classes are drawn one by one, and the pairs across the cut are for the caller
    to leave out. Several random orders are tried, and the first with both kinds is taken.

    Args:
        labels: the class of each training image, by row.

    Raises:
        InputError: there is no division with both kinds of pairs on both sides.
    """
    found, codes = np.unique(labels, return_inverse=True)
    of = pd.Series(codes, index=labels.index)
    left, right = of[pairs["left"]].to_numpy(), of[pairs["right"]].to_numpy()
    same = (pairs["same"] == 1).to_numpy()
    part = connected(left, right, len(found))
    rng = generator("split", seed)
    for divide in (_whole_components, _cut_classes):
        for _ in range(ORDERS):
            val = divide(left, right, same, part, share, rng)
            if val is not None:
                return labels.index[val[codes]].tolist()
    raise InputError(
        "params.yaml: data.splits.val: the listed training pairs cannot be divided by class so "
        "that training and validation each have pairs of one class and of two; list more pairs, "
        "or a validation list"
    )


def _whole_components(
    left: Array, right: Array, same: Bools, part: Array, share: float, rng: np.random.Generator
) -> Bools | None:
    """Which classes validate, whole components drawn; None where that fails. (classes,).

    Components go to validation in random order, those too large for what is still missing passed
    over; then the smallest one left where that comes nearer, or where none has gone.
    """
    sizes = np.bincount(part[left])
    missing = share * len(left)
    taken: list[int] = []
    rest: list[int] = []
    for component in rng.permutation(np.flatnonzero(sizes)).tolist():
        fits = sizes[component] <= missing
        (taken if fits else rest).append(component)
        missing -= sizes[component] * fits
    smallest = min(rest, key=lambda component: sizes[component], default=None)
    if smallest is not None and (not taken or sizes[smallest] - missing < missing):
        taken.append(smallest)
        missing -= sizes[smallest]
    val: Bools = np.isin(part, taken)
    in_val = val[left]  # a pair is in one component, so its other class is in the same split
    kinds = [in_val & same, in_val & ~same, ~in_val & same, ~in_val & ~same]
    near = abs(missing) <= NEAR * len(left)
    return val if near and all(kind.any() for kind in kinds) else None


def _cut_classes(
    left: Array, right: Array, same: Bools, part: Array, share: float, rng: np.random.Generator
) -> Bools | None:
    """Which classes validate, drawn one by one; None where that fails. (classes,).

    Of a random order of the classes, the first k go to validation, with k such that the share of
    validation pairs among those not across the cut comes nearest.
    """
    count = len(part)
    rank = np.empty(count, np.int64)
    rank[rng.permutation(count)] = np.arange(count)
    high, low = np.maximum(rank[left], rank[right]), np.minimum(rank[left], rank[right])

    def below(ranks: Array) -> Array:
        """How many are below k, for each k from 0 to the number of classes."""
        return np.concatenate([[0], np.cumsum(np.bincount(ranks, minlength=count))])

    val = np.stack([below(high[same]), below(high[~same])])  # (2 kinds, k)
    train = np.stack([same.sum() - below(low[same]), (~same).sum() - below(low[~same])])
    possible = np.flatnonzero((val > 0).all(axis=0) & (train > 0).all(axis=0))
    if not len(possible):
        return None
    shares = val.sum(axis=0)[possible] / (val + train).sum(axis=0)[possible]
    chosen: Bools = rank < possible[np.abs(shares - share).argmin()]
    return chosen


def _above(images: pd.DataFrame, most: int, seed: int) -> list[int]:
    """The rows to drop so that at most ``most`` images of each class stay."""
    index = images.index.to_numpy()
    dropped: list[int] = []
    for label, places in by_label(images["label"].to_numpy()):
        dropped += generator("val", seed, label).permutation(index[places])[most:].tolist()
    return dropped


def without_copies(
    images: pd.DataFrame,
    split: pd.Series,
    duplicates: Duplicates,
    choice: str,
    repeated: Array,
) -> pd.Series:
    """The splits once no image stands in two of them, or under two labels within one.

    With ``drop``, of copies in several splits those in the test split stay, else those in the
    validation split; copies under two labels of one split all leave. ``repeated`` are rows of the
    test split that may be copies of others there: the images of one-shot runs, which are taken
    from the evaluation images and named anew in each run; so none of them ever leaves.

    Raises:
        InputError: with ``error``, naming the first copies and how many there are.
    """
    split = split.copy()
    at, labels = split.to_numpy(object), images["label"].to_numpy()
    allowed = set(repeated.tolist())
    wrong: list[str] = []
    out: list[int] = []
    for group in duplicates.groups:
        by_split: dict[str, list[int]] = {}
        for row in group:
            by_split.setdefault(at[row], []).append(row)
        by_split.pop("", None)
        if not by_split:
            continue
        first = next(name for name in reversed(SPLITS) if name in by_split)
        kept = by_split.pop(first)
        dropped = [row for rows in by_split.values() for row in rows]
        if dropped:
            wrong.append(f"in two splits: {_named(images, split, kept + dropped)}")
        if len({labels[row] for row in kept}) > 1 and allowed.isdisjoint(kept):
            wrong.append(f"under two labels: {_named(images, split, kept)}")
            dropped += kept
        out += dropped
    if choice == "drop":
        split.loc[out] = ""
        say_dropped(images, out)
    if wrong and choice == "error":
        more = f", and {len(wrong) - 1} more such groups" if len(wrong) > 1 else ""
        raise InputError(
            f"data.target: identical images stand {wrong[0]}{more}; remove them, or set "
            "data.exact_duplicates: drop"
        )
    return split


def _named(images: pd.DataFrame, split: pd.Series, rows: list[int]) -> str:
    return ", ".join(f"{images['image'][r]} ({images['class'][r]}, {split[r]})" for r in rows)


def check_disjoint(images: pd.DataFrame, split: pd.Series) -> None:
    """Refuse a class in two of train, val and test.

    Raises:
        InputError: naming the class, and an image of it in each of two splits.
    """
    used = images.assign(split=split)[split != ""]
    several = used.groupby("label")["split"].nunique()
    for label in several.index[several > 1]:
        one, other = used[used["label"] == label].drop_duplicates("split")[:2].itertuples()
        raise InputError(
            f"data.target: class '{used.loc[one.Index, 'class']}' stands in {one.split} "
            f"({one.image}) and in {other.split} ({other.image}); in verification each class "
            "belongs to one split"
        )


def part_of(pairs: pd.DataFrame, split: pd.Series) -> pd.Series:
    """The split of each pair (P,): that of both its images, or nothing where they differ."""
    left = split[pairs["left"]].to_numpy()
    right = split[pairs["right"]].to_numpy()
    return pd.Series(np.where(left == right, left, ""), index=pairs.index, dtype=object)


def count_at(labels: Array, shots: int | str) -> int:
    """How many images of ``splits.training_order`` are taken at ``shots`` images a class at most.

    Raises:
        InputError: no class has as many images.
    """
    sizes = np.unique(labels, return_counts=True)[1]
    if shots == "all":
        return len(labels)
    if int(shots) > sizes.max():
        raise InputError(
            f"params.yaml: compare.shots: {shots} images a class are asked for, but no class has "
            f"more than {sizes.max()} to train on; use at most {sizes.max()} or all"
        )
    return int(np.minimum(sizes, int(shots)).sum())


def episode_pools(rows: Array, labels: Array, groups: Array, shots: int) -> list[list[Array]]:
    """What episodes are drawn from: for each group, the rows of each of its classes.

    A class takes part with ``shots`` + 1 images in the group at least; images without a group are
    one together.

    Args:
        rows, labels: the images and their classes, each (N,).
        groups: their groups, numbered, (N,).
    """
    pools = []
    for _, mine in by_label(groups):
        of_class = [rows[mine[places]] for _, places in by_label(labels[mine])]
        pools.append([images for images in of_class if len(images) > shots])
    return pools


def draw_episodes(
    pools: list[list[Array]], ways: int, shots: int, count: int, rng: np.random.Generator
) -> Array:
    """Draw N-way k-shot episodes (Vinyals et al., "Matching networks", NeurIPS 2016, section 4.1).

    For each, a pool is drawn uniformly among those with ``ways`` classes, then the classes, then
    ``shots`` support images and one query of each, all without replacement. More episodes begin
    with those of fewer.

    Returns:
        rows (count, ways, shots + 1), the query last.

    Raises:
        ValueError: no pool has enough classes.
    """
    enough = [pool for pool in pools if len(pool) >= ways]
    if not enough:
        raise ValueError(f"no group has {ways} classes with {shots + 1} images")
    chosen = np.empty((count, ways, shots + 1), np.int64)
    for episode in chosen:
        pool = enough[rng.integers(len(enough))]
        for way, place in enumerate(rng.choice(len(pool), ways, replace=False)):
            episode[way] = rng.choice(pool[place], shots + 1, replace=False)
    return chosen


def episode_trials(name: str, chosen: Array, answers: Array | None = None) -> pd.DataFrame:
    """The trials of drawn episodes: each query against all support images, class by class.

    Args:
        name: the set.
        chosen: rows as ``draw_episodes`` returns them, (E, W, S + 1).
        answers: the position of each query's class among the W, (E, W); its own unless the labels
            are shuffled.

    Returns:
        ``TRIAL_COLUMNS``, E x W x W x S rows; episodes are named ``e0001`` and so on.
    """
    count, ways, images = chosen.shape
    if answers is None:
        answers = np.broadcast_to(np.arange(ways), (count, ways))
    shape = (count, ways, ways, images - 1)  # episode, query, class, support image
    same = answers[:, :, None, None] == np.arange(ways)[:, None]
    names = np.array([f"e{number:04}" for number in range(1, count + 1)], dtype=object)
    columns = {
        "set": name,
        "episode": np.repeat(names, ways * ways * (images - 1)),
        "left": np.broadcast_to(chosen[:, :, -1:, None], shape).reshape(-1),
        "right": np.broadcast_to(chosen[:, None, :, :-1], shape).reshape(-1),
        "same": np.broadcast_to(same, shape).reshape(-1).astype(np.int64),
    }
    return pd.DataFrame(columns, columns=list(TRIAL_COLUMNS))
