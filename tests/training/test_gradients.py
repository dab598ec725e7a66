"""Gradient norms by layer: against the gradients of the last step, and which layers have one."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pipeline import recipes
from pipeline.training import gradients, loop
from pipeline.training.loop import fit
from pipeline.training.phase import Phase
from tests.digits import make_run
from tests.recipes.test_contract import METHODS, phases_of, quick, state
from tests.recipes.test_verification_contract import METHODS as VERIFYING

ENCODER = ["features.0", "features.4", "embedding"]


def run_of(name):
    """A recipe of either contract, a run for it, and its phases one after the other."""
    recipe = quick(name) if name in METHODS else recipes.of(VERIFYING[name])
    pairs = isinstance(recipe, recipes.Breakdown) or recipe.task == "verification"
    run = make_run(pairs=pairs)
    return run, phases_of(recipe, run)


def expected(run, steps):
    """Norms of the gradients before each of ``steps``, in double precision."""
    network = run.network
    return [
        {
            name: math.sqrt(
                sum(
                    float(np.square(step[id(of)].astype(np.float64)).sum())
                    for of in (module.weight, getattr(module, "bias", None))
                    if of is not None and id(of) in step
                )
            )
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and id(module.weight) in step
        }
        for step in steps
    ]


@pytest.mark.parametrize(
    "name", ["finetune", "breakdown", "retrained_head", "layerwise", "features_mlp", "siamese"]
)
def test_they_are_those_of_the_last_step_of_each_epoch(name):
    run, phases = run_of(name)
    for phase in phases:
        steps = []

        def note(optimizer, args, kwargs, steps=steps):
            held = (of for group in optimizer.param_groups for of in group["params"])
            steps.append({id(of): of.grad.numpy().copy() for of in held if of.grad is not None})

        handle = register_optimizer_step_pre_hook(note)
        result = fit(phase, run.device, "fp32")
        handle.remove()
        each = len(steps) // len(result.history)
        wanted = expected(run, steps[each - 1 :: each])
        for row, norms in zip(result.history, wanted, strict=True):
            found = {g["layer"]: g["norm"] for g in result.gradients if g["epoch"] == row["epoch"]}
            assert list(found) == list(norms)
            assert found == pytest.approx(norms, rel=1e-5)
            first, last = next(iter(norms.values())), list(norms.values())[-1]
            assert row["grad/first_norm"] == pytest.approx(first, rel=1e-5)
            assert row["grad/last_norm"] == pytest.approx(last, rel=1e-5)
            if len(norms) > 1:
                assert row["grad/first_to_last"] == pytest.approx(first / last, rel=1e-4)
            else:
                assert "grad/first_to_last" not in row


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("finetune", [[*ENCODER, "classifier"]]),
        ("breakdown", [ENCODER, ["classifier"]]),
        ("breakdown_parts", [ENCODER[:1], ENCODER[1:], ["classifier"]]),
        ("breakdown_finetune", [ENCODER, ["classifier"], [*ENCODER, "classifier"]]),
        ("retrained_head", [[*ENCODER, "classifier"], ["classifier"]]),
        ("layerwise", [[*ENCODER, "classifier"][-n:] for n in range(1, 5)]),
        ("features_mlp", [["head.hidden", "head.classifier"]]),
        ("features_linear", [[]]),
        ("siamese", [[*(f"encoder.{layer}" for layer in ENCODER), "head.linear"]]),
        ("siamese_cosine", [[f"encoder.{layer}" for layer in ENCODER]]),
        ("cosine", [[]]),
    ],
)
def test_layers_are_those_that_a_phase_trains_by_the_names_of_the_whole_network(name, layers):
    run, phases = run_of(name)
    found = []
    for phase in phases:
        result = fit(phase, run.device, "fp32")
        found.append(list(dict.fromkeys(row["layer"] for row in result.gradients)))
        assert {row["phase"] for row in result.gradients} <= {phase.name}
        if isinstance(phase, Phase):
            assert len(result.gradients) == len(result.history) * len(found[-1])
    assert found == layers


def test_a_layer_whose_rate_is_zero_has_none():
    run = make_run()
    recipe = recipes.of(
        {"recipe": "finetune", "epochs": 1, "lr": 0.1, "lr_factors": {"features": 0}}
    )
    result = fit(next(recipe.phases(run)), run.device, "fp32")
    assert [row["layer"] for row in result.gradients] == ["embedding", "classifier"]


def test_training_is_the_same_to_the_bit_without_them(monkeypatch):
    def trained():
        run, phases = run_of("finetune")
        (result,) = [fit(phase, run.device, "fp32") for phase in phases]
        rows = [{k: v for k, v in row.items() if "grad/" not in k} for row in result.history]
        return state(run), rows, result.record()

    weights, rows, record = trained()
    monkeypatch.setattr(gradients, "norms", lambda layers: {})
    others, other_rows, other_record = trained()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert (rows, record) == (other_rows, other_record)


def test_an_epoch_is_fetched_in_one_transfer(monkeypatch):
    fetched, fetch = [], loop.fetch
    monkeypatch.setattr(loop, "fetch", lambda metrics: fetched.append(1) or fetch(metrics))
    run, phases = run_of("finetune")
    (phase,) = phases
    fit(phase, run.device, "fp32")
    assert len(fetched) == phase.settings.epochs


class Odd(nn.Module):
    """A layer that is used, one that is not, and weights of one dimension or none of their own."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.unused = nn.Linear(2, 2)
        self.bare = nn.Linear(2, 1, bias=False)
        self.free = nn.Parameter(torch.zeros(2, 2))


