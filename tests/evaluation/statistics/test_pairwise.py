from itertools import combinations

import numpy as np
import pytest

from pipeline.evaluation.statistics import contrasts, holm, pairwise
from pipeline.evaluation.statistics.compare import comparison
from tests.evaluation.statistics.tables_of_runs import ACCURACY, compare_of, runs_from

METHODS = ["one", "two", "three", "base"]


def drawn(methods, shots, seeds=4, units=50):
    draw = np.random.default_rng(0)
    return {
        (method, number): draw.random((seeds, units)) < draw.uniform(0.4, 0.9)
        for number in shots
        for method in methods
    }


def test_all_pairs_by_shots_and_in_compare_order_adjusted_for_one_another():
    shots = (5, "all")
    tables = drawn(METHODS, shots)
    pairs = pairwise(*runs_from(tables), compare_of(METHODS, shots, seeds=4), ACCURACY)
    assert [(p.shots, p.method, p.other) for p in pairs] == [
        (number, *pair) for number in shots for pair in combinations(METHODS, 2)
    ]
    for pair in pairs:
        table = tables[pair.method, pair.shots].astype(float) - tables[pair.other, pair.shots]
        alone = comparison(table.mean(axis=1), table)
        found = pair.comparison
        assert found.difference == pytest.approx(table.mean())
        assert (found.low, found.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
        assert found.p_value == pytest.approx(alone.p_value)
        assert (found.wins, found.n, found.population) == (alone.wins, 4, "both")
        family = [p for p in pairs if p.shots == pair.shots]
        adjusted = holm([p.comparison.p_value for p in family])
        assert pair.p_adjusted == adjusted[family.index(pair)]


def test_pairs_with_the_reference_agree_with_its_contrasts():
    values, parts = runs_from(drawn(METHODS, (5,)))
    for run in values:  # a metric without contributions, that is to be low
        values[run]["test/eer"] = 0.1 + 0.01 * ((7 * run.seed + len(run.method)) % 5)
    compare = compare_of(METHODS, seeds=4)
    for metric in (ACCURACY, "test/eer"):
        rows = contrasts(values, parts, compare, [metric], metric)
        pairs = pairwise(values, parts, compare, metric)
        of = {pair.method: pair.comparison for pair in pairs if pair.other == "base"}
        assert len(rows) == len(of) == 3
        for row in rows:
            expected, found = row.comparison, of[row.method]
            for name in ("difference", "low", "high", "p_value", "wins", "population"):
                assert getattr(found, name) == getattr(expected, name)


def test_one_seed_has_no_p_value_and_one_method_no_pair():
    tables = drawn(METHODS, (5,), seeds=1)
    pairs = pairwise(*runs_from(tables), compare_of(METHODS, seeds=1), ACCURACY)
    assert {pair.p_adjusted for pair in pairs} == {None}
    assert all(pair.comparison.low < pair.comparison.high for pair in pairs)
    assert (
        pairwise(*runs_from(drawn(["base"], (5,))), compare_of(["base"], seeds=4), ACCURACY) == []
    )
