"""Disjoint splits, copies and episodes on small tables, against enumeration."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data import identities, splits
from pipeline.errors import InputError
from pipeline.params import Splits

NO_PAIRS = pd.DataFrame({"left": [], "right": [], "same": []}, dtype=np.int64)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def table(sizes, given="", groups=None):
    """Images of classes of the given sizes; ``groups`` names the group of each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return pd.DataFrame(
        {
            "row": np.arange(len(labels)),
            "image": [f"{of}/{k}.png" for k, of in enumerate(labels)],
            "label": labels,
            "class": [f"c{of}" for of in labels],
            "split": given,
            "group": [groups[of] if groups else "" for of in labels],
        }
    )


def classes(images, split, name):
    return set(images.loc[split == name, "label"])


def whole(images, split):
    """Whether each class is in one split."""
    return (images.assign(split=split).groupby("label")["split"].nunique() == 1).all()


def flooded(left, right, count):
    """The nodes that each node reaches, one edge after the other."""
    reached = [{node} for node in range(count)]
    for a, b in list(zip(left, right, strict=True)) * count:
        reached[a] |= reached[b]
        reached[b] |= reached[a]
    return reached


edges = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=12)
    )
)


@quick
@given(edges)
def test_connected_components_are_what_a_flood_reaches(graph):
    count, pairs = graph
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    part = identities.connected(left, right, count)
    assert sorted(set(part.tolist())) == list(range(part.max() + 1))
    for node, reached in enumerate(flooded(left.tolist(), right.tolist(), count)):
        assert set(np.flatnonzero(part == part[node]).tolist()) == reached


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("count", [6, 10, 23])
def test_shares_of_whole_classes_are_drawn(count, seed):
    images = table([3, 1, 2, 2, 7, 1, 1, 4] * 3)
    images = images[images["label"] < count]
    split = identities.assign(images, NO_PAIRS, Splits(val=0.2, test=0.3, seed=seed), None)
    order = splits.generator("split", seed).permutation(count).tolist()
    tests, vals = max(2, round(0.3 * count)), max(2, round(0.2 * count))
    assert classes(images, split, "test") == set(order[:tests])
    assert classes(images, split, "val") == set(order[tests : tests + vals])
    assert whole(images, split)


def test_validation_alone_is_cut_where_the_layout_brings_a_test_set():
    images = table([2] * 14, ["train"] * 20 + ["test"] * 8)
    split = identities.assign(images, NO_PAIRS, Splits(val=0.2, test=0.9), None)
    assert ((split == "test") == (images["split"] == "test")).all()
    assert len(classes(images, split, "val")) == 2 and len(classes(images, split, "train")) == 8
    assert whole(images, split)


def test_a_layout_with_all_three_is_left_alone():
    images = table([2] * 6, ["train"] * 4 + ["val"] * 4 + ["test"] * 4)
    assert (identities.assign(images, NO_PAIRS, Splits(), None) == images["split"]).all()


def test_too_few_classes():
    with pytest.raises(InputError, match=r"splits\.test: 5 training classes are too few to cut"):
        identities.assign(table([4] * 5), NO_PAIRS, Splits(), None)
    with pytest.raises(InputError, match="the shares take 9"):
        identities.assign(table([4] * 10), NO_PAIRS, Splits(val=0.4, test=0.5), None)
    with pytest.raises(InputError, match="their sum must be below 1"):
        identities.assign(table([4] * 10), NO_PAIRS, Splits(val=0.5, test=0.5), None)


def test_whole_groups_are_drawn():
    groups = [f"g{of % 10}" for of in range(40)]
    images = table([2] * 40, groups=groups)
    drawn = set()
    for seed in range(5):
        asked = Splits(val=0.2, test=0.3, seed=seed, whole="groups")
        split = identities.assign(images, NO_PAIRS, asked, None)
        by_group = images.assign(split=split).groupby("group")["split"]
        assert (by_group.nunique() == 1).all()
        assert Counter(by_group.first()) == {"train": 5, "val": 2, "test": 3}
        drawn.add(tuple(split))
    assert len(drawn) == 5


