"""Measures of latents against slow oracles and cases whose answer is known."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import pdist
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from pipeline.evaluation import latents as measured
from pipeline.evaluation.diagnosis import (
    DISTANCE_AUC,
    DISTANCE_OVERLAP,
    EFFECTIVE_RANK,
    FISHER,
    PROBE_TRAIN,
    PROBE_VAL,
    SEPARABLE,
    SPREAD,
    Histogram,
)
from pipeline.evaluation.latents import (
    Distances,
    Labelled,
    collapse,
    describe,
    distance_auc,
    effective_rank,
    evenly,
    fisher_ratio,
    histograms,
    linear_probe,
    overlap,
    pair_distances,
    principal_components,
    pull_alone,
    separable,
    separable_pairs,
    spread,
)


def clusters(seed=0, each=20, classes=3, dimension=5, apart=1.0):
    """Gaussian classes around centres; labels come by turns."""
    draw = np.random.default_rng(seed)
    labels = np.arange(each * classes) % classes
    centres = draw.normal(size=(classes, dimension)) * apart
    latents = centres[labels] + draw.normal(size=(len(labels), dimension))
    return latents.astype(np.float32), labels


def rotated(latents, seed=1):
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(latents.shape[1],) * 2))
    return latents @ turn


# --- what is chosen


@given(st.lists(st.integers(0, 4), max_size=80), st.integers(0, 100))
def test_items_are_taken_evenly_and_each_label_in_proportion(labels, most):
    labels = np.array(labels, dtype=np.int64)
    chosen = evenly(labels, most)
    assert len(chosen) == min(len(labels), most)
    assert (np.diff(chosen) > 0).all()
    for label in set(labels.tolist()):
        share = len(chosen) * np.mean(labels == label)
        assert abs(np.sum(labels[chosen] == label) - share) < 1 + 1e-9


# --- the linear probe


@pytest.mark.parametrize("dimension", [2, 5, 40])  # fewer and more than images
def test_the_probe_is_softmax_regression_on_standardised_latents(dimension):
    train, labels = clusters(0, each=8, dimension=dimension, apart=0.5)
    val, val_labels = clusters(0, each=60, dimension=dimension, apart=0.5)
    train[:, 0] = 7.1  # a constant column, which is left out
    scaler = StandardScaler().fit(train.astype(np.float64))
    slow = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000)
    slow.fit(scaler.transform(train), labels)
    varied = val.copy()
    varied[:, 0] = 7.1
    wanted = [
        slow.score(scaler.transform(of), found)
        for of, found in ((train, labels), (varied, val_labels))
    ]
    assert list(linear_probe(train, labels, val, val_labels)) == pytest.approx(wanted, abs=1e-12)
    assert 0.3 < wanted[1] < 1  # a probe that can be wrong


def test_the_probe_knows_classes_by_their_labels():
    train, labels = clusters(apart=8.0)
    names = np.array([7, 2, 40])
    assert linear_probe(train, names[labels], train, names[labels]) == (1.0, 1.0)
    half = np.where(labels == 0, 99, names[labels])  # a class that training has not
    assert linear_probe(train, names[labels], train, half) == (1.0, pytest.approx(2 / 3))


def test_a_probe_of_one_class_says_nothing():
    latents, labels = clusters()
    assert linear_probe(latents, labels * 0, latents, labels) == (None, None)


def test_a_probe_of_latents_that_are_the_same_guesses():
    same = np.full((6, 3), 0.1, np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert linear_probe(same, labels, same, labels) == (pytest.approx(4 / 6), pytest.approx(4 / 6))


# --- separability


def parted_by_trying(one, other):
    """In the plane: whether some line through two points, or near to it, parts the sets."""
    points = np.concatenate([one, other])
    for a, b in combinations(range(len(points)), 2):
        normal = np.array([-(points[b] - points[a])[1], (points[b] - points[a])[0]])
        for turn in (-1e-4, 1e-4):
            c, s = math.cos(turn), math.sin(turn)
            tilted = np.array([[c, -s], [s, c]]) @ normal
            for through in (points[a], points[b], (points[a] + points[b]) / 2):
                for side in (1, -1):
                    left, right = ((of - through) @ tilted * side for of in (one, other))
                    for shift in (-1e-7, 0.0, 1e-7):
                        if (left > shift).all() and (right < shift).all():
                            return True
    return False


@pytest.mark.parametrize("seed", range(12))
def test_a_line_parts_two_sets_in_the_plane_where_one_can_be_found_by_trying(seed):
    draw = np.random.default_rng(seed)
    one, other = draw.normal(size=(5, 2)), draw.normal(size=(6, 2)) + np.array([seed / 4, 0])
    assert separable(one, other) is parted_by_trying(one, other)


def test_trying_finds_both_answers():
    answers = set()
    for seed in range(12):
        draw = np.random.default_rng(seed)
        one, other = draw.normal(size=(5, 2)), draw.normal(size=(6, 2)) + np.array([seed / 4, 0])
        answers.add(parted_by_trying(one, other))
    assert answers == {True, False}


@pytest.mark.parametrize("apart", [0.0, 0.4, 1.5, 4.0])
def test_a_perceptron_that_learns_without_error_is_a_witness(apart):
    latents, labels = clusters(3, each=30, classes=2, dimension=4, apart=apart)
    found = separable(latents[labels == 0], latents[labels == 1])
    witness = Perceptron(max_iter=20000, tol=None, random_state=0).fit(latents, labels)
    assert found is bool(witness.score(latents, labels) == 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_separability_is_the_same_after_any_invertible_linear_map(seed):
    draw = np.random.default_rng(seed)
    one, other = draw.normal(size=(8, 3)), draw.normal(size=(8, 3)) + draw.uniform(0, 2)
    change = draw.normal(size=(3, 3)) + 3 * np.eye(3)
    assert separable(one, other) is separable(one @ change + 5, other @ change + 5)


def test_sets_that_touch_or_are_the_same_are_not_parted():
    line = np.array([[0.0], [1.0], [2.0], [3.0]])
    assert separable(line[:2], line[2:]) is True
    assert separable(line[:3], line[2:]) is False  # both have 2.0
    assert separable(line[[0, 2]], line[[1, 3]]) is False
    assert separable(np.ones((3, 4)), np.ones((3, 4))) is False


def test_as_many_latents_as_can_be_parted_in_every_way_tell_nothing():
    draw = np.random.default_rng(0)
    points = draw.normal(size=(8, 6))
    assert separable(points[:3], points[3:7]) is None  # seven in six dimensions
    assert separable(points[:4], points[4:]) is not None
    flat = np.column_stack([points[:, :2], points[:, :2] @ draw.normal(size=(2, 4))])
    assert separable(flat[:3], flat[3:7]) is not None  # they span two dimensions only


def test_the_share_of_class_pairs():
    corners = {0: 0.0, 1: 10.0, 2: 20.0, 3: 20.0}  # the last two lie on each other
    draw = np.random.default_rng(0)
    labels = np.repeat(list(corners), 9)
    latents = np.array([corners[of] for of in labels])[:, None] + draw.normal(size=(36, 2))
    assert separable_pairs(latents, labels) == pytest.approx(5 / 6)
    assert separable_pairs(latents[labels < 2], labels[labels < 2]) == 1
    assert separable_pairs(latents[labels > 1], labels[labels > 1]) == 0


def test_pairs_that_tell_nothing_do_not_count():
    draw = np.random.default_rng(0)
    labels = np.array([0] * 2 + [1] * 2 + [2] * 9 + [3] * 9)
    latents = draw.normal(size=(22, 4))  # four images in four dimensions can always be parted
    pairs = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    said = [separable(latents[labels == a], latents[labels == b]) for a, b in pairs]
    assert None not in said
    assert separable_pairs(latents, labels) == pytest.approx(np.mean(said))
    assert separable_pairs(latents[labels < 2], labels[labels < 2]) is None
    assert separable_pairs(latents[labels == 2], labels[labels == 2]) is None


def test_of_many_classes_a_fixed_number_of_pairs_is_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(measured, "separable", lambda one, other: tried.append(len(one)) or True)
    labels = np.repeat(np.arange(40), 2)
    assert separable_pairs(np.zeros((80, 1)), labels) == 1
    assert len(tried) == measured.CLASS_PAIRS
    separable_pairs(np.zeros((900, 1)), np.arange(900) % 2)
    assert tried[-1] == measured.PER_CLASS


# --- Fisher's ratio


def slow_fisher(latents, labels):
    mean, between, within = latents.mean(axis=0), 0.0, 0.0
    for of in set(labels.tolist()):
        rows = [row for row, label in zip(latents, labels, strict=True) if label == of]
        centre = sum(rows) / len(rows)
        between += len(rows) * sum((centre - mean) ** 2)
        within += sum(sum((row - centre) ** 2) for row in rows)
    return between / within


@pytest.mark.parametrize("seed", range(4))
def test_fishers_ratio_is_the_sum_over_images(seed):
    latents, labels = clusters(seed, each=7 + seed)
    latents = latents.astype(np.float64)
    assert fisher_ratio(latents, labels) == pytest.approx(slow_fisher(latents, labels), rel=1e-9)
    changed = rotated(latents) * 3 - 2
    assert fisher_ratio(changed, labels) == pytest.approx(fisher_ratio(latents, labels), rel=1e-9)


def test_fishers_ratio_by_hand():
    assert fisher_ratio(np.array([[0.0], [2.0], [9.0], [11.0]]), np.array([0, 0, 1, 1])) == 81 / 4


def test_fishers_ratio_needs_two_classes_and_a_scatter():
    latents, labels = clusters()
    assert fisher_ratio(latents, labels * 0) is None
    assert fisher_ratio(latents, np.arange(len(latents))) is None  # one image a class
    assert fisher_ratio(np.full((6, 2), 0.1, np.float32), np.arange(6) % 2) is None


# --- distances


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_distances_are_those_of_all_pairs_over_their_root_mean_square(offset):
    latents, labels = clusters(each=6)
    latents = latents.astype(np.float64) + offset
    pairs = list(combinations(range(len(latents)), 2))
    apart = np.array([math.dist(latents[a], latents[b]) for a, b in pairs])
    apart /= math.sqrt(np.mean(apart**2))
    same = np.array([labels[a] == labels[b] for a, b in pairs])
    found = pair_distances(latents, labels)
    assert found.same == pytest.approx(apart[same], rel=1e-9)
    assert found.different == pytest.approx(apart[~same], rel=1e-9)


def test_of_many_pairs_a_part_is_taken_that_is_like_the_whole(monkeypatch):
    latents, labels = clusters(each=60)
    whole = pair_distances(latents, labels)
    monkeypatch.setattr(measured, "PAIRS_OF_A_KIND", 1000)
    part = pair_distances(latents, labels)
    for few, all_of in zip(part, whole, strict=True):
        assert len(few) == 1000 < len(all_of) and set(few) <= set(all_of)
        assert few.mean() == pytest.approx(all_of.mean(), rel=0.03)


def test_histograms_share_their_edges_and_count_every_pair():
    found = pair_distances(*clusters())
    same, different = histograms(found)
    assert same.edges == different.edges and len(same.edges) == 31
    assert same.edges[0] == 0 and same.edges[-1] == max(map(max, found))
    for counted, of in ((same, found.same), (different, found.different)):
        steps = np.minimum((of / same.edges[-1] * 30).astype(int), 29)
        assert counted.counts == np.bincount(steps, minlength=30).tolist()


def test_overlap_of_histograms():
    edges = [0.0, 1.0, 2.0, 3.0]
    counts = [[4, 4, 0], [0, 2, 2], [0, 0, 5], [1, 1, 0], [0, 0, 0]]
    a, b, c, like_a, empty = (Histogram(edges, of) for of in counts)
    assert overlap(a, b) == 0.5 and overlap(a, c) == 0 and overlap(a, like_a) == 1
    assert overlap(a, empty) is None and overlap(empty, a) is None


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
)
def test_the_auc_counts_pairs_of_pairs_with_ties_as_halves(same, different):
    counted = np.mean([(b > a) + (a == b) / 2 for a in same for b in different])
    found = distance_auc(Distances(np.array(same, float), np.array(different, float)))
    assert found == pytest.approx(counted, abs=1e-12)
    truth = [0] * len(same) + [1] * len(different)
    assert found == pytest.approx(roc_auc_score(truth, same + different), abs=1e-12)


def test_there_is_no_auc_without_pairs_of_both_kinds():
    latents, labels = clusters()
    for of in (labels * 0, np.arange(len(labels))):
        distances = pair_distances(latents, of)
        assert distance_auc(distances) is None and overlap(*histograms(distances)) is None


def test_distances_of_latents_that_are_the_same_are_zero():
    found = pair_distances(np.full((6, 3), 0.1, np.float32), np.arange(6) % 2)
    assert not found.same.any() and not found.different.any()
    assert distance_auc(found) == 0.5 and overlap(*histograms(found)) == 1


# --- effective rank and spread


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_effective_rank_of_equal_singular_values_is_their_number(rank):
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(12, rank + 1)))
    basis[:, 0] = 1  # the others become orthogonal to the mean
    basis, _ = np.linalg.qr(basis)
    latents = 3 + rotated(np.column_stack([basis[:, 1:], np.zeros((12, 6))]))
    assert effective_rank(latents) == pytest.approx(rank, rel=1e-6)


@pytest.mark.parametrize("shape", [(20, 5), (5, 20), (30, 1)])
def test_the_effective_rank_is_the_exponent_of_an_entropy(shape):
    latents = np.random.default_rng(0).normal(size=shape)
    values = np.sqrt(np.linalg.eigvalsh(np.cov(latents.T, bias=True).reshape(shape[1], -1)).clip(0))
    shares = [value / values.sum() for value in values if value > 1e-7]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert effective_rank(latents) == pytest.approx(expected, rel=1e-5)
    assert effective_rank(latents) == pytest.approx(effective_rank(7 * latents + 1), rel=1e-6)


def test_the_effective_rank_of_what_does_not_differ_is_zero():
    assert effective_rank(np.full((7, 3), 0.1, np.float32)) == 0
    assert effective_rank(np.zeros((4, 2))) == 0
    assert effective_rank(np.ones((1, 5))) == 0


@given(arrays(np.float32, (6, 3), elements=st.floats(-100, 100, width=32)))
def test_the_effective_rank_lies_between_one_and_the_dimensions(latents):
    found = effective_rank(latents)
    assert found == 0 or 1 - 1e-9 <= found <= 3 + 1e-9


def test_spread_is_mean_distance_over_mean_length():
    latents, _ = clusters(each=7)
    latents = latents.astype(np.float64)
    expected = pdist(latents).mean() / np.mean([math.hypot(*row) for row in latents])
    assert spread(latents) == pytest.approx(expected, rel=1e-9)
    assert spread(5 * latents) == pytest.approx(expected, rel=1e-9)
    assert spread(np.zeros((3, 2))) == 0 and spread(np.ones((1, 2))) is None


# --- collapse


def test_latents_that_differ_are_not_collapsed():
    latents, labels = clusters()
    assert collapse(latents, labels) == ""
    assert collapse(latents[:, :1], labels) == ""  # in one dimension there is one direction


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda of: of * 0, "every unit gives zero whatever the image: likely rectifiers"),
        (lambda of: of * 1e-8 + 1, "every unit gives the same whatever the image: likely rectif"),
        (lambda of: of * 1e-5 + 1, " % of their length, too little for some heads: likely weights"),
        (lambda of: of[:, :1] @ np.ones((1, 5)), "in one direction alone: likely too high"),
        (lambda of: np.where(of > 2, np.inf, of), "latents are not finite: likely a learning rate"),
        (lambda of: np.where(of > 2, np.nan, of), "latents are not finite"),
    ],
)
def test_each_kind_of_collapse_is_told_with_its_likely_cause(change, words):
    latents, labels = clusters()
    assert words in collapse(change(latents), labels)
    said = collapse(change(latents), labels, known="the moon")
    assert said.endswith(": likely the moon")


def test_two_classes_need_but_one_direction():
    latents, labels = clusters(classes=2)
    line = latents[:, :1] @ np.ones((1, 5))
    assert collapse(line, labels) == ""
    assert collapse(line * 1e-5 + 1, labels) != ""


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"name": "contrastive", "weight_different": 0.0, "margin_different": 1.0}, "weight_diff"),
        ({"name": "contrastive", "weight_different": 1.0, "margin_different": 0.0}, "margin_diff"),
    ],
)
def test_a_loss_that_drives_nothing_apart_is_named(loss, words):
    assert pull_alone(loss).startswith(words)
    assert pull_alone(loss | {"weight_different": 1.0, "margin_different": 0.5}) == ""
    assert pull_alone({"name": "supcon", "temperature": 0.1}) == ""


# --- the picture


@pytest.mark.parametrize("shape", [(30, 6), (5, 12)])
def test_principal_components_keep_distances_and_have_fixed_signs(shape):
    latents = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    found = principal_components(latents, 50)
    assert found.shape == (shape[0], min(shape)) and found.dtype == np.float32
    assert pdist(found) == pytest.approx(pdist(latents), rel=1e-4)
    scatter = found.T @ found
    assert np.abs(scatter - np.diag(np.diag(scatter))).max() < 1e-3
    assert (np.diff(np.diag(scatter)) < 1e-3).all()  # the largest first
    centred = latents - latents.mean(axis=0)
    for column in range(min(shape) - 1):
        loading = centred.T @ found[:, column]
        assert loading[np.abs(loading).argmax()] > 0
    assert np.array_equal(principal_components(latents, 2), found[:, :2])


def test_components_that_there_are_not_are_zero():
    assert not principal_components(np.ones((4, 3), np.float32), 2).any()
    broken = np.array([[np.nan, 1.0], [0.0, 1.0], [2.0, 0.0]], np.float32)
    assert np.isfinite(principal_components(broken, 2)).all()


# --- all together


def test_a_description_has_every_metric():
    train, val, test = (Labelled(*clusters(seed, apart=seed)) for seed in range(3))
    found = describe(train, val, test)
    assert separable_pairs(*test) != separable_pairs(*val)  # or the images could be mixed up
    probe = linear_probe(*train, *val)
    distances = pair_distances(*val)
    assert found.values == {
        PROBE_TRAIN: probe[0],
        PROBE_VAL: probe[1],
        SEPARABLE: separable_pairs(*test),
        FISHER: fisher_ratio(*val),
        DISTANCE_AUC: distance_auc(distances),
        DISTANCE_OVERLAP: overlap(*histograms(distances)),
        EFFECTIVE_RANK: effective_rank(val.latents),
        SPREAD: spread(val.latents),
    }
    assert (found.same, found.different) == histograms(distances) and found.cause == ""
    assert all(isinstance(value, float) for value in found.values.values())


def test_unseen_classes_have_no_probe():
    latents = Labelled(*clusters())
    found = describe(None, latents, latents).values
    assert found[PROBE_TRAIN] is found[PROBE_VAL] is None
    assert sum(value is None for value in found.values()) == 2


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_latents_that_are_not_finite_have_no_metric_and_are_collapsed(broken):
    parts = [Labelled(*clusters(seed)) for seed in range(3)]
    parts[broken].latents[3, 2] = np.inf
    found = describe(*parts)
    assert set(found.values.values()) == {None} and "1 of 60 latents" in found.cause
    assert sum(found.same.counts) == sum(found.different.counts) == 0


@pytest.mark.parametrize(
    ("shape", "labels"),
    [
        ((1, 3), [0]),
        ((2, 1), [0, 1]),
        ((6, 3), [0] * 6),
        ((6, 3), list(range(6))),
        ((4, 50), [0, 0, 1, 1]),
    ],
)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_the_smallest_sets_are_described_too(shape, labels, scale):
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float32) * scale + 0.1
    of = Labelled(latents, np.array(labels, dtype=np.int64))
    values = describe(of, of, of).values.values()
    assert all(value is None or math.isfinite(value) for value in values)
