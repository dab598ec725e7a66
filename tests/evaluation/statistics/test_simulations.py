"""Whether what the statistics promise holds: coverage, wrong verdicts, power.

Every share below is of simulations with a fixed generator. The binomial standard error of a
share of 95 % is 0.31 points for 5,000 of them and 0.49 for 2,000.
"""

from functools import cache

import numpy as np
import pytest
from scipy import special

from pipeline.evaluation.statistics import ALPHA, holm
from pipeline.evaluation.statistics.compare import comparison, interval, p_value, verdict
from pipeline.evaluation.statistics.crossed import Components, _crossed, spread
from pipeline.evaluation.statistics.power import detectable

FEWEST, MOST = 0.93, 0.97
ERROR = 0.007  # twice the binomial standard error of a share of 93 % of 5,000
# variances of seeds and of units, as multiples of what is left in a mean's variance
SHARES = [(0, 1), (0.1, 0.1), (1, 1), (10, 0.1), (10, 10), (0.1, 10)]
# standard deviations on the logit scale: what makes an image hard for both methods, then for one;
# a seed's skill, and luck with single images
BETWEEN_BOTH, UNITS_VARY = (0.3, 1.0, 0.5), (0.02, 1.0, 0.5)
SEEDS_VARY, NOTHING_VARIES = (1.0, 0.3, 0.5), (0.02, 0.02, 0.02)


def drawn_spreads(draw, found, seeds, units, number):
    """Means (number,) and their spreads in a Gaussian model: its mean squares are chi-squared."""
    means = draw.normal(0, found.spread(seeds, units).error, number)
    df = np.array([seeds - 1, units - 1, (seeds - 1) * (units - 1)])
    expected = np.array(
        [units * found.seeds + found.rest, seeds * found.units + found.rest, found.rest]
    )
    squares = draw.chisquare(df, (number, 3)) / df * expected
    return means, [_crossed(*row, seeds, units) for row in squares.tolist()]


def relative(share, seeds, units):
    return Components(share[0] / units, share[1] / seeds, 1.0)


@pytest.mark.parametrize("units", [50, 400, 2000])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_gaussian_intervals_cover(seeds, units):
    draw = np.random.default_rng(seeds * units)
    for share in SHARES:
        found = relative(share, seeds, units)
        means, spreads = drawn_spreads(draw, found, seeds, units, 5000)
        covered = np.mean([low <= 0 <= high for low, high in map(interval, means, spreads)])
        assert covered >= FEWEST, share
        assert covered <= MOST or seeds < 5, share


@pytest.mark.parametrize("units", [5, 10, 19])
@pytest.mark.parametrize("seeds", [2, 5, 10, 20])
def test_few_units_are_covered_too(seeds, units):
    draw = np.random.default_rng(seeds * units)
    for share in SHARES:
        found = relative(share, seeds, units)
        means, spreads = drawn_spreads(draw, found, seeds, units, 5000)
        covered = np.mean([low <= 0 <= high for low, high in map(interval, means, spreads)])
        assert covered >= FEWEST - ERROR, share


def test_the_mean_squares_of_tables_are_those_of_the_shortcut_above():
    draw = np.random.default_rng(0)
    tables = draw.normal(size=(2000, 5, 20)) + draw.normal(0, 0.3, (2000, 5, 1))
    covered = np.mean([low <= 0 <= high for low, high in map(table_interval, tables)])
    means, spreads = drawn_spreads(draw, Components(0.09, 0.0, 1.0), 5, 20, 5000)
    short = np.mean([low <= 0 <= high for low, high in map(interval, means, spreads)])
    assert covered == pytest.approx(short, abs=0.015)  # 2.6 standard errors of the difference


def table_interval(table):
    found = comparison(table.mean(axis=1), table)
    return found.low, found.high


def answers(draw, number, methods, seeds, units, deviations, skill=0.0):
    """Right or wrong (number, methods, S, U); ``skill`` (methods,) on the logit scale."""
    of_seed, of_unit, rest = deviations
    shape = (number, methods, seeds, units)
    logit = 1.0 + draw.normal(0, 2, (number, 1, 1, units))
    logit = logit + np.broadcast_to(skill, methods)[None, :, None, None]
    logit = logit + draw.normal(0, of_seed, (number, methods, seeds, 1))
    logit = logit + draw.normal(0, of_unit, (number, methods, 1, units))
    logit += draw.normal(0, rest, shape)
    return draw.random(shape) < special.expit(logit)


@cache
def true_accuracy(skill, deviations):
    """The mean of expit over its Gaussian logit, by Gauss and Hermite."""
    at, weights = np.polynomial.hermite_e.hermegauss(201)
    deviation = np.sqrt(4 + sum(d**2 for d in deviations))
    return float(weights @ special.expit(1.0 + skill + deviation * at) / weights.sum())


