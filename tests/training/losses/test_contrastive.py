"""Pair losses against naive loops over pairs in plain Python."""

import math

import pytest
import torch

from pipeline.errors import InputError
from pipeline.training.losses import Contrastive, Setting, contrastive, cosine, rms_distance
from tests.training.losses.batches import backward_is_finite, cos, rms

SETTINGS = [
    ([0.0, 0.0, 0.0], 1.0, [1.0, 1.0, 1.0], 1.0),
    ([0.3, 0.6, 0.9], 1.5, [1.0, 2.0, 0.5], 5.0),
]
KINDS = ["mixed", "all same", "all different", "equal latents", "zero latents"]


def pairs(kind):
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
    if kind == "zero latents":
        left[::3] = 0
        right[::2] = 0
    return left.requires_grad_(), right, labels, same


def naive(left, right, labels, same, margin_same, margin_different, weight_same, weight_different):
    paid = []
    for a, b, label, alike in zip(left, right, labels, same, strict=True):
        d = rms(a, b)
        if alike:
            paid.append(weight_same[label] * max(0.0, d - margin_same[label]) ** 2)
        else:
            paid.append(weight_different * max(0.0, margin_different - d) ** 2)
    return paid


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_contrastive_is_the_naive_loop(settings, kind):
    left, right, labels, same = pairs(kind)
    margin_same, margin_different, weight_same, weight_different = settings
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
    assert backward_is_finite(found, left)


@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_cosine_is_the_naive_loop_and_torchs_own(margin, kind):
    left, right, labels, same = pairs(kind)
    found = cosine(left, right, labels, same, margin=margin)
    expected = [
        1 - cos(a, b) if alike else max(0.0, cos(a, b) - margin)
        for a, b, alike in zip(left.tolist(), right.tolist(), same.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    own = torch.nn.CosineEmbeddingLoss(margin=margin, reduction="none")
    assert torch.allclose(found, own(left, right, same.double() * 2 - 1), atol=1e-6)
    assert backward_is_finite(found, left)
    assert left.grad[(left == 0).all(dim=1)].abs().sum() == 0


def test_the_cosines_gradient_is_the_numerical_one():
    left, right, labels, same = (tensor.detach()[:8] for tensor in pairs("mixed"))
    assert torch.autograd.gradcheck(
        lambda x: cosine(x, right, labels, same, margin=0.0), left.requires_grad_()
    )


def test_the_distance_of_equal_latents_has_gradient_zero():
    latent = torch.ones(2, 3, requires_grad=True)
    rms_distance(latent, torch.ones(2, 3)).sum().backward()
    assert latent.grad is not None and (latent.grad == 0).all()


def test_what_is_no_number_is_at_no_distance():
    wrong = torch.tensor([[math.nan, 1.0], [math.inf, 0.0], [math.inf, 0.0]])
    right = torch.tensor([[0.0, 1.0], [math.inf, 0.0], [0.0, 0.0]])
    assert not torch.isfinite(rms_distance(wrong, right)).any()
    same = torch.tensor([True, False, True])
    assert cosine(wrong, right, same.long(), same, margin=0.0).isnan().all()


def test_the_distance_gradient_is_the_numerical_one():
    left = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    right = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_distance, (left, right))


def setting(classes):
    return Setting(classes, 6, torch.device("cpu"), 0, "methods.b.encoder.loss")


def test_a_block_makes_its_loss_with_one_number_or_one_a_class():
    left, right, labels, same = (tensor.detach() for tensor in pairs("mixed"))
    one = Contrastive(margin_same=0.3, weight_same=2.0).make(setting(3))
    each = Contrastive(margin_same=[0.3] * 3, weight_same=[2.0] * 3).make(setting(3))
    assert one.of_pairs and each.of_pairs and not one.parameters
    found = one.of_pairs(left, right, labels, same)
    assert torch.equal(found, each.of_pairs(left, right, labels, same))
    expected = naive(*(x.tolist() for x in (left, right, labels, same)), [0.3] * 3, 1, [2] * 3, 1)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_list_must_have_one_value_a_class():
    with pytest.raises(InputError) as error:
        Contrastive(weight_same=[1.0, 2.0]).make(setting(3))
    assert str(error.value) == (
        "params.yaml: methods.b.encoder.loss.weight_same: has 2 values for 3 classes; give one "
        "number, or one a class in the labels' order"
    )
