"""Phases of cross-entropy: step by step, beside a Siamese loss, or in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pipeline.data.augmentation import mix
from pipeline.data.batches import balanced_batches, batch_count, image_batches
from pipeline.data.rows import Streamed, in_order, together
from pipeline.errors import InputError
from pipeline.models.heads import Assembled
from pipeline.params import Classification, CrossEntropy, Supervised
from pipeline.training import runtime, siamese
from pipeline.training.feed import Feed
from pipeline.training.losses import Objective
from pipeline.training.losses.cross_entropy import balanced_weights, cross_entropy
from pipeline.training.optimizers import parameter_groups
from pipeline.training.phase import EVALUATION_BATCH, Phase, Solve, evaluate

if TYPE_CHECKING:
    from pipeline.training.run import Run

TrainingMode = Callable[[], object]
Factor = Callable[[str], float]


def classification(
    run: Run,
    name: str,
    module: nn.Module,
    settings: Classification,
    frozen: nn.Module | None,
    lr_factor: Factor,
    training_mode: TrainingMode | None,
) -> Phase:
    """See ``Run.classification``."""
    mixing = settings.mixup > 0 or settings.cutmix > 0
    run.begin_phase()
    module.requires_grad_(True)
    feed = Feed(run, frozen, changing=mixing)
    generator = run.generator("mix")
    criterion = _criterion(run, settings)

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for images, labels in epoch():
            if mixing:
                yield mix(images, labels, settings.mixup, settings.cutmix, generator)
            else:
                yield images, labels

    def loss(batch: tuple[Any, ...]) -> Tensor:
        images, labels, *other = batch
        logits = module(feed.inputs(images))
        losses = criterion(logits, labels)
        if not other:
            return losses
        partners, share = other
        return share * losses + (1 - share) * criterion(logits, partners)

    epoch, steps = _labelled_batches(run, settings, feed)
    groups = parameter_groups(module, settings, lr_factor)
    if not groups:
        raise InputError(
            f"params.yaml: methods.{run.method}: every layer has the learning-rate factor 0, so "
            "that nothing would be trained; give one a factor above 0"
        )
    return Phase(
        name=name,
        module=module,
        groups=groups,
        settings=settings,
        steps=steps,
        batches=batches,
        loss=loss,
        validate=lambda: evaluate(module, cross_entropy, feed.val(), run.val.labels),
        rule=run.training.rule,
        training_mode=training_mode or module.train,
        network=run.network,
        recordable=True,
    )


def joint(
    run: Run,
    name: str,
    encoder: nn.Module,
    head: nn.Module,
    settings: Supervised,
    objective: Objective,
    weight: float,
) -> Phase:
    """See ``Run.joint``."""
    run.begin_phase()
    run.network.requires_grad_(True)
    feed = Feed(run, None)
    criterion = _criterion(run, settings)
    batches, steps = _labelled_batches(run, settings, feed)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        latents = encoder(images)
        paired = siamese.within_batch(objective, latents.flatten(1).float(), labels)
        return criterion(head(latents), labels) + weight * paired

    groups = parameter_groups(run.network, settings)
    return Phase(
        name=name,
        module=run.network,
        groups=[*groups, *siamese.own_group(objective, settings)],
        settings=settings,
        steps=steps,
        batches=batches,
        loss=loss,
        validate=lambda: evaluate(run.network, cross_entropy, feed.val(), run.val.labels),
        rule=run.training.rule,
        training_mode=run.network.train,
        network=run.network,
        recordable=objective.recordable,
    )


def solve(
    run: Run,
    name: str,
    network: Assembled,
    fit: Callable[[Tensor, Tensor, int], tuple[nn.Module, dict[str, float]]],
) -> Solve:
    """See ``Run.solve``."""
    network.encoder.requires_grad_(False).eval()
    latents = run.keep(network.encoder, run.train)
    val_latents = run.keep(network.encoder, run.val)

    def make() -> dict[str, float]:
        rows = latents.on_cpu() if isinstance(latents, Streamed) else latents
        head, found = fit(rows, run.train.labels, run.classes)
        network.head = head.to(run.device)
        return found

    def metrics() -> dict[str, Tensor]:
        kept = {"train": (latents, run.train.labels), "val": (val_latents, run.val.labels)}
        found: dict[str, Tensor] = {}
        for of, (rows, labels) in kept.items():
            inputs = in_order(rows, EVALUATION_BATCH)
            found |= evaluate(network.head, cross_entropy, inputs, labels, of)
        return found

    return Solve(
        name=name,
        module=network,
        solve=make,
        images=len(run.train),
        metrics=metrics,
        rule=run.training.rule,
    )


def _criterion(run: Run, settings: CrossEntropy) -> Callable[[Tensor, Tensor], Tensor]:
    weights = None
    if settings.class_weights == "balanced":
        weights = balanced_weights(run.train.labels, run.classes)
    return partial(cross_entropy, label_smoothing=settings.label_smoothing, class_weights=weights)


def _labelled_batches(
    run: Run, settings: Supervised, feed: Feed
) -> tuple[Callable[[], Iterator[tuple[Tensor, Tensor]]], int]:
    """An epoch's batches of images and labels, called anew for each, and how many they are."""
    size = run.batch_size(settings)
    order = runtime.generator(run.seed, "order")
    labels = run.train.labels.cpu()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        if settings.sampler == "balanced":
            drawn = balanced_batches(labels, size, order)
        else:
            drawn = image_batches(len(labels), size, order)
        sent = together(drawn, run.device)
        images = feed.stream(zip(drawn, sent, strict=True))
        yield from zip(images, siamese.labels_of(run, sent), strict=True)

    return batches, batch_count(len(labels), size)
