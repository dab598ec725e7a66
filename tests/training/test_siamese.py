"""Phases of a Siamese loss: batches, validation, parts, and what is left for the head stage."""

import math

import pytest
import torch

from pipeline import recipes, workspace
from pipeline.errors import InputError
from pipeline.models import weights
from pipeline.params import Augmentation
from pipeline.training.loop import fit
from tests.digits import make_run

SHIFT = "embedding.bias"  # no distance depends on it, so that rounding alone may move it
ROTATED = Augmentation(rotation=20, shift=0.1)


def encoder(**asked):
    """A breakdown's block ``encoder``, as the recipe."""
    block = {"latent": "embedding", "epochs": 2, "lr": 0.05} | asked
    head = {"epochs": 1, "lr": 0.1}
    return recipes.of({"recipe": "breakdown", "encoder": block, "head": head})


def only(run, **asked):
    (phase,) = encoder(**asked).encoder_phases(run)
    return phase


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def all_latents(run, images):
    part = run.part(upto="embedding").eval()
    with torch.no_grad():
        return torch.cat(list(run.encode(part, images)))


def changed(run, before):
    """Names of parameters and buffers with other bytes than before, but for ``SHIFT``."""
    after = run.network.state_dict()
    return {n for n, tensor in before.items() if not torch.equal(after[n], tensor)} - {SHIFT}


def rms(one, other):
    squares = [(a - b) ** 2 for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    return math.sqrt(sum(squares) / len(squares))


def own_weights(phase):
    """The parameters of the loss itself."""
    network = {id(parameter) for parameter in phase.module.parameters()}
    return [p for group in phase.groups for p in group["params"] if id(p) not in network]


def test_the_validation_loss_of_pairs_by_hand():
    run = make_run(pairs=True)
    phase = only(run, loss={"name": "contrastive", "margin_different": 2.0, "weight_same": 3.0})
    latents, pairs = all_latents(run, run.val), run.val_pairs
    paid = []
    for left, right, same in zip(pairs.left, pairs.right, pairs.same, strict=True):
        distance = rms(latents[left], latents[right])
        paid.append(3 * distance**2 if same else max(0.0, 2 - distance) ** 2)
    assert float(phase.validate()["val/loss"]) == pytest.approx(sum(paid) / len(paid), rel=1e-5)


def test_the_training_loss_of_pairs_by_hand():
    run = make_run(pairs=True, batch_size=6)
    phase = only(run, loss={"name": "contrastive", "margin_different": 2.0})
    phase.training_mode()
    taken, batch, labels = next(iter(phase.batches()))
    assert labels.equal(run.train.labels[batch.images])
    latents = run.part(upto="embedding")(taken).detach()
    expected = [
        rms(latents[i], latents[j]) ** 2 if same else max(0.0, 2 - rms(latents[i], latents[j])) ** 2
        for i, j, same in zip(batch.left, batch.right, batch.same, strict=True)
    ]
    assert len(expected) > 3
    assert phase.loss((taken, batch, labels)).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_validation_loss_of_images_by_hand():
    """One batch holds the whole validation set, whatever its order."""
    run = make_run(classes=4, per_class=5)
    phase = only(run, loss={"name": "supcon", "temperature": 0.5})
    latents = torch.nn.functional.normalize(all_latents(run, run.val)).double()
    labels = run.val.labels.tolist()
    similar = (latents @ latents.T / 0.5).exp().tolist()
    paid = []
    for i, label in enumerate(labels):
        others = sum(similar[i][a] for a in range(len(labels)) if a != i)
        positive = [p for p in range(len(labels)) if p != i and labels[p] == label]
        paid.append(-sum(math.log(similar[i][p] / others) for p in positive) / len(positive))
    assert float(phase.validate()["val/loss"]) == pytest.approx(sum(paid) / len(paid), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "triplet", "mining": "semihard"},
        {"name": "TripletMarginLoss", "miner": {"name": "BatchEasyHardMiner"}},
    ],
    ids=lambda loss: loss["name"],
)
def test_validation_is_the_same_whatever_was_drawn_before(loss, monkeypatch):
    monkeypatch.setattr("pipeline.training.siamese.EVALUATION_BATCH", 5)
    run = make_run(classes=3, per_class=6, augmentation=ROTATED)
    phase = only(run, loss=loss, per_class=2)
    phase.module.eval()
    first = phase.validate()["val/loss"]
    for _ in phase.batches():  # moves the streams of order and augmentation
        torch.rand(3)
    assert torch.equal(phase.validate()["val/loss"], first)
    other_seed = make_run(classes=3, per_class=6)
    other_seed.seed, other_seed.network = 5, run.network
    again = only(other_seed, loss=loss)
    again.module.eval()
    assert torch.equal(again.validate()["val/loss"], first)


