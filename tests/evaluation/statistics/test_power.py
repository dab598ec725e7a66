import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.statistics.crossed import Components, Spread
from pipeline.evaluation.statistics.power import detectable, power, seeds_needed


@pytest.mark.parametrize(("df", "alpha"), [(2, 0.05), (4, 0.05), (11.5, 0.01), (1e6, 0.05 / 12)])
def test_power_agrees_with_the_noncentral_t(df, alpha):
    critical = stats.t.isf(alpha / 2, df)
    expected = stats.nct.sf(critical, df, 3.0)
    assert power(0.3, Spread(0.1, df, df), alpha) == pytest.approx(expected, rel=1e-5)


def test_the_power_of_a_known_variance():
    # z test: the power at an effect of 1.96 + 0.84 standard errors is 80 %
    known = Spread(0.1, 1e7, 1e7)
    effect = 0.1 * (stats.norm.isf(0.025) + stats.norm.isf(0.2))
    assert power(effect, known, 0.05) == pytest.approx(0.8, abs=1e-5)
    assert detectable(known, 0.05) == pytest.approx(effect, rel=1e-4)


@pytest.mark.parametrize("df", [1, 2, 4, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 12])
def test_what_is_detectable_has_the_power_stated(df, alpha):
    found = Spread(0.01, df, 2 * df)
    assert power(detectable(found, alpha), found, alpha) == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize("seeds", [0.01, 0.03, 0.1])
def test_seeds_needed_is_the_first_number_that_is_enough(seeds):
    found = Components(seeds**2, 0.1**2, 0.3**2)
    powers = [power(0.05, found.spread(n, 400), 0.025) for n in range(2, 200)]
    assert seeds_needed(found, 400, 0.05, 0.025) == 2 + int(np.argmax(np.array(powers) >= 0.8))


def test_too_few_test_units_cannot_be_made_up_for():
    found = Components(0.001, 0.5**2, 0.1)
    assert seeds_needed(found, 100, 0.02, 0.05) is None
    assert seeds_needed(found, 100_000, 0.02, 0.05) is not None
    assert seeds_needed(Components(1e-9, 0, 0), 1, 0.02, 0.05) == 2