@pytest.mark.parametrize("deviations", [BETWEEN_BOTH, UNITS_VARY, SEEDS_VARY, NOTHING_VARIES])
@pytest.mark.parametrize(
    ("seeds", "units", "number"),
    [(2, 50, 500), (3, 50, 1000), (3, 400, 500), (5, 50, 2000), (5, 400, 1000), (10, 50, 2000)],
)
def test_intervals_of_right_or_wrong_cover(deviations, seeds, units, number):
    draw = np.random.default_rng(seeds + units)
    truth = true_accuracy(0.5, deviations) - true_accuracy(0.0, deviations)
    ours, theirs = np.moveaxis(
        answers(draw, number, 2, seeds, units, deviations, (0.5, 0.0)).astype(float), 1, 0
    )
    covered = np.mean([low <= truth <= high for low, high in map(table_interval, ours - theirs)])
    assert covered >= FEWEST
    assert covered <= MOST or seeds < 5


def test_intervals_of_a_ratio_s_pseudo_values_cover():
    # F1 of one class, 2 TP / (positives + predicted), taken apart by the jackknife
    draw = np.random.default_rng(4)
    number, seeds, units, share = 2000, 5, 100, 0.3
    of_unit = draw.normal(0, 1, (number, 1, units))
    of_seed = draw.normal(0, 0.3, (number, seeds, 1))
    positive = draw.random((number, 1, units)) < share
    logit = np.where(positive, 1.0, -2.0) + of_unit + of_seed
    predicted = draw.random((number, seeds, units)) < special.expit(logit)
    above, below = 2.0 * (positive & predicted), 1.0 * positive + predicted
    whole = above.sum(-1, keepdims=True) / below.sum(-1, keepdims=True)
    without = (above.sum(-1, keepdims=True) - above) / (below.sum(-1, keepdims=True) - below)
    pseudo = units * whole - (units - 1) * without
    pseudo += whole - pseudo.mean(-1, keepdims=True)
    at, weights = np.polynomial.hermite_e.hermegauss(101)
    hit, false = (
        float(weights @ special.expit(base + np.sqrt(1.09) * at) / weights.sum())
        for base in (1.0, -2.0)
    )
    truth = 2 * share * hit / (share + share * hit + (1 - share) * false)
    covered = np.mean([low <= truth <= high for low, high in map(table_interval, pseudo)])
    assert FEWEST <= covered <= MOST


def wilson_high(share, number, z=1.96):
    middle = share + z**2 / (2 * number)
    half = z * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return (middle + half) / (1 + z**2 / number)


@pytest.mark.parametrize("methods", [1, 3])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_without_a_difference_hardly_any_verdict_says_one(seeds, methods):
    draw = np.random.default_rng(10 * seeds + methods)
    each, kinds = 500, (BETWEEN_BOTH, UNITS_VARY, SEEDS_VARY, NOTHING_VARIES)
    wrong = dict.fromkeys(kinds, 0)
    for deviations in kinds:
        for base, *others in answers(draw, each, 1 + methods, seeds, 80, deviations):
            tables = [other.astype(float) - base for other in others]
            found = [comparison(table.mean(axis=1), table) for table in tables]
            adjusted = holm([one.p_value for one in found])
            verdicts = {verdict(one, p, True) for one, p in zip(found, adjusted, strict=True)}
            wrong[deviations] += verdicts != {"no difference detected"}
        # two binomial standard errors of 5 % of 500
        assert wrong[deviations] / each <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / each)
    total = each * len(kinds)
    assert sum(wrong.values()) / total <= ALPHA
    assert wilson_high(sum(wrong.values()) / total, total) < 0.07


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("compared", [1, 4])
def test_planted_differences_are_found_as_often_as_stated(seeds, compared):
    draw = np.random.default_rng(seeds)
    alpha = ALPHA / compared
    for share in SHARES:
        found = relative(share, seeds, 400)
        effect = detectable(found.spread(seeds, 400), alpha)
        means, spreads = drawn_spreads(draw, found, seeds, 400, 3000)
        shown = [
            mean + effect > 0 and p_value(mean + effect, one) < alpha
            for mean, one in zip(means, spreads, strict=True)
        ]
        # 0.8 but for the approximated degrees of freedom, and 0.007 of binomial error
        assert 0.74 <= np.mean(shown) <= 0.87, share


def test_planted_differences_are_found_in_tables_too():
    draw = np.random.default_rng(0)
    deviations = (0.3, 0.2, 0.5)  # of seeds, units and the rest
    found = Components(*(d**2 for d in deviations))
    effect = detectable(found.spread(6, 60), ALPHA)
    shown = 0
    for _ in range(2000):
        table = effect + deviations[0] * draw.normal(size=(6, 1))
        table = table + deviations[1] * draw.normal(size=60)
        table = table + deviations[2] * draw.normal(size=(6, 60))
        shown += p_value(table.mean(), spread(table)) < ALPHA
    assert shown / 2000 == pytest.approx(0.8, abs=0.04)
