"""Batches of images and of pairs against plain counting; augmentation against plain resampling."""

import math

import numpy as np
import pytest
import torch

from pipeline.data.batches import (
    PairBatches,
    augment,
    image_batches,
    load_images,
    read_list,
    read_pairs,
)
from pipeline.data.pairs import draw_pairs
from pipeline.params import Augmentation


@pytest.mark.parametrize(("images", "size"), [(50, 16), (33, 32), (5, 8), (1, 4), (64, 32)])
def test_each_image_comes_once_in_batches_of_like_size(images, size):
    batches = image_batches(images, size, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(batches).tolist()) == list(range(images))
    lengths = {len(batch) for batch in batches}
    assert max(lengths) <= size and max(lengths) - min(lengths) <= 1
    assert len(batches) == math.ceil(images / size)


@pytest.mark.parametrize(("per_class", "size"), [(10, 64), (40, 32), (100, 16)])
def test_pair_batches_hold_the_listed_pairs_among_their_images(per_class, size):
    labels = np.repeat(np.arange(3), per_class)
    pairs, _ = draw_pairs(np.arange(len(labels)), labels, 4, 0.5, np.random.default_rng(0))
    listed = {
        (left, right): bool(same)
        for left, right, same in zip(pairs.left, pairs.right, pairs.same, strict=True)
    }
    batches = list(PairBatches(pairs, len(labels), size).epoch(torch.Generator().manual_seed(1)))
    seen = [int(image) for batch in batches for image in batch.images]
    assert len(seen) == len(set(seen))
    for batch in batches:
        images = batch.images.tolist()
        found = {
            (images[left], images[right]): bool(same)
            for left, right, same in zip(
                batch.left.tolist(), batch.right.tolist(), batch.same.tolist(), strict=True
            )
        }
        among = {pair: same for pair, same in listed.items() if set(pair) <= set(images)}
        assert found == among


def test_one_batch_holds_every_pair():
    labels = np.repeat(np.arange(5), 10)
    pairs, _ = draw_pairs(np.arange(50), labels, 8, 0.5, np.random.default_rng(0))
    (batch,) = PairBatches(pairs, 50, 64).epoch(torch.Generator().manual_seed(0))
    assert len(batch.left) == len(pairs.left) == 400


@pytest.mark.parametrize("classes", [2, 10])
def test_composed_batches_hold_many_pairs_of_both_kinds(classes):
    labels = np.repeat(np.arange(classes), 1000 // classes)
    pairs, _ = draw_pairs(np.arange(1000), labels, 10, 0.5, np.random.default_rng(0))
    batches = list(PairBatches(pairs, 1000, 50).epoch(torch.Generator().manual_seed(0)))
    found = sum(len(batch.left) for batch in batches)
    assert found > 1000  # two towers would pass two images a pair; random batches hold 500 pairs
    assert 0.45 < sum(int(batch.same.sum()) for batch in batches) / found < 0.55


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


def picture(size=9):
    return torch.rand(4, 2, size, size, generator=torch.Generator().manual_seed(0))


def test_no_augmentation_is_no_change():
    images = picture()
    assert augment(images, Augmentation(), torch.Generator()) is images


def test_flips_mirror_about_half_of_the_images_exactly():
    images = picture().repeat(50, 1, 1, 1)
    out = augment(images, Augmentation(flip=True), torch.Generator().manual_seed(0))
    same = (out - images).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (out - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (same ^ mirrored).all() and 70 < int(same.sum()) < 130


def test_warp_is_the_naive_one():
    """Every output pixel by hand: undo the drawn affine map, then interpolate bilinearly."""
    images, settings = (
        picture(),
        Augmentation(rotation=30, zoom=0.2, shear=10, shift=0.1, flip=True),
    )
    out = augment(images, settings, torch.Generator().manual_seed(5))
    draw = torch.rand(7, 4, generator=torch.Generator().manual_seed(5)).double() * 2 - 1
    side = images.shape[-1]
    for k in range(4):
        angle, slant = math.radians(30) * draw[0, k], math.tan(math.radians(10) * draw[1, k])
        zoom = [1 + 0.2 * draw[2, k], 1 + 0.2 * draw[3, k]]
        if draw[6, k] < 0:
            zoom[0] = -zoom[0]
        rotate = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = rotate @ np.array([[1, slant], [0, 1]]) @ np.diag([float(z) for z in zoom])
        for y in range(side):
            for x in range(side):
                point = np.array([(2 * x + 1) / side - 1, (2 * y + 1) / side - 1])
                point = matrix @ point + 2 * 0.1 * draw[4:6, k].numpy()
                column, row = np.clip(((point + 1) * side - 1) / 2, 0, side - 1)
                x0, y0 = int(column), int(row)
                x1, y1 = min(x0 + 1, side - 1), min(y0 + 1, side - 1)
                a, b = column - x0, row - y0
                naive = (
                    images[k, :, y0, x0] * (1 - a) * (1 - b)
                    + images[k, :, y0, x1] * a * (1 - b)
                    + images[k, :, y1, x0] * (1 - a) * b
                    + images[k, :, y1, x1] * a * b
                )
                assert torch.allclose(out[k, :, y, x], naive.float(), atol=1e-4)
