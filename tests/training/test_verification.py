"""Phases that learn from pairs against plain loops over the pairs."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pipeline.data.pairs import PairList
from pipeline.errors import InputError
from pipeline.models.pairs import Cosine, Euclidean
from pipeline.params import Augmentation, Optimization, PairHead
from pipeline.training.loop import fit
from pipeline.training.runtime import autocast
from pipeline.training.verification import fit_scale
from tests.digits import make_run

KINDS = ["difference", "cosine", "euclidean"]
SHIFTED = Augmentation(rotation=10, shift=0.1)
L2 = {"features": 1e-3, "features.4": 5e-3, "embedding": 0.02}
CPU = torch.device("cpu")


def settings(**asked):
    return Optimization(**{"epochs": 2, "lr": 0.05} | asked)


def made(kind="difference", frozen=False, l2=None, latent="embedding", asked=None, **of_run):
    """A run, its verifier and the phase that learns it."""
    run = make_run(**{"pairs": True} | of_run)
    verifier = run.verifier(latent, PairHead(kind=kind))
    phase = run.verification("learn", verifier, settings(**(asked or {})), frozen, l2)
    return run, verifier, phase


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def pair_by_pair(run, verifier, images, pairs):
    """Binary cross-entropy (P,) and logits (P,), each pair's images through the network alone."""
    verifier.eval()
    inputs = torch.cat(list(run.encode(None, images)))
    losses, logits = [], []
    for left, right, same in zip(pairs.left, pairs.right, pairs.same, strict=True):
        with torch.no_grad():
            logit = float(verifier(inputs[left : left + 1], inputs[right : right + 1]))
        probability = 1 / (1 + math.exp(-logit))
        losses.append(-math.log(probability if same else 1 - probability))
        logits.append(logit)
    return losses, logits


def penalty_by_hand(verifier):
    """Of the weights that ``L2`` names, each layer by its own strength."""
    tensors = dict(verifier.encoder.named_parameters())
    return sum(
        strength * float((tensors[name].detach().double() ** 2).sum())
        for name, strength in (
            ("features.0.weight", 1e-3), ("features.4.weight", 5e-3), ("embedding.weight", 0.02),
        )
    )  # fmt: skip


def rows_passed(run, verifier):
    """How many images each pass of the encoder takes, from now on."""
    passed = []
    verifier.encoder.register_forward_hook(lambda _, given, __: passed.append(len(given[0])))
    return passed


# What is minimised


