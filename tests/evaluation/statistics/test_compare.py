import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from pipeline.evaluation.metrics import HEADLINE
from pipeline.evaluation.statistics import (
    LOWER_IS_BETTER,
    Comparison,
    Contribution,
    contrasts,
    estimates,
    holm,
    pairwise,
    variances,
)
from pipeline.evaluation.statistics.compare import comparison, estimate, verdict
from pipeline.evaluation.statistics.crossed import Components, spread
from pipeline.evaluation.statistics.power import seeds_needed
from pipeline.evaluation.statistics.tables import difference
from pipeline.records import RunId
from tests.evaluation.statistics.tables_of_runs import ACCURACY, compare_of, runs_from

CELLS = st.floats(-1, 1, allow_subnormal=False).map(lambda x: round(x, 3))
TABLES = st.tuples(st.integers(2, 6), st.integers(2, 8)).flatmap(
    lambda shape: arrays(float, shape, elements=CELLS)
)


def drawn(methods, shots=(5,), seeds=3, units=40, seed=0):
    draw = np.random.default_rng(seed)
    return {
        (method, number): draw.random((seeds, units)) < draw.uniform(0.4, 0.9)
        for method in methods
        for number in shots
    }


def test_interval_of_a_worked_example():
    # mean 2, s = 1, n = 3; the 97.5 % point of t with 2 degrees of freedom is 4.302653
    found = estimate(np.array([1.0, 2.0, 3.0]))
    assert (found.mean, found.n, found.population) == (2.0, 3, "seeds")
    assert found.low == 0  # 2 - 4.302653 / sqrt(3), and no metric is below 0
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_without_contributions_it_is_the_paired_t_test(seed):
    draw = np.random.default_rng(seed)
    ours, theirs = draw.normal(size=6), draw.normal(size=6)
    found, oracle = comparison(difference(ours, theirs)), stats.ttest_rel(ours, theirs)
    assert found.p_value == pytest.approx(oracle.pvalue)
    expected = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.difference == pytest.approx(np.mean(ours - theirs))
    assert found.wins == sum(a > b for a, b in zip(ours, theirs, strict=True))
    assert (found.population, found.df, found.n) == ("seeds", 5, 6)


def test_with_contributions_it_is_the_crossed_model():
    draw = np.random.default_rng(0)
    table = draw.normal(0.1, 1, (8, 30)) + draw.normal(size=(8, 1)) + draw.normal(size=30)
    found, model = comparison(table.mean(axis=1), table), spread(table)
    t = table.mean() / model.error
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), model.df))
    low, high = stats.t.interval(0.95, model.df, loc=table.mean(), scale=model.error)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.population, found.error, found.df) == ("both", model.error, model.df)


def test_wins_are_strict_and_follow_the_metric_s_direction():
    differences = np.array([0.0, 0.1, -0.1, -0.2])
    assert comparison(differences, higher_is_better=True).wins == 1
    assert comparison(differences, higher_is_better=False).wins == 2


def test_runs_that_do_not_differ():
    found = comparison(np.zeros(3), np.zeros((3, 10)), smallest_effect=0.02)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert (found.error, found.wins) == (0, 0)
    assert found.detectable is None and found.seeds_needed is None


def test_three_seeds_that_agree_prove_nothing():
    # formerly t was infinite, and p was 0
    alone = comparison(np.full(3, 0.1))
    assert alone.low < 0 < alone.high
    assert alone.p_value > 0.05
    # one unit in ten is gained by every seed, each time another one
    table = np.eye(3, 10)
    with_units = comparison(table.mean(axis=1), table)
    assert with_units.low < 0 < with_units.high
    assert with_units.p_value > 0.05


def test_all_units_of_all_seeds_differing_alike_is_a_difference():
    found = comparison(np.ones(3), np.ones((3, 400)))
    assert 0.98 < found.low < 1 < found.high < 1.02
    assert 0 < found.p_value < 0.001


