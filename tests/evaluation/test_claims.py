from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from pipeline.evaluation import claims
from pipeline.evaluation.claims import Stretch, gradient_imbalance, rows, shared_stretch
from pipeline.evaluation.collect import collect
from pipeline.evaluation.diagnosis import ACCURACY_GAP, PROBE_VAL, SEPARABLE
from pipeline.evaluation.statistics.results import Comparison, Contrast
from pipeline.records import RunId, read_json, write_json
from pipeline.tasks import scores
from tests.report.fake_runs import fake_params, verification_params, write_runs
from tests.report.fake_runs import write_verification_runs as write_verified

ACCURACY = "test/accuracy"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evidence_of(params):
    return collect(params.compare, scores.BY_TASK[params.task].read)


def set_value(run, name, value):
    content = read_json(run.diagnosis)
    write_json(run.diagnosis, content | {"values": content["values"] | {name: value}})


def set_values(params, metric, ours, theirs):
    """A metric of the breakdown's and the reference's runs, seed by seed, at the first shots."""
    for method, values in (("breakdown", ours), ("finetune", theirs)):
        for seed, value in zip(params.compare.seeds, values, strict=True):
            set_value(RunId(method, params.compare.shots[0], seed), metric, value)


def claims_of(params, contrasts=()):
    return rows(evidence_of(params), params.compare, contrasts)


def norms(*rows):
    return pd.DataFrame(rows, columns=["phase", "epoch", "layer", "norm"])


def test_imbalance_is_the_mean_distance_from_balance_over_epochs():
    found = norms(
        ("encoder", 1, "a", 0.01), ("encoder", 1, "b", 7.0), ("encoder", 1, "c", 1.0),
        ("encoder", 2, "a", 10.0), ("encoder", 2, "b", 7.0), ("encoder", 2, "c", 1.0),
        ("head", 1, "c", 1.0), ("head", 1, "d", 1e9),
    )  # fmt: skip
    assert gradient_imbalance(found) == pytest.approx((2 + 1) / 2)


def test_imbalance_against_a_slow_count(here):
    params = fake_params(shots=(5,), seeds=(0,))
    write_runs(params)
    for run in evidence_of(params).runs:
        by_epoch = {}
        for row in run.gradients.itertuples():
            if not row.phase.startswith("head"):
                by_epoch.setdefault((row.phase, row.epoch), []).append(row.norm)
        expected = np.mean([abs(np.log10(of[0] / of[-1])) for of in by_epoch.values()])
        assert gradient_imbalance(run.gradients) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("first", "last", "orders"),
    [(0.0, 1.0, 12.0), (1.0, 0.0, 12.0), (1e-20, 1.0, 12.0), (0.0, 0.0, None),
     (float("inf"), 1.0, None), (float("nan"), 1.0, None), (1.0, 1.0, 0.0)],
)  # fmt: skip
def test_a_gradient_that_is_gone_is_twelve_orders_smaller(first, last, orders):
    assert gradient_imbalance(norms(("e", 1, "a", first), ("e", 1, "b", last))) == orders


def test_one_layer_alone_has_no_balance():
    assert gradient_imbalance(norms(("end_to_end", 1, "a", 1.0))) is None
    assert gradient_imbalance(norms()) is None
    assert gradient_imbalance(norms(("e", 1, "a", 1.0)), Stretch("a", "b")) is None


def test_imbalance_between_two_layers_counts_the_epochs_that_train_both():
    found = norms(
        ("round_1", 1, "c", 1e9), ("round_1", 1, "d", 1.0),
        ("round_2", 1, "a", 0.01), ("round_2", 1, "b", 7.0), ("round_2", 1, "c", 1.0),
        ("round_2", 1, "d", 1e5),
        ("head", 1, "a", 1e9), ("head", 1, "c", 1.0),
    )  # fmt: skip
    assert gradient_imbalance(found, Stretch("a", "c")) == pytest.approx(2)
    assert gradient_imbalance(found, Stretch("c", "d")) == pytest.approx((9 + 5) / 2)


def phases(**layers):
    """A gradients table of one epoch a phase; layers are single letters."""
    return norms(*((phase, 1, of, 1.0) for phase, found in layers.items() for of in found))


@pytest.mark.parametrize(
    ("ours", "theirs", "ends"),
    [
        ({"encoder": "abc", "head": "d"}, {"end_to_end": "abcd"}, "ac"),
        ({"encoder_1": "ab", "encoder_2": "cde"}, {"end_to_end": "abcdef"}, "ce"),
        ({"encoder_1": "ab", "encoder_2": "cd"}, {"end_to_end": "abcd"}, "ab"),  # of equals
        ({"encoder": "abc", "release": "abcd"}, {"end_to_end": "abcd"}, "ac"),  # encoders first
        ({"encoder": "a", "release": "abcd"}, {"end_to_end": "abcd"}, "ad"),
        ({"encoder": "abc"}, {"round_1": "d", "round_2": "cd", "round_3": "bcd"}, "bc"),
        ({"encoder": "ab"}, {"end_to_end": "cd"}, None),
        ({"encoder": "abc"}, {"head": "abc"}, None),
        ({"encoder": "abc"}, {"end_to_end": "cd"}, None),
        ({"encoder": "abc"}, {}, None),
        ({}, {}, None),
    ],
)
def test_layers_that_both_methods_train_together(ours, theirs, ends):
    expected = None if ends is None else Stretch(*ends)
    assert shared_stretch(phases(**ours), phases(**theirs)) == expected