def test_small_shares_of_groups_are_a_group_all_the_same():
    images = table([2] * 9, groups=[f"g{of // 3}" for of in range(9)])
    split = identities.assign(images, NO_PAIRS, Splits(val=0.01, test=0.01, whole="groups"), None)
    assert Counter(images.assign(split=split).groupby("group")["split"].first()) == {
        "train": 1, "val": 1, "test": 1
    }  # fmt: skip


def test_a_class_in_two_groups_ties_them_and_one_without_a_group_stands_alone():
    images = table([2] * 6, groups=["a", "a", "b", "c", "", ""])
    images.loc[0, "group"] = "b"  # class 0 is in a and b
    for seed in range(8):
        asked = Splits(val=0.25, test=0.25, seed=seed, whole="groups")
        split = identities.assign(images, NO_PAIRS, asked, None)
        assert whole(images, split)
        of = images.assign(split=split).groupby("label")["split"].first()
        assert of[0] == of[1] == of[2]
        assert Counter(of[2:]) == {"train": 2, "val": 1, "test": 1}  # units a+b, c, 4 and 5


def test_groups_asked_for_but_not_there():
    with pytest.raises(InputError, match=r"whole: groups are asked for, but the training images"):
        identities.assign(table([2] * 9), NO_PAIRS, Splits(whole="groups"), None)
    images = table([2] * 9, groups=["a"] * 5 + ["b"] * 4)
    with pytest.raises(InputError, match="2 training groups are too few"):
        identities.assign(images, NO_PAIRS, Splits(whole="groups"), None)


def listed(images, pairs):
    """Listed pairs of rows, the answers by the labels."""
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    label = images["label"].to_numpy()
    return pd.DataFrame({"left": left, "right": right, "same": (label[left] == label[right]) * 1})


def paired(images, split, pairs):
    """Pairs of both kinds in each split, and those across, by a loop."""
    found = Counter()
    for left, right, same in pairs.itertuples(index=False):
        across = split[left] != split[right]
        found["across" if across else (split[left], same)] += 1
    return found


def trained(sizes):
    """A set to train on, with a test class beside it."""
    return table([*sizes, 2], ["train"] * sum(sizes) + ["test"] * 2)


@quick
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.5))
def test_components_of_listed_pairs_stay_whole_and_come_near_the_share(seed, share):
    images = trained([2] * 120)
    rng = np.random.default_rng(seed)
    same = [(2 * of, 2 * of + 1) for of in range(0, 120, 2)]
    different = [(2 * of, 2 * (of + 1)) for of in range(0, 118, 2) if rng.random() < 0.7]
    pairs = listed(images, same + different)
    split = identities.assign(images, pairs, Splits(val=share, seed=seed), None)
    found = paired(images, split, pairs)
    assert found["across"] == 0 and whole(images, split)
    val = found["val", 0] + found["val", 1]
    assert abs(val - share * len(pairs)) <= 1  # components of one or two pairs
    assert all(found[name, kind] for name in ("train", "val") for kind in (0, 1))


def divided_naively(sizes, share, order):
    """Components in a given order: those that fit, then the smallest left if that is nearer."""
    wanted, taken = share * sum(sizes), []
    for component in order:
        if sum(sizes[c] for c in [*taken, component]) <= wanted:
            taken.append(component)
    rest = [c for c in order if c not in taken]
    total = sum(sizes[c] for c in taken)
    if rest:
        smallest = min(rest, key=lambda c: sizes[c])
        if not taken or abs(total + sizes[smallest] - wanted) < abs(total - wanted):
            taken.append(smallest)
    return set(taken)


