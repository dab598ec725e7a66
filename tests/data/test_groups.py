"""Whole groups divided among splits: as by plain tables of groups x classes, without them."""

import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import groups
from pipeline.errors import InputError

NAMES = ("train", "test", "val")
SHARES = {"test": 0.3, "val": 0.2}


def table(sizes):
    """Images of groups with ``sizes[group][label]`` of them; single images are in no group."""
    rows = [
        (label, "" if sum(of) == 1 else f"g{group}")
        for group, of in enumerate(sizes)
        for label, count in enumerate(of)
        for _ in range(count)
    ]
    labels, names = zip(*rows, strict=True)
    return pd.DataFrame({"label": labels, "class": [f"c{of}" for of in labels], "group": names})


def as_tables(images):
    """The group of each image, and a table of images of each class in each group."""
    names = [group or row for row, group in enumerate(images["group"])]
    of_image, found = pd.factorize(np.array(names, dtype=object))
    labels, classes = pd.factorize(images["label"], sort=True)
    sizes = np.zeros((len(found), len(classes)), np.int64)
    np.add.at(sizes, (of_image, labels), 1)
    return of_image, sizes


def counted(sizes, of, splits):
    counts = np.zeros((splits, sizes.shape[1]), np.int64)
    np.add.at(counts, of, sizes)
    return counts


def divided_by_tables(images, draw, most, rng):
    """``groups.divide`` with every sum over all groups and classes; None where a class lacks."""
    of_image, sizes = as_tables(images)
    total = sizes.sum(axis=0)
    wanted = np.zeros((1 + len(draw), len(total)), np.int64)
    for row, (name, share) in enumerate(draw.items(), start=1):
        wanted[row] = np.maximum(1, np.rint(share * total))
        if name == "val" and most is not None:
            wanted[row] = np.minimum(wanted[row], most)
    wanted[0] = total - wanted.sum(axis=0)
    best, least = np.zeros(len(sizes), np.int64), np.inf
    for _ in range(groups.ORDERS):
        of = balanced_by_tables(sizes, wanted, rng.permutation(len(sizes)))
        counts = counted(sizes, of, len(wanted))
        off = np.abs(counts - wanted) / total
        cost = (counts == 0).sum() * off.size + (off**2).sum()
        if cost < least:
            best, least = of, cost
        if off.max() <= groups.NEAR and counts.all():
            break
    lacks = not counted(sizes, best, len(wanted)).all()
    return None if lacks else np.array(["train", *draw], dtype=object)[best[of_image]]


def balanced_by_tables(sizes, wanted, order):
    short = wanted.astype(np.float64)
    weighted = sizes / sizes.sum(axis=0) ** 2
    of = np.zeros(len(sizes), np.int64)
    for group in order:
        of[group] = ((2 * short - sizes[group]) * weighted[group]).sum(axis=1).argmax()
        short[of[group]] -= sizes[group]
    while True:
        gain = gains_by_tables(sizes, weighted, wanted, of)
        group, to = np.unravel_index(gain.argmax(), gain.shape)
        if gain[group, to] < 1e-9:
            return of
        of[group] = to


def gains_by_tables(sizes, weighted, wanted, of):
    counts = counted(sizes, of, len(wanted))
    short = weighted @ (wanted - counts).T.astype(np.float64)
    mine = short[np.arange(len(of)), of] + (weighted * sizes).sum(axis=1)
    holds = (sizes > 0).astype(np.float64)
    fills = holds @ (counts == 0).T.astype(np.float64)
    empties = (holds * (counts[of] == sizes)).sum(axis=1)
    gain = 2 * (short - mine[:, None]) + wanted.size * (fills - empties[:, None])
    gain[np.arange(len(of)), of] = 0
    return gain


