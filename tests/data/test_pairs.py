"""Pair lists against enumeration, and their promises on small, uneven and large sets."""

import time
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import pairs as module
from pipeline.data.pairs import PairList, _triangle, draw_pairs, write_pairs


def draw(sizes, per_image=4, positive_fraction=0.5, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.random.default_rng(1).permutation(1000)[: len(labels)]
    pairs, missing = draw_pairs(
        rows, labels, per_image, positive_fraction, np.random.default_rng(seed)
    )
    return rows, labels, pairs, missing


def test_ranks_enumerate_all_pairs():
    i, j = _triangle(np.arange(45))
    assert sorted(zip(j.tolist(), i.tolist(), strict=True)) == list(combinations(range(10), 2))


def test_a_rank_in_the_billions_comes_back():
    ranks = np.array([10**6 * (10**6 - 1) // 2 + k for k in (-1, 0, 1)])
    i, j = _triangle(ranks)
    assert (i * (i - 1) // 2 + j == ranks).all() and (j < i).all() and (j >= 0).all()


@pytest.mark.parametrize("sizes", [[10] * 5, [2, 3], [2, 40, 7], [5, 200]])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_pairs_are_distinct_true_and_use_every_image(sizes, fraction):
    rows, labels, pairs, _ = draw(sizes, 3, fraction)
    label = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    listed = list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    assert len({frozenset(pair) for pair in listed}) == len(listed)
    assert all(left != right for left, right in listed)
    assert [int(label[a] == label[b]) for a, b in listed] == pairs.same.tolist()
    assert {row for pair in listed for row in pair} == set(rows.tolist())


@pytest.mark.parametrize("sizes", [[10] * 5, [20] * 2, [5] * 10])
def test_few_pairs_an_image_are_distinct_and_use_every_image_too(sizes):
    for seed in range(300):
        rows, _, pairs, _ = draw(sizes, 1, 0.1, seed)
        listed = set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
        assert len(listed) == len(pairs.left), seed
        assert {row for pair in listed for row in pair} == set(rows.tolist()), seed


def test_counts_are_those_asked_for():
    _, _, pairs, missing = draw([20] * 5, per_image=6, positive_fraction=0.25)
    assert len(pairs.same) == 600 and pairs.same.sum() == 150
    assert missing == {"same_missing": 0, "different_missing": 0}


def test_too_few_pairs_takes_all_there_are_and_says_how_many_lack():
    _, _, pairs, missing = draw([3, 3], per_image=4, positive_fraction=0.5)
    assert pairs.same.sum() == 6 and len(pairs.same) == 15
    assert missing == {"same_missing": 6, "different_missing": 3}


def test_every_pair_is_as_likely_as_any_other():
    counts: dict[tuple[int, int], int] = {}
    for seed in range(2000):
        rows, _, pairs, _ = draw([4, 4], per_image=2, positive_fraction=0.5, seed=seed)
        place = {row: k for k, row in enumerate(rows.tolist())}
        for a, b in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True):
            key = tuple(sorted((place[a], place[b])))
            counts[key] = counts.get(key, 0) + 1
    same = [n for (a, b), n in counts.items() if (a < 4) == (b < 4)]
    different = [n for (a, b), n in counts.items() if (a < 4) != (b < 4)]
    assert len(same) == 12 and len(different) == 16
    # 8 of 12 same-class and 8 of 16 other pairs a draw: 1333 and 1000 of 2000, 5 sigma about 110
    assert all(abs(n - 2000 * 8 / 12) < 110 for n in same)
    assert all(abs(n - 1000) < 115 for n in different)


def test_same_generator_same_pairs_other_generator_others():
    first, again, other = (draw([10] * 3, seed=s)[2] for s in (0, 0, 1))
    assert np.array_equal(first.left, again.left) and np.array_equal(first.right, again.right)
    assert not np.array_equal(first.left, other.left)


def test_a_hundred_thousand_images_need_no_list_of_all_pairs():
    labels = np.repeat(np.arange(10), 10_000)
    pairs, _ = draw_pairs(np.arange(100_000), labels, 2, 0.5, np.random.default_rng(0))
    assert len(pairs.same) == 200_000
    assert len(set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))) == 200_000


def drawn_naively(rows, labels, per_image, fraction, generator):
    """The same pairs from lists of all there are, each kind in the order of their ranks."""
    order = np.argsort(labels, kind="stable").tolist()
    classes = [[n for n in order if labels[n] == label] for label in sorted(set(labels.tolist()))]
    drawn = []
    for mine in classes:
        every = [(mine[j], mine[i]) for i in range(len(mine)) for j in range(i)]
        wanted = round(per_image * len(mine) * fraction)
        drawn += [(*pair, True) for pair in some(every, wanted, generator)]
    every = []
    for k, mine in enumerate(classes):
        later = [n for other in classes[k + 1 :] for n in other]
        every += product(mine, later)
    wanted = round(per_image * len(rows) * (1 - fraction))
    drawn += [(*pair, False) for pair in some(every, wanted, generator)]

    for image in order:  # each in no pair takes the place of one whose images have others
        degree = [sum(image in pair[:2] for pair in drawn) for image in range(len(rows))]
        if degree[image]:
            continue
        for same in (False, True):
            partners = [n for n in order if (labels[n] == labels[image]) == same and n != image]
            spare = [
                k for k, (one, other, kind) in enumerate(drawn)
                if kind == same and degree[one] > 1 and degree[other] > 1
            ]  # fmt: skip
            if partners and spare:
                where = spare[generator.integers(len(spare))]
                drawn[where] = (image, partners[generator.integers(len(partners))], same)
                break
    return sorted((*sorted((rows[one], rows[other])), int(same)) for one, other, same in drawn)


def some(every, wanted, generator):
    if wanted >= len(every):
        return every
    return [every[k] for k in generator.choice(len(every), wanted, replace=False, shuffle=False)]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 3),
    st.sampled_from([0.02, 0.2, 0.5, 0.9]),
    st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_pairs_are_those_of_lists_of_all_there_are(sizes, per_image, fraction, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = rng.permutation(500)[: len(labels)]
    pairs, _ = draw_pairs(rows, labels, per_image, fraction, np.random.default_rng(seed))
    drawn = zip(pairs.left.tolist(), pairs.right.tolist(), pairs.same.tolist(), strict=True)
    expected = drawn_naively(rows, labels, per_image, fraction, np.random.default_rng(seed))
    assert list(drawn) == expected


def test_many_images_that_no_pair_has_take_time_that_grows_with_them_alone():
    def took(count):
        started = time.process_time()
        draw_pairs(np.arange(count), np.arange(count) // 20, 1, 0.5, np.random.default_rng(0))
        return time.process_time() - started

    took(1000)
    small, large = min(took(4_000) for _ in range(3)), took(64_000)
    assert large < 16 * small * 6  # squares would make it 256 times as much


@pytest.mark.parametrize("count", [0, 1, 7, 8, 20])
def test_blocks_of_a_table_are_one_after_the_other(count, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    columns = [np.arange(count) * k for k in (1, 10, 0)]
    write_pairs(tmp_path / "pairs.csv", PairList(*columns))
    lines = (tmp_path / "pairs.csv").read_bytes().decode().split("\n")
    assert lines == ["left,right,same", *(f"{n},{10 * n},0" for n in range(count)), ""]
