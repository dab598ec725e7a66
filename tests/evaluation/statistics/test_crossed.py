import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.statistics.crossed import Components, components, mean_squares, spread


def slow_mean_squares(table):
    """By the definition, cell by cell."""
    seeds, units = len(table), len(table[0])
    mean = sum(sum(row) for row in table) / (seeds * units)
    of_seed = [sum(row) / units for row in table]
    of_unit = [sum(row[u] for row in table) / seeds for u in range(units)]
    between_seeds = between_units = rest = 0.0
    for s in range(seeds):
        for u in range(units):
            between_seeds += (of_seed[s] - mean) ** 2
            between_units += (of_unit[u] - mean) ** 2
            rest += (table[s][u] - of_seed[s] - of_unit[u] + mean) ** 2
    return (
        between_seeds / (seeds - 1),
        between_units / (units - 1),
        rest / ((seeds - 1) * (units - 1)),
    )


@pytest.mark.parametrize("shape", [(2, 2), (3, 7), (7, 3), (10, 40)])
def test_mean_squares_agree_with_slow_loops(shape):
    table = np.random.default_rng(shape[1]).normal(size=shape) ** 3
    assert mean_squares(table) == pytest.approx(slow_mean_squares(table.tolist()))


def test_a_table_by_hand():
    # grand mean 3.5; of seeds 2, 5; of units 2, 3, 5.5; sums of squares 13.5, 13 and 3
    table = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 8.0]])
    assert mean_squares(table) == pytest.approx((13.5, 6.5, 1.5))
    found = components(table)
    assert (found.seeds, found.units, found.rest) == pytest.approx((4.0, 2.5, 1.5))
    spread_ = spread(table)
    assert spread_.error == pytest.approx((18.5 / 6) ** 0.5)  # (13.5 + 6.5 - 1.5) / (2 3)
    assert spread_.df == 1
    assert spread_.df_of_error == pytest.approx(18.5**2 / (13.5**2 + 6.5**2 / 2 + 1.5**2 / 2))
    expected = found.spread(2, 3)
    assert expected.error == pytest.approx(spread_.error)
    assert expected.df_of_error == pytest.approx(spread_.df_of_error)


def test_components_are_unbiased():
    draw = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        table = 2 * draw.normal(size=(4, 1)) + 3 * draw.normal(size=8) + draw.normal(size=(4, 8))
        one = components(table)
        found.append((one.seeds, one.units, one.rest))
    assert np.mean(found, axis=0) == pytest.approx((4, 9, 1), rel=0.06)


@pytest.mark.parametrize("seeds", [2, 4, 5, 9])
def test_where_units_agree_it_is_student_s_t_over_seeds(seeds):
    of_seed = np.random.default_rng(seeds).normal(size=seeds)
    for table in (np.tile(of_seed[:, None], 20), of_seed[:, None]):
        found = spread(table)
        assert found.error == pytest.approx(stats.sem(of_seed))
        assert found.df == pytest.approx(seeds - 1)


def test_where_seeds_agree_it_is_the_error_over_units():
    of_unit = np.random.default_rng(1).normal(size=30)
    alone, repeated = spread(of_unit[None]), spread(np.tile(of_unit, (6, 1)))
    assert alone.error == pytest.approx(stats.sem(of_unit))
    assert repeated.error == pytest.approx(stats.sem(of_unit))
    assert alone.df == 29
    assert repeated.df_of_error == pytest.approx(29)
    assert repeated.df == pytest.approx(0.75 * 29)


def test_few_seeds_or_few_units_get_the_degrees_of_freedom_of_the_fewest():
    draw = np.random.default_rng(2)
    for shape, df in {(2, 50): 1, (4, 50): 3, (50, 3): 2, (4, 2): 1}.items():
        assert spread(draw.normal(size=shape)).df == df
    for shape, df in {(10, 19): 9, (19, 19): 18, (5, 19): 4}.items():
        table = draw.normal(size=shape) + 3 * draw.normal(size=shape[1])
        assert spread(table).df == df
    table = draw.normal(size=(10, 20)) + 3 * draw.normal(size=20)
    assert spread(table).df == pytest.approx(0.75 * spread(table).df_of_error)
    assert spread(table).df > 9


def test_seeds_of_equal_means_are_still_uncertain():
    # each of three seeds errs on a unit of its own: the means agree, the truth is not known
    table = np.eye(3, 40)
    assert np.ptp(table.mean(axis=1)) == 0
    assert spread(table).error > 0
    # equal means over seeds and over units: what is left counts
    latin = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 0.0], [2.0, 0.0, 1.0]])
    assert spread(latin).error == pytest.approx((slow_mean_squares(latin)[2] / 9) ** 0.5)


def test_what_does_not_vary():
    assert spread(np.array([[1.0]])) is None
    assert components(np.ones((1, 5))) is None
    assert spread(np.zeros((3, 5))).error == 0
    # as if a sixth unit, or a fourth seed where there is one unit, had shown nothing: the
    # standard error of 1, 1, 1, 1, 1, 0, but with the cautious degrees of freedom
    assert spread(np.ones((3, 5))).error == pytest.approx(stats.sem([1] * 5 + [0]))
    assert spread(-np.ones((3, 1))).error == pytest.approx(stats.sem([1] * 3 + [0]))
    assert spread(np.ones((1, 5))).error == pytest.approx(1 / 6)
    assert spread(np.ones((3, 5))).df == 2
    # all errors 0 of what can be 1 is the mirror of all right
    assert spread(np.zeros((3, 5)), top=1.0) == spread(np.ones((3, 5)), top=1.0)
    assert spread(np.zeros((3, 1)), top=1.0) == spread(np.ones((3, 1)))


def test_the_spread_of_other_numbers_of_seeds():
    found = Components(seeds=4.0, units=9.0, rest=1.0)
    assert found.spread(8, 30).error == pytest.approx((4 / 8 + 9 / 30 + 1 / 240) ** 0.5)
    assert found.spread(8, 1).error == pytest.approx((14 / 8) ** 0.5)
    assert (found.spread(8, 1).df, found.spread(3, 30).df) == (7, 2)