def test_differences_but_for_rounding_are_none():
    assert difference(np.array([0.1 + 0.2, 0.3]), np.array([0.3, 0.3])).tolist() == [0, 0]
    # 0.9 - 0.8, 0.8 - 0.7 and 0.4 - 0.3 differ in their last bits only
    same = difference(np.array([0.9, 0.8, 0.4]), np.array([0.8, 0.7, 0.3]))
    assert np.ptp(same) == 0
    table = np.random.default_rng(0).random((3, 50))
    assert not difference(table, table + 1e-16).any()
    assert difference(table, table + 1e-6).all()


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) cannot be paired with \(1,\)"):
        difference(np.ones(2), np.ones(1))
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(np.ones(0), np.ones(0))
    compare = compare_of(["other", "base"], seeds=2)
    values, contributions = runs_from(drawn(["other", "base"], seeds=2))
    contributions[RunId("other", 5, 1)] = {ACCURACY: Contribution(np.ones(39), "image")}
    with pytest.raises(ValueError, match="test/accuracy of other at 5 shots: units differ"):
        contrasts(values, contributions, compare, [ACCURACY], ACCURACY)


@pytest.mark.parametrize("where", ["values", "contributions"])
def test_nan_is_refused(where):
    # formerly max(p, nan) of Holm's adjustment made every p-value 1
    compare = compare_of(["other", "base"])
    values, contributions = runs_from(drawn(["other", "base"]))
    run = RunId("other", 5, 1)
    if where == "values":
        values[run][ACCURACY] = np.nan
    else:
        contributions[run][ACCURACY].values[3] = np.nan
    said = "test/accuracy of other at 5 shots: NaN among the values"
    with pytest.raises(ValueError, match=said):
        contrasts(values, contributions, compare, [ACCURACY], ACCURACY)
    with pytest.raises(ValueError, match=said):
        pairwise(values, contributions, compare, ACCURACY)
    with pytest.raises(ValueError, match=said):
        estimates(values, contributions, compare, [ACCURACY])


def test_one_seed_speaks_of_units_and_gives_no_verdict():
    tables = drawn(["other", "base"], seeds=1)
    compare = compare_of(["other", "base"], seeds=1)
    values, contributions = runs_from(tables)
    (row,) = contrasts(values, contributions, compare, [ACCURACY], ACCURACY)
    found = row.comparison
    gained = tables["other", 5][0].astype(float) - tables["base", 5][0]
    low, high = stats.t.interval(0.95, 39, loc=gained.mean(), scale=stats.sem(gained))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.population, found.p_value, row.p_adjusted) == ("units", None, None)
    assert (found.detectable, found.seeds_needed) == (None, None)
    assert row.verdict == "too few seeds to tell"
    of_base = estimates(values, contributions, compare, [ACCURACY])["base"]["5"][ACCURACY]
    right = tables["base", 5][0].astype(float)
    half = stats.t.isf(0.025, 39) * stats.sem(right)
    assert of_base.low == pytest.approx(right.mean() - half)
    assert of_base.population == "units"


def test_one_seed_without_contributions_has_a_difference_and_nothing_more():
    found = comparison(np.array([0.25]))
    assert found == Comparison(0.25, None, None, None, 1, 1)
    assert verdict(found, None, True) == "too few seeds to tell"
    assert (estimate(np.array([0.3])).low, estimate(np.array([0.3])).population) == (None, "none")


def test_no_estimate_reaches_beyond_what_a_metric_can_be():
    tables = {("base", 5): np.array([[1, 1, 1, 1, 0.0], [1, 1, 1, 1, 1]])}
    compare = compare_of(["base"], seeds=2)
    for metric, top in {ACCURACY: 1.0, "test/nll": np.inf}.items():
        values, contributions = runs_from(tables, metric)
        found = estimates(values, contributions, compare, [metric])["base"]["5"][metric]
        assert found.mean == pytest.approx(0.9)
        assert found.low == 0
        assert found.high == (1.0 if top == 1.0 else pytest.approx(0.9 + 12.706 * 0.1, abs=1e-3))


