import numpy as np
import pytest

from pipeline.evaluation.statistics import holm


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
