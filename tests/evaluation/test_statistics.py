import math

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.metrics import HEADLINE
from pipeline.evaluation.statistics import (
    LOWER_IS_BETTER,
    Comparison,
    contrasts,
    estimates,
    holm,
    mean_interval,
    paired,
    verdict,
)
from pipeline.records import runs_of
from tests.report.fake_runs import fake_params


def test_interval_of_a_worked_example():
    # mean 2, s = 1, n = 3; the 97.5 % point of t with 2 degrees of freedom is 4.302653
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_interval_agrees_with_scipy(level):
    values = np.random.default_rng(3).normal(size=7)
    found = mean_interval(values.tolist(), level)
    low, high = stats.t.interval(level, 6, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval_and_equal_values_have_one_of_no_width():
    one, equal = mean_interval([0.3]), mean_interval([0.1, 0.1, 0.1])
    assert (one.mean, one.low, one.high, one.n) == (0.3, None, None, 1)
    assert (equal.mean, equal.low, equal.high) == (0.1, 0.1, 0.1)


@pytest.mark.parametrize("seed", range(5))
def test_paired_agrees_with_scipy(seed):
    draw = np.random.default_rng(seed)
    ours, theirs = draw.normal(size=6), draw.normal(size=6)
    found, oracle = paired(ours, theirs), stats.ttest_rel(ours, theirs)
    assert found.p_value == pytest.approx(oracle.pvalue)
    interval = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.difference == pytest.approx(np.mean(ours - theirs))
    assert found.wins == sum(a > b for a, b in zip(ours, theirs, strict=True))


def test_wins_are_strict_and_follow_the_metric_s_direction():
    ours, theirs = [0.5, 0.6, 0.7, 0.7], [0.5, 0.5, 0.8, 0.9]
    assert paired(ours, theirs, higher_is_better=True).wins == 1
    assert paired(ours, theirs, higher_is_better=False).wins == 2


def test_equal_differences():
    zero = paired([0.4, 0.7], [0.4, 0.7])
    assert zero == Comparison(0.0, 0.0, 0.0, 1.0, 0, 2)
    # 0.9 - 0.8, 0.8 - 0.7 and 0.4 - 0.3 differ in their last bits only
    same = paired([0.9, 0.8, 0.4], [0.8, 0.7, 0.3])
    assert same.low == same.difference == same.high == pytest.approx(0.1)
    assert (same.p_value, same.wins) == (0.0, 3)
    rounded = paired([0.1 + 0.2, 0.3], [0.3, 0.3])
    assert (rounded.difference, rounded.p_value, rounded.wins) == (0.0, 1.0, 0)


def test_one_seed_has_a_difference_and_nothing_more():
    found = paired([0.75], [0.5])
    assert found == Comparison(0.25, None, None, None, 1, 1)
    assert verdict(found, None, True) == "too few seeds to tell"


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match="2 values"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="0 values"):
        paired([], [])


def test_holm_of_a_worked_example():
    # sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and no step down
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(10))
def test_holm_agrees_with_its_definition(seed):
    p = np.random.default_rng(seed).random(6) ** 3
    order = np.argsort(p)
    for rank, index in enumerate(order):
        expected = max(min(1.0, (6 - k) * p[order[k]]) for k in range(rank + 1))
        assert holm(p.tolist())[index] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("difference", "p", "higher", "expected"),
    [
        (0.1, 0.01, True, "better"),
        (0.1, 0.01, False, "worse"),
        (-0.1, 0.01, True, "worse"),
        (-0.1, 0.01, False, "better"),
        (0.1, 0.05, True, "no difference detected"),
        (0.0, 1.0, True, "no difference detected"),
    ],
)
def test_verdict(difference, p, higher, expected):
    assert verdict(Comparison(difference, 0.0, 0.0, p, 0, 3), p, higher) == expected


def fake_values(params, seed=0):
    draw = np.random.default_rng(seed)
    return {
        run: dict(zip(HEADLINE, draw.random(4), strict=True)) for run in runs_of(params.compare)
    }


def test_contrasts_adjust_over_methods_within_shots_and_metric():
    compare = fake_params(seeds=(0, 1, 2, 3)).compare
    values = fake_values(fake_params(seeds=(0, 1, 2, 3)))
    rows = contrasts(values, compare)
    assert [(r.method, r.shots, r.metric) for r in rows] == [
        (method, shots, metric)
        for method in ("breakdown", "scratch")
        for shots in (5, 20)
        for metric in HEADLINE
    ]
    for row in rows:
        family = [
            r.comparison.p_value for r in rows if (r.shots, r.metric) == (row.shots, row.metric)
        ]
        smallest = row.comparison.p_value == min(family)
        expected = 2 * min(family) if smallest else max(2 * min(family), row.comparison.p_value)
        assert row.p_adjusted == pytest.approx(min(1, expected))
        of = {
            name: [
                v[row.metric] for r, v in values.items() if (r.method, r.shots) == (name, row.shots)
            ]
            for name in (row.method, "finetune")
        }
        oracle = stats.ttest_rel(of[row.method], of["finetune"])
        assert row.comparison.p_value == pytest.approx(oracle.pvalue)


def test_estimates_have_every_method_shots_and_headline_metric():
    params = fake_params(shots=(5, "all"), seeds=(3,))
    values = fake_values(params)
    found = estimates(values, params.compare)
    assert list(found) == ["breakdown", "finetune", "scratch"]
    for run in runs_of(params.compare):
        for metric in HEADLINE:
            estimate = found[run.method][str(run.shots)][metric]
            assert (estimate.mean, estimate.low, estimate.n) == (values[run][metric], None, 1)


def test_the_reference_alone_has_no_contrasts_and_every_metric_has_a_direction():
    params = fake_params(breakdowns=(), baselines=("finetune",))
    assert contrasts(fake_values(params), params.compare) == []
    assert set(HEADLINE) - LOWER_IS_BETTER == {"test/accuracy", "test/macro_f1"}
    assert LOWER_IS_BETTER - set(HEADLINE) == {"test/eer"}