@pytest.mark.parametrize(
    ("mean", "p", "higher", "expected"),
    [
        (0.1, 0.01, True, "better"),
        (0.1, 0.01, False, "worse"),
        (-0.1, 0.01, True, "worse"),
        (-0.1, 0.01, False, "better"),
        (0.1, 0.05, True, "no difference detected"),
        (0.0, 1.0, True, "no difference detected"),
    ],
)
def test_verdict(mean, p, higher, expected):
    assert verdict(Comparison(mean, 0.0, 0.0, p, 0, 3), p, higher) == expected


def test_contrasts_are_in_order_and_adjusted_within_shots_and_metric():
    methods, shots = ["one", "two", "three", "base"], (5, "all")
    compare = compare_of(methods, shots, seeds=6)
    values, contributions = runs_from(drawn(methods, shots, seeds=6))
    for run in values:  # a metric that has values alone
        values[run]["test/eer"] = 0.1 + 0.01 * ((7 * run.seed + len(run.method)) % 5)
    metrics = [ACCURACY, "test/eer"]
    rows = contrasts(values, contributions, compare, metrics, ACCURACY)
    assert [(r.method, r.shots, r.metric) for r in rows] == [
        (method, number, metric)
        for method in methods[:-1]
        for number in shots
        for metric in metrics
    ]
    for row in rows:
        family = [r for r in rows if (r.shots, r.metric) == (row.shots, row.metric)]
        adjusted = holm([r.comparison.p_value for r in family])
        assert row.p_adjusted == adjusted[family.index(row)]
        assert row.comparison.population == ("both" if row.metric == ACCURACY else "seeds")
        assert row.comparison.sign_flip_p is not None
        if row.metric != ACCURACY:
            assert row.comparison.seeds_needed is None


def test_the_power_is_that_of_the_strictest_step_of_holm_s_adjustment():
    methods = ["one", "two", "three", "base"]
    tables = drawn(methods, seeds=4, units=200)
    values, contributions = runs_from(tables)
    compare = compare_of(methods, seeds=4, smallest_effect=0.1)
    row, *_ = contrasts(values, contributions, compare, [ACCURACY], ACCURACY)
    differences = tables["one", 5].astype(float) - tables["base", 5]
    found = comparison(differences.mean(axis=1), differences, compared=3)
    alone = comparison(differences.mean(axis=1), differences)
    assert row.comparison.detectable == found.detectable > alone.detectable
    # oracle: the components by their definition from slow variances
    seeds, units = differences.shape
    left = (
        differences
        - differences.mean(axis=1)[:, None]
        - differences.mean(axis=0)
        + differences.mean()
    )
    rest = (left**2).sum() / ((seeds - 1) * (units - 1))
    of_seeds = max(0, differences.mean(axis=1).var(ddof=1) - rest / units)
    of_units = max(0, differences.mean(axis=0).var(ddof=1) - rest / seeds)
    expected = seeds_needed(Components(of_seeds, of_units, rest), units, 0.1, 0.05 / 3)
    assert row.comparison.seeds_needed == expected is not None


def test_variances_say_what_more_seeds_would_take_away():
    methods = ["other", "base"]
    draw = np.random.default_rng(0)
    of_unit = draw.normal(0, 0.3, 500)
    tables = {
        (method, 5): 0.5 + of_unit + draw.normal(0, 0.2, (40, 1)) + draw.normal(0, 0.1, (40, 500))
        for method in methods
    }
    compare = compare_of(methods, seeds=40)
    rows = variances(runs_from(tables)[1], compare, [ACCURACY, "test/eer"])
    assert [(r.method, r.metric, r.of, r.unit) for r in rows] == [
        ("other", ACCURACY, "value", "image"),
        ("other", ACCURACY, "difference", "image"),
        ("base", ACCURACY, "value", "image"),
    ]
    value, gained, _ = rows
    assert (value.seeds, value.units, value.rest) == (
        pytest.approx(0.2, rel=0.3),
        pytest.approx(0.3, rel=0.1),
        pytest.approx(0.1, rel=0.02),
    )
    # shared units cancel in the difference, seeds and the rest count twice
    assert gained.seeds == pytest.approx(0.2 * 2**0.5, rel=0.3)
    assert gained.rest == pytest.approx(0.1 * 2**0.5, rel=0.02)
    assert gained.units < 0.02
    by_seeds = value.seeds**2 / 40 + value.rest**2 / 20_000
    assert value.share_of_seeds == pytest.approx(by_seeds / (by_seeds + value.units**2 / 500))
    assert value.share_of_seeds < 0.96 < gained.share_of_seeds


