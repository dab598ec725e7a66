"""The supervised contrastive loss against loops, and against pytorch-metric-learning."""

import math

import pytest
import torch
from pytorch_metric_learning import losses, reducers

from pipeline.training.losses import supcon
from tests.training.losses.batches import KINDS, backward_is_finite, batch, cos


def naive(latents, labels, temperature):
    paid = []
    for i, label in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        similar = {j: cos(latents[i], latents[j]) / temperature for j in others}
        positives = [j for j in others if labels[j] == label]
        total = sum(math.exp(similar[j]) for j in others)
        logs = [similar[p] - math.log(total) for p in positives]
        paid.append(-sum(logs) / len(logs) if logs else None)
    return paid


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_supcon_is_the_naive_loop(temperature, kind):
    latents, labels = batch(kind)
    found, counts = supcon(latents, labels, temperature=temperature)
    expected = naive(latents.tolist(), labels.tolist(), temperature)
    assert counts.tolist() == [value is not None for value in expected]
    assert found.tolist() == pytest.approx([value or 0.0 for value in expected], abs=1e-9)
    assert backward_is_finite(found, latents)
    assert latents.grad[(latents == 0).all(dim=1)].abs().sum() == 0


def test_the_gradient_is_the_numerical_one():
    latents, labels = batch("mixed")
    assert torch.autograd.gradcheck(lambda x: supcon(x, labels, temperature=0.5)[0], latents)


def test_it_agrees_with_pytorch_metric_learning():
    random = torch.Generator().manual_seed(1)
    latents, labels = torch.randn(12, 6, generator=random), torch.arange(12) % 3
    theirs = losses.SupConLoss(temperature=0.2, reducer=reducers.MeanReducer())
    found, counts = supcon(latents, labels, temperature=0.2)
    assert counts.all()
    assert found.mean().item() == pytest.approx(theirs(latents, labels).item(), rel=1e-5)


def test_bfloat16_arithmetic_outside_costs_no_digits():
    latents, labels = (tensor.detach() for tensor in batch("mixed"))
    plain, _ = supcon(latents.float(), labels, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = supcon(latents.float(), labels, temperature=0.1)
    assert torch.equal(found, plain)
