import numpy as np
import pytest

from pipeline.evaluation.statistics import contrasts, crossovers
from pipeline.evaluation.statistics.compare import interval
from pipeline.evaluation.statistics.crossed import spread
from pipeline.evaluation.statistics.crossover import _crossings, _stretches
from tests.evaluation.statistics.tables_of_runs import ACCURACY, compare_of, runs_from


def two_methods(means, seeds=5, units=60, noise=0.05, seed=0):
    """Tables whose difference has nearly the mean given for each number of shots."""
    draw = np.random.default_rng(seed)
    found = {}
    for shots, mean in means.items():
        found["other", shots] = draw.normal(0.5, noise, size=(seeds, units))
        found["base", shots] = found["other", shots] - mean + draw.normal(0, noise, (seeds, units))
    return found


def test_a_crossing_is_where_the_line_over_log_shots_meets_zero():
    tables = two_methods({4: 0.2, 64: -0.1}, noise=0)
    compare = compare_of(["other", "base"], shots=(64, 4), seeds=5)
    (found,) = crossovers(runs_from(tables)[1], compare, ACCURACY)
    # log2: from 2 at 0.2 to 6 at -0.1, so 2 + 4 * 2 / 3
    assert found.crossings == pytest.approx([2 ** (2 + 8 / 3)])
    assert (found.method, found.metric) == ("other", ACCURACY)


def test_the_curve_s_points_have_the_interval_of_the_interpolated_table():
    tables = two_methods({5: 0.03, 20: -0.02, 40: -0.03})
    compare = compare_of(["other", "base"], shots=(5, "all", 20, 40), seeds=5)
    (found,) = crossovers(runs_from(tables)[1], compare, ACCURACY)
    shots = [point.shots for point in found.curve]
    assert shots == sorted(shots)
    assert {5.0, 20.0, 40.0} <= set(shots)
    assert len(shots) == 3 + 2 * 8
    for point in found.curve:
        at = (5, 20) if point.shots <= 20 else (20, 40)
        share = np.log(point.shots / at[0]) / np.log(at[1] / at[0])
        low, high = (tables["other", k] - tables["base", k] for k in at)
        table = (1 - share) * low + share * high
        assert point.difference == pytest.approx(table.mean())
        assert (point.low, point.high) == pytest.approx(interval(table.mean(), spread(table)))


@pytest.mark.parametrize(("metric", "first"), [(ACCURACY, "other"), ("test/nll", "base")])
def test_who_is_ahead_where_is_by_the_metric_s_direction(metric, first):
    tables = two_methods({5: 0.1, 80: -0.1})
    compare = compare_of(["other", "base"], shots=(5, 80), seeds=5)
    (found,) = crossovers(runs_from(tables, metric)[1], compare, metric)
    (low, high, ahead), (low_2, high_2, ahead_2) = found.ahead
    assert (low, high_2) == (5, 80)
    assert high < found.crossings[0] < low_2
    assert (ahead, {ahead, ahead_2}) == (first, {"other", "base"})
    for point in found.curve:  # stretches are those of the points' intervals
        sure = point.low > 0 or point.high < 0
        inside = [low <= point.shots <= high for low, high, _ in found.ahead]
        assert any(inside) == sure


def test_equal_methods_never_cross_and_none_is_ahead():
    tables = two_methods({5: 0.0, 20: 0.0}, noise=0)
    compare = compare_of(["other", "base"], shots=(5, 20), seeds=5)
    (found,) = crossovers(runs_from(tables)[1], compare, ACCURACY)
    assert (found.crossings, found.ahead) == ([], [])
    ((difference, low, high),) = {(p.difference, p.low, p.high) for p in found.curve}
    assert difference == 0 and -0.2 < low == -high < 0  # the next unit might differ


def test_no_curve_without_two_numbers_of_shots_or_without_contributions():
    tables = two_methods({5: 0.1, "all": 0.2})
    compare = compare_of(["other", "base"], shots=(5, "all"), seeds=5)
    assert crossovers(runs_from(tables)[1], compare, ACCURACY) == []
    tables = two_methods({5: 0.1, 20: 0.2})
    compare = compare_of(["other", "base"], shots=(5, 20), seeds=5)
    assert crossovers(runs_from(tables)[1], compare, "test/eer") == []


def test_one_seed_speaks_of_units():
    tables = two_methods({5: 0.1, 20: -0.1}, seeds=1)
    compare = compare_of(["other", "base"], shots=(5, 20), seeds=1)
    (found,) = crossovers(runs_from(tables)[1], compare, ACCURACY)
    assert found.ahead == []  # one seed shows no method to be ahead


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([1, 1], []),
        ([1, 0, 1], []),
        ([1, 0, -1], [2]),
        ([1, 0, 0, -1], [2]),
        ([0, 1, -1], [8**0.5]),
        ([1, -1, 1], [2**0.5, 8**0.5]),
    ],
)
def test_crossings_at_and_through_zeros(means, expected):
    assert list(_crossings([1.0, 2.0, 4.0, 8.0], means)) == pytest.approx(expected)


def test_stretches_end_where_the_line_meets_zero():
    shots = [1.0, 4.0, 16.0, 64.0]
    assert list(_stretches(shots, [1.0, -1.0, -1.0, 1.0])) == [(1.0, 2.0), (32.0, 64.0)]
    assert list(_stretches(shots, [-1.0, 1.0, 1.0, 0.0])) == [(2.0, 64.0)]
    assert list(_stretches(shots, [0.0, 0.0, -1.0, 0.0])) == []


def test_nobody_is_ahead_where_no_verdict_says_so():
    """At a compared number of shots, whatever the number of methods."""
    generator = np.random.default_rng(5)
    names = ["a", "b", "c", "base"]
    told = 0
    for _ in range(40):
        tables = {
            (name, shots): generator.normal(0.12 * place, 1, (5, 1))
            + generator.normal(0, 1, (5, 60))
            for place, name in enumerate(names)
            for shots in (5, 20)
        }
        values, parts = runs_from(tables)
        compare = compare_of(names, shots=(5, 20), seeds=5)
        verdicts = {
            (row.method, row.shots): row.verdict
            for row in contrasts(values, parts, compare, [ACCURACY], ACCURACY)
        }
        for found in crossovers(parts, compare, ACCURACY):
            for low, high, name in found.ahead:
                for shots in (5, 20):
                    if low <= shots <= high:
                        told += 1
                        verdict = "better" if name == found.method else "worse"
                        assert verdicts[found.method, shots] == verdict
    assert told