def test_no_variance_is_told_apart_with_one_seed_and_none_where_nothing_differs():
    methods = ["other", "base"]
    compare = compare_of(methods, seeds=1)
    assert variances(runs_from(drawn(methods, seeds=1))[1], compare, [ACCURACY]) == []
    tables = drawn(["base"])
    tables["other", 5] = tables["base", 5]
    gained = variances(runs_from(tables)[1], compare_of(methods), [ACCURACY])[1]
    assert (gained.of, gained.seeds, gained.units, gained.rest) == ("difference", 0, 0, 0)
    assert gained.share_of_seeds == 0


def test_estimates_have_every_method_shots_and_metric():
    methods, shots = ["other", "base"], (5, "all")
    values, contributions = runs_from(drawn(methods, shots))
    found = estimates(values, contributions, compare_of(methods, shots), [ACCURACY])
    assert [(m, s) for m in found for s in found[m]] == [
        ("other", "5"), ("other", "all"), ("base", "5"), ("base", "all")
    ]  # fmt: skip
    for method in methods:
        for number in shots:
            of_seeds = [values[RunId(method, number, seed)][ACCURACY] for seed in range(3)]
            one = found[method][str(number)][ACCURACY]
            assert one.mean == pytest.approx(np.mean(of_seeds))
            assert one.low < one.mean < one.high
            assert (one.n, one.population) == (3, "both")


def test_the_reference_alone_has_no_contrasts_and_every_metric_has_a_direction():
    values, contributions = runs_from(drawn(["base"]))
    assert contrasts(values, contributions, compare_of(["base"]), [ACCURACY], ACCURACY) == []
    assert set(HEADLINE) - LOWER_IS_BETTER == {"test/accuracy", "test/macro_f1"}


def judged(table):
    return comparison(table.mean(axis=1), table, smallest_effect=0.1)


def numbers(found):
    return [
        number
        for number in (found.difference, found.low, found.high, found.p_value, found.detectable)
        if number is not None
    ]


@settings(deadline=None, max_examples=50)
@given(TABLES, st.floats(-2, 2), st.randoms(use_true_random=False))
def test_what_both_methods_share_cancels(table, shift, random):
    theirs = np.random.default_rng(random.getrandbits(32)).normal(size=table.shape)
    ours = table + theirs
    once = judged(difference(ours, theirs))
    again = judged(difference(ours + shift, theirs + shift))
    assert numbers(once) == pytest.approx(numbers(again), abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(TABLES)
def test_swapping_method_and_reference_flips_signs(table):
    theirs = np.random.default_rng(0).integers(0, 2, table.shape).astype(float)
    one, other = (judged(difference(a, b)) for a, b in ((table, theirs), (theirs, table)))
    assert one.difference == pytest.approx(-other.difference)
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert (one.p_value, one.df) == (pytest.approx(other.p_value), pytest.approx(other.df))
    assert one.detectable == pytest.approx(other.detectable)
    assert one.seeds_needed == other.seeds_needed


@settings(deadline=None, max_examples=50)
@given(TABLES, st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_of_units_changes_nothing(table, random):
    draw = np.random.default_rng(random.getrandbits(32))
    mixed = draw.permutation(draw.permutation(table, axis=0), axis=1)
    assert numbers(judged(table)) == pytest.approx(numbers(judged(mixed)), abs=1e-9)
