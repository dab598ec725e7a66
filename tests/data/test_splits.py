"""Splits, duplicates and training draws on small tables."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import digests, splits
from pipeline.errors import InputError
from pipeline.params import Splits


def table(sizes, given=""):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return pd.DataFrame(
        {
            "row": np.arange(len(labels)),
            "image": [f"{of}/{k}.png" for k, of in enumerate(labels)],
            "label": labels,
            "class": [f"c{of}" for of in labels],
            "split": given,
            "group": "",
        }
    )


def counts(images, split):
    return {
        name: list(splits.class_counts(images, split, name).values())
        for name in ("train", "val", "test")
    }


def test_shares_are_cut_from_each_class():
    images = table([10, 20, 3])
    split = splits.assign(images, Splits(val=0.2, test=0.3), None)
    assert counts(images, split) == {"train": [5, 10, 1], "val": [2, 4, 1], "test": [3, 6, 1]}


def test_validation_cut_from_train_where_the_layout_brings_a_test_set():
    images = table([10, 10])
    images.loc[[0, 10], "split"] = "test"
    images.loc[images["split"] == "", "split"] = "train"
    split = splits.assign(images, Splits(val=0.25, test=0.3), None)
    assert counts(images, split) == {"train": [7, 7], "val": [2, 2], "test": [1, 1]}
    assert (split[[0, 10]] == "test").all()


def test_a_layout_with_all_three_is_left_alone_but_for_val_per_class():
    images = table([6, 6])
    images["split"] = ["train", "train", "val", "val", "val", "test"] * 2
    assert (splits.assign(images, Splits(), None) == images["split"]).all()
    bounded = splits.assign(images, Splits(), 1)
    assert counts(images, bounded) == {"train": [2, 2], "val": [1, 1], "test": [1, 1]}


def test_val_per_class_leaves_the_rest_to_train_on():
    images = table([20, 20])
    split = splits.assign(images, Splits(val=0.5, test=0.25), 3)
    assert counts(images, split) == {"train": [12, 12], "val": [3, 3], "test": [5, 5]}


def test_another_class_does_not_change_a_class_already_there():
    one = splits.assign(table([10, 10]), Splits(), None)
    two = splits.assign(table([10, 10, 10]), Splits(), None)
    assert (one == two[: len(one)]).all()


def test_too_few_images_in_a_class():
    with pytest.raises(InputError, match="class 'c1' has only 2 images"):
        splits.assign(table([10, 2]), Splits(), None)


def drawn_naively(images, share_val, share_test, seed, most=None):
    """The splits of a set without groups: test, then val, from a shuffle of each class."""
    split = {}
    for label in sorted(set(images["label"])):
        rows = [row for row, of in zip(images["row"], images["label"], strict=True) if of == label]
        shuffled = splits.generator("split", seed, label).permutation(rows).tolist()
        tests = max(1, round(share_test * len(rows)))
        vals = max(1, round(share_val * len(rows)))
        vals = vals if most is None else min(vals, most)
        for place, row in enumerate(shuffled):
            split[row] = "test" if place < tests else "val" if place < tests + vals else "train"
    return [split[row] for row in images["row"]]


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("seed", [0, 7])
def test_splits_of_a_set_without_groups(most, seed):
    images = table([13, 30, 4, 9])
    split = splits.assign(images, Splits(val=0.2, test=0.3, seed=seed), most)
    assert split.tolist() == drawn_naively(images, 0.2, 0.3, seed, most)


def grouped(sizes):
    """A set of groups with ``sizes[group][label]`` images."""
    rows = [(of, g) for g, n in enumerate(sizes) for of, k in enumerate(n) for _ in range(k)]
    rows.sort(key=lambda row: row[0])
    images = table([sum(n) for n in zip(*sizes, strict=True)])
    images["group"] = [f"g{g}" for _, g in rows]
    return images


def straddling(images, split):
    """Groups with images in more than one split."""
    named = pd.DataFrame({"group": images["group"], "split": split})[images["group"] != ""]
    return [group for group, rows in named.groupby("group") if rows["split"].nunique() > 1]


def divisions(sizes, names):
    """Counts (split, class) of every way of dividing the groups that has each class everywhere."""
    sizes = np.array(sizes)
    for of in itertools.product(range(len(names)), repeat=len(sizes)):
        counts = np.array([sizes[np.array(of) == n].sum(axis=0) for n in range(len(names))])
        if counts.all():
            yield counts


def distance(counts, shares):
    """Squared distance to the wanted counts, as shares of each class; test and val, then train."""
    total = counts.sum(axis=0)
    wanted = [[max(1, round(share * int(n))) for n in total] for share in shares]
    wanted = np.array([*wanted, total - np.sum(wanted, axis=0)])
    return (((counts - wanted) / total) ** 2).sum()


SHARES = {"test": 0.3, "val": 0.2}
NAMES = ("test", "val", "train")
few_groups = st.integers(2, 3).flatmap(
    lambda classes: st.lists(
        st.lists(st.integers(0, 4), min_size=classes, max_size=classes).filter(any),
        min_size=3,
        max_size=6,
    ).filter(lambda sizes: all(map(sum, zip(*sizes, strict=True))))
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(few_groups, st.integers(0, 3))
def test_whole_groups_are_divided_as_the_best_of_all_divisions_or_near_it(sizes, seed):
    images = grouped(sizes)
    best = min((distance(c, SHARES.values()) for c in divisions(sizes, NAMES)), default=None)
    if best is None:
        with pytest.raises(InputError, match=r"data\.target: class 'c\d' stands in too few groups"):
            splits.assign(images, Splits(**SHARES, seed=seed), None)
        return
    split = splits.assign(images, Splits(**SHARES, seed=seed), None)
    assert straddling(images, split) == []
    found = counts(images, split)
    found = np.array([found[name] for name in NAMES])
    assert found.all() and distance(found, SHARES.values()) <= best + 0.05


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(2, 5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=40, max_size=120),
    st.integers(0, 2**32 - 1),
)
def test_many_groups_come_near_the_shares(classes, made, seed):
    sizes = np.zeros((len(made) + 6 * classes, classes), int)
    sizes[-6 * classes :] = np.repeat(np.eye(classes, dtype=int), 6, axis=0)  # of one image each
    for group, (label, count) in enumerate(made):
        sizes[group, label % classes] = count
    images = grouped(sizes.tolist())
    images.loc[images["group"].isin(images["group"].unique()[::9]), "group"] = ""
    asked = Splits(val=0.2, test=0.3, seed=seed)
    split = splits.assign(images, asked, None)
    assert straddling(images, split) == []
    total = sizes.sum(axis=0)
    found = counts(images, split)
    for name, share in SHARES.items():
        assert (np.abs(np.array(found[name]) - share * total) <= 1.5).all()
    assert split.equals(splits.assign(images.copy(), asked, None))


def test_a_small_share_of_large_groups_is_a_group_all_the_same():
    images = grouped([(10, 0)] * 3 + [(0, 10)] * 3)
    split = splits.assign(images, Splits(val=0.02, test=0.3), None)
    assert counts(images, split) == {"train": [10, 10], "val": [10, 10], "test": [10, 10]}


def test_seeds_draw_other_groups():
    images = grouped([(3, 0), (0, 3)] * 8)
    drawn = {tuple(splits.assign(images, Splits(seed=seed), None)) for seed in range(5)}
    assert len(drawn) == 5


def test_groups_of_a_test_set_that_was_brought_do_not_hinder():
    images = grouped([(2, 2)] * 6)
    images["split"] = np.where(images["group"].isin(["g0", "g5"]), "test", "train")
    split = splits.assign(images, Splits(val=0.25, test=0.3), None)
    assert (split == "test").equals(images["split"] == "test")
    assert straddling(images, split) == []
    assert counts(images, split) == {"train": [6, 6], "val": [2, 2], "test": [4, 4]}


def test_a_class_in_too_few_groups():
    with pytest.raises(InputError, match=r"class 'c1' stands in too few groups, 2: train, test, v"):
        splits.assign(grouped([(5, 0)] * 4 + [(0, 5)] * 2), Splits(), None)


def test_classes_tied_to_each_other_by_their_groups():
    # each class stands in three groups, but no three of the four groups can do for all classes
    crossed = [(1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
    assert not list(divisions(crossed, NAMES))
    with pytest.raises(InputError, match="no way was found to divide them whole"):
        splits.assign(grouped(crossed), Splits(), None)


def test_val_per_class_and_drawn_groups():
    images = grouped([(2, 0), (0, 2)] * 20)
    split = splits.assign(images, Splits(val=0.5, test=0.25), 4)
    assert straddling(images, split) == []
    assert counts(images, split) == {"train": [26, 26], "val": [4, 4], "test": [10, 10]}


def bounded(sizes, most, seed):
    """What stays of a validation set that was brought: the counts, and the groups by number."""
    images = grouped([*sizes, *([[1] * len(sizes[0])] * 2)])
    others = images["group"].map({f"g{len(sizes)}": "train", f"g{len(sizes) + 1}": "test"})
    images["split"] = others.fillna("val")
    split = splits.assign(images, Splits(seed=seed), most)
    assert straddling(images, split) == []
    assert (split[others.notna()] == others[others.notna()]).all()
    stay = {int(group[1:]) for group in images.loc[split == "val", "group"]}
    return np.array(counts(images, split)["val"]), stay


@settings(max_examples=60, deadline=None, derandomize=True)
@given(few_groups, st.integers(1, 6), st.integers(0, 3))
def test_val_per_class_drops_whole_groups_of_a_validation_set_that_was_brought(sizes, most, seed):
    kept, stay = bounded(sizes, most, seed)
    assert kept.all()  # each class had some
    for group in set(range(len(sizes))) - stay:  # none that would have fitted was dropped
        assert (kept + sizes[group] > most).any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=1), st.integers(1, 6), st.integers(0, 3))
def test_val_per_class_is_exceeded_by_a_smallest_group_alone(sizes, most, seed):
    kept, _ = bounded([(0, 1), *((size, 0) for size in sizes)], most, seed)
    assert kept[0] <= most if min(sizes) <= most else kept[0] == min(sizes)
    assert kept[1] == 1


def test_cut_validation_keeps_groups_whole():
    images = grouped([(2, 1), (1, 2), (3, 0), (0, 3), (2, 2), (2, 2)])
    for seed in range(5):
        split = splits.cut_validation(images, 0.3, seed)
        assert straddling(images, split) == [] and set(split) == {"train", "val"}
        found = counts(images, split)
        assert all(2 <= n <= 4 for n in found["val"])
    with pytest.raises(InputError, match=r"data\.source: class 'c1' stands in too few groups, 1"):
        splits.cut_validation(grouped([(4, 0), (4, 0), (0, 4)]), 0.3, 0)


def pixels(images, equal):
    made = np.random.default_rng(0).integers(0, 255, (len(images), 1, 4, 4), dtype=np.uint8)
    for one, other in equal:
        made[other] = made[one]
    return made


def test_identical_images_in_two_splits_are_named():
    images = table([6, 6])
    images["split"] = ["train", "train", "val", "val", "test", "test"] * 2
    found = splits.find_duplicates(pixels(images, [(0, 4)]))
    assert found.groups == [[0, 4]]
    with pytest.raises(InputError, match=r"0/0\.png \(c0, train\), 0/4\.png \(c0, test\)"):
        splits.without_duplicates(images, images["split"], found, "error")
    kept = splits.without_duplicates(images, images["split"], found, "drop")
    assert kept[0] == "" and kept[4] == "test"


def test_what_is_dropped_is_named(capsys):
    images = table([6, 6])
    images["split"] = ["train", "train", "val", "val", "test", "test"] * 2
    for pairs, named in (
        ([(0, 4)], "0/0.png"),
        ([(0, 4), (6, 10)], "0/0.png, 1/6.png"),
        ([(0, 4), (0, 6), (2, 8)], "0/0.png, 0/4.png, 1/6.png and 2 more"),
        ([(0, 1)], None),
    ):
        found = splits.find_duplicates(pixels(images, pairs))
        splits.without_duplicates(images, images["split"], found, "drop")
        said = f"prepare: left out as copies (data.exact_duplicates: drop): {named}\n"
        assert capsys.readouterr().out == (said if named else "")


def test_identical_images_under_two_labels_all_leave():
    images = table([6, 6])
    images["split"] = ["train", "train", "val", "val", "test", "test"] * 2
    found = splits.find_duplicates(pixels(images, [(0, 6)]))
    with pytest.raises(InputError, match="under two labels"):
        splits.without_duplicates(images, images["split"], found, "error")
    kept = splits.without_duplicates(images, images["split"], found, "drop")
    assert kept[0] == "" and kept[6] == ""


def test_identical_images_in_one_split_and_class_are_no_leak():
    images = table([6, 6])
    images["split"] = ["train", "train", "val", "val", "test", "test"] * 2
    found = splits.find_duplicates(pixels(images, [(0, 1)]))
    kept = splits.without_duplicates(images, images["split"], found, "error")
    assert (kept == images["split"]).all()


def test_fewer_shots_are_a_prefix_of_more():
    labels = np.repeat([0, 1, 2], [5, 9, 7])
    rows = np.arange(100, 121)
    order, of = splits.training_order(rows, labels, seed=3)
    assert sorted(order.tolist()) == rows.tolist()
    assert (labels[order - 100] == of).all()
    for shots in (1, 2, 5):
        assert np.bincount(of[: 3 * shots]).tolist() == [shots] * 3
    again, _ = splits.training_order(rows, labels, seed=3)
    other, _ = splits.training_order(rows, labels, seed=4)
    assert (order == again).all() and (order != other).any()


def test_shuffled_labels_keep_the_counts_and_lose_the_order():
    labels = np.repeat([0, 1], 50)
    shuffled = splits.shuffled_labels(labels, 0)
    assert np.bincount(shuffled).tolist() == [50, 50] and (shuffled != labels).any()


def test_more_shots_than_a_class_has():
    with pytest.raises(
        InputError, match="50 images a class are asked for, but class 'b' has only 8"
    ):
        splits.check_shots([5, "all", 50], {"a": 60, "b": 8})


def test_cut_validation_leaves_something_to_train_on():
    images = table([4, 2])
    split = splits.cut_validation(images, 0.5, 0)
    assert counts(images, split) == {"train": [2, 1], "val": [2, 1], "test": [0, 0]}
    with pytest.raises(InputError, match="class 'c1' has 1 image"):
        splits.cut_validation(table([4, 1]), 0.5, 0)


@given(st.lists(st.integers(-3, 9)))
def test_places_of_each_label(labels):
    found = {label: places.tolist() for label, places in splits.by_label(np.array(labels, int))}
    assert list(found) == sorted(set(labels))
    for label, places in found.items():
        assert places == [place for place, of in enumerate(labels) if of == label]


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(1, 100))
@settings(max_examples=50, deadline=None)
def test_duplicates_in_a_file_as_in_memory(tmp_path_factory, kinds, block):
    images = np.array(kinds, np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 2), np.uint8)
    expected: dict[int, list[int]] = {}
    for row, kind in enumerate(kinds):
        expected.setdefault(kind, []).append(row)
    groups = [rows for rows in expected.values() if len(rows) > 1]
    assert splits.find_duplicates(images).groups == groups
    file = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(file, images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "BLOCK", block)
        assert splits.find_duplicates(np.load(file, mmap_mode="r")).groups == groups
