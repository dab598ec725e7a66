import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

from pipeline.errors import InputError
from pipeline.evaluation import verification
from pipeline.evaluation.decisions import (
    accuracy_at,
    answer_episodes,
    best_threshold,
    episode_accuracy,
)
from pipeline.evaluation.verification import (
    PAIR_METRICS,
    EpisodeAnswers,
    PairAnswers,
    VerificationPredictions,
    bootstrap,
    contributions,
    draw_units,
    equal_error_rate,
    pair_metrics,
    read_predictions,
    roc_auc,
    true_accept_rate,
    verification_metrics,
)
from pipeline.records import ANSWER_COLUMNS, OFFICIAL

# few levels make many ties; the wide ones have next to none
TIED = st.integers(0, 4).map(lambda n: n / 4)
LEVELS = st.one_of(TIED, st.integers(-(10**9), 10**9).map(lambda n: n / 1000))
PAIRS_OF_ONE_KIND_TOO = st.lists(st.tuples(LEVELS, st.booleans()), min_size=1, max_size=40)


@st.composite
def scored_pairs(draw):
    """Scores and truth with both kinds in it."""
    rows = draw(PAIRS_OF_ONE_KIND_TOO)
    scores, same = (np.array(column) for column in zip(*rows, strict=True))
    assume(same.any() and not same.all())
    return scores.astype(np.float64), same


# --- slow and obvious


def naive_points(scores, same):
    """(false accept rate, true accept rate) at a threshold above all, then at each score."""
    thresholds = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    return [
        (
            sum(s >= t for s in scores[~same]) / sum(~same),
            sum(s >= t for s in scores[same]) / sum(same),
        )
        for t in thresholds
    ]


def naive_eer(scores, same):
    points = naive_points(scores, same)
    for (far, tar), (next_far, next_tar) in pairwise(points):
        if next_far >= 1 - next_tar:
            # far + k (next_far - far) = 1 - tar - k (next_tar - tar)
            k = (1 - tar - far) / (next_far - far + next_tar - tar)
            return far + k * (next_far - far)
    raise AssertionError("the curve ends at (1, 1)")


def naive_auc(scores, same):
    wins = [(a > b) + (a == b) / 2 for a in scores[same] for b in scores[~same]]
    return sum(wins) / len(wins)


def naive_metrics(scores, same, predicted):
    found = {
        "test/accuracy": np.mean(predicted == same),
        "test/roc_auc": naive_auc(scores, same),
        "test/eer": naive_eer(scores, same),
    }
    for far in (0.01, 0.001):
        best = max(tar for accepted, tar in naive_points(scores, same) if accepted <= far)
        found[f"test/tar_at_far_{far}"] = best
    return found


# --- pairs


@given(scored_pairs(), st.sampled_from([0, 0.001, 0.01, 0.1, 0.25, 1 / 3, 0.5, 1]))
@settings(max_examples=100, deadline=None)
def test_metrics_are_those_of_scikit_learn_and_of_a_count_over_all_thresholds(pairs, far):
    scores, same = pairs
    assert roc_auc(scores, same) == pytest.approx(roc_auc_score(same, scores), abs=1e-12)
    assert roc_auc(scores, same) == pytest.approx(naive_auc(scores, same), abs=1e-12)
    assert equal_error_rate(scores, same) == pytest.approx(naive_eer(scores, same), abs=1e-12)
    fars, tars, _ = roc_curve(same, scores, drop_intermediate=False)
    assert true_accept_rate(scores, same, far) == max(tars[fars <= far])
    assert true_accept_rate(scores, same, far) == max(
        tar for rate, tar in naive_points(scores, same) if rate <= far
    )


def test_the_equal_error_rate_is_where_scikit_learns_curve_crosses():
    draw = np.random.default_rng(0)
    same = draw.random(500) < 0.3
    scores = draw.normal(size=500) + same
    fars, tars, _ = roc_curve(same, scores)
    crossing = brentq(lambda far: 1 - far - np.interp(far, fars, tars), 0, 1)
    assert equal_error_rate(scores, same) == pytest.approx(crossing, abs=1e-9)


def test_the_equal_error_rate_lies_between_two_points():
    # points (far, frr): (0, 1), (0, 1/2), (1, 1/2) by a tie, (1, 0): crossing at 1/2
    scores, same = np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 0, 0, 1])
    assert equal_error_rate(scores, same) == 0.5
    # (0, 1), (1/2, 1/2) hits the crossing exactly
    assert equal_error_rate(np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 0, 1, 0])) == 0.5
    # a single tie of one pair of one class and three of two: half way
    assert equal_error_rate(np.full(4, 0.5), np.array([1, 0, 0, 0])) == 0.5


