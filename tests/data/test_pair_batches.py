"""Composed batches: against the greedy rule in plain heaps, and against counting."""

import heapq

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data import pair_batches
from pipeline.data.batches import batch_count
from pipeline.data.pair_batches import PairBatches
from pipeline.data.pairs import PairList, draw_pairs

EPOCHS = 3


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def epoch_of(pairs, images, size, seed=1):
    groups = PairBatches(pairs, images, size, seeded(seed)).epoch()
    return [batch for group in groups for batch in group]


def plain(batches):
    """Batches as lists of images, left, right and same."""
    return [[of.tolist() for of in (b.images, b.left, b.right, b.same)] for b in batches]


def composed_plainly(pairs, images, size, order):
    """The images of each batch by the rule, with a heap of (-pairs, rank, image) for each kind."""
    near = [[] for _ in range(images)]
    for left, right, same in zip(
        pairs.left.tolist(), pairs.right.tolist(), pairs.same.tolist(), strict=True
    ):
        near[left].append((right, same))
        near[right].append((left, same))
    rank = {image: place for place, image in enumerate(order)}
    positive = sum(pairs.same.tolist()) / len(pairs.same)
    placed = set()
    for cut in np.array_split(order, batch_count(images, size)):
        links, heaps, count, batch = ({}, {}), ([], []), [0, 0], []
        while len(batch) < len(cut):
            wanted = int(count[1] <= positive * sum(count))
            image = most_linked(heaps[wanted], links[wanted], placed)
            if image is None:
                image = most_linked(heaps[1 - wanted], links[1 - wanted], placed)
            if image is None:
                image = next(start for start in order if start not in placed)
            placed.add(image)
            batch.append(image)
            for kind in (0, 1):
                count[kind] += links[kind].get(image, 0)
            for other, kind in near[image]:
                if other not in placed:
                    links[kind][other] = links[kind].get(other, 0) + 1
                    heapq.heappush(heaps[kind], (-links[kind][other], rank[other], other))
        yield batch


def most_linked(heap, links, placed):
    while heap:
        count, _, image = heapq.heappop(heap)
        if image not in placed and links[image] == -count:
            return image
    return None


def expected(pairs, images, size, generator):
    """An epoch by the rule; pairs in the list's order."""
    order = torch.randperm(images, generator=generator).tolist()
    one = batch_count(images, size) == 1
    for batch in [order] if one else composed_plainly(pairs, images, size, order):
        place = {image: at for at, image in enumerate(batch)}
        inside = [
            (place[left], place[right], bool(same))
            for left, right, same in zip(
                pairs.left.tolist(), pairs.right.tolist(), pairs.same.tolist(), strict=True
            )
            if left in place and right in place
        ]
        if inside:
            yield [batch, *map(list, zip(*inside, strict=True))]


@st.composite
def cases(draw):
    """A list of pairs of few images, in any order, perhaps twice, and a batch size."""
    images = draw(st.integers(2, 24))
    image = st.integers(0, images - 1)
    pair = st.tuples(image, image, st.integers(0, 1)).filter(lambda of: of[0] != of[1])
    listed = draw(st.lists(pair, min_size=1, max_size=80))
    left, right, same = np.array(listed, dtype=np.int64).T
    return PairList(left, right, same), images, draw(st.integers(2, 12))


TWICE = PairList(np.array([0, 1, 2, 0]), np.array([1, 0, 3, 4]), np.array([1, 1, 0, 0]))


@pytest.mark.parametrize("side_by_side", [True, False])
@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(0, 3))
@example((TWICE, 6, 2), 0)
def test_batches_are_those_of_the_rule_in_plain_heaps(side_by_side, case, seed):
    pairs, images, size = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_batches, "FIRST_EPOCHS", 2)  # so that three epochs take two rounds
        patch.setattr(pair_batches, "GROUP_IMAGES", 5)
        if not side_by_side:
            patch.setattr(pair_batches, "FEW_IMAGES", 0)
        composed = PairBatches(pairs, images, size, seeded(seed))
        found = [
            plain(batch for group in composed.epoch() for batch in group) for _ in range(EPOCHS)
        ]
    generator = seeded(seed)
    assert found == [list(expected(pairs, images, size, generator)) for _ in range(EPOCHS)]


@pytest.mark.parametrize("classes", [2, 7])
def test_both_ways_compose_the_same_batches_of_drawn_pairs(monkeypatch, classes):
    labels = np.arange(300) % classes
    pairs, _ = draw_pairs(np.arange(300), labels, 10, 0.3, np.random.default_rng(0))
    assert PairBatches(pairs, 300, 32, seeded())._table is not None
    side_by_side = epoch_of(pairs, 300, 32)
    monkeypatch.setattr(pair_batches, "FEW_IMAGES", 0)
    assert plain(epoch_of(pairs, 300, 32)) == plain(side_by_side)
    assert plain(side_by_side) == list(expected(pairs, 300, 32, seeded()))


@pytest.mark.parametrize("limit", ["FEW_IMAGES", "PADDED_ELEMENTS"])
def test_only_few_images_with_few_pairs_have_a_table(monkeypatch, limit):
    pairs, _ = draw_pairs(np.arange(40), np.arange(40) % 2, 4, 0.5, np.random.default_rng(0))
    assert PairBatches(pairs, 40, 8, seeded())._table is not None
    monkeypatch.setattr(pair_batches, limit, 39)
    assert PairBatches(pairs, 40, 8, seeded())._table is None


@pytest.mark.parametrize(("per_class", "size"), [(10, 64), (40, 32), (100, 16)])
def test_pair_batches_hold_the_listed_pairs_among_their_images(per_class, size):
    labels = np.repeat(np.arange(3), per_class)
    pairs, _ = draw_pairs(np.arange(len(labels)), labels, 4, 0.5, np.random.default_rng(0))
    listed = {
        (left, right): bool(same)
        for left, right, same in zip(pairs.left, pairs.right, pairs.same, strict=True)
    }
    batches = epoch_of(pairs, len(labels), size)
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
    (batch,) = epoch_of(pairs, 50, 64)
    assert len(batch.left) == len(pairs.left) == 400


@pytest.mark.parametrize("classes", [2, 10])
def test_composed_batches_hold_many_pairs_of_both_kinds(classes):
    labels = np.repeat(np.arange(classes), 1000 // classes)
    pairs, _ = draw_pairs(np.arange(1000), labels, 10, 0.5, np.random.default_rng(0))
    batches = epoch_of(pairs, 1000, 50, seed=0)
    found = sum(len(batch.left) for batch in batches)
    assert found > 1000  # two towers would pass two images a pair; random batches hold 500 pairs
    assert 0.45 < sum(int(batch.same.sum()) for batch in batches) / found < 0.55


def test_many_images_come_in_groups(monkeypatch):
    monkeypatch.setattr(pair_batches, "FEW_IMAGES", 0)
    monkeypatch.setattr(pair_batches, "GROUP_IMAGES", 64)
    pairs, _ = draw_pairs(np.arange(200), np.arange(200) % 2, 6, 0.5, np.random.default_rng(0))
    groups = list(PairBatches(pairs, 200, 32, seeded()).epoch())
    assert [sum(len(batch.images) for batch in group) for group in groups] == [87, 85, 28]
