from itertools import combinations

import numpy as np
import pytest
from scipy import special

from pipeline.evaluation.statistics import ALPHA, Comparison, Pair, pairwise
from pipeline.report.page.advice import (
    Gap,
    advise,
    choose,
    gaps,
    judged,
    mean,
    supported_best,
    total,
)
from tests.evaluation.statistics.tables_of_runs import ACCURACY, compare_of, runs_from
from tests.report.fake_runs import fake_params, verification_params, write_runs
from tests.report.fake_runs import write_verification_runs as write_verified
from tests.report.made_reports import made_report

OPEN, SEED = "no difference detected", "too few seeds to tell"
EFFECT = 0.02
COSTS = {"a": 6000.0, "b": 5000.0, "c": 5000.0}


def chosen(means, p=None, images=None, width=0.03, **more):
    """Advice from means, intervals of a half width, and adjusted p of pairs, else 1."""
    found = [
        Pair(one, other, 5, Comparison(d, d - width, d + width, 0.5, 0, 3), (p or {}).get(pair, 1))
        for pair in combinations(means, 2)
        for one, other in [pair]
        for d in [means[one] - means[other]]
    ]
    costs = images or {method: COSTS[method] for method in means}
    lower = more.get("lower_is_better", False)
    return choose(5, means, costs, gaps(found, lower), EFFECT, **more)


MEANS = {"a": 0.90, "b": 0.94, "c": 0.93}


def test_best_is_shown_to_be_better_than_every_other():
    advice = chosen(MEANS, {("a", "b"): 0.01, ("b", "c"): 0.049})
    assert (advice.ground, advice.use, advice.behind, advice.p) == ("best", "b", ("a", "c"), 0.049)
    # what does not differ from a third may still differ from each other
    assert chosen(MEANS, {("a", "b"): 0.01, ("b", "c"): 0.05}).ground == "open"
    assert chosen(MEANS, {("a", "b"): 0.01, ("a", "c"): 0.01}).ground == "open"


def test_contenders_are_those_not_shown_to_be_behind_the_leader():
    advice = chosen(MEANS, {("a", "b"): 0.01})
    assert (advice.ground, advice.use, advice.leaders) == ("open", "b", ("b",))
    assert (advice.contenders, advice.behind, advice.p) == (("b", "c"), ("a",), None)
    assert chosen(MEANS).contenders == ("a", "b", "c")


def test_the_cheapest_is_taken_where_it_is_shown_to_lose_little():
    costs = {"a": 100.0, "b": 200.0, "c": 100.4}
    means = {"a": 0.94, "b": 0.945, "c": 0.93}
    taken = chosen(means, images=costs, width=0.0149)  # b - a is at most 0.0199
    assert (taken.ground, taken.use) == ("cheapest", "a")
    left_open = chosen(means, images=costs, width=0.0151)
    assert (left_open.ground, left_open.use) == ("open", "b")
    # what is behind is not taken, however cheap
    assert chosen(means, {("a", "b"): 0.01}, costs, 0.0149).use == "b"


def test_of_equally_cheap_contenders_the_one_of_the_highest_mean():
    costs = {"a": 100.0, "b": 102.0, "c": 1000.0}  # a and b agree in two digits
    assert chosen({"a": 0.90, "b": 0.91, "c": 0.90}, images=costs, width=0.001).use == "b"


def test_an_unknown_cost_is_no_reason():
    unknown = dict.fromkeys(MEANS)
    assert chosen(MEANS, images=unknown, width=0.001).ground == "open"


def test_equal_means_lead_together_and_the_cheaper_comes_first():
    equal = {"a": 0.9, "b": 0.9, "c": 0.9}
    advice = chosen(equal)
    assert advice.leaders == ("b", "c", "a")  # fewer images, then compare order
    assert advice.use == "b"
    assert advice.level == ("b", "c") and advice.uses == "b or c"  # compare's order says nothing
    near = chosen(equal, images=COSTS, width=0.01)
    assert (near.ground, near.uses) == ("cheapest", "b or c")


def test_where_low_is_good_the_lowest_mean_leads():
    means = {"a": 0.10, "b": 0.06, "c": 0.07}
    advice = chosen(means, {("a", "b"): 0.01, ("b", "c"): 0.01}, lower_is_better=True)
    assert (advice.ground, advice.use) == ("best", "b")
    costs = {"a": 1.0, "b": 2.0, "c": 2.0}
    near = chosen(means, images=costs, width=0.001, lower_is_better=True)
    assert (near.ground, near.use) == ("open", "b")  # a loses 0.04
    means["a"] = 0.075
    near = chosen(means, images=costs, width=0.001, lower_is_better=True)
    assert (near.ground, near.use) == ("cheapest", "a")


def test_an_untrained_control_is_advised_only_where_it_is_shown_to_be_best():
    found = chosen(MEANS, untrained=["b"])
    assert (found.ground, found.use, found.leaders) == ("open", "c", ("b",))
    cheap = chosen(MEANS, images={"a": 9.0, "b": 0.0, "c": 9.0}, width=0.001, untrained=["b"])
    assert (cheap.ground, cheap.use) == ("cheapest", "c")
    shown = {("a", "b"): 0.01, ("b", "c"): 0.01}
    assert chosen(MEANS, shown, untrained=["b"]).ground == "best"
    # one that is alone with the control is not called the cheapest
    assert chosen(MEANS, {("a", "b"): 0.01}, width=0.001, untrained=["c"]).ground == "open"


def test_one_seed_or_one_method_shows_nothing():
    none = dict.fromkeys(combinations(MEANS, 2))
    advice = chosen(MEANS, none)
    assert (advice.ground, advice.use, advice.contenders) == ("untold", "b", ())
    assert chosen({"a": 0.9}).ground == "alone"