@quick
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=12),
    st.integers(1, 10).map(lambda sixteenths: sixteenths / 16),  # so that some fit exactly
    st.integers(0, 9),
)
@example([6, 2, 4, 4], 6 / 16, 1)  # the first, of 6, fits to the pair
def test_components_are_taken_in_random_order_while_they_fit(sizes, share, seed):
    # component c has its pairs, half of them of one class, between classes 2c and 2c + 1
    part = np.repeat(np.arange(len(sizes)), 2)
    of = np.repeat(np.arange(len(sizes)), sizes)
    same = np.arange(len(of)) % 2 == 0
    left, right = 2 * of, 2 * of + ~same
    rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
    val = identities._whole_components(left, right, same, part, share, rng)
    taken = divided_naively(sizes, share, again.permutation(len(sizes)).tolist())
    in_val = np.array([c in taken for c in of])
    near = abs(in_val.sum() - share * len(of)) <= 0.05 * len(of) + 1e-9
    kinds = {(bool(a), bool(b)) for a, b in zip(in_val, same, strict=True)}
    assert (val is not None) == (near and len(kinds) == 4)
    if val is not None:
        assert set(part[val].tolist()) == taken


@quick
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=4, max_size=40),
    st.floats(0.05, 0.9),
    st.integers(0, 9),
)
def test_classes_are_cut_where_the_share_comes_nearest(pairs, share, seed):
    left, right = np.array(pairs, np.int64).T
    same = left == right
    part = np.zeros(8, np.int64)
    val = identities._cut_classes(left, right, same, part, share, np.random.default_rng(seed))
    order = np.random.default_rng(seed).permutation(8).tolist()
    best = None
    for k in range(9):
        first = set(order[:k])
        ins = [(a == b) for a, b in pairs if a in first and b in first]
        outs = [(a == b) for a, b in pairs if a not in first and b not in first]
        if set(ins) == set(outs) == {True, False}:
            off = abs(len(ins) / (len(ins) + len(outs)) - share)
            if best is None or off < best[0] - 1e-12:
                best = (off, first)
    if best is None:
        assert val is None
    else:
        assert set(np.flatnonzero(val).tolist()) == best[1]


def test_one_large_component_is_cut_by_classes():
    images = trained([3] * 30)
    rng = np.random.default_rng(0)
    same = [(3 * of + a, 3 * of + a + 1) for of in range(30) for a in (0, 1)]
    different = {tuple(sorted(rng.choice(90, 2, replace=False))) for _ in range(200)}
    pairs = listed(images, same + sorted(different))
    split = identities.assign(images, pairs, Splits(val=0.2), None)
    found = paired(images, split, pairs)
    assert whole(images, split) and found["across"] > 0
    kept = len(pairs) - found["across"]
    assert abs((found["val", 0] + found["val", 1]) / kept - 0.2) < 0.05
    assert all(found[name, kind] for name in ("train", "val") for kind in (0, 1))


def test_a_class_without_a_listed_pair_trains():
    images = trained([2] * 30)
    pairs = listed(images, [(2 * of, 2 * of + 1) for of in range(20)] + [
        (4 * of, 4 * of + 2) for of in range(10)
    ])  # fmt: skip
    split = identities.assign(images, pairs, Splits(val=0.5), None)
    assert (split[40:60] == "train").all() and (split[:40] == "val").sum() == 20


def test_listed_pairs_that_cannot_be_divided():
    images = trained([2] * 3)
    with pytest.raises(InputError, match="cannot be divided by class"):
        identities.assign(images, listed(images, [(0, 1), (0, 2), (2, 4)]), Splits(), None)
    with pytest.raises(InputError, match="no test images"):
        identities.assign(table([2] * 3), listed(images, [(0, 1)]), Splits(), None)


@pytest.mark.parametrize("given", ["", "brought"])
def test_val_per_class_leaves_images_out_and_never_trains_on_them(given):
    images = table([5, 1, 4, 7, 3, 6, 2, 2, 5, 5])
    if given:
        images["split"] = np.select(
            [images["label"] < 4, images["label"] < 6], ["train", "val"], "test"
        )
    whole_share = identities.assign(images, NO_PAIRS, Splits(), None)
    capped = identities.assign(images, NO_PAIRS, Splits(), 2)
    for label, of in images.groupby("label"):
        before, after = whole_share[of.index], capped[of.index]
        if before.iloc[0] == "val":
            assert Counter(after) == Counter({"val": min(2, len(of)), "": max(0, len(of) - 2)})
        else:
            assert (after == before).all(), label


