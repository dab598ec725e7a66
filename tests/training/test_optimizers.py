"""Schedules against torch's own, and parameters in groups."""

import math

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.params import MOST, Optimization
from pipeline.training.optimizers import (
    batch_norms,
    check_prefixes,
    learning_rate_factor,
    longest,
    make_optimizer,
    parameter_groups,
)

SCHEDULERS = torch.optim.lr_scheduler


def factors(epochs=5, steps=4, **settings):
    made = Optimization(epochs=epochs, lr=1.0, **settings)
    total = epochs * steps
    return [learning_rate_factor(step, total, steps, made) for step in range(total)]


def torchs(make, count):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = make(optimizer)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_schedules_by_hand():
    assert factors(schedule="constant") == [1.0] * 20
    assert factors(schedule="constant", warmup=0.1)[:3] == [0.5, 1.0, 1.0]
    cosine = factors(schedule="cosine")
    assert cosine == pytest.approx([(1 + math.cos(math.pi * k / 20)) / 2 for k in range(20)])
    stepped = factors(schedule="step", step_every=2, step_factor=0.5)
    assert stepped == [1.0] * 8 + [0.5] * 8 + [0.25] * 4
    warm = factors(schedule="step", step_every=2, step_factor=0.5, warmup=0.25)
    assert warm == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1, 1, 1] + [0.5] * 8 + [0.25] * 4)


def test_cosine_and_step_are_torchs():
    cosine = torchs(lambda o: SCHEDULERS.CosineAnnealingLR(o, 20), 20)
    assert factors(schedule="cosine") == pytest.approx(cosine)
    step = torchs(lambda o: SCHEDULERS.StepLR(o, 8, 0.3), 20)
    assert factors(schedule="step", step_every=2, step_factor=0.3) == pytest.approx(step)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_rate_beyond_single_precision_is_refused_and_the_largest_is_taken(optimizer):
    module = nn.Linear(3, 2)
    largest = Optimization(epochs=1, optimizer=optimizer, lr=MOST)
    stepper = make_optimizer(parameter_groups(module, largest), largest)
    module(torch.ones(4, 3)).sum().backward()
    stepper.step()
    asked = Optimization(epochs=1, optimizer=optimizer, lr=1e20)
    with pytest.raises(
        InputError, match=r"rate of weight is lr times its factor, 1e\+40, and must"
    ):
        parameter_groups(module, asked, lambda name: 1e20)


@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("epochs", [1, 5, 40])
def test_one_cycle_is_torchs(epochs, warmup):
    total = epochs * 4
    expected = torchs(
        lambda o: SCHEDULERS.OneCycleLR(
            o, 1.0, total_steps=total, pct_start=warmup, cycle_momentum=False
        ),
        total,
    )
    found = factors(epochs=epochs, schedule="one_cycle", warmup=warmup)
    if warmup * total > 1:  # torch starts after its peak otherwise
        assert found == pytest.approx(expected, abs=1e-9)
    assert max(found) <= 1 and min(found) > 0


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def rates(module, settings, **given):
    """(lr, weight decay) of each parameter by name."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, settings, **given)
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }


def test_layers_have_their_own_weight_decay_and_rate():
    asked = Optimization(
        epochs=1, lr=0.5, weight_decay=0.1, weight_decays={"3": 0.2, "3.bias": 0.3}
    )
    found = rates(network(), asked, lr_factor=lambda name: 0.1 if name.startswith("0") else 1.0)
    assert found == {
        "0.weight": (0.05, 0.1), "0.bias": (0.05, 0.1),
        "1.weight": (0.5, 0.1), "1.bias": (0.5, 0.1),
        "3.weight": (0.5, 0.2), "3.bias": (0.5, 0.3),
    }  # fmt: skip


def test_biases_and_norms_may_be_spared_and_rates_of_zero_leave_out():
    asked = Optimization(epochs=1, lr=1.0, weight_decay=0.1, decay_biases=False)
    found = rates(network(), asked, lr_factor=lambda name: 0.0 if name.startswith("0") else 1.0)
    assert found == {
        "1.weight": (1.0, 0.0), "1.bias": (1.0, 0.0), "3.weight": (1.0, 0.1), "3.bias": (1.0, 0.0),
    }  # fmt: skip


def test_every_parameter_is_in_one_group():
    module = network()
    asked = Optimization(epochs=1, lr=1.0, weight_decays={"0": 0.5})
    groups = parameter_groups(module, asked)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, module.parameters()))


def test_prefixes_are_whole_names():
    assert longest({"features.1": 1, "features": 2}, "features.1.weight") == 1
    assert longest({"features.1": 1, "features": 2}, "features.10.weight") == 2
    assert longest({"feat": 1}, "features.1.weight") is None
    check_prefixes({"0": 1, "3.bias": 2}, network())
    for wrong in ("2", "4", "wei"):
        with pytest.raises(InputError, match=f"named '{wrong}'"):
            check_prefixes({wrong: 1.0}, network())


def test_batch_norms():
    assert batch_norms(network()) == {"1.weight", "1.bias"}
    assert batch_norms(nn.BatchNorm1d(2)) == {"weight", "bias"}


KINDS = [{"optimizer": "sgd"}, {"optimizer": "sgd", "nesterov": True, "weight_decay": 0.1},
         {"optimizer": "adam"}, {"optimizer": "adamw", "weight_decay": 0.1}]  # fmt: skip


def stepped(device, asked, steps=5):
    """Weights after some steps with given gradients, on the CPU; and the optimizer."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(40, 30)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    module.to(device)
    made = Optimization(epochs=1, lr=0.01, **asked)
    optimizer = make_optimizer(parameter_groups(module, made), made)
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
        optimizer.step()
    return [parameter.detach().cpu() for parameter in module.parameters()], optimizer


@pytest.mark.parametrize("asked", KINDS)
def test_a_cpu_takes_torchs_own_way(asked):
    """A fused step rounds otherwise, and a CPU's bytes are to stay."""
    _, optimizer = stepped("cpu", asked)
    assert not any(group["fused"] for group in optimizer.param_groups)


@pytest.mark.gpu
@pytest.mark.parametrize("asked", KINDS)
def test_a_fused_step_on_cuda_is_that_of_the_cpu(asked):
    expected, _ = stepped("cpu", asked)
    found, optimizer = stepped("cuda", asked)
    assert all(group["fused"] for group in optimizer.param_groups)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
