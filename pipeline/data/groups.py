"""Whole groups of images divided among splits, every class in each; time grows with the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from pipeline.data.pairs import in_blocks
from pipeline.errors import InputError

ORDERS = 20  # random orders of the groups that are tried
NEAR = 0.01  # a share of a class that is no further from what was asked is near enough
DENSE = 2**18  # groups x classes up to which BLAS adds the products, see `_Groups.dense`

Array = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def has_groups(images: pd.DataFrame) -> bool:
    """Whether any image is in a group."""
    return bool((images["group"] != "").any())


def divide(
    images: pd.DataFrame,
    draw: Mapping[str, float],
    val_per_class: int | None,
    place: str,
    rng: np.random.Generator,
) -> pd.Series:
    """The split of each image, whole groups drawn, with every class in every split.

    Groups of several classes make this a packing problem, so several random orders are tried and
    the division that comes nearest to the shares is taken, the first of equals.

    Args:
        images: those to divide, with ``label``, ``class`` and ``group``.
        draw: the share of each split but ``train``, which takes the rest.
        val_per_class: validation images of a class that are wanted at most.
        place: the parameter that an error names.
        rng: draws the orders.

    Raises:
        InputError: a class stands in too few groups, or in the wrong ones.
    """
    of_image, groups = _grouped(images)
    total = groups.total
    names = ["train", *draw]
    wanted = np.zeros((len(names), len(total)), np.int64)
    for row, (name, share) in enumerate(draw.items(), start=1):
        wanted[row] = np.maximum(1, np.rint(share * total))
        if name == "val" and val_per_class is not None:
            wanted[row] = np.minimum(wanted[row], val_per_class)
    wanted[0] = total - wanted.sum(axis=0)
    _check_groups(images, groups, names, place)

    best, best_counts, least = np.zeros(len(groups), np.int64), wanted, np.inf
    for _ in range(ORDERS):
        of, counts = _balance(groups, wanted, rng.permutation(len(groups)))
        off = np.abs(counts - wanted) / total
        cost = (counts == 0).sum() * off.size + (off**2).sum()  # one class lacking outweighs all
        if cost < least:
            best, best_counts, least = of, counts, cost
        if off.max() <= NEAR and counts.all():
            break
    lacking = np.argwhere(best_counts == 0)
    if len(lacking):
        row, column = lacking[0]
        raise InputError(
            f"{place}: class '{_class_name(images, column)}' stands in too few groups: no way was "
            f"found to divide them whole that leaves some of it to {names[row]}; add groups of "
            "it, or bring the splits"
        )
    return pd.Series(np.array(names, dtype=object)[best[of_image]], index=images.index)


def rows_above(images: pd.DataFrame, most: int, rng: np.random.Generator) -> list[int]:
    """The rows to drop, whole groups, so that near ``most`` images of each class stay.

    Groups stay in random order while no class exceeds ``most``; then a class of which none would
    be left keeps the group that exceeds it least.
    """
    of_image, groups = _grouped(images)
    order = rng.permutation(len(groups))
    kept = np.zeros(len(groups), bool)
    count = np.zeros(len(groups.total), np.int64)
    now, column_of, size_of = count.item, groups.columns.item, groups.sizes.item
    for group, first, last in in_blocks(order, groups.starts[order], groups.starts[order + 1]):
        if all(now(column_of(entry)) + size_of(entry) <= most for entry in range(first, last)):
            kept[group] = True
            count[groups.columns[first:last]] += groups.sizes[first:last]
    rank = np.argsort(order)
    for column in np.flatnonzero(count == 0).tolist():
        if count[column]:
            continue  # another class has brought some
        holders = groups.holders(column)
        holders = holders[np.argsort(rank[holders])]
        held = groups.of(holders)
        above = (np.maximum(0, count[held.columns] + more - most) for more in (held.sizes, 0))
        group = holders[held.sums(np.subtract(*above)).argmin()]
        kept[group] = True
        added = groups.of(np.array([group]))
        count[added.columns] += added.sizes
    return images.index[~kept[of_image]].tolist()


@dataclass(frozen=True)
class _Groups:
    """How many images of each class some groups have: an entry for each that is there at all.

    Attributes:
        starts: the first entry of each group, and the end of the last (groups + 1,).
        columns: the class of each entry, by number; they ascend within a group.
        sizes: the images of each entry.
        total: images of each class in the whole set (classes,).
    """

    starts: Array
    columns: Array
    sizes: Array
    total: Array

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.starts) - 1

    @cached_property
    def weights(self) -> Floats:
        """Sizes by the square of their classes' totals: what an image counts in the cost."""
        return self.sizes / self.total[self.columns] ** 2

    @cached_property
    def rows(self) -> Array:
        """The group of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def dense(self) -> Floats | None:
        """The weights (groups, classes) of a small set.

        BLAS rounds sums of several products in a way of its own, which may break a tie: what it
        once drew stays.
        """
        if len(self) * len(self.total) > DENSE:
            return None
        table = np.zeros((len(self), len(self.total)))
        table[self.rows, self.columns] = self.weights
        return table

    @cached_property
    def own(self) -> Floats:
        """Of each group, the sum of its sizes by their weights."""
        if self.dense is None:
            return self.sums(self.weights * self.sizes)
        sizes = np.zeros_like(self.dense)
        sizes[self.rows, self.columns] = self.sizes
        return (self.dense * sizes).sum(axis=1)

    @cached_property
    def _by_class(self) -> tuple[Array, Array]:
        """The groups of each entry, class by class; and where each class begins."""
        order = np.argsort(self.columns, kind="stable")
        ends = np.cumsum(np.bincount(self.columns, minlength=len(self.total)))
        return self.rows[order], np.concatenate([[0], ends])

    def holders(self, column: int) -> Array:
        """The groups that have images of a class, ascending."""
        groups, starts = self._by_class
        return groups[starts[column] : starts[column + 1]]

    def of(self, groups: Array) -> _Groups:
        """Some of the groups, in this order."""
        lengths = self.starts[groups + 1] - self.starts[groups]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        entries = np.arange(starts[-1]) + np.repeat(self.starts[groups] - starts[:-1], lengths)
        return _Groups(starts, self.columns[entries], self.sizes[entries], self.total)

    def sums(self, values: npt.NDArray[np.generic]) -> Floats:
        """A value of each entry, summed by group (groups,)."""
        return np.bincount(self.rows, values, minlength=len(self)).astype(np.float64, copy=False)


def _grouped(images: pd.DataFrame) -> tuple[Array, _Groups]:
    """The group of each image, in order of their first images; one without is its own group."""
    # a number, and so no group's name, stands for the group of an image alone
    names = [group or row for row, group in enumerate(images["group"])]
    of_image, found = pd.factorize(np.array(names, dtype=object))
    labels, classes = pd.factorize(images["label"], sort=True)
    each = np.ones(len(images), np.int64)
    table = sparse.coo_array((each, (of_image, labels)), shape=(len(found), len(classes))).tocsr()
    table.sort_indices()
    starts, columns = table.indptr.astype(np.int64), table.indices.astype(np.int64)
    total = np.bincount(labels, minlength=len(classes))
    return of_image, _Groups(starts, columns, table.data, total)


def _balance(groups: _Groups, wanted: Array, order: Array) -> tuple[Array, Array]:
    """Give each group to one of the splits, so that their class counts come near those wanted.

    Groups go in turn to the split that is most short of their classes, in the spirit of
    scikit-learn's ``StratifiedGroupKFold``; then single groups move, the best move first, while
    that fills a class that a split lacks or lowers the squared distance to the wanted counts, as
    shares of each class.

    Args:
        groups: no class without images.
        wanted: images of each class in each split (splits, classes).
        order: the order of the groups (groups,).

    Returns:
        the split of each group (groups,), and the images of each class in each split.
    """
    of, counts = _dealt(groups, wanted, order)
    everyone = np.arange(len(groups))
    gain = _gains(groups, everyone, wanted, of, counts)
    while True:
        group, to = np.unravel_index(gain.argmax(), gain.shape)
        if gain[group, to] < 1e-9:  # rounding of sums is no gain; so this comes to an end
            return of, counts
        moved = groups.of(np.array([group]))
        counts[of[group], moved.columns] -= moved.sizes
        counts[to, moved.columns] += moved.sizes
        of[group] = to
        touched = everyone
        if groups.dense is None:
            touched = np.unique(
                np.concatenate([groups.holders(column) for column in moved.columns])
            )
        gain[touched] = _gains(groups, touched, wanted, of, counts)


def _dealt(groups: _Groups, wanted: Array, order: Array) -> tuple[Array, Array]:
    """The split of each group by its turn, and the images of each class in each split."""
    of = np.zeros(len(groups), np.int64)
    short = wanted.astype(np.float64)
    now, splits = short.item, range(len(wanted))
    squares = (groups.total**2).tolist()
    first, last = groups.starts[order], groups.starts[order + 1]
    # plain numbers, as there is a step for each group and an array takes longer for one alone
    turns = in_blocks(order, first, last, groups.columns[first], groups.sizes[first])
    for group, start, end, column, size in turns:
        if end == start + 1:
            weight = size / squares[column]
            scores = [(2 * now(split, column) - size) * weight for split in splits]
            of[group] = to = scores.index(max(scores))
            short[to, column] -= size
        else:
            held = slice(start, end)
            of[group] = to = _most_short(groups, held, short)
            short[to, groups.columns[held]] -= groups.sizes[held]
    return of, wanted - short.astype(np.int64)


def _most_short(groups: _Groups, held: slice, short: Floats) -> int:
    """The split that is most short (splits, classes) of the classes of a group's entries."""
    columns = groups.columns[held]
    scores = np.zeros_like(short)  # zeros too are summed: rounding depends on the places of terms
    scores[:, columns] = (2 * short[:, columns] - groups.sizes[held]) * groups.weights[held]
    return int(scores.sum(axis=1).argmax())


