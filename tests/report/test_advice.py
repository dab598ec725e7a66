import pytest

from pipeline.report.page.advice import (
    Price,
    advise,
    cheapest,
    contenders,
    mean,
    supported_best,
    total,
)
from tests.report.fake_runs import fake_params, verification_params, write_runs
from tests.report.fake_runs import write_verification_runs as write_verified
from tests.report.made_reports import made_report

OPEN, SEED = "no difference detected", "too few seeds to tell"


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


@pytest.mark.parametrize(
    ("verdicts", "found"),
    [
        ({"a": "worse", "b": "worse"}, ("best", ("ref",))),
        ({"a": OPEN, "b": "worse"}, ("open", ("a", "ref"))),
        ({"a": OPEN, "b": OPEN}, ("open", ("a", "ref", "b"))),
        ({"a": OPEN, "b": "better"}, ("better", ("b",))),
        ({"a": "worse", "b": "better"}, ("best", ("b",))),
        ({"a": "better", "b": "better"}, ("several", ("a", "b"))),
    ],
)
def test_contenders_are_those_of_which_none_is_behind(verdicts, found):
    assert contenders(["a", "ref", "b"], "ref", verdicts) == found


def test_the_cheapest_by_images_and_of_those_about_level_by_seconds():
    assert cheapest({"a": Price(6000, 1.0), "b": Price(5000, 9.0)}) == "b"
    assert cheapest({"a": Price(6010, 2.0), "b": Price(6040, 1.0)}) == "b"
    assert cheapest({"a": Price(None, 1.0), "b": Price(9e9, None)}) == "b"


def test_sums_and_means_are_of_what_is_known():
    assert (total([1.0, None, 2.0]), total([None]), total([])) == (3.0, None, None)
    assert (mean([1.0, None, 3.0]), mean([None])) == (2.0, None)


def test_an_untrained_network_is_not_advised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = verification_params(seeds=(0, 1))
    write_verified(params, pairs=240)
    report = made_report(params)
    advice = advise(report, "all")
    assert advice.ground == "open" and "features" in advice.among
    assert advice.use == "siamese"  # one phase instead of two


def test_one_seed_has_the_highest_mean_and_no_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = fake_params(shots=(5,), seeds=(0,))
    write_runs(params)
    advice = advise(made_report(params), 5)
    assert (advice.ground, advice.use, advice.among) == ("untold", "finetune", ())