def test_gaps_are_of_what_is_better_and_both_ways_round():
    pair = Pair("a", "b", 5, Comparison(0.1, -0.1, 0.3, 0.2, 2, 3), 0.4)
    assert gaps([pair]) == {
        ("a", "b"): Gap(0.1, -0.1, 0.3, 0.4),
        ("b", "a"): Gap(-0.1, -0.3, 0.1, 0.4),
    }
    assert gaps([pair], lower_is_better=True)["b", "a"] == Gap(0.1, -0.1, 0.3, 0.4)


@pytest.mark.parametrize(
    ("verdicts", "best"),
    [
        ({"a": "worse", "b": "worse"}, "ref"),
        ({"a": "better", "b": "worse"}, "a"),
        ({"a": "better", "b": "better"}, None),
        ({"a": "better", "b": OPEN}, None),
        ({"a": OPEN, "b": "worse"}, None),
        ({"a": SEED, "b": SEED}, None),
    ],
)
def test_a_best_needs_verdicts(verdicts, best):
    assert supported_best(["a", "ref", "b"], "ref", verdicts) == best


def test_a_single_method_is_not_the_best():
    assert supported_best(["ref"], "ref", {}) is None


def test_sums_and_means_are_of_what_is_known():
    assert (total([1.0, None, 2.0]), total([None]), total([])) == (3.0, None, None)
    assert (mean([1.0, None, 3.0]), mean([None])) == (2.0, None)


def test_an_untrained_network_is_not_advised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = verification_params(seeds=(0, 1))
    write_verified(params, pairs=240)
    advice = advise(made_report(params), "all")
    assert advice.ground == "open" and "features" in advice.contenders
    assert advice.use == "siamese"


def test_one_seed_has_the_highest_mean_and_no_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = fake_params(shots=(5,), seeds=(0,))
    write_runs(params)
    advice = advise(made_report(params), 5)
    assert (advice.ground, advice.use, advice.contenders) == ("untold", "finetune", ())


# Whether the advice holds what it promises, in simulated comparisons with a fixed generator.

FOUR = ("a", "b", "c", "d")


def answers(draw, skill, seeds, units, of_seed=0.3):
    """Right or wrong by method (S, U); ``skill`` is on the logit scale."""
    of_unit = 1.5 + draw.normal(0, 2, units)
    return {
        (method, 5): draw.random((seeds, units))
        < special.expit(
            of_unit
            + of_method
            + draw.normal(0, of_seed, (seeds, 1))
            + draw.normal(0, 0.5, units)
            + draw.normal(0, 0.5, (seeds, units))
        )
        for method, of_method in skill.items()
    }


def advised(tables, images, seeds):
    values, parts = runs_from(tables)
    compare = compare_of([method for method, _ in tables], seeds=seeds)
    means = {
        method: float(np.mean([values[run][ACCURACY] for run in values if run.method == method]))
        for method in compare.methods
    }
    found = gaps(pairwise(values, parts, compare, ACCURACY))
    return choose(5, means, images, found, compare.smallest_effect)


def most(number, share=ALPHA):
    """A share of simulations, and two of its binomial standard errors."""
    return share + 2 * np.sqrt(share * (1 - share) / number)


@pytest.mark.parametrize("seeds", [3, 5])
def test_without_a_difference_hardly_any_method_is_called_best(seeds):
    draw = np.random.default_rng(seeds)
    costs = dict(zip(FOUR, (1.0, 2.0, 3.0, 4.0), strict=True))
    shown = 0
    for _ in range(300):
        advice = advised(answers(draw, dict.fromkeys(FOUR, 0.0), seeds, 200), costs, seeds)
        shown += bool(advice.behind)  # anything shown at all, best or not
    assert shown / 300 <= most(300)


def test_a_method_that_is_far_ahead_is_mostly_named():
    draw = np.random.default_rng(1)
    skill = dict.fromkeys(FOUR, 0.0) | {"b": 0.7}
    costs = dict.fromkeys(FOUR, 1.0) | {"b": 9.0}
    found = [advised(answers(draw, skill, 5, 400, 0.05), costs, 5) for _ in range(100)]
    large = answers(draw, skill, 100, 10_000)
    assert large["b", 5].mean() - large["a", 5].mean() == pytest.approx(0.08, abs=0.01)
    assert sum(advice.use == "b" for advice in found) >= 98
    assert sum((advice.ground, advice.use) == ("best", "b") for advice in found) >= 67


@pytest.mark.parametrize("costs", [{"cheap": 1.0, "dear": 2.0}, {"cheap": 1.0, "dear": 1.0}])
def test_what_loses_as_much_as_matters_is_hardly_ever_called_cheap_enough(costs):
    draw = np.random.default_rng(2)
    wrong = 0
    for _ in range(400):
        shared = draw.normal(0, 0.3, 200)
        tables = {
            (method, 5): level
            + shared
            + draw.normal(0, 0.01, (5, 1))
            + draw.normal(0, 0.1, (5, 200))
            for method, level in (("cheap", 0.90), ("dear", 0.90 + EFFECT))
        }
        advice = advised(tables, costs, 5)
        wrong += (advice.ground, advice.use) == ("cheapest", "cheap")
    assert wrong / 400 <= most(400)


def test_advice_never_takes_a_verdict_back():
    p_of_pairs = {("ref", "a"): 0.059, ("a", "b"): 0.5, ("ref", "b"): 0.9}
    found = {key: Gap(0.1, 0.0, 0.2, p) for key, p in p_of_pairs.items()}
    p_of = {key: of.p_adjusted for key, of in judged(found, "ref", {"a": 0.039, "b": None}).items()}
    assert p_of == {("ref", "a"): 0.039, ("a", "b"): 0.5, ("ref", "b"): 0.9}
