"""Losses against naive loops over pairs in plain Python."""

import math

import pytest
import torch

from pipeline.training.losses import contrastive, cross_entropy, rms_distance


def naive_distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))


def naive(left, right, labels, same, margin_same, margin_different, weight_same, weight_different):
    paid = []
    for a, b, label, alike in zip(left, right, labels, same, strict=True):
        d = naive_distance(a, b)
        if alike:
            paid.append(weight_same[label] * max(0.0, d - margin_same[label]) ** 2)
        else:
            paid.append(weight_different * max(0.0, margin_different - d) ** 2)
    return paid


SETTINGS = [
    ([0.0, 0.0, 0.0], 1.0, [1.0, 1.0, 1.0], 1.0),
    ([0.3, 0.6, 0.9], 1.5, [1.0, 2.0, 0.5], 5.0),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["mixed", "all same", "all different", "equal latents"])
def test_contrastive_is_the_naive_loop(settings, kind):
    random = torch.Generator().manual_seed(0)
    left = torch.randn(40, 6, dtype=torch.float64, generator=random)
    right = torch.randn(40, 6, dtype=torch.float64, generator=random)
    labels = torch.randint(3, (40,), generator=random)
    same = torch.rand(40, generator=random) < 0.5
    if kind == "all same":
        same[:] = True
    if kind == "all different":
        same[:] = False
    if kind == "equal latents":
        right = left.clone()
    margin_same, margin_different, weight_same, weight_different = settings
    left.requires_grad_()
    found = contrastive(
        left,
        right,
        labels,
        same,
        margin_same=torch.tensor(margin_same, dtype=torch.float64),
        margin_different=margin_different,
        weight_same=torch.tensor(weight_same, dtype=torch.float64),
        weight_different=weight_different,
    )
    expected = naive(left.tolist(), right.tolist(), labels.tolist(), same.tolist(), *settings)
    assert found.shape == (40,)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    found.sum().backward()
    assert left.grad is not None and torch.isfinite(left.grad).all()


def test_the_distance_of_equal_latents_has_gradient_zero():
    latent = torch.ones(2, 3, requires_grad=True)
    rms_distance(latent, torch.ones(2, 3)).sum().backward()
    assert latent.grad is not None and (latent.grad == 0).all()


def test_what_is_no_number_is_at_no_distance():
    wrong = torch.tensor([[math.nan, 1.0], [math.inf, 0.0], [math.inf, 0.0]])
    right = torch.tensor([[0.0, 1.0], [math.inf, 0.0], [0.0, 0.0]])
    assert not torch.isfinite(rms_distance(wrong, right)).any()


def test_the_distance_gradient_is_the_numerical_one():
    left = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    right = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_distance, (left, right))


def test_cross_entropy_is_minus_the_log_of_the_softmax():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    labels = torch.tensor([1, 2])
    expected = [
        -math.log(math.exp(row[of]) / sum(math.exp(value) for value in row))
        for row, of in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert cross_entropy(logits, labels).tolist() == pytest.approx(expected, abs=1e-6)