@pytest.mark.parametrize("frozen", [False, True], ids=["end-to-end", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_an_epoch_are_those_of_its_pairs_one_by_one(kind, frozen):
    run, verifier, phase = made(kind, frozen, batch_size=8)
    verifier.eval()
    found = torch.cat([phase.loss(batch).detach() for batch in phase.batches()])
    expected, _ = pair_by_pair(run, verifier, run.train, run.pairs)
    assert len(found) == len(run.pairs.left)
    assert sorted(found.tolist()) == pytest.approx(sorted(expected), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("frozen", [False, True], ids=["end-to-end", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_validation_goes_pair_by_pair(kind, frozen):
    run, verifier, phase = made(kind, frozen)
    losses, logits = pair_by_pair(run, verifier, run.val, run.val_pairs)
    right = [(logit > 0) == same for logit, same in zip(logits, run.val_pairs.same, strict=True)]
    found = phase.validate()
    assert found.keys() == {"val/loss", "val/accuracy"}
    assert float(found["val/loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(found["val/accuracy"]) == pytest.approx(np.mean(right))


def test_a_batch_is_its_pairs_and_every_image_is_encoded_once():
    run, verifier, phase = made(batch_size=8)
    listed = sorted(zip(*(of.tolist() for of in vars(run.pairs).values()), strict=True))
    inputs = torch.cat(list(run.encode(None, run.train)))
    passed, seen, shown = rows_passed(run, verifier), [], []
    for batch in phase.batches():
        place = [int((inputs == image).flatten(1).all(dim=1).nonzero()[0]) for image in batch[0]]
        assert len(batch) == len(batch[0]) == len(set(place))
        losses = phase.loss(batch)
        assert 2 <= len(losses) <= 8
        columns = (batch.left.tolist(), batch.right.tolist(), batch.same.tolist())
        pairs = [(place[i], place[j], int(same)) for i, j, same in zip(*columns, strict=True)]
        assert {end for pair in pairs for end in pair[:2]} == set(place)
        seen += pairs
        shown.append(len(place))
    assert sorted(seen) == listed
    assert passed == shown and sum(shown) < 2 * len(listed)
    assert phase.steps == len(shown) == math.ceil(len(listed) / 8)
    result = fit(phase, CPU, "fp32")
    assert result.images_seen == result.history[-1]["images_seen"] < 2 * 2 * len(listed)


def test_the_order_of_pairs_changes_by_epoch_and_seed():
    def same_of(phase):
        return [batch.same.tolist() for batch in phase.batches()]

    _, _, phase = made(seed=1)
    first, second = same_of(phase), same_of(phase)
    assert first != second
    assert same_of(made(seed=1)[2]) == first
    assert sum(map(sum, first)) == sum(map(sum, second))


# The penalty


def test_the_penalty_is_the_strength_times_the_sum_of_squared_weights():
    run, verifier, phase = made(l2=L2)
    losses, _ = pair_by_pair(run, verifier, run.val, run.val_pairs)
    paid = penalty_by_hand(verifier)
    assert paid > 0.1 and float(phase.validate()["val/loss"]) == pytest.approx(
        np.mean(losses) + paid, rel=1e-5
    )
    batch = next(iter(phase.batches()))
    _, _, plain = made()
    plain_losses = plain.loss(next(iter(plain.batches())))
    assert torch.allclose(phase.loss(batch), plain_losses + paid, rtol=1e-5)


def test_the_penalty_pulls_at_weights_as_keras_kernel_regularizer_does():
    """Its gradient is twice the strength times the weight; biases and batch norm are spared."""
    gradients = []
    for l2 in (L2, None):
        _, verifier, phase = made(l2=l2)
        phase.training_mode()
        phase.loss(next(iter(phase.batches()))).mean().backward()
        gradients.append({name: of.grad for name, of in verifier.named_parameters()})
        weights = state(verifier)
    pulled = {"features.0.weight": 1e-3, "features.4.weight": 5e-3, "embedding.weight": 0.02}
    for name, gradient in gradients[0].items():
        extra = 2 * pulled.get(name.removeprefix("encoder."), 0.0) * weights[name]
        assert torch.allclose(gradient, gradients[1][name] + extra, atol=1e-6), name


def test_weight_decays_go_by_the_names_of_the_encoder():
    asked = {"weight_decay": 0.1, "weight_decays": {"features.0": 0.2, "embedding": 0.0}}
    _, verifier, phase = made(asked=asked)
    decays = {id(p): group["weight_decay"] for group in phase.groups for p in group["params"]}
    found = {name: decays[id(of)] for name, of in verifier.named_parameters()}
    assert len(decays) == len(found)
    for name, decay in found.items():
        own = {"encoder.features.0": 0.2, "encoder.embedding": 0.0}
        assert decay == own.get(name.rpartition(".")[0], 0.1), name


# A fixed encoder


@pytest.mark.parametrize("augmentation", [None, SHIFTED], ids=["plain", "augmented"])
def test_a_fixed_encoder_keeps_its_bytes(augmentation):
    run, verifier, phase = made(frozen=True, augmentation=augmentation)
    before, head = state(verifier.encoder), state(verifier.head)
    assert fit(phase, CPU, "fp32").status == "finished"
    assert equal(before, state(verifier.encoder)) and not equal(head, state(verifier.head))
    assert run.network is verifier and phase.module is verifier.head
    assert not any(parameter.requires_grad for parameter in verifier.encoder.parameters())


@pytest.mark.parametrize("augmentation", [None, SHIFTED], ids=["plain", "augmented"])
def test_encodings_are_computed_once_unless_images_change(augmentation):
    run = make_run(pairs=True, augmentation=augmentation)
    verifier = run.verifier("embedding", PairHead())
    passed = rows_passed(run, verifier)
    phase = run.verification("head", verifier, settings(epochs=3), frozen=True)
    once = [len(run.val)] if augmentation else [len(run.train), len(run.val)]
    assert passed == once
    result = fit(phase, CPU, "fp32")
    more = sum(passed) - sum(once)
    assert more == (result.images_seen if augmentation else 0)


def test_a_head_on_kept_encodings_is_that_on_encodings_made_anew():
    """An augmentation that does nothing must agree."""
    heads = []
    for augmentation in (None, Augmentation(shift=1e-9)):
        _, verifier, phase = made(frozen=True, augmentation=augmentation)
        fit(phase, CPU, "fp32")
        heads.append(state(verifier.head))
    for name, tensor in heads[0].items():
        assert torch.allclose(tensor, heads[1][name], atol=1e-4), name


def test_feature_maps_are_taken_as_rows():
    run, verifier, phase = made("cosine", latent="features.3")
    losses, _ = pair_by_pair(run, verifier, run.val, run.val_pairs)
    assert float(phase.validate()["val/loss"]) == pytest.approx(np.mean(losses), rel=1e-4)


# Learning


@pytest.mark.parametrize("frozen", [False, True], ids=["end-to-end", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind, frozen):
    _, _, phase = made(kind, frozen, asked={"epochs": 8}, per_class=12, batch_size=16)
    result = fit(phase, CPU, "fp32")
    losses = [row["train/loss"] for row in result.history]
    assert losses[-1] < losses[0]
    assert result.history[result.chosen_epoch - 1]["val/accuracy"] > 0.55


@pytest.mark.parametrize("frozen", [False, True], ids=["end-to-end", "frozen"])
def test_a_seed_gives_the_same_bytes_with_dropout_and_augmentation(frozen):
    ends = []
    for seed in (1, 1, 2):
        run = make_run(seed=seed, pairs=True, augmentation=SHIFTED)
        verifier = run.verifier("embedding", PairHead(dropout=0.4))
        torch.rand(5)  # whatever else draws from torch's own generator must not matter
        phase = run.verification("learn", verifier, settings(), frozen)
        ends.append((fit(phase, CPU, "fp32").history, state(verifier)))
    (history, first), (history_again, again), (_, other) = ends
    assert history == history_again and equal(first, again) and not equal(first, other)


def test_dropout_acts_in_training_alone():
    run = make_run(pairs=True)
    verifier = run.verifier("embedding", PairHead(dropout=0.5))
    phase = run.verification("learn", verifier, settings(), frozen=True)
    phase.training_mode()
    batch = next(iter(phase.batches()))
    assert not torch.equal(phase.loss(batch), phase.loss(batch))
    assert verifier.head.training and not verifier.encoder.features.training
    phase.module.eval()
    assert torch.equal(phase.validate()["val/loss"], phase.validate()["val/loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_changes_the_arithmetic_and_no_tensor_s_type(kind):
    ends, firsts = [], []
    for precision in ("fp32", "bf16"):
        _, verifier, phase = made(kind, seed=2)
        with autocast(CPU, precision):
            firsts.append(phase.loss(next(iter(phase.batches()))).detach())
        assert firsts[-1].dtype == torch.float32
        result = fit(phase, CPU, precision)
        assert result.status == "finished"
        ends.append(state(verifier))
    assert not equal(*ends)
    assert all(ends[1][name].dtype == of.dtype for name, of in ends[0].items())
    assert torch.allclose(*firsts, rtol=0.1, atol=0.1) and not torch.equal(*firsts)


@pytest.mark.parametrize("frozen", [False, True], ids=["end-to-end", "frozen"])
def test_divergence_is_recorded_and_leaves_finite_weights(frozen):
    _, verifier, phase = made(frozen=frozen, asked={"lr": 3e37, "schedule": "constant"})
    result = fit(phase, CPU, "fp32")
    assert result.status == "diverged" and "learn" in result.reason
    assert all(torch.isfinite(tensor).all() for tensor in state(verifier).values())


def test_two_pairs_too_many_for_one_batch_make_no_batch_of_one_pair():
    run = make_run(pairs=True, batch_size=4)
    run.pairs = PairList(*(of[:9] for of in vars(run.pairs).values()))
    phase = run.verification("learn", run.verifier("embedding", PairHead()), settings())
    assert sorted(len(phase.loss(batch)) for batch in phase.batches()) == [3, 3, 3]
    run = make_run(pairs=True)
    run.pairs = PairList(*(of[:1] for of in vars(run.pairs).values()))
    phase = run.verification("learn", run.verifier("embedding", PairHead()), settings())
    assert [len(batch) for batch in phase.batches()] == [2]
    assert fit(phase, CPU, "fp32").status == "finished"


# Scale and bias of a similarity


def clouds(apart, pairs=400, same_share=0.3, seed=0):
    """Encodings around two centres ``apart``, and pairs of which few show one of the two."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], 100)
    encodings = rng.normal(1.0, 0.5, (200, 6)) + apart * labels[:, None] * np.eye(6)[0]
    left, right = rng.integers(200, size=(2, 5000))
    same = labels[left] == labels[right]
    count = int(pairs * same_share)
    chosen = np.concatenate([np.flatnonzero(same)[:count], np.flatnonzero(~same)[: pairs - count]])
    tensors = [torch.from_numpy(of[chosen]) for of in (left, right, same)]
    return torch.from_numpy(encodings).float(), *tensors


def similarities(kind, encodings, left, right):
    one, other = encodings.double().numpy()[left], encodings.double().numpy()[right]
    if kind is Euclidean:
        return -np.sqrt(((one - other) ** 2).mean(axis=1))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / lengths


def balanced_log_loss(scale, bias, similarity, same):
    """Mean of the two kinds' mean log losses."""
    losses = np.logaddexp(0, np.where(same, -1, 1) * (scale * similarity + bias))
    return (losses[same].mean() + losses[~same].mean()) / 2


@pytest.mark.parametrize("kind", [Cosine, Euclidean])
@pytest.mark.parametrize("offset", [0.0, 30.0], ids=["near", "far"])
def test_scale_and_bias_are_those_of_least_balanced_log_loss(kind, offset):
    encodings, left, right, same = clouds(apart=1.5)
    encodings = encodings + offset  # far off, all cosines are close to one
    head = kind()
    found = fit_scale(head, encodings, left, right, same)
    similarity, truth = similarities(kind, encodings, left, right), same.numpy()
    standard = (similarity - similarity.mean()) / similarity.std()
    least = minimize(
        lambda x: balanced_log_loss(x[0], x[1], standard, truth), [1.0, 0.0], tol=1e-12
    )
    scale = least.x[0] / similarity.std()
    # float32 has few digits of a cosine that is nearly one
    assert found["scale"] == pytest.approx(scale, rel=2e-2 if offset and kind is Cosine else 1e-3)
    assert balanced_log_loss(found["scale"], found["bias"], similarity, truth) == pytest.approx(
        least.fun, abs=1e-4
    )
    assert float(head.log_scale.detach().exp()) == pytest.approx(found["scale"], rel=1e-5)
    assert float(head.bias.detach()) == pytest.approx(found["bias"], rel=1e-5)


def test_the_head_s_start_has_no_part_in_what_is_fitted():
    data = clouds(apart=1.5)
    ends = []
    for start in (0.0, 5.0):
        head = Cosine()
        with torch.no_grad():
            head.log_scale.fill_(start)
            head.bias.fill_(-3 * start)
        ends.append(fit_scale(head, *data))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("kind", [Cosine, Euclidean])
def test_a_similarity_that_tells_nothing_leaves_even_odds(kind):
    """All alike, by chance, or the wrong way round: no positive scale does better than none."""
    encodings, left, right, same = clouds(apart=2.0)
    similarity = similarities(kind, encodings, left, right)
    for given, truth in (
        (torch.ones_like(encodings), same),
        (torch.zeros_like(encodings), same),
        (encodings, torch.from_numpy(similarity < np.median(similarity))),
    ):
        head = kind()
        found = fit_scale(head, given, left, right, truth)
        logits = head.score(given, left, right)
        assert found["scale"] > 0 and torch.isfinite(logits).all()
        assert logits.abs().max() < 1e-3


@pytest.mark.parametrize("kind", [Cosine, Euclidean])
def test_a_similarity_that_tells_all_has_a_finite_scale(kind):
    encodings, left, right, _ = clouds(apart=2.0)
    similarity = similarities(kind, encodings, left, right)
    apart = np.abs(similarity - np.median(similarity)) > 0.05 * similarity.std()
    left, right = left[apart], right[apart]
    same = torch.from_numpy(similarity[apart] > np.median(similarity))
    head = kind()
    found = fit_scale(head, encodings, left, right, same)
    assert all(map(math.isfinite, found.values()))
    logits = head.score(encodings, left, right)
    assert torch.isfinite(logits).all() and torch.equal(logits > 0, same)


@pytest.mark.parametrize("kind", ["cosine", "euclidean"])
def test_a_distance_is_solved_on_the_training_pairs(kind):
    run = make_run(per_class=8, pairs=True)
    verifier = run.verifier("embedding", PairHead(kind=kind))
    encoder = state(verifier.encoder)
    phase = run.distance("solve", verifier)
    result = fit(phase, CPU, "fp32")
    assert run.network is verifier and equal(encoder, state(verifier.encoder))
    assert result.images_seen == len(run.train) and result.found["scale"] > 0
    (row,) = result.history
    for split, images, pairs in (("train", run.train, run.pairs), ("val", run.val, run.val_pairs)):
        losses, logits = pair_by_pair(run, verifier, images, pairs)
        assert row[f"{split}/loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert row[f"{split}/accuracy"] == pytest.approx(
            np.mean((np.array(logits) > 0) == pairs.same)
        )
    assert row["train/accuracy"] > 0.6


def test_latents_that_are_not_finite_are_named():
    run = make_run(pairs=True)
    run.method = "frozen"
    with torch.no_grad():
        run.network.embedding.weight.fill_(math.inf)
    phase = run.distance("solve", run.verifier("embedding", PairHead(kind="cosine")))
    with pytest.raises(InputError, match=r"methods\.frozen: similarities .* not all finite"):
        fit(phase, CPU, "fp32")