def test_all_right_and_all_wrong():
    scores, same = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])
    right = pair_metrics(scores, same, scores >= 0.5)
    assert right == dict(zip(PAIR_METRICS, (1, 1, 0, 1, 1), strict=True))
    wrong = pair_metrics(-scores, same, scores < 0.5)
    assert wrong == dict(zip(PAIR_METRICS, (0, 0, 1, 0, 0), strict=True))
    assert tuple(right) == PAIR_METRICS


def test_a_false_accept_rate_that_is_just_met_counts():
    """29 of 100 is within 0.29, though 0.29 * 100 is less than 29 in floating point."""
    scores = np.concatenate([np.linspace(1, 0, 100), [0.715, 0.705]])
    same = np.arange(102) >= 100
    accepted = np.sum(scores[:100] >= 0.715)
    assert accepted == 29 and accepted > 0.29 * 100
    assert true_accept_rate(scores, same, 0.29) == 0.5
    assert true_accept_rate(scores, same, 0.28) == 0


@pytest.mark.parametrize("metric", [roc_auc, equal_error_rate])
@pytest.mark.parametrize("same", [[1, 1], [0, 0]])
def test_pairs_of_one_kind_have_no_curve(metric, same):
    with pytest.raises(ValueError, match="pairs of one class and pairs of two"):
        metric(np.array([0.1, 0.2]), np.array(same))


@pytest.mark.parametrize("metric", [roc_auc, equal_error_rate, best_threshold])
@pytest.mark.parametrize(
    ("scores", "same", "said"),
    [
        ([], [], "must be"),
        ([0.1, 0.2], [1], "must be"),
        ([0.1, np.nan], [1, 0], "finite"),
        ([0.1, np.inf], [1, 0], "finite"),
    ],
)
def test_what_cannot_be_measured_is_an_error(metric, scores, same, said):
    with pytest.raises(ValueError, match=said):
        metric(np.array(scores), np.array(same))


# --- thresholds