def test_a_layer_is_a_module_with_a_weight_of_two_dimensions():
    network = Odd()
    layers = gradients.trained_layers(network, network.parameters())
    assert list(layers) == ["used", "unused", "bare"]
    assert layers["used"] == [network.used.weight, network.used.bias]
    assert layers["bare"] == [network.bare.weight]
    assert list(gradients.trained_layers(network, network.bare.parameters())) == ["bare"]


def test_a_layer_without_a_gradient_is_left_out():
    network = Odd()
    layers = gradients.trained_layers(network, network.parameters())
    network.used.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    network.used.bias.grad = torch.tensor([0.0, 4.0])
    assert {name: norm.item() for name, norm in gradients.norms(layers).items()} == {"used": 5.0}
    assert gradients.norms({}) == {}


@pytest.mark.parametrize(
    ("norms", "found"),
    [
        ({}, {}),
        ({"a": 2.0}, {"first": 2.0, "last": 2.0}),
        ({"a": 1.0, "b": 7.0, "c": 4.0}, {"first": 1.0, "last": 4.0, "ratio": 0.25}),
        ({"a": 1.0, "b": 0.0}, {"first": 1.0, "last": 0.0}),
        ({"a": 0.0, "b": 0.0}, {"first": 0.0, "last": 0.0}),
        ({"a": math.inf, "b": 1.0}, {"last": 1.0}),
        ({"a": 1e200, "b": 1e-200}, {"first": 1e200, "last": 1e-200}),
        ({"a": math.nan, "b": math.nan}, {}),
    ],
)
def test_a_summary_holds_finite_numbers_alone(norms, found):
    names = {"first": gradients.FIRST, "last": gradients.LAST, "ratio": gradients.RATIO}
    assert gradients.summary(norms) == {names[key]: value for key, value in found.items()}


def test_rows_leave_the_cell_of_an_overflow_empty():
    rows = gradients.rows("head", 3, {"a": 1.5, "b": math.inf})
    assert rows == [
        {"phase": "head", "epoch": 3, "layer": "a", "norm": 1.5},
        {"phase": "head", "epoch": 3, "layer": "b", "norm": None},
    ]


def test_an_overflowing_norm_is_no_divergence():
    run, phases = run_of("finetune")
    (phase,) = phases
    huge = dataclasses.replace(phase, loss=lambda batch: 1e25 * phase.loss(batch))
    for group in huge.groups:
        group["lr"] = 1e-28
    result = fit(huge, run.device, "fp32")
    assert result.status == "finished" and len(result.gradients) == 4 * len(result.history)


def test_a_new_name_is_that_of_its_gradients_too():
    run, phases = run_of("finetune")
    result = fit(next(iter(phases)), run.device, "fp32")
    result.rename("other")
    assert {row["phase"] for row in result.gradients} == {"other"}


def test_an_epoch_without_a_batch_has_none():
    run, phases = run_of("finetune")
    (phase,) = phases
    result = fit(dataclasses.replace(phase, batches=lambda: []), run.device, "fp32")
    assert result.status == "diverged" and result.gradients == []
