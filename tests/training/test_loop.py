"""The loop: choosing the epoch, stopping, schedules and divergence, on scripted phases."""

import dataclasses
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import recipes
from pipeline.params import Augmentation, Optimization
from pipeline.training import loop
from pipeline.training.loop import all_finite, fit, snapshot
from pipeline.training.optimizers import parameter_groups
from pipeline.training.phase import Phase, Solve
from tests.digits import make_run

CPU = torch.device("cpu")


class Counter(nn.Module):
    """One weight that falls by one an epoch, so that its value tells the epoch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))


def scripted(val_losses, accuracies=None, rule="val_loss", bad_epoch=None, **settings):
    module = Counter()
    settings = Optimization(
        **{"epochs": len(val_losses), "lr": 1.0, "momentum": 0.0, "schedule": "constant"} | settings
    )
    epoch = [0]

    def loss(batch):
        value = module.weight * torch.ones(4)
        return value * math.nan if epoch[0] + 1 == bad_epoch else value

    def validate():
        epoch[0] += 1
        value = {"val/loss": torch.tensor(val_losses[epoch[0] - 1])}
        if accuracies:
            value["val/accuracy"] = torch.tensor(accuracies[epoch[0] - 1])
        return value

    return Phase(
        "head", module, parameter_groups(module, settings), settings, 1,
        lambda: [(range(4),)], loss, validate, rule, module.train,
    )  # fmt: skip


def test_the_epoch_with_the_lowest_validation_loss_is_kept():
    phase = scripted([3.0, 1.0, 2.0])
    result = fit(phase, CPU, "fp32")
    assert result.chosen_epoch == 2 and phase.module.weight.item() == -2
    assert [row["val/loss"] for row in result.history] == [3.0, 1.0, 2.0]
    assert [row["images_seen"] for row in result.history] == [4, 8, 12]


def test_the_earliest_of_equals_is_kept():
    assert fit(scripted([2.0, 1.0, 1.0]), CPU, "fp32").chosen_epoch == 2


def test_the_rule_val_accuracy_takes_the_highest():
    phase = scripted([1.0, 2.0, 3.0], [0.2, 0.9, 0.5], rule="val_accuracy")
    result = fit(phase, CPU, "fp32")
    assert result.chosen_epoch == 2 and result.record()["val/accuracy"] == pytest.approx(0.9)


def test_patience_counts_epochs_without_an_improvement_above_min_delta():
    result = fit(scripted([5.0, 4.0, 3.95, 3.9, 3.0], patience=2, min_delta=0.2), CPU, "fp32")
    assert len(result.history) == 4 and result.chosen_epoch == 4
    never = fit(scripted([5.0, 4.0, 3.95, 3.9, 3.0], patience=0, min_delta=0.2), CPU, "fp32")
    assert len(never.history) == 5


@pytest.mark.parametrize("bad", ["train", "val"])
def test_divergence_keeps_the_last_finite_weights(bad):
    losses = [3.0, 1.0, 2.0, math.inf if bad == "val" else 1.5, 0.1]
    phase = scripted(losses, bad_epoch=4 if bad == "train" else None)
    result = fit(phase, CPU, "fp32")
    assert result.status == "diverged" and "epoch 4" in result.reason
    assert result.chosen_epoch == 3 and phase.module.weight.item() == -3
    assert len(result.history) == 3


def test_the_weights_come_back_into_a_network_that_loads_no_state_dict_but_its_own(monkeypatch):
    """As MNASNet, which asks for a version that a plain dict of tensors lacks."""

    def refuse(*given):
        raise ValueError("version should be set to 1 or 2 instead of None")

    monkeypatch.setattr(Counter, "_load_from_state_dict", refuse)
    phase = scripted([3.0, 1.0, 2.0])
    fit(phase, CPU, "fp32")
    assert phase.module.weight.item() == -2


def test_divergence_at_once_keeps_the_start():
    phase = scripted([1.0, 1.0], bad_epoch=1)
    result = fit(phase, CPU, "fp32")
    assert result.chosen_epoch == 0 and phase.module.weight.item() == 0
    assert result.record()["epochs"] == 0


@pytest.mark.parametrize(
    ("optimizer", "settings", "expected"),
    [
        # the gradient is 1; SGD takes lr * (1 + decay * 2)
        ("sgd", {"momentum": 0.9}, 2 - (1 + 0.2)),
        # Nesterov looks ahead by the momentum: g + 0.9 g
        ("sgd", {"momentum": 0.9, "nesterov": True}, 2 - 1.9 * 1.2),
        # Adam's first step is lr times the gradient's sign, decay within the gradient or apart
        ("adam", {}, 2 - 1),
        ("adamw", {}, 2 * (1 - 0.1) - 1),
    ],
)
def test_one_step_by_hand(optimizer, settings, expected):
    phase = scripted([0.0], optimizer=optimizer, weight_decay=0.1, **settings)
    phase.module.weight.data.fill_(2.0)
    fit(phase, CPU, "fp32")
    assert phase.module.weight.item() == pytest.approx(expected, abs=1e-6)


def test_the_best_epochs_are_kept_best_first():
    phase = dataclasses.replace(scripted([3.0, 1.0, 2.0, 1.0, 5.0]), keep=3)
    result = fit(phase, CPU, "fp32")
    assert [kept.epoch for kept in result.kept] == [2, 4, 3]
    assert [kept.state["weight"].item() for kept in result.kept] == [-2, -4, -3]
    assert phase.module.weight.item() == -2
    assert result.record()["kept_epochs"] == [2, 4, 3]
    assert "kept_epochs" not in fit(scripted([1.0]), CPU, "fp32").record()


def test_a_diverged_phase_keeps_its_last_finite_epoch_alone():
    phase = dataclasses.replace(scripted([3.0, 1.0, 2.0, 1.0], bad_epoch=4), keep=3)
    result = fit(phase, CPU, "fp32")
    assert [kept.epoch for kept in result.kept] == [3] and phase.module.weight.item() == -3


def test_what_is_solved_has_one_epoch():
    module = Counter()

    def solve():
        module.weight.data.fill_(7.0)
        return {"c": 2.0}

    def metrics():
        return {"train/loss": torch.tensor(0.5), "val/loss": module.weight.detach()}

    phase = Solve("solve", module, solve, 12, metrics, "val_loss")
    rows = []
    result = fit(phase, CPU, "fp32", rows.append)
    expected = {"phase": "solve", "epoch": 1, "images_seen": 12, "train/loss": 0.5, "val/loss": 7.0}
    assert rows == result.history == [expected]
    assert result.record()["found"] == {"c": 2.0} and result.chosen_epoch == 1
    assert result.value == -7.0
    broken = fit(dataclasses.replace(phase, metrics=lambda: {"val/loss": torch.tensor(math.nan)}),
                 CPU, "fp32")  # fmt: skip
    assert broken.status == "diverged" and not broken.history


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 4), st.booleans())
@example([3, 2, 1, 2, 3, 0], 1, True)
def test_kept_states_are_those_of_their_epochs(losses, keep, diverges):
    """Their memory is used again, which must not reach into one that is still held."""
    bad_epoch = len(losses) if diverges else None
    phase = dataclasses.replace(
        scripted([float(x) for x in losses], bad_epoch=bad_epoch), keep=keep
    )
    result = fit(phase, CPU, "fp32")
    by_loss = sorted(range(1, len(losses) + 1), key=lambda epoch: losses[epoch - 1])
    expected = [len(losses) - 1] if diverges else by_loss[:keep]
    assert [kept.epoch for kept in result.kept] == expected
    assert [-kept.state["weight"].item() for kept in result.kept] == expected
    assert -phase.module.weight.item() == expected[0]
    addresses = {kept.state["weight"].data_ptr() for kept in result.kept}
    assert len(addresses) == len(result.kept)


def test_a_snapshot_is_written_over_one_before():
    module = nn.BatchNorm1d(2)
    earlier = snapshot(module)
    memory = {name: tensor.data_ptr() for name, tensor in earlier.items()}
    with torch.no_grad():
        module.weight += 1
    module.num_batches_tracked += 3
    later = snapshot(module, earlier)
    assert {name: tensor.data_ptr() for name, tensor in later.items()} == memory
    assert later.keys() == module.state_dict().keys()
    assert all(later[name].equal(tensor) for name, tensor in module.state_dict().items())
    assert not any(tensor.requires_grad for tensor in later.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38, 0.0])
@pytest.mark.parametrize("name", ["weight", "running_mean"])
def test_finite_is_every_number_of_a_module(name, value):
    module = nn.BatchNorm1d(300)
    module.state_dict()[name][217] = value
    finite = all_finite(module)
    assert finite.item() == math.isfinite(value)
    assert finite.shape == () and finite.dtype == torch.bool


class Asked(TorchDispatchMode):
    """Counts operations, and names those for whose result the host would wait for a device."""

    WAITING = ("local_scalar_dense", "nonzero", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.names, self.count = set(), 0

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        self.count += 1
        name = operation.overloadpacket.__name__.strip("_")
        self.names |= {waiting for waiting in self.WAITING if waiting in name}
        if name == "index" and any(of is not None and of.dtype == torch.bool for of in given[1]):
            self.names.add("nonzero")
        return operation(*given, **named or {})


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (lambda: float(torch.ones(3).sum()), "local_scalar_dense"),
        (lambda: torch.ones(3).nonzero(), "nonzero"),
        (lambda: torch.ones(3)[torch.ones(3) > 0], "nonzero"),
        (lambda: torch.ones(3).masked_select(torch.ones(3) > 0), "masked_select"),
    ],
)
def test_waiting_would_be_noticed(work, name):
    with Asked() as asked:
        work()
    assert asked.names == {name}


@pytest.mark.parametrize("recipe", ["breakdown", "finetune"])
def test_the_host_never_waits_for_the_device_inside_an_epoch(recipe):
    run = make_run(pairs=True, augmentation=Augmentation(flip=True, rotation=10, shift=0.1))
    block = {"epochs": 2, "lr": 0.01, "optimizer": "sgd"}
    if recipe == "breakdown":
        asked = {"encoder": {**block, "latent": "embedding"}, "head": block}
        (phase,) = recipes.of({"recipe": recipe, **asked}).encoder_phases(run)
    else:
        (phase,) = recipes.of({"recipe": recipe, **block}).phases(run)
    step = loop._Stepper(phase, CPU, "fp32")
    step.epoch()  # what is composed for some epochs ahead is no part of this
    with Asked() as asked:
        step.epoch()
    assert asked.count > 100 and not asked.names
