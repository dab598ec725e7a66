"""The loop: choosing the epoch, stopping, schedules and divergence, on scripted phases."""

import math

import pytest
import torch
from torch import nn

from pipeline.params import Optimization
from pipeline.training.loop import fit, learning_rate_factor
from pipeline.training.phase import Phase

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
        "head", module, [{"params": list(module.parameters()), "lr": 1.0}], settings, 1,
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


def test_divergence_at_once_keeps_the_start():
    phase = scripted([1.0, 1.0], bad_epoch=1)
    result = fit(phase, CPU, "fp32")
    assert result.chosen_epoch == 0 and phase.module.weight.item() == 0
    assert result.record()["epochs"] == 0


def test_schedules():
    def factors(**settings):
        made = Optimization(epochs=1, lr=1.0, **settings)
        return [learning_rate_factor(step, 10, made) for step in range(10)]

    assert factors(schedule="constant") == [1.0] * 10
    assert factors(schedule="constant", warmup=0.2)[:3] == [0.5, 1.0, 1.0]
    cosine = factors(schedule="cosine")
    assert cosine == pytest.approx([(1 + math.cos(math.pi * k / 10)) / 2 for k in range(10)])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_step_by_hand(optimizer):
    phase = scripted([0.0], optimizer=optimizer, momentum=0.9, weight_decay=0.1)
    phase.module.weight.data.fill_(2.0)
    fit(phase, CPU, "fp32")
    # the gradient is 1: SGD takes lr * (1 + decay * 2); AdamW decays by lr * decay * 2, then lr
    expected = 2 - (1 + 0.2) if optimizer == "sgd" else 2 * (1 - 0.1) - 1
    assert phase.module.weight.item() == pytest.approx(expected, abs=1e-6)