def above_by_tables(images, most, rng):
    of_image, sizes = as_tables(images)
    kept = np.zeros(len(sizes), bool)
    count = np.zeros(sizes.shape[1], np.int64)
    order = rng.permutation(len(sizes))
    for group in order:
        if (count + sizes[group] <= most).all():
            kept[group] = True
            count += sizes[group]
    for column in range(len(count)):
        if count[column] == 0:
            holders = order[sizes[order, column] > 0]
            excess = np.maximum(0, count + sizes[holders] - most).sum(axis=1)
            group = holders[excess.argmin()]
            kept[group] = True
            count += sizes[group]
    return images.index[~kept[of_image]].tolist()


def drawn(rng, most_classes=40, each=7):
    """A random set: groups of one class to ``each``, some images in none."""
    classes, count = int(rng.integers(1, most_classes)), int(rng.integers(3, 80))
    sizes = np.zeros((count, classes), int)
    for of in sizes:
        held = rng.choice(classes, min(classes, int(rng.integers(1, each + 1))), replace=False)
        of[held] = 1 if rng.random() < 0.3 else rng.integers(1, 5, len(held))
    return table(sizes)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 1, 3]), st.booleans())
def test_groups_are_divided_as_by_tables(seed, most, with_test):
    images = drawn(np.random.default_rng(seed))
    draw = SHARES if with_test else {"val": 0.2}
    of_class = images.drop_duplicates(["label", "group"]).groupby("label").size()
    alone = images[images["group"] == ""].groupby("label").size().sub(1).clip(lower=0)
    wanted = None
    if of_class.add(alone, fill_value=0).min() > len(draw):
        wanted = divided_by_tables(images, draw, most, np.random.default_rng(seed))
    if wanted is None:
        with pytest.raises(InputError, match=r"\Ax: class 'c\d+' stands in too few groups"):
            groups.divide(images, draw, most, "x", np.random.default_rng(seed))
        return
    found = groups.divide(images, draw, most, "x", np.random.default_rng(seed))
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_a_larger_set_is_divided_as_by_tables_too(seed, monkeypatch):
    """Without BLAS: sums of three products and more may be rounded otherwise, those of two not."""
    monkeypatch.setattr(groups, "DENSE", 0)
    images = drawn(np.random.default_rng(seed), most_classes=6, each=1 + seed % 2)
    counts = pd.concat([images] * 4, ignore_index=True)
    counts["group"] += np.repeat([*"abcd"], len(images))
    wanted = divided_by_tables(counts, SHARES, None, np.random.default_rng(seed))
    found = groups.divide(counts, SHARES, None, "x", np.random.default_rng(seed))
    assert found.tolist() == wanted.tolist()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_groups_are_left_out_as_by_tables(seed, most):
    images = drawn(np.random.default_rng(seed))
    found = groups.rows_above(images, most, np.random.default_rng(seed))
    assert found == above_by_tables(images, most, np.random.default_rng(seed))


def many(count, group_count, classes):
    """``count`` images in groups of one class, some with an image of another."""
    rng = np.random.default_rng(0)
    group = rng.integers(group_count, size=count)
    labels = np.where(rng.random(count) < 0.02, rng.integers(classes, size=count), group % classes)
    names = pd.Series(labels).astype(str)
    return pd.DataFrame({"label": labels, "class": names, "group": group.astype(str)})


def test_memory_does_not_grow_with_groups_times_classes(monkeypatch):
    monkeypatch.setattr(groups, "ORDERS", 1)
    images = many(8_000, 6_000, 300)
    tracemalloc.start()
    try:
        divided = groups.divide(images, SHARES, None, "x", np.random.default_rng(0))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert divided.groupby(images["group"]).nunique().max() == 1
    assert most < 700 * len(images)  # a table alone takes 1,800 bytes an image


@pytest.mark.torture
@pytest.mark.parametrize(("group_count", "classes"), [(100_000, 10), (100_000, 1_000)])
def test_a_million_images_are_divided_in_seconds(group_count, classes):
    images = many(1_000_000, group_count, classes)
    started = time.process_time()
    divided = groups.divide(images, SHARES, None, "x", np.random.default_rng(0))
    assert time.process_time() - started < 20
    shares = divided.value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.3, abs=0.005)
    assert shares["val"] == pytest.approx(0.2, abs=0.005)
