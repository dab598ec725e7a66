import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.statistics.sign_flip import sign_flip


@pytest.mark.parametrize("seeds", [6, 7, 10])
def test_agrees_with_scipy_s_exact_test(seeds):
    differences = np.random.default_rng(seeds).normal(0.7, 1, size=seeds)
    oracle = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(differences) == pytest.approx(oracle.pvalue)


def test_by_hand():
    assert sign_flip(np.ones(5)) is None
    assert sign_flip(np.ones(6)) == 2 / 64  # all plus, all minus
    assert sign_flip(np.zeros(6)) == 1
    # +++++- and its like: 1 + 6 assignments on either side reach a sum of 4
    assert sign_flip(np.array([1.0, 1, 1, 1, 1, -1])) == 14 / 64


def test_ties_are_found_in_spite_of_rounding():
    differences = np.array([0.1, 0.2, 0.3, -0.3, -0.1, 0.1])
    assert sign_flip(differences) == sign_flip(np.round(differences * 10))


def test_many_seeds_by_fixed_random_signs():
    differences = np.random.default_rng(0).normal(0.5, 1, size=20)
    found = sign_flip(differences)
    assert found == sign_flip(differences)
    signs = np.array(np.meshgrid(*[[1, -1]] * 10)).reshape(10, -1).T
    left, right = signs @ differences[:10], signs @ differences[10:]
    exact = np.mean(np.abs(left[:, None] + right) >= abs(differences.sum()) - 1e-12)
    # the binomial standard error of 65,536 draws at p = 0.01 is 0.0004
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 65536))
    assert found > 0
