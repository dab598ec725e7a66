"""The triplet loss against loops over triplets, and against pytorch-metric-learning."""

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

from pipeline.training.losses import triplet
from tests.training.losses.batches import KINDS, backward_is_finite, batch, rms

MINING = ["all", "semihard", "hard"]


def naive(latents, labels, margin, mining):
    """Each anchor's loss; None for an anchor without a triplet."""
    paid = []
    for a, label in enumerate(labels):
        d = [rms(latents[a], other) for other in latents]
        same = [d[i] for i, of in enumerate(labels) if of == label and i != a]
        different = [d[i] for i, of in enumerate(labels) if of != label]
        if not same or not different:
            paid.append(None)
            continue
        if mining == "all":
            chosen = [(p, n) for p in same for n in different]
        elif mining == "hard":
            chosen = [(max(same), min(different))]
        else:
            farther = {p: [n for n in different if n > p] for p in same}
            chosen = [(p, min(farther[p]) if farther[p] else max(different)) for p in same]
        paid.append(sum(max(0.0, margin + p - n) for p, n in chosen) / len(chosen))
    return paid


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("margin", [0.2, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_triplet_is_the_naive_loop(mining, margin, kind):
    latents, labels = batch(kind)
    found, counts = triplet(latents, labels, margin=margin, mining=mining)
    expected = naive(latents.tolist(), labels.tolist(), margin, mining)
    assert counts.tolist() == [value is not None for value in expected]
    assert found.tolist() == pytest.approx([value or 0.0 for value in expected], abs=1e-12)
    assert backward_is_finite(found, latents)


@pytest.mark.parametrize("mining", MINING)
def test_latents_at_one_place_have_gradient_zero(mining):
    latents, labels = batch("equal latents")
    found, counts = triplet(latents, labels, margin=1.0, mining=mining)
    assert found[counts].tolist() == [1.0] * 8
    found.sum().backward()
    assert latents.grad.abs().max() == 0


@pytest.mark.parametrize("mining", MINING)
def test_the_gradient_is_the_numerical_one(mining):
    latents, labels = batch("mixed")
    wanted = lambda x: triplet(x, labels, margin=1.0, mining=mining)[0]  # noqa: E731
    assert torch.autograd.gradcheck(wanted, latents)


@pytest.mark.parametrize("mining", MINING)
def test_what_is_no_number_stays_none(mining):
    latents, labels = batch("mixed")
    latents = latents.detach()
    latents[0, 0] = float("nan")
    assert triplet(latents, labels, margin=1.0, mining=mining)[0][0].isnan()


@pytest.mark.parametrize("mining", ["all", "hard"])
def test_it_agrees_with_pytorch_metric_learning_on_a_balanced_batch(mining):
    random = torch.Generator().manual_seed(1)
    latents, labels = torch.randn(12, 6, generator=random), torch.arange(12) % 3
    scale = 6**0.5  # its distance is the root of the sum, ours of the mean
    distance = distances.LpDistance(normalize_embeddings=False)
    theirs = losses.TripletMarginLoss(
        0.5 * scale, distance=distance, reducer=reducers.MeanReducer()
    )
    mined = miners.BatchHardMiner(distance=distance)(latents, labels) if mining == "hard" else None
    found, counts = triplet(latents, labels, margin=0.5, mining=mining)
    assert counts.all()
    expected = theirs(latents, labels, mined).item() / scale
    assert found.mean().item() == pytest.approx(expected, rel=1e-5)
