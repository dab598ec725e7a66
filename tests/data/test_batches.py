"""Batches of images and of pairs against plain counting."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from pipeline.data.batches import (
    auto_batch_size,
    balanced_batches,
    image_batches,
    load_images,
    read_list,
    read_pairs,
    read_trials,
)


@pytest.mark.parametrize(("images", "size"), [(50, 16), (33, 32), (5, 8), (1, 4), (64, 32)])
def test_each_image_comes_once_in_batches_of_like_size(images, size):
    batches = image_batches(images, size, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(batches).tolist()) == list(range(images))
    lengths = {len(batch) for batch in batches}
    assert max(lengths) <= size and max(lengths) - min(lengths) <= 1
    assert len(batches) == math.ceil(images / size)


def test_balanced_batches_draw_classes_evenly_and_images_evenly_within_a_class():
    labels = torch.arange(4).repeat_interleave(torch.tensor([5, 0, 20, 200]))
    generator = torch.Generator().manual_seed(0)
    epochs = [torch.cat(balanced_batches(labels, 32, generator)) for _ in range(400)]
    drawn = torch.cat(epochs)
    assert all(len(epoch) == 225 for epoch in epochs)
    for label, size in {0: 5, 2: 20, 3: 200}.items():
        counts = drawn.bincount(minlength=225)[labels == label].double()
        expected = 400 * 225 / 3
        assert len(counts) == size
        assert abs(counts.sum() - expected) < 4 * math.sqrt(expected * 2 / 3)
        assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("images", "size"), [(50, 16), (33, 32), (5, 8), (1, 4), (64, 32)])
def test_balanced_batches_are_cut_like_shuffled_ones(images, size):
    labels = torch.arange(images) % 3
    first, again, other = (
        balanced_batches(labels, size, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    shuffled = image_batches(images, size, torch.Generator().manual_seed(1))
    assert [len(batch) for batch in first] == [len(batch) for batch in shuffled]
    assert torch.cat(first).equal(torch.cat(again))
    assert images == 1 or not torch.cat(first).equal(torch.cat(other))
    assert first[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("images", "size"),
    [(1, 8), (100, 8), (159, 8), (160, 16), (319, 16), (320, 32), (1279, 64), (1280, 128)],
)
def test_auto_batch_size_is_the_power_of_two_below_a_tenth(images, size):
    assert auto_batch_size(images) == size


def test_auto_batch_size_stays_at_128():
    assert auto_batch_size(10**6) == 128


def test_lists_and_pairs_are_read_by_position(tmp_path):
    (tmp_path / "list.csv").write_text("row,label\n7,0\n3,1\n9,0\n")
    (tmp_path / "pairs.csv").write_text("left,right,same\n3,9,0\n7,9,1\n")
    rows, labels = read_list(tmp_path / "list.csv")
    assert rows.tolist() == [7, 3, 9] and labels.tolist() == [0, 1, 0]
    pairs = read_pairs(tmp_path / "pairs.csv", rows)
    assert pairs.left.tolist() == [1, 0] and pairs.right.tolist() == [2, 2]
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    np.save(tmp_path / "images.npy", pixels)
    loaded = load_images(tmp_path / "images.npy", rows, labels, torch.device("cpu"))
    assert loaded.pixels.flatten().tolist() == [7, 3, 9]
    assert loaded.labels.tolist() == [0, 1, 0]


def test_trials_are_read_by_set_and_position(tmp_path):
    (tmp_path / "trials.csv").write_text(
        "set,episode,left,right,same\n"
        "pairs,,3,9,0\n"
        "official,run01,9,7,1\n"
        "5_way_1_shot,0,7,3,0\n"
        "official,run01,9,3,0\n"
        "pairs,,7,9,1\n"
    )
    found = read_trials(tmp_path / "trials.csv", np.array([7, 3, 9]))
    listed = {
        name: [of.tolist() for of in (trials.episode, trials.left, trials.right, trials.same)]
        for name, trials in found.items()
    }
    assert listed == {
        "pairs": [["", ""], [1, 0], [2, 2], [0, 1]],
        "official": [["run01", "run01"], [2, 2], [0, 1], [1, 0]],
        "5_way_1_shot": [["0"], [0], [1], [0]],
    }
    assert list(found) == ["pairs", "official", "5_way_1_shot"]  # as they first come
    assert found["pairs"].left.dtype == np.int64


def test_trials_may_be_none(tmp_path):
    (tmp_path / "trials.csv").write_text("set,episode,left,right,same\n")
    assert read_trials(tmp_path / "trials.csv", np.arange(3)) == {}