def test_validation_batches_mix_the_classes(monkeypatch):
    """Sorted by class, batches of one class would have no triplet and a loss of zero."""
    monkeypatch.setattr("pipeline.training.siamese.EVALUATION_BATCH", 4)
    run = make_run(classes=3, per_class=6)
    assert run.val.labels.tolist() == sorted(run.val.labels.tolist())
    phase = only(run, loss={"name": "triplet", "margin": 5.0})
    assert float(phase.validate()["val/loss"]) > 1


def test_per_class_fills_every_batch():
    run = make_run(classes=5, per_class=6, batch_size=8)
    phase = only(run, loss={"name": "supcon"}, per_class=4)
    for _ in range(3):
        batches = list(phase.batches())
        assert len(batches) == phase.steps == 4  # as many as shuffled batches
        for images, labels in batches:
            assert sorted(labels.unique(return_counts=True)[1].tolist()) == [4, 4]
            assert images.shape == (8, 1, 8, 8)
    with pytest.raises(InputError, match="at most 2"):
        list(only(make_run(batch_size=4), loss={"name": "supcon"}, per_class=3).batches())


def test_shuffled_batches_show_every_image_once():
    run = make_run(classes=3, per_class=6, batch_size=4)
    phase = only(run, loss={"name": "supcon"})
    drawn = torch.cat([labels for _, labels in phase.batches()])
    assert drawn.bincount().tolist() == [6, 6, 6]
    assert phase.steps == 5


def test_the_loss_of_a_batch_counts_anchors_and_weighs_images():
    run = make_run()
    phase = only(run, loss={"name": "supcon"})
    images = next(run.encode(None, run.train))[:4]
    phase.module.eval()
    one_pair = phase.loss((images, torch.tensor([0, 1, 2, 2]))).detach()
    similar = torch.nn.functional.normalize(phase.module(images).detach()) / 0.1**0.5
    scores = similar @ similar.T
    paid = [
        float(scores[i, [k for k in range(4) if k != i]].logsumexp(0) - scores[2, 3])
        for i in (2, 3)
    ]
    assert one_pair.tolist() == pytest.approx([sum(paid) / 2] * 4, rel=1e-4)
    no_pair = phase.loss((images[:2], torch.tensor([0, 1])))
    no_pair.mean().backward()
    assert no_pair.tolist() == [0, 0]
    assert all(torch.isfinite(p.grad).all() for p in phase.module.parameters())


def test_parts_are_trained_one_after_the_other():
    run = make_run(pairs=True)
    losses = [{"name": "contrastive"}, {"name": "triplet"}]
    recipe = encoder(latent=["features.3", "embedding"], loss=losses, epochs=[1, 3], lr=[0.1, 0.2])
    start, seen = state(run.network), []
    for phase in recipe.encoder_phases(run):
        before = state(run.network)
        result = fit(phase, run.device, "fp32")
        seen.append((phase.name, len(result.history), phase.settings.lr, changed(run, before)))
    first = {name for name in start if name.startswith(("features.0", "features.1"))}
    second = {name for name in start if name.startswith(("features.4", "features.5", "embedding"))}
    second -= {SHIFT}
    assert seen == [("encoder_1", 1, 0.1, first), ("encoder_2", 3, 0.2, second)]


def test_the_parts_together_are_the_encoder():
    run = make_run()
    images = next(run.encode(None, run.train))
    run.network.eval()
    first = run.part(upto="features.3")
    second = run.part(after="features.3", upto="embedding")
    head = run.part(after="embedding")
    with torch.no_grad():
        assert torch.equal(second(first(images)), run.part(upto="embedding")(images))
        assert torch.equal(head(second(first(images))), run.network(images))


def test_the_second_part_sees_what_the_first_became():
    """Its inputs are the trained first part's latents, kept or run anew for changed images."""
    for augmentation in (None, ROTATED):
        run = make_run(pairs=True, augmentation=augmentation)
        recipe = encoder(latent=["features.3", "embedding"], epochs=1)
        phases = recipe.encoder_phases(run)
        fit(next(phases), run.device, "fp32")
        second = next(phases)
        taken, *_ = next(iter(second.batches()))
        if augmentation is None:
            latents = next(run.encode(run.part(upto="features.3").eval(), run.train))
            kept = {image.numpy().tobytes() for image in latents}
            assert {image.numpy().tobytes() for image in taken} <= kept
        else:
            assert taken.shape[1:] == (1, 8, 8)


def test_freeze_to_keeps_the_start_of_the_encoder():
    run = make_run(pairs=True)
    before = state(run.network)
    phase = only(run, freeze_to="features.3")
    fit(phase, run.device, "fp32")
    assert changed(run, before) == {
        name for name in before if name.startswith(("features.4", "features.5", "embedding"))
    } - {SHIFT}