def copies(*groups):
    return splits.Duplicates([list(group) for group in groups])


NONE = np.array([], np.int64)


def test_copies_in_two_splits():
    images = table([4, 4, 4], ["train"] * 4 + ["val"] * 4 + ["test"] * 4)
    split = images["split"]
    found = copies((0, 4), (1, 5, 9))
    with pytest.raises(
        InputError,
        match=r"in two splits: 1/4\.png \(c1, val\), 0/0\.png \(c0, train\), and 1 more such group",
    ):
        identities.without_copies(images, split, found, "error", NONE)
    kept = identities.without_copies(images, split, found, "drop", NONE)
    assert np.flatnonzero(kept == "").tolist() == [0, 1, 5]
    assert (kept[kept != ""] == split[kept != ""]).all()


def test_copies_under_two_labels_of_one_split_all_leave():
    images = table([4, 4, 4], "train")
    with pytest.raises(InputError, match=r"under two labels: 0/1\.png \(c0, train\), 2/8\.png"):
        identities.without_copies(images, images["split"], copies((1, 8)), "error", NONE)
    kept = identities.without_copies(images, images["split"], copies((1, 8)), "drop", NONE)
    assert np.flatnonzero(kept == "").tolist() == [1, 8]


def test_copies_within_a_class_or_out_of_the_splits_are_no_leak():
    images = table([4, 4], ["train", "train", "", "train"] * 2)
    found = copies((0, 1), (2, 4))
    kept = identities.without_copies(images, images["split"], found, "error", NONE)
    assert (kept == images["split"]).all()


def test_images_of_runs_may_be_copies_of_test_images_but_of_no_others():
    images = table([2, 2, 2], ["train"] * 2 + ["test"] * 4)
    split, runs = images["split"], np.array([4, 5])
    kept = identities.without_copies(images, split, copies((2, 4)), "error", runs)
    assert (kept == split).all()
    with pytest.raises(InputError, match="under two labels"):
        identities.without_copies(images, split, copies((2, 4)), "error", np.array([5]))
    with pytest.raises(InputError, match="in two splits"):
        identities.without_copies(images, split, copies((0, 4)), "error", runs)
    kept = identities.without_copies(images, split, copies((0, 2, 4)), "drop", runs)
    assert np.flatnonzero(kept == "").tolist() == [0]


def test_a_class_in_two_splits_is_named():
    images = table([2, 3], ["train", "train", "val", "test", ""])
    with pytest.raises(InputError, match=r"'c1' stands in val \(1/2\.png\) and in test \(1/3"):
        identities.check_disjoint(images, images["split"])
    images.loc[3, "split"] = "val"
    identities.check_disjoint(images, images["split"])


def test_the_part_of_a_pair():
    split = pd.Series(["train", "train", "val", "", ""])
    pairs = pd.DataFrame({"left": [0, 0, 0, 3, 2], "right": [1, 2, 3, 4, 2]}, index=range(7, 12))
    part = identities.part_of(pairs, split)
    assert part.tolist() == ["train", "", "", "", "val"] and (part.index == pairs.index).all()


