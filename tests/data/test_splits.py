"""Splits, duplicates and training draws on small tables."""

import numpy as np
import pandas as pd
import pytest

from pipeline.data import splits
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