def test_layers_of_verification_have_the_names_of_the_plain_network():
    theirs = norms(*(("end_to_end", 1, f"encoder.{of}", 1.0) for of in "abc"))
    assert shared_stretch(phases(encoder="abc"), theirs) == Stretch("a", "c")


def test_gradients_are_compared_between_the_same_layers(here):
    params = fake_params(shots=(5,), seeds=(0, 1))
    write_runs(params)
    evidence = evidence_of(params)
    expected = {}
    for run in evidence.runs:
        by_epoch = {}
        for row in run.gradients.itertuples():
            if not row.phase.startswith("head"):
                by_epoch.setdefault((row.phase, row.epoch), {})[row.layer] = row.norm
        orders = [abs(np.log10(of["features.0"] / of["embedding"])) for of in by_epoch.values()]
        expected.setdefault(run.id.method, []).append(np.mean(orders))
    found = next(c for c in rows(evidence, params.compare, []) if c.claim == "gradients")
    assert found.note == "features.0 and embedding"  # fine-tuning trains the classifier as well
    assert found.value == pytest.approx(np.mean(expected["breakdown"]))
    assert found.reference == pytest.approx(np.mean(expected["finetune"]))
    assert found.difference == pytest.approx(found.value - found.reference)


def test_gradients_without_shared_layers_are_shown_but_decide_nothing(here):
    params = fake_params(shots=(5,), seeds=(0, 1))
    write_runs(params)
    for seed in (0, 1):
        path = RunId("finetune", 5, seed).gradients
        rest = pd.read_csv(path).query("layer in ('embedding', 'classifier')")
        rest.to_csv(path, index=False)
    found = next(c for c in claims_of(params) if c.claim == "gradients")
    assert found.verdict == "not measured" and found.note.startswith("no two layers that both")
    assert found.value > 0 and found.reference > 0
    assert found.difference is found.low is found.high is None


def test_a_reference_that_trains_no_layer_has_no_gradients(here):
    params = fake_params(shots=(5,), seeds=(0, 1))
    write_runs(params)
    for seed in (0, 1):
        RunId("finetune", 5, seed).gradients.write_text("phase,epoch,layer,norm\n")
    found = next(c for c in claims_of(params) if c.claim == "gradients")
    assert found.verdict == "not measured" and found.reference is None and found.value > 0


def test_the_interval_is_that_of_a_paired_t_test(here):
    params = fake_params(shots=(5,), seeds=range(6))
    write_runs(params)
    ours, theirs = np.random.default_rng(0).normal(size=(2, 6))
    set_values(params, ACCURACY_GAP, ours.tolist(), theirs.tolist())
    found = next(c for c in claims_of(params) if c.measure == ACCURACY_GAP)
    expected = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.difference == pytest.approx(np.mean(ours) - np.mean(theirs))


@pytest.mark.parametrize(
    ("ours", "theirs", "decides", "verdict"),
    [
        ((0.90, 0.91, 0.92), (0.8, 0.8, 0.8), SEPARABLE, "held"),
        ((0.80, 0.81, 0.82), (0.9, 0.9, 0.9), SEPARABLE, "did not hold"),
        ((0.9, 0.8, 0.8), (0.8, 0.9, 0.8), SEPARABLE, "undecided"),  # they differ, if not in mean
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), PROBE_VAL, "undecided"),
        ((None, None, None), (0.8, 0.8, 0.8), PROBE_VAL, "not measured"),
    ],
)
def test_separable_pairs_decide_where_they_differ_else_the_probe(
    here, ours, theirs, decides, verdict
):
    params = fake_params(shots=(5,), seeds=range(3))
    write_runs(params)
    set_values(params, SEPARABLE, ours, theirs)
    set_values(params, PROBE_VAL, (0.10, 0.11, 0.12), (0.5, 0.5, 0.5))
    first, second = (c for c in claims_of(params) if c.claim == "separable")
    assert {first.measure, second.measure} == {SEPARABLE, PROBE_VAL}
    assert first.measure == decides and first.decides and not second.decides
    found = {c.measure: c.verdict for c in (first, second)}
    assert found == {SEPARABLE: verdict, PROBE_VAL: "did not hold"}