def _gains(groups: _Groups, those: Array, wanted: Array, of: Array, counts: Array) -> Floats:
    """What the cost of a division falls by as each of those groups moves to each split.

    Moving s images from a split short of a to one short of b lowers the squares by
    a^2 + b^2 - (a + s)^2 - (b - s)^2 = 2s(b - a - s).

    Returns:
        (those, splits).
    """
    part = groups if len(those) == len(groups) else groups.of(those)
    here, numbers = of[those], np.arange(len(those))
    if groups.dense is None:
        missing = (wanted - counts)[:, part.columns]
        short = np.stack([part.sums(part.weights * of_split) for of_split in missing], axis=1)
    else:
        short = groups.dense @ (wanted - counts).T.astype(np.float64)
    mine = short[numbers, here] + groups.own[those]
    fills = np.stack([part.sums(of_split[part.columns] == 0) for of_split in counts], axis=1)
    empties = part.sums(counts[here[part.rows], part.columns] == part.sizes)
    gain = 2 * (short - mine[:, None]) + wanted.size * (fills - empties[:, None])
    gain[numbers, here] = 0
    return gain


def _check_groups(images: pd.DataFrame, groups: _Groups, names: list[str], place: str) -> None:
    """Refuse a class that stands in fewer groups than there are splits."""
    for column, count in enumerate(np.bincount(groups.columns, minlength=len(groups.total))):
        if count < len(names):
            raise InputError(
                f"{place}: class '{_class_name(images, column)}' stands in too few groups, "
                f"{count}: {', '.join(names)} need one each; add groups of it (near duplicates "
                "that are kept together are one), or bring the splits"
            )


def _class_name(images: pd.DataFrame, column: int) -> str:
    """The class at a column of the group sizes."""
    label = np.unique(images["label"])[column]
    return str(images.loc[images["label"] == label, "class"].iloc[0])
