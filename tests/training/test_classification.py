"""Phases of cross-entropy: what is drawn, what is paid, what learns and what stays as it is."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from pipeline import recipes
from pipeline.data.batches import ImageSet
from pipeline.errors import InputError
from pipeline.params import Augmentation, Classification
from pipeline.training.loop import fit
from tests.digits import make_run

BLOCKS = [("features.0", "features.1"), ("features.4", "features.5"), ("embedding",),
          ("classifier",)]  # fmt: skip


def settings(**asked):
    return Classification(**{"epochs": 1, "lr": 0.05} | asked)


def whole(run, **asked):
    return run.classification("end_to_end", run.network, settings(**asked))


def finetune(**asked):
    return recipes.of({"recipe": "finetune", "epochs": 2, "lr": 0.1} | asked)


def state(run):
    return {name: tensor.clone() for name, tensor in run.network.state_dict().items()}


def changed(run, before):
    """Names of parameters and buffers whose bytes are others than before."""
    after = run.network.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}


def rates(phase):
    """Learning rate of each parameter by name."""
    names = {id(parameter): name for name, parameter in phase.module.named_parameters()}
    return {
        names[id(parameter)]: group["lr"] for group in phase.groups for parameter in group["params"]
    }


def unbalanced(counts, **asked):
    """A run whose class k has ``counts[k]`` training images."""
    run = make_run(classes=len(counts), per_class=max(counts), **asked)
    keep = torch.cat(
        [(run.train.labels == k).nonzero()[:count, 0] for k, count in enumerate(counts)]
    )
    run.train = ImageSet(run.train.pixels[keep], run.train.labels[keep])
    return run


def one_batch(phase):
    """The first batch of an epoch, and the module ready for it as in training."""
    phase.training_mode()
    return next(iter(phase.batches()))


def test_an_epoch_shows_every_image_once_and_another_order_each_time():
    run = make_run(per_class=5)
    phase = whole(run)
    first, second = (list(phase.batches()) for _ in range(2))
    shown = torch.cat([images for images, _ in first])
    inputs = torch.cat(list(run.encode(None, run.train)))
    assert sorted(shown.flatten(1).tolist()) == sorted(inputs.flatten(1).tolist())
    assert phase.steps == len(first) == 4
    assert not torch.equal(shown, torch.cat([images for images, _ in second]))


def test_label_smoothing_by_hand():
    run = make_run()
    phase = whole(run, label_smoothing=0.3)
    images, labels = one_batch(phase)
    logs = run.network(images).log_softmax(1).tolist()
    expected = [
        -sum(((0.7 if k == label else 0) + 0.1) * row[k] for k in range(3))
        for row, label in zip(logs, labels.tolist(), strict=True)
    ]
    assert phase.loss((images, labels)).tolist() == pytest.approx(expected, rel=1e-5)


def test_balanced_class_weights_by_hand():
    run = unbalanced([2, 4, 6])
    phase = whole(run, class_weights="balanced")
    images, labels = torch.cat(list(run.encode(None, run.train))), run.train.labels
    phase.training_mode()
    plain = functional.cross_entropy(run.network(images), labels, reduction="none")
    weights = torch.tensor([12 / (3 * n) for n in (2, 4, 6)])
    assert torch.allclose(phase.loss((images, labels)), plain * weights[labels], rtol=1e-5)
    assert weights[labels].mean() == pytest.approx(1)  # the learning rate keeps its meaning


def test_the_balanced_sampler_shows_all_classes_alike():
    run = unbalanced([2, 10, 20], batch_size=8)
    shares = {}
    for sampler in ("shuffled", "balanced"):
        phase = whole(run, sampler=sampler)
        epochs = [list(phase.batches()) for _ in range(40)]
        assert {len(epoch) for epoch in epochs} == {phase.steps} == {4}
        assert {sum(len(labels) for _, labels in epoch) for epoch in epochs} == {32}
        drawn = torch.cat([labels for epoch in epochs for _, labels in epoch])
        shares[sampler] = drawn.bincount() / len(drawn)
    assert torch.allclose(shares["shuffled"], torch.tensor([2, 10, 20]) / 32)
    spread = 5 * math.sqrt(1 / 3 * 2 / 3 / (40 * 32))  # five standard errors of a share
    assert torch.allclose(shares["balanced"], torch.full((3,), 1 / 3), atol=spread)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_pay_for_both_labels(kind):
    run = unbalanced([2, 4, 6], batch_size=6)
    phase = whole(run, **{kind: 1.0}, label_smoothing=0.1, class_weights="balanced")
    weights = torch.tensor([12 / (3 * n) for n in (2, 4, 6)])
    pixels = set(torch.cat(list(run.encode(None, run.train))).unique().tolist())
    shares = set()
    for images, labels, partners, share in itertools.chain(*(phase.batches() for _ in range(3))):
        phase.training_mode()
        logits = run.network(images)
        own, other = (
            functional.cross_entropy(logits, of, reduction="none", label_smoothing=0.1)
            * weights[of]
            for of in (labels, partners)
        )
        expected = share * own + (1 - share) * other
        assert torch.allclose(phase.loss((images, labels, partners, share)), expected, atol=1e-6)
        assert 0 <= share <= 1 and images.shape == (6, 1, 8, 8)
        assert (set(images.unique().tolist()) <= pixels) == (kind == "cutmix")
        shares.add(round(float(share), 4))
    assert len(shares) > 3


def test_mixing_starts_from_images_not_from_kept_latents():
    passed = {}
    for alpha in (0.0, 0.4):
        run = make_run()
        encoder = run.before("embedding")
        phase = run.classification("head", run.part("embedding"), settings(mixup=alpha), encoder)
        count = []
        hook = encoder.register_forward_hook(lambda *call, count=count: count.append(call[2]))
        shapes = {tuple(batch[0].shape[1:]) for batch in phase.batches()}
        losses = phase.loss(one_batch(phase))
        hook.remove()
        assert torch.isfinite(losses).all()
        passed[alpha] = len(count), shapes
    assert passed == {0.0: (0, {(64,)}), 0.4: (1, {(1, 8, 8)})}


def test_a_frozen_part_is_run_on_the_mixture():
    run = make_run()
    encoder, head = run.before("embedding"), run.part("embedding")
    phase = run.classification("head", head, settings(mixup=0.4), encoder)
    images, labels, partners, share = one_batch(phase)
    logits = run.network.eval()(images)  # no batch norm after the cut, and dropout is zero
    own, other = (functional.cross_entropy(logits, of, reduction="none")
                  for of in (labels, partners))  # fmt: skip
    expected = share * own + (1 - share) * other
    assert torch.allclose(phase.loss((images, labels, partners, share)), expected, atol=1e-6)


def test_validation_is_plain_cross_entropy_whatever_is_trained():
    asked = {"label_smoothing": 0.2, "class_weights": "balanced", "mixup": 1.0, "cutmix": 1.0}
    run = unbalanced([2, 4, 6], augmentation=Augmentation(rotation=90, erasing=1.0))
    phase = whole(run, **asked)
    run.network.eval()
    with torch.no_grad():
        logits = run.network(next(run.encode(None, run.val)))
        found = phase.validate()
    expected = functional.cross_entropy(logits, run.val.labels)
    assert float(found["val/loss"]) == pytest.approx(float(expected), rel=1e-6)
    right = (logits.argmax(1) == run.val.labels).float().mean()
    assert float(found["val/accuracy"]) == float(right)


def test_freeze_to_keeps_all_before_it_with_its_statistics():
    run = make_run()
    before = state(run)
    (phase,) = finetune(freeze_to="features.3").phases(run)
    fit(phase, run.device, "fp32")
    fixed = {name for name in before if name.startswith(("features.0", "features.1"))}
    assert "features.1.running_mean" in fixed
    assert changed(run, before) == before.keys() - fixed


def test_the_rate_falls_block_by_block():
    run = make_run()
    (phase,) = finetune(lr_decay=0.5, pretrained_lr_factor=0.1).phases(run)
    found = rates(phase)
    for depth, names in enumerate(reversed(BLOCKS)):
        new = 1 if depth == 0 else 0.1
        for name in names:
            assert found[f"{name}.weight"] == pytest.approx(0.1 * new * 0.5**depth), name
    assert found.keys() == dict(run.network.named_parameters()).keys()


def test_named_layers_have_a_factor_of_their_own():
    run = make_run()
    asked = {"features": 0.0, "features.4": 2.0, "embedding.bias": 0.3}
    (phase,) = finetune(lr_factors=asked, lr_decay=0.5, pretrained_lr_factor=0.1).phases(run)
    assert rates(phase) == pytest.approx(
        {
            "features.4.weight": 0.2,
            "embedding.weight": 0.1 * 0.1 * 0.5,
            "embedding.bias": 0.03,
            "classifier.weight": 0.1,
            "classifier.bias": 0.1,
        }
    )
    before = {name: parameter.clone() for name, parameter in run.network.named_parameters()}
    fit(phase, run.device, "fp32")
    assert changed(run, before) == rates(phase).keys()


def test_rates_below_a_frozen_part_count_from_the_top_all_the_same():
    run = make_run()
    (phase,) = finetune(freeze_to="features.3", lr_decay=0.5).phases(run)
    assert rates(phase)["features.4.weight"] == pytest.approx(0.1 * 0.25)
    assert rates(phase)["classifier.bias"] == pytest.approx(0.1)


def test_frozen_batch_norm_keeps_statistics_scales_and_shifts():
    run = make_run()
    before = state(run)
    (phase,) = finetune(freeze_batch_norm=True).phases(run)
    fit(phase, run.device, "fp32")
    norms = {name for name in before if name.startswith(("features.1.", "features.5."))}
    assert len(norms) == 10
    assert changed(run, before) == before.keys() - norms


def test_all_rates_zero_is_an_error():
    run = make_run()
    run.method = "mine"
    nothing = finetune(lr_factors={"features": 0, "embedding": 0, "classifier": 0})
    with pytest.raises(InputError, match=r"^params\.yaml: methods\.mine: .* factor above 0$"):
        list(nothing.phases(run))


def test_weight_decay_by_layer_reaches_the_optimizer():
    run = make_run()
    phase = whole(run, weight_decay=0.1, weight_decays={"features": 0.2}, decay_biases=False)
    names = {id(parameter): name for name, parameter in run.network.named_parameters()}
    found = {names[id(p)]: g["weight_decay"] for g in phase.groups for p in g["params"]}
    assert found == {
        name: 0.0 if parameter.ndim == 1 else 0.2 if name.startswith("features") else 0.1
        for name, parameter in run.network.named_parameters()
    }


@pytest.mark.parametrize(
    ("shared", "own", "sizes"),
    [
        (4, None, {4}),
        (4, 18, {18}),
        ("auto", None, {7, 8}),  # a tenth of 36 is less than 8; 36 make five batches
        (4, "auto", {7, 8}),
        ("auto", 4, {4}),
    ],
)
def test_a_phase_has_its_own_batch_size_or_the_shared_one(shared, own, sizes):
    run = make_run(classes=3, per_class=12, batch_size=shared)
    phase = whole(run, batch_size=own)
    batches = [len(labels) for _, labels in phase.batches()]
    assert set(batches) == sizes and len(batches) == phase.steps


def joint(**asked):
    block = {"recipe": "joint", "epochs": 2, "lr": 0.1, "latent": "embedding"}
    return recipes.of(block | asked)


def pairwise_contrastive(latents, labels, margin):
    """The mean over all pairs of a batch, one by one."""
    paid = []
    for i, j in itertools.combinations(range(len(labels)), 2):
        squares = [(a - b) ** 2 for a, b in zip(latents[i], latents[j], strict=True)]
        distance = math.sqrt(sum(squares) / len(squares))
        apart = distance if labels[i] == labels[j] else max(0.0, margin - distance)
        paid.append(apart**2)
    return sum(paid) / len(paid)


def test_joint_is_cross_entropy_and_all_pairs_of_the_batch():
    run = make_run(batch_size=9)
    loss = {"name": "contrastive", "margin_different": 3.0}
    (phase,) = joint(loss=loss, weight=0.7).phases(run)
    images, labels = one_batch(phase)
    latents = []
    hook = run.network.embedding.register_forward_hook(lambda *call: latents.append(call[2]))
    logits = run.network(images)
    hook.remove()
    paired = pairwise_contrastive(latents[0].tolist(), labels.tolist(), 3.0)
    expected = functional.cross_entropy(logits, labels, reduction="none") + 0.7 * paired
    assert paired > 0.01
    assert torch.allclose(phase.loss((images, labels)), expected, rtol=1e-4)


def test_joint_with_a_loss_on_images_takes_the_mean_over_anchors_that_count():
    run = make_run(batch_size=9)
    (phase,) = joint(loss={"name": "triplet", "margin": 2.0, "mining": "hard"}).phases(run)
    images, _ = one_batch(phase)
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 0, 1, 1])  # the only 2 is no anchor
    latents = run.part(upto="embedding")(images).detach()
    apart = (latents[:, None] - latents).square().mean(2).sqrt()
    anchors = []
    for i in (0, 1, 2, 3, 5, 6, 7, 8):
        same = [float(apart[i, j]) for j in range(9) if j != i and labels[j] == labels[i]]
        others = [float(apart[i, j]) for j in range(9) if labels[j] != labels[i]]
        anchors.append(max(0.0, 2.0 + max(same) - min(others)))
    plain = functional.cross_entropy(run.network(images), labels, reduction="none")
    expected = plain + sum(anchors) / len(anchors)
    assert torch.allclose(phase.loss((images, labels)), expected, rtol=1e-4)


def test_joint_of_weight_zero_is_fine_tuning():
    augmentation = Augmentation(rotation=10, shift=0.1)
    runs = []
    for recipe in (joint(weight=0.0), finetune()):
        run = make_run(augmentation=augmentation)
        run.network.dropout.p = 0.3
        (phase,) = recipe.phases(run)
        result = fit(phase, run.device, "fp32")
        runs.append((run.network.state_dict(), result.history))
    (one, history), (other, plain) = runs
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in other)
    metrics = [[row[key] for key in ("train/loss", "val/loss")] for row in history]
    assert metrics == [
        pytest.approx([row["train/loss"], row["val/loss"]], abs=1e-6) for row in plain
    ]


def test_the_pairs_of_joint_move_the_encoder_alone():
    """The Siamese term has no gradient after the latent, and one before it."""
    run = make_run()
    losses = []
    for weight in (0.0, 1.0):
        (phase,) = joint(weight=weight).phases(run)
        batch = (torch.cat(list(run.encode(None, run.train))), run.train.labels)
        run.network.eval().zero_grad()
        phase.loss(batch).mean().backward()
        losses.append({name: p.grad.clone() for name, p in run.network.named_parameters()})
    plain, with_pairs = losses
    moved = {name for name in plain if not torch.allclose(plain[name], with_pairs[name], atol=1e-7)}
    assert moved and not any(name.startswith("classifier") for name in moved)
    assert {"features.0.weight", "embedding.weight"} <= moved


def test_joint_trains_the_weights_of_a_loss_that_has_some():
    run = make_run()
    (phase,) = joint(loss={"name": "ProxyAnchorLoss"}, weight=0.5).phases(run)
    own = {id(p) for group in phase.groups for p in group["params"]}
    own -= {id(p) for p in run.network.parameters()}
    (proxies,) = (p for g in phase.groups for p in g["params"] if id(p) in own)
    before = proxies.clone()
    fit(phase, run.device, "fp32")
    assert proxies.shape == (3, 64) and not torch.equal(proxies, before)


def test_a_joint_epoch_is_chosen_by_cross_entropy():
    run = make_run()
    (phase,) = joint(weight=100.0).phases(run)
    run.network.eval()
    with torch.no_grad():
        logits = run.network(next(run.encode(None, run.val)))
        found = float(phase.validate()["val/loss"])
    assert found == pytest.approx(float(functional.cross_entropy(logits, run.val.labels)))