def contrast(verdict):
    return Contrast(
        "breakdown", 5, ACCURACY, Comparison(0.1, 0.05, 0.15, 0.01, 3, 3), 0.02, verdict
    )


def test_claims_about_every_breakdown_but_the_reference(here):
    params = fake_params(breakdowns=("breakdown", "two_latents"), seeds=(0, 1))
    write_runs(params)
    found = rows(evidence_of(params), params.compare, [])
    assert {(c.method, c.shots) for c in found} == {
        (method, shots) for method in ("breakdown", "two_latents") for shots in (5, 20)
    }
    assert [c.claim for c in found[:6]] == [
        *("separable", "separable", "gradients", "overfitting", "overfitting", "cheaper"),
    ]
    compare = params.compare.model_copy(update={"reference": "breakdown"})
    assert {c.method for c in rows(evidence_of(params), compare, [])} == {"two_latents"}
    assert [c.decides for c in found[:6]] == [True, False, True, True, False, True]


@pytest.mark.parametrize(
    ("metric", "differences", "verdict"),
    [
        (PROBE_VAL, (0.10, 0.11, 0.12), "held"),
        (PROBE_VAL, (-0.10, -0.11, -0.12), "did not hold"),
        (PROBE_VAL, (-0.10, 0.20, 0.12), "undecided"),
        (PROBE_VAL, (0.1, 0.1, 0.1), "undecided"),  # no spread decides nothing
        (PROBE_VAL, (0.0, 0.0, 0.0), "undecided"),
        (PROBE_VAL, (0.1,), "undecided"),
        (ACCURACY_GAP, (-0.10, -0.11, -0.12), "held"),  # less is better
        (ACCURACY_GAP, (0.10, 0.11, 0.12), "did not hold"),
        (PROBE_VAL, (0.1, None, 0.12), "not measured"),
    ],
)
def test_a_claim_holds_where_the_interval_leaves_out_zero(here, metric, differences, verdict):
    params = fake_params(shots=(5,), seeds=range(len(differences)))
    write_runs(params)
    for seed, difference in enumerate(differences):
        value = None if difference is None else 0.5 + difference
        set_value(RunId("breakdown", 5, seed), metric, value)
        set_value(RunId("finetune", 5, seed), metric, 0.5)
    found = next(c for c in rows(evidence_of(params), params.compare, []) if c.measure == metric)
    assert found.verdict == verdict and found.n == len(differences)
    if verdict != "not measured":
        assert found.reference == 0.5
        assert found.difference == pytest.approx(np.mean(differences))
        assert (found.low is None) == (len(differences) == 1)
    else:
        assert found.value is None and found.low is None and found.reference == 0.5


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("better", "held"), ("worse", "did not hold"), ("no difference detected", "undecided"),
     ("too few seeds to tell", "undecided")],
)  # fmt: skip
def test_trains_better_is_the_verdict_on_the_primary_metric(here, verdict, said):
    params = fake_params(shots=(5,), seeds=(0, 1))
    write_runs(params)
    evidence = evidence_of(params)
    other = replace(contrast("better"), metric="test/nll")
    found = [
        c for c in rows(evidence, params.compare, [other, contrast(verdict)]) if c.claim == "better"
    ]
    assert [(c.measure, c.verdict, c.low, c.high) for c in found] == [(ACCURACY, said, 0.05, 0.15)]
    values = [r.values[ACCURACY] for r in evidence.runs if r.id.method == "breakdown"]
    assert found[0].value == pytest.approx(np.mean(values))


@pytest.mark.parametrize(
    ("ours", "theirs", "budget", "verdict"),
    [
        (4000, 4500, "own", "held"),
        (5000, 4500, "own", "did not hold"),
        (4500, 4500, "own", "equal"),
        (4000, 4500, "matched", "not measured"),
    ],
)
def test_cheaper_counts_images(here, ours, theirs, budget, verdict):
    params = fake_params(shots=(5,), seeds=(0, 1), budget=budget)
    write_runs(params)
    for method, images in (("breakdown", ours), ("finetune", theirs)):
        for seed in (0, 1):
            path = RunId(method, 5, seed).folder / "record.json"
            record = read_json(path)
            metrics = record["metrics"] | {claims.IMAGES_SEEN: images}
            write_json(path, record | {"metrics": metrics})
    found = rows(evidence_of(params), params.compare, [])[-1]
    assert (found.claim, found.verdict) == ("cheaper", verdict)
    assert found.note == ("the budget is matched" if budget == "matched" else "")
    assert (found.value, found.reference, found.difference) == (ours, theirs, ours - theirs)


def test_verification_has_no_probe(here):
    params = verification_params(seeds=(0, 1))
    write_verified(params, pairs=60)
    found = {c.measure: c.verdict for c in rows(evidence_of(params), params.compare, [])}
    assert found[PROBE_VAL] == "not measured" and found[ACCURACY_GAP] != "not measured"