@given(PAIRS_OF_ONE_KIND_TOO)
@settings(max_examples=150, deadline=None)
def test_no_threshold_beats_the_best_and_it_is_the_lower_middle_of_the_best(rows):
    scores, same = (np.array(column) for column in zip(*rows, strict=True))
    levels = sorted(set(scores.tolist()))
    between = [(a + b) / 2 for a, b in pairwise(levels)]
    tried = [levels[0] - 1, *between, levels[-1] + 1]
    right = [sum((s >= t) == truth for s, truth in rows) for t in tried]
    best = [t for t, count in zip(tried, right, strict=True) if count == max(right)]
    expected = best[(len(best) - 1) // 2]
    threshold = best_threshold(scores, same)
    assert math.isfinite(threshold)
    assert accuracy_at(scores, same, threshold) == max(right) / len(rows)
    np.testing.assert_array_equal(scores >= threshold, scores >= expected)
    if expected in between and expected not in levels:
        assert threshold == pytest.approx(expected)


def test_thresholds_by_hand():
    assert best_threshold(np.array([0.2, 0.6]), np.array([0, 1])) == 0.4
    # equal: all accepted, between 0.4 and 0.6, none accepted; the middle of three
    assert best_threshold(np.array([0.4, 0.6]), np.array([1, 0])) < 0.4
    assert best_threshold(np.array([0.4, 0.4]), np.array([1, 0])) < 0.4  # the lower of two
    assert best_threshold(np.array([0.4, 0.6]), np.array([0, 0])) > 0.6


def test_a_threshold_fits_between_numbers_that_have_none_between_them():
    for low in (0.5, np.nextafter(0.5, 1), 1e300, -1e300, 5e-324):
        scores = np.array([low, np.nextafter(low, np.inf)])
        assert accuracy_at(scores, [0, 1], best_threshold(scores, [0, 1])) == 1


# --- episodes


def naive_answers(trials):
    """One answer a query from rows (episode, query, support, class, same, score)."""
    answers = []
    for episode, query in dict.fromkeys((t[0], t[1]) for t in trials):
        own = [t for t in trials if t[:2] == (episode, query)]
        first = {c: min(t[2] for t in own if t[3] == c) for c in {t[3] for t in own}}
        classes = sorted(first, key=first.get)
        means = []
        for c in classes:
            scores = [t[5] for t in own if t[3] == c]
            means.append(sum(scores) / len(scores))
        picked = means.index(max(means))
        (true,) = {t[3] for t in own if t[4]}
        label = classes.index(true)
        answers.append((episode, query, first[classes[picked]], label, picked, means[picked]))
    return answers


@st.composite
def episodes(draw):
    """Trials of some episodes, in any order, with ties and several support images a class."""
    trials = []
    for episode in draw(st.permutations("ba")):
        ways, shots = draw(st.integers(2, 4)), draw(st.integers(1, 3))
        rows = draw(st.permutations(range(10, 10 + ways * (shots + 1))))
        classes = draw(st.permutations("pqrs"))[:ways]
        for query, true in zip(rows, classes, strict=False):
            for number, support in enumerate(rows[ways:]):
                of = classes[number % ways]
                trials.append((episode, query, support, of, of == true, draw(TIED)))
    return draw(st.permutations(trials))


@given(episodes())
@settings(max_examples=100, deadline=None)
def test_answers_are_those_of_a_plain_loop(trials):
    columns = [np.array(column) for column in zip(*trials, strict=True)]
    found = answer_episodes(*columns)
    fields = (found.episode, found.query, found.support, found.labels, found.predicted)
    expected = naive_answers(trials)
    assert list(zip(*(of.tolist() for of in fields), strict=True)) == [a[:5] for a in expected]
    np.testing.assert_allclose(found.scores, [a[5] for a in expected], atol=1e-12)
    right = [label == picked for _, _, _, label, picked, _ in expected]
    assert episode_accuracy(found) == pytest.approx(np.mean(right))


def test_of_classes_that_score_alike_the_first_is_picked():
    # class 7 has the first support image, though class 3 has the lower number
    found = answer_episodes(
        np.zeros(4), np.zeros(4), np.array([5, 2, 4, 9]), np.array([3, 7, 3, 7]),
        np.array([1, 0, 1, 0]), np.array([0.5, 0.75, 0.5, 0.25]),
    )  # fmt: skip
    assert (found.support.tolist(), found.labels.tolist(), found.predicted.tolist()) == (
        [2], [1], [0],
    )  # fmt: skip


@pytest.mark.parametrize("same", [[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1]])
def test_a_query_shows_just_one_class_of_its_episode(same):
    """Of classes 0, 1, 1: none, both, both, and one of whose images says otherwise."""
    with pytest.raises(ValueError, match="one class of its episode"):
        answer_episodes([0] * 3, [9] * 3, [1, 2, 3], [0, 1, 1], same, [0.1, 0.2, 0.3])


# --- intervals


def make_runs(seed=0, identities=8, pairs=60, queries=40, count=2, levels=5):
    """Runs on the same random pairs, drawn episodes and official runs, with many ties."""
    draw = np.random.default_rng(seed)
    left, right = draw.integers(identities, size=(2, pairs))
    right = np.where(draw.random(pairs) < 0.4, left, right)
    same = left == right
    own, position = draw.integers(identities, size=queries), draw.integers(5, size=queries)
    names = np.array([f"person {n}" for n in range(identities)])
    runs = []
    for _ in range(count):
        scores = np.round(draw.beta(2 + same, 2), 1) if levels else draw.beta(2 + same, 2)
        sets = {}
        for name in ("5_way_1_shot", "official"):
            picked = np.where(draw.random(queries) < 0.6, position, draw.integers(5, size=queries))
            images = np.arange(queries).astype(str)
            asked = np.char.add("run", (np.arange(queries) // 8).astype(str))
            sets[name] = EpisodeAnswers(asked, images, names[own], position, picked)
        images = np.arange(pairs).astype(str)
        answers = PairAnswers(images, images, names[left], names[right], same.astype(np.int64),
                              (scores >= 0.5).astype(np.int64), scores)  # fmt: skip
        runs.append(VerificationPredictions(answers, sets))
    return runs


def repeated(run: PairAnswers, times: dict[str, int]):
    """The pairs of a draw of identities, row by row."""
    rows = []
    for n, (a, b) in enumerate(zip(run.left_class, run.right_class, strict=True)):
        rows += [n] * (times[a] if a == b else times[a] * times[b])
    return run.scores[rows], run.labels[rows] == 1, run.predicted[rows] == 1


@pytest.fixture
def few(monkeypatch):
    """Intervals of true accept rates whatever the number of pairs."""
    monkeypatch.setattr(verification, "ENOUGH_ACCEPTED", 0)


def intervals(samples, level=0.95):
    return {name: sample.interval(level) for name, sample in samples.items()}


def minus(samples, others):
    return {name: sample.minus(others[name]) for name, sample in samples.items()}


def naive_pair_values(runs, draws, seed):
    """Each metric in each draw, by repeating rows, with the draws that the module makes."""
    names = sorted({*runs[0].pairs.left_class, *runs[0].pairs.right_class})
    generator = np.random.default_rng(seed)
    values = []
    while len(values) < draws:  # lacking draws are drawn anew once all others are there
        drawn = draw_units(len(names), draws - len(values), generator)
        for column in drawn.T.astype(int):
            times = dict(zip(names, column.tolist(), strict=True))
            rows = [repeated(run.pairs, times) for run in runs]
            if rows[0][1].any() and not rows[0][1].all():
                found = [naive_metrics(*of) for of in rows]
                values.append({name: np.mean([of[name] for of in found]) for name in PAIR_METRICS})
    return {name: [of[name] for of in values] for name in PAIR_METRICS}


@pytest.mark.parametrize(("seed", "identities", "pairs"), [(0, 8, 60), (1, 3, 12), (2, 20, 30)])
def test_pair_intervals_are_those_of_repeated_rows(few, seed, identities, pairs):
    runs = make_runs(seed, identities, pairs)
    found = intervals(bootstrap(runs, draws=60, seed=seed), level=0.8)
    expected = naive_pair_values(runs, 60, seed)
    classes = {*runs[0].pairs.left_class, *runs[0].pairs.right_class}
    for name in PAIR_METRICS:
        low, high = np.quantile(expected[name], [0.1, 0.9])
        assert found[name].mean == pytest.approx(
            np.mean([verification_metrics(run)[name] for run in runs]), abs=1e-12
        )
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=1e-12)
        assert (found[name].unit, found[name].units) == ("identity", len(classes))


def test_blocks_only_cut_the_draws(few, monkeypatch):
    runs = make_runs(levels=0)
    expected = naive_pair_values(runs, 50, 3)
    whole = intervals(bootstrap(runs, draws=50, seed=3))
    monkeypatch.setattr(verification, "BLOCK", 7 * 60)  # 7 draws at a time, and 1 at the end
    cut = intervals(bootstrap(runs, draws=50, seed=3))
    for name in PAIR_METRICS:
        assert whole[name].low == pytest.approx(np.quantile(expected[name], 0.025), abs=1e-12)
    assert cut == whole  # no draw of these had to be made again


@pytest.mark.parametrize("name", ["5_way_1_shot", "official"])
def test_intervals_of_episodes_are_those_of_repeated_queries(name):
    runs = make_runs()
    unit = "run" if name == "official" else "identity"
    answers = [run.episodes[name] for run in runs]
    of = answers[0].episode if unit == "run" else answers[0].left_class
    units = sorted(set(of.tolist()))
    expected = []
    for column in draw_units(len(units), 40, np.random.default_rng(5)).T:
        rows = np.repeat(np.arange(len(of)), [int(column[units.index(u)]) for u in of])
        expected.append(np.mean([np.mean((a.labels == a.predicted)[rows]) for a in answers]))
    found = bootstrap(runs, draws=40, seed=5)[f"test/{name}_accuracy"].interval()
    assert (found.low, found.high) == pytest.approx(np.quantile(expected, [0.025, 0.975]))
    assert found.mean == pytest.approx(np.mean([np.mean(a.labels == a.predicted) for a in answers]))
    assert (found.unit, found.units) == (unit, len(units))


def test_differences_are_taken_draw_by_draw(few):
    runs, others = make_runs()[:1], make_runs()[1:]
    found = intervals(minus(*(bootstrap(of, draws=50, seed=2) for of in (runs, others))))
    ours, theirs = (naive_pair_values(of, 50, 2) for of in (runs, others))
    assert list(found) == list(verification_metrics(runs[0]))
    for name in PAIR_METRICS:
        differences = np.subtract(ours[name], theirs[name])
        low, high = np.quantile(differences, [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=1e-12)
        assert found[name].mean == pytest.approx(
            verification_metrics(runs[0])[name] - verification_metrics(others[0])[name], abs=1e-12
        )
    samples = bootstrap(runs, draws=20)
    same = intervals(minus(samples, samples))
    assert {(of.mean, of.low, of.high) for of in same.values()} == {(0, 0, 0)}


def test_a_unit_is_drawn_as_often_as_chance_has_it():
    drawn = draw_units(7, 4000, np.random.default_rng(0))
    assert drawn.shape == (7, 4000)
    assert (drawn.sum(axis=0) == 7).all()
    np.testing.assert_allclose(drawn.mean(axis=1), 1, atol=0.06)  # standard error 0.015
    np.testing.assert_allclose(drawn.var(axis=1), 6 / 7, atol=0.1)


def test_the_same_seed_gives_the_same_intervals_and_another_others():
    runs = make_runs()
    one, two, other = (intervals(bootstrap(runs, draws=50, seed=seed)) for seed in (0, 0, 1))
    assert one == two != other


def test_a_true_accept_rate_of_few_pairs_of_two_classes_has_no_interval(monkeypatch):
    assert [verification.pairs_needed(name) for name in PAIR_METRICS] == [1, 1, 1, 1000, 10000]
    runs = make_runs()
    different = int(np.sum(runs[0].pairs.labels == 0))
    whole = {name: verification_metrics(runs[0])[name] for name in PAIR_METRICS}
    for count, bounded in ((different, True), (different + 1, False)):  # of the rate 1 %
        monkeypatch.setattr(verification, "ENOUGH_ACCEPTED", count / 100)
        samples, others = (bootstrap([run], draws=20) for run in runs)
        found = intervals(samples)
        for of in (found, intervals(minus(samples, others))):
            assert [of[name].low is not None for name in PAIR_METRICS] == [
                *(True, True, True, bounded, False)
            ]
            assert [of[name].high is None for name in PAIR_METRICS][3:] == [not bounded, True]
        assert {name: found[name].mean for name in PAIR_METRICS} == whole


def test_one_official_run_has_no_interval():
    run = make_runs(queries=8)[0]
    found = bootstrap([run], draws=20)["test/official_accuracy"].interval()
    assert (found.low, found.high, found.units) == (None, None, 1)
    assert found.mean == verification_metrics(run)["test/official_accuracy"]


def test_runs_of_other_tests_are_not_averaged():
    runs = [make_runs(0)[0], make_runs(1)[0]]
    for wrong, said in ((runs, "the same pairs and episodes"), ([], "no runs")):
        with pytest.raises(ValueError, match=said):
            bootstrap(wrong, draws=5)


# --- what each unit adds


def weighted_auc(scores, same, weights):
    wins = total = 0.0
    for i in np.flatnonzero(same):
        for j in np.flatnonzero(~same):
            both = weights[i] * weights[j]
            wins += both * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
            total += both
    return wins / total


def weighted_points(scores, same, weights):
    """As `naive_points`, where pairs have weights."""
    thresholds = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    return [
        tuple(
            weights[kind][scores[kind] >= t].sum() / weights[kind].sum() for kind in (~same, same)
        )
        for t in thresholds
    ]


def weighted_metrics(scores, same, weights):
    """The metrics that hang on a quantile."""
    points = weighted_points(scores, same, weights)
    found = {}
    for (far, tar), (next_far, next_tar) in pairwise(points):
        if next_far >= 1 - next_tar:
            k = (1 - tar - far) / (next_far - far + next_tar - tar)
            found["test/eer"] = far + k * (next_far - far)
            break
    for far in (0.01, 0.001):
        found[f"test/tar_at_far_{far}"] = max(tar for rate, tar in points if rate <= far)
    return found


def slow_shares(pairs):
    """With which share a class is charged with its pairs of two classes."""
    shares = {}
    for name in {*pairs.left_class, *pairs.right_class}:
        partners = [
            b if a == name else a
            for a, b in zip(pairs.left_class, pairs.right_class, strict=True)
            if a != b and name in (a, b)
        ]
        own = len(partners) ** 2
        others = sum(partners.count(partner) ** 2 for partner in set(partners))
        shares[name] = math.sqrt(own / (own + others)) if partners else 1
    return shares


def slow_charges(pairs, parts):
    """What each class is charged with, in the order of their names, around zero."""
    shares, charged = slow_shares(pairs), []
    for name in sorted({*pairs.left_class, *pairs.right_class}):
        total = 0.0
        for a, b, part in zip(pairs.left_class, pairs.right_class, parts, strict=True):
            if name in (a, b):
                total += part if a == b else shares[name] * part
        charged.append(total)
    return np.array(charged) - np.mean(charged)


@pytest.mark.parametrize(("seed", "identities", "pairs"), [(0, 8, 60), (1, 4, 12), (2, 30, 40)])
def test_a_class_adds_what_the_accuracy_and_the_roc_auc_rise_by_with_its_pairs(
    seed, identities, pairs
):
    run = make_runs(seed, identities, pairs, count=1)[0]
    scores, same = run.pairs.scores, run.pairs.labels == 1
    found, whole = contributions(run), verification_metrics(run)
    right = run.pairs.predicted == run.pairs.labels

    def weighted_accuracy(weights):
        """Each kind has its share of the pairs, whatever they weigh."""
        return sum(
            np.mean(kind) * np.average(right[kind], weights=weights[kind]) for kind in (same, ~same)
        )

    def slopes(metric):
        ones, step = np.ones(pairs), 1e-4
        return [
            (metric(ones + step * own) - metric(ones - step * own)) / (2 * step)
            for own in np.eye(pairs)
        ]

    for name, metric in (
        ("test/accuracy", weighted_accuracy),
        ("test/roc_auc", lambda weights: weighted_auc(scores, same, weights)),
    ):
        charges = slow_charges(run.pairs, slopes(metric))
        expected = whole[name] + len(charges) * charges
        np.testing.assert_allclose(found[name].values, expected, atol=1e-7)
        assert found[name].unit == "class"


@pytest.mark.parametrize(("seed", "identities", "pairs"), [(0, 8, 60), (3, 45, 120)])
def test_a_group_adds_what_a_metric_of_quantiles_loses_without_it(few, seed, identities, pairs):
    run = make_runs(seed, identities, pairs, count=1)[0]
    scores, same = run.pairs.scores, run.pairs.labels == 1
    names = sorted({*run.pairs.left_class, *run.pairs.right_class})
    groups, shares = min(30, len(names)), slow_shares(run.pairs)
    order = np.random.default_rng(0).permutation(len(names))
    group_of = {name: int(place) % groups for name, place in zip(names, order, strict=True)}
    without = []
    for group in range(groups):
        weights = []
        for a, b in zip(run.pairs.left_class, run.pairs.right_class, strict=True):
            inside = {name for name in (a, b) if group_of[name] == group}
            gone = a == b or group_of[a] == group_of[b]
            weights.append(1 - (1 if gone else sum(shares[n] for n in inside)) if inside else 1)
        without.append(weighted_metrics(scores, same, np.array(weights)))
    found, whole = contributions(run), verification_metrics(run)
    for name in ("test/eer", "test/tar_at_far_0.01", "test/tar_at_far_0.001"):
        left = np.array([of[name] for of in without])
        expected = whole[name] + (groups - 1) * (left.mean() - left)
        np.testing.assert_allclose(found[name].values, expected, atol=1e-9)
        assert found[name].unit == "group of classes"


def test_what_so_few_pairs_cannot_show_has_no_contributions(monkeypatch):
    run = make_runs(count=1)[0]
    official, drawn = "test/official_accuracy", "test/5_way_1_shot_accuracy"
    assert set(contributions(run)) == {*PAIR_METRICS[:3], official, drawn}
    monkeypatch.setattr(verification, "ENOUGH_ACCEPTED", 0.2)  # 20 and 200 pairs of two classes
    assert set(contributions(run)) == {*PAIR_METRICS[:4], official, drawn}


def test_without_a_group_there_must_be_pairs_of_both_kinds():
    """All pairs of one class are of a: its group cannot be deleted, and the others tell enough."""
    classes = np.array(["a", "a", "b", "c"])
    others = np.array(["a", "b", "c", "d"])
    images, same = np.arange(4).astype(str), (classes == others).astype(np.int64)
    scores = np.array([0.75, 0.25, 1.0, 0.5])
    answers = PairAnswers(images, images, classes, others, same, same, scores)
    assert set(contributions(VerificationPredictions(answers, {}))) == set(PAIR_METRICS[:2])


def make_episodes(seed, count, classes, ways):
    """Each class of an episode is asked for once, as ``prepare`` draws them."""
    draw = np.random.default_rng(seed)
    names = np.array([f"character {n}" for n in range(classes)])
    chosen = np.array([draw.permutation(classes)[:ways] for _ in range(count)])
    positions = np.tile(np.arange(ways), count)
    picked = np.where(draw.random(count * ways) < 0.5, positions,
                      draw.integers(ways, size=count * ways))  # fmt: skip
    order = draw.permutation(count * ways)
    columns = (np.repeat(np.arange(count), ways).astype(str), np.arange(count * ways).astype(str),
               names[chosen.ravel()], positions, picked)  # fmt: skip
    return EpisodeAnswers(*(column[order] for column in columns))


@pytest.mark.parametrize(("count", "classes", "ways"), [(30, 12, 5), (6, 4, 4), (9, 40, 3)])
def test_a_class_adds_its_own_answers_and_half_of_those_it_attracts(count, classes, ways):
    answers = make_episodes(1, count, classes, ways)
    rows = list(zip(answers.episode, answers.left_class, answers.labels, answers.predicted,
                    strict=True))  # fmt: skip
    class_at = {(episode, label): name for episode, name, label, _ in rows}
    error = np.mean([label != picked for _, _, label, picked in rows])
    names = sorted({name for _, name, _, _ in rows})
    expected = []
    for name in names:
        surplus = 0.0
        for episode, own, label, picked in rows:
            wrong = label != picked
            if own == name:
                surplus += wrong - error
            elif (episode, name) in {(e, class_at[e, p]) for e, p in class_at}:
                taken = wrong and class_at[episode, picked] == name
                surplus += (taken - error / (ways - 1)) / 2
        expected.append(1 - error - len(names) * surplus / len(rows))
    run = VerificationPredictions(no_pairs(), {"5_way_1_shot": answers})
    found = contributions(run)["test/5_way_1_shot_accuracy"]
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert found.unit == "class"


def no_pairs():
    none = np.empty(0, np.str_)
    numbers = np.empty(0, np.int64)
    return PairAnswers(none, none, none, none, numbers, numbers, np.empty(0))


def test_an_official_run_adds_its_own_accuracy():
    asked = np.repeat(["run1", "run2", "run3"], 4)
    labels, picked = np.tile(np.arange(4), 3), np.array([0, 1, 2, 3, 0, 0, 0, 0, 3, 1, 2, 0])
    images = np.arange(12).astype(str)
    answers = EpisodeAnswers(asked, images, images, labels, picked)
    found = contributions(VerificationPredictions(no_pairs(), {OFFICIAL: answers}))
    assert found["test/official_accuracy"].values.tolist() == pytest.approx([1, 0.25, 0.5])
    assert found["test/official_accuracy"].unit == "official run"
    one = EpisodeAnswers(*(getattr(answers, of)[:4] for of in answers.__dataclass_fields__))
    assert contributions(VerificationPredictions(no_pairs(), {OFFICIAL: one})) == {}


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_of_the_contributions_is_the_metric(few, seed):
    run = make_runs(seed, identities=12, pairs=200, count=1, levels=seed % 2)[0]
    values, found = verification_metrics(run), contributions(run)
    assert set(found) == set(values)
    for name, contribution in found.items():
        assert contribution.values.mean() == pytest.approx(values[name], abs=1e-12)


def draw_test_set(draw, identities, same, different):
    """A test set of classes that are points, some with wider-spread images; score by distance."""
    places = draw.normal(size=(identities, 8))
    spread = 0.6 * np.exp(draw.normal(0, 0.5, identities))
    left = draw.integers(identities, size=same + different)
    away = draw.integers(1, identities, same + different) * (np.arange(same + different) >= same)
    right = (left + away) % identities
    one, other = (
        places[of] + spread[of, None] * draw.normal(size=(len(of), 8)) for of in (left, right)
    )
    scores = 1 / (1 + np.exp(np.mean((one - other) ** 2, axis=1) - 1.3))
    names = np.array([f"{n:04}" for n in range(identities)])
    images = np.arange(same + different).astype(str)
    pairs = PairAnswers(images, images, names[left], names[right], (left == right).astype(np.int64),
                        (scores >= 0.5).astype(np.int64), scores)  # fmt: skip
    return VerificationPredictions(pairs, {})


@pytest.mark.parametrize(("identities", "same", "different"), [(300, 150, 150), (20, 300, 300)])
def test_variances_of_pairs_are_those_of_new_classes(identities, same, different):
    """From one pair of two classes each to thirty."""
    draw = np.random.default_rng(0)
    metrics, variances = [], []
    for _ in range(400):
        run = draw_test_set(draw, identities, same, different)
        found = contributions(run)
        metrics.append([verification_metrics(run)[name] for name in found])
        variances.append([of.values.var(ddof=1) / len(of.values) for of in found.values()])
    ratios = np.mean(variances, axis=0) / np.var(metrics, axis=0, ddof=1)
    accuracy, auc, eer = ratios.tolist()  # their standard error is 0.07
    assert 0.85 <= accuracy <= 1.4
    assert 0.85 <= auc <= 1.3
    assert 0.85 <= eer <= 1.7


@pytest.mark.parametrize(("classes", "count", "ways"), [(200, 80, 5), (20, 80, 5)])
def test_variances_of_episodes_are_those_of_new_classes(classes, count, ways):
    draw = np.random.default_rng(0)
    metrics, variances = [], []
    for _ in range(300):
        places = draw.normal(size=(classes, 3))
        spread = 0.4 * np.exp(draw.normal(0, 0.3, classes))
        chosen = draw.random((count, classes)).argsort(axis=1)[:, :ways]
        shown, asked = (
            places[chosen] + spread[chosen][..., None] * draw.normal(size=(count, ways, 3))
            for _ in range(2)
        )
        away = np.sum((asked[:, :, None] - shown[:, None]) ** 2, axis=-1)
        answers = EpisodeAnswers(
            np.repeat(np.arange(count), ways).astype(str),
            np.arange(count * ways).astype(str),
            chosen.ravel().astype(str),
            np.tile(np.arange(ways), count),
            away.argmin(axis=2).ravel(),
        )
        run = VerificationPredictions(no_pairs(), {"drawn": answers})
        (found,) = contributions(run).values()
        metrics.append(found.values.mean())
        variances.append(found.values.var(ddof=1) / len(found.values))
    assert 0.75 <= np.mean(variances) / np.var(metrics, ddof=1) <= 1.5  # standard error 0.08


# --- the file

PAIR = ("pairs", "", "a/1.png", "a/2.png", "a", "a", 1, 1, 0.75)
OTHER = ("pairs", "", "a/1.png", "b/1.png", "a", "b", 0, 1, 0.5)
QUERY = ("official", "run01", "run01/test/1.png", "run01/training/4.png", "x", "y", 3, 0, 0.25)
HIT = ("5_way_1_shot", "0", "a/1.png", "a/2.png", "a", "a", 4, 4, 1)
ROWS = [PAIR, OTHER, QUERY, HIT]


def write(path, rows, columns=ANSWER_COLUMNS):
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
    return path


def changed(row, **cells):
    return tuple(cells.get(name, value) for name, value in zip(ANSWER_COLUMNS, row, strict=True))


def test_predictions_are_read_as_they_were_written(tmp_path):
    found = read_predictions(write(tmp_path / "p.csv", ROWS))
    pairs = found.pairs
    assert pairs.left.tolist() == ["a/1.png", "a/1.png"]
    assert pairs.right.tolist() == ["a/2.png", "b/1.png"]
    assert (pairs.left_class.tolist(), pairs.right_class.tolist()) == (["a", "a"], ["a", "b"])
    assert (pairs.labels.tolist(), pairs.predicted.tolist()) == ([1, 0], [1, 1])
    assert pairs.scores.tolist() == [0.75, 0.5]
    assert list(found.episodes) == ["official", "5_way_1_shot"]
    asked = found.episodes["official"]
    assert (asked.episode.tolist(), asked.left.tolist()) == (["run01"], ["run01/test/1.png"])
    assert (asked.left_class.tolist(), asked.labels.tolist()) == (["x"], [3])
    assert asked.predicted.tolist() == [0]
    assert verification_metrics(found) == {
        "test/accuracy": 0.5, "test/roc_auc": 1, "test/eer": 0, "test/tar_at_far_0.01": 1,
        "test/tar_at_far_0.001": 1, "test/official_accuracy": 0, "test/5_way_1_shot_accuracy": 1,
    }  # fmt: skip


def test_there_may_be_no_pairs_or_no_episodes(tmp_path):
    alone = read_predictions(write(tmp_path / "p.csv", [QUERY, HIT]))
    assert list(verification_metrics(alone)) == [
        "test/official_accuracy", "test/5_way_1_shot_accuracy",
    ]  # fmt: skip
    assert set(bootstrap([alone], draws=5)) == set(verification_metrics(alone))
    pairs = read_predictions(write(tmp_path / "p.csv", [PAIR, OTHER]))
    assert tuple(verification_metrics(pairs)) == PAIR_METRICS


def test_what_was_tested_tells_runs_apart_by_questions_not_by_answers(tmp_path):
    def tested(*rows):
        return read_predictions(write(tmp_path / "p.csv", rows)).tested

    before = tested(*ROWS)
    assert tested(changed(PAIR, predicted=0, score=0.1), *ROWS[1:]) == before
    assert tested(PAIR, OTHER, changed(QUERY, right="z", right_class="z", predicted=1), HIT) == (
        before
    )
    others = [
        [changed(PAIR, left="a/3.png"), *ROWS[1:]],
        [PAIR, changed(OTHER, right_class="c"), QUERY, HIT],
        [PAIR, OTHER, changed(QUERY, episode="run02"), HIT],
        [PAIR, OTHER, changed(QUERY, label=2), HIT],
        [PAIR, OTHER, changed(QUERY, set="unofficial"), HIT],
        [PAIR, OTHER, QUERY],
        [OTHER, PAIR, QUERY, HIT],
    ]
    assert before not in {tested(*rows) for rows in others}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "p.csv: holds no answer: "),
        ([PAIR, changed(OTHER, left="")], "p.csv:3: images, classes and sets must have names: "),
        ([PAIR, changed(OTHER, set="")], "p.csv:3: images, classes and sets must have names: "),
        ([changed(PAIR, episode="1")], "p.csv:2: a query must have an episode, and a pair none: "),
        ([PAIR, OTHER, changed(HIT, episode="")], "p.csv:4: a query must have an episode"),
        ([PAIR, changed(OTHER, label=1)], "p.csv:3: a pair's label must be 1 where its classes"),
        ([PAIR, changed(OTHER, predicted=2)], "p.csv:3: a pair's answer must be 1 (one class) or"),
        ([PAIR, changed(OTHER, label=-1)], "p.csv:3: a pair's label must be 1 where its classes"),
        ([changed(HIT, label=-1, predicted=-1)], "p.csv:2: labels must be positions of classes"),
        ([HIT, changed(QUERY, predicted=3)], "p.csv:3: a query's label and answer must be equal"),
        ([changed(HIT, predicted=3)], "p.csv:2: a query's label and answer must be equal just"),
        ([PAIR, changed(OTHER, score=1.5)], "p.csv:3: scores must be probabilities: "),
        ([PAIR, changed(OTHER, score="nan")], "p.csv:3: scores must be probabilities: "),
        ([changed(QUERY, score=-0.1)], "p.csv:2: scores must be probabilities: "),
        ([PAIR, changed(OTHER, score="high")], "p.csv: holds what is no number"),
        ([PAIR, changed(OTHER, label=0.5)], "p.csv: holds what is no number"),
        ([PAIR, HIT], "p.csv: holds pairs of one kind alone; "),
    ],
)
def test_a_damaged_file_is_one_line(rows, said, tmp_path):
    with pytest.raises(InputError) as error:
        read_predictions(write(tmp_path / "p.csv", rows))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_another_form_is_named(tmp_path):
    with pytest.raises(InputError, match=r"p\.csv: columns must be set,episode,left,right,"):
        read_predictions(write(tmp_path / "p.csv", [(1, 2)], ["image", "label"]))
    with pytest.raises(InputError, match=r"none\.csv: there is no such file"):
        read_predictions(tmp_path / "none.csv")