@quick
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 9))
def test_shots_are_images_a_class_at_most(sizes, shots, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.arange(100, 100 + len(labels))
    if shots > max(sizes):
        with pytest.raises(InputError, match=f"shots: {shots} images .* more than {max(sizes)} to"):
            identities.count_at(labels, shots)
        return
    _, of = splits.training_order(rows, labels, seed)
    taken = of[: identities.count_at(labels, shots)]
    assert Counter(taken.tolist()) == {label: min(n, shots) for label, n in enumerate(sizes)}
    assert identities.count_at(labels, "all") == len(labels)


def test_pools_hold_the_classes_of_a_group_with_enough_images():
    rows, labels = np.arange(20, 32), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 4])
    groups = np.array([0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    pools = identities.episode_pools(rows, labels, groups, 1)
    assert [[rows.tolist() for rows in pool] for pool in pools] == [
        [[20, 21], [23, 24, 25]], [[26, 27, 28], [30, 31]]
    ]  # fmt: skip
    assert [len(pool) for pool in identities.episode_pools(rows, labels, groups, 2)] == [1, 1]


@quick
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_an_episode_compares_other_images_of_other_classes_of_one_group(ways, shots, count, seed):
    sizes = [5, 4, 6, 5, 2, 4, 4, 7, 5, 4]
    labels = np.repeat(np.arange(10), sizes)
    rows, groups = np.arange(len(labels)) + 50, labels // 5
    pools = identities.episode_pools(rows, labels, groups, shots)
    chosen = identities.draw_episodes(pools, ways, shots, count, np.random.default_rng(seed))
    assert chosen.shape == (count, ways, shots + 1)
    for episode in chosen - 50:
        assert len(set(episode.ravel().tolist())) == episode.size
        assert [len(set(labels[of].tolist())) for of in episode] == [1] * ways
        assert len(set(labels[episode[:, 0]].tolist())) == ways
        assert len(set(groups[episode.ravel()].tolist())) == 1
    more = identities.draw_episodes(pools, ways, shots, count + 2, np.random.default_rng(seed))
    assert (more[:count] == chosen).all()


def test_groups_with_enough_classes_are_drawn_uniformly_and_so_are_their_classes():
    labels = np.repeat(np.arange(12), 2)
    groups = np.where(labels < 2, 0, np.where(labels < 4, 1, np.where(labels < 11, 2, 3)))
    pools = identities.episode_pools(np.arange(24), labels, groups, 1)
    chosen = identities.draw_episodes(pools, 2, 1, 3000, np.random.default_rng(0))
    drawn = Counter(groups[chosen[:, 0, 0]].tolist())
    assert set(drawn) == {0, 1, 2}  # group 3 has one class
    assert all(abs(n - 1000) < 130 for n in drawn.values())  # 5 sigma
    of_class = Counter(labels[chosen[:, :, 0]].ravel().tolist())
    assert all(abs(of_class[label] - 2000 / 7) < 85 for label in range(4, 11))
    queries = Counter(chosen[:, :, 1].ravel().tolist())
    assert abs(queries[0] - queries[1]) < 160  # either image of a class as the query


def test_too_few_classes_for_an_episode():
    pools = identities.episode_pools(np.arange(4), np.array([0, 0, 1, 1]), np.zeros(4), 1)
    with pytest.raises(ValueError, match="no group has 3 classes with 2 images"):
        identities.draw_episodes(pools, 3, 1, 1, np.random.default_rng(0))


@quick
@given(st.integers(1, 3), st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_trials_of_episodes_are_those_of_four_loops(count, ways, shots, shuffled):
    rng = np.random.default_rng(0)
    chosen = rng.permutation(count * ways * (shots + 1)).reshape(count, ways, shots + 1)
    answers = rng.permuted(np.tile(np.arange(ways), (count, 1)), axis=1) if shuffled else None
    table = identities.episode_trials("some", chosen, answers)
    expected = []
    for number in range(count):
        for query in range(ways):
            answer = answers[number, query] if shuffled else query
            for way in range(ways):
                for shot in range(shots):
                    left, right = chosen[number, query, shots], chosen[number, way, shot]
                    same = int(way == answer)
                    expected.append(("some", f"e{number + 1:04}", left, right, same))
    assert list(table.itertuples(index=False, name=None)) == expected


def test_listed_names_stay_text(tmp_path):
    path = tmp_path / "listed.csv"
    path.write_text("split,set,episode,left,right,same\ntest,pairs,,1,2,0\ntest,NA,007,3,4,1\n")
    table = identities.read_listed(path)
    assert table["set"].tolist() == ["pairs", "NA"] and table["episode"].tolist() == ["", "007"]
    path.write_text("split,set,episode,left,right,same\n")
    assert len(identities.read_listed(path)) == 0