@pytest.mark.parametrize("frozen", [None, "features.3"])
def test_kept_encoders_come_back_whole(tmp_path, frozen):
    run = make_run(pairs=True)
    recipe = encoder(epochs=4, keep=3, freeze_to=frozen)
    module = recipe.encoder_module(run)
    (phase,) = recipe.encoder_phases(run)
    result = fit(phase, run.device, "fp32")
    losses = [row["val/loss"] for row in result.history]
    by_loss = sorted(range(1, 5), key=lambda epoch: losses[epoch - 1])[:3]
    assert [kept.epoch for kept in result.kept] == by_loss
    path = tmp_path / "model.safetensors"
    weights.save(path, workspace.encoder_tensors(module, result.kept))
    found = workspace.kept_encoders(path, set(module.state_dict()))
    assert len(found) == 3 and equal(found[0], state(module))
    for tensors, kept in zip(found, result.kept, strict=True):
        assert tensors.keys() == module.state_dict().keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in kept.state.items())
        weights.put(module, tensors)
        phase.module.eval()
        assert float(phase.validate()["val/loss"]) == losses[kept.epoch - 1]


def test_encoders_of_another_network_are_refused(tmp_path):
    run = make_run()
    path = tmp_path / "model.safetensors"
    weights.save(path, state(run.network))
    with pytest.raises(InputError, match=r"model\.safetensors: is the model of another network"):
        workspace.kept_encoders(path, set(run.part(upto="embedding").state_dict()))


@pytest.mark.parametrize("name", ["ArcFaceLoss", "ProxyAnchorLoss"])
def test_the_weights_of_a_loss_are_trained_with_the_network(name):
    ends = []
    for seed in (1, 1, 2):
        run = make_run(seed=seed)
        phase = only(run, loss={"name": name}, epochs=1)
        (own,) = own_weights(phase)
        assert 64 in own.shape and 3 in own.shape
        before = own.clone()
        fit(phase, run.device, "fp32")
        assert not torch.equal(own, before) and torch.isfinite(own).all()
        ends.append((own.detach().clone(), state(run.network)))
    (first, network), (again, network_again), (other, _) = ends
    assert torch.equal(first, again) and equal(network, network_again)
    assert not torch.equal(first, other)


def test_the_weights_of_a_loss_decay_not_and_learn_at_the_phase_s_rate():
    phase = only(make_run(), loss={"name": "ArcFaceLoss"}, weight_decay=0.1, lr=0.03)
    (own,) = own_weights(phase)
    (group,) = (g for g in phase.groups if any(p is own for p in g["params"]))
    assert (group["lr"], group["weight_decay"]) == (0.03, 0.0)


def test_a_miner_decides_which_triplets_pay():
    run = make_run()
    plain = {"name": "TripletMarginLoss", "arguments": {"margin": 0.2}}
    hard = plain | {"miner": {"name": "BatchHardMiner"}}
    images, labels = next(run.encode(None, run.train)), run.train.labels
    paid = {}
    for key, loss in (("all", plain), ("hard", hard)):
        phase = only(run, loss=loss)
        phase.module.eval()
        paid[key] = float(phase.loss((images, labels)).mean().detach())
    latents = torch.nn.functional.normalize(all_latents(run, run.train))
    apart = torch.cdist(latents, latents, compute_mode="donot_use_mm_for_euclid_dist")
    hardest = []
    for i, label in enumerate(labels.tolist()):
        same = [float(apart[i, j]) for j in range(len(labels)) if j != i and labels[j] == label]
        others = [float(apart[i, j]) for j in range(len(labels)) if labels[j] != label]
        hardest.append(max(0.0, max(same) - min(others) + 0.2))
    above = [value for value in hardest if value > 0]  # the library's mean is over those that pay
    assert paid["hard"] == pytest.approx(sum(above) / len(above), rel=1e-4)
    assert paid["hard"] > paid["all"]


def test_a_loss_draws_nothing_from_torch_s_own_generator():
    run = make_run()
    phase = only(run, loss={"name": "ArcFaceLoss"})
    batch = next(iter(phase.batches()))
    before = torch.get_rng_state()
    phase.loss(batch).mean().backward()
    phase.validate()
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_and_batch_norm_stay_as_in_evaluation_where_asked():
    from pipeline.training.siamese import train_mode

    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Dropout2d(0.5)
    )
    for dropout in (False, True):
        for batch_norm in (False, True):
            train_mode(module.eval(), dropout, batch_norm)
            assert [part.training for part in module] == [True, batch_norm, dropout]
