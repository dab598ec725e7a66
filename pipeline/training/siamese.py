"""Phases of a Siamese loss on latents: on listed pairs, or on whole batches of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import tee
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.data.batches import batch_count, image_batches
from pipeline.data.pair_batches import PairBatch, PairBatches
from pipeline.data.rows import together
from pipeline.params import Optimization, Optimizer
from pipeline.training import runtime
from pipeline.training.feed import Feed
from pipeline.training.losses import LossBlock, Objective, Setting, m_per_class_batches
from pipeline.training.losses.samplers import class_batch
from pipeline.training.optimizers import parameter_groups
from pipeline.training.phase import EVALUATION_BATCH, Parts, Phase

if TYPE_CHECKING:
    from pipeline.training.run import Run

DISTANCE_ELEMENTS = 2**24  # latents gathered at a time when many pairs are scored


def siamese(
    run: Run,
    name: str,
    encoder: nn.Module,
    settings: Optimization,
    loss: LossBlock,
    frozen: nn.Module | None,
    dropout: bool,
    per_class: int | None,
    keep: int,
    key: str,
) -> Phase:
    """See ``Run.siamese``."""
    run.begin_phase()
    encoder.requires_grad_(True)
    feed = Feed(run, frozen)
    objective = make(run, loss, dimension(encoder, next(feed.val())), key)
    if objective.of_pairs:
        phase = _on_pairs(run, encoder, settings, feed, objective)
    else:
        phase = _on_images(run, encoder, settings, feed, objective, per_class)
    groups = parameter_groups(encoder, settings)
    return dataclasses.replace(
        phase,
        name=name,
        groups=[*groups, *own_group(objective, settings)],
        training_mode=lambda: train_mode(encoder, dropout=dropout),
        keep=keep,
        network=run.network,
    )


def passes_of_classes(run: Run, settings: Optimizer, per_class: int) -> float:
    """See ``Run.passes_of_classes``."""
    images, size = len(run.train), run.batch_size(settings)
    return batch_count(images, size) * _class_batch(run, size, per_class) / images


def make(run: Run, loss: LossBlock, dimension: int, key: str) -> Objective:
    """The loss as functions, with its own weights, if it has any, from the run's seed."""
    seed = runtime.stream_seed(run.seed, "loss")
    where = f"methods.{run.method}.{key}" if run.method else key
    return loss.make(Setting(run.classes, dimension, run.device, seed, where))


@torch.no_grad()
def dimension(encoder: nn.Module, inputs: Tensor) -> int:
    """Size of a flattened latent."""
    encoder.eval()
    return int(encoder(inputs[:1]).flatten(1).shape[1])


def own_group(objective: Objective, settings: Optimization) -> list[dict[str, Any]]:
    """The parameters of the loss itself, such as proxies, as a group for the optimizer."""
    own = {"params": objective.parameters, "lr": settings.lr, "weight_decay": 0.0}
    return [own] if objective.parameters else []


def within_batch(objective: Objective, latents: Tensor, labels: Tensor) -> Tensor:
    """The loss over all that a batch holds: every pair of its images, or every anchor.

    Args:
        objective: the loss.
        latents: (B, D).
        labels: (B,).
    """
    if objective.of_images:
        return _mean(*objective.of_images(latents, labels))
    assert objective.of_pairs
    left, right = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
    same = labels[left] == labels[right]
    return objective.of_pairs(latents[left], latents[right], labels[left], same).mean()


def labels_of(run: Run, sent: list[Tensor]) -> Iterator[Tensor]:
    """Labels (B,) of the training images of each batch, gathered together on the device.

    Args:
        run: whose images.
        sent: their positions in each batch (B,), on the device.
    """
    found = run.train.labels[torch.cat(sent)]
    return iter(found.split([len(batch) for batch in sent]))


def train_mode(module: nn.Module, dropout: bool = True, batch_norm: bool = True) -> None:
    """Training mode; dropout with stochastic depth, or batch norm, stay as in evaluation."""
    module.train()
    for part in module.modules():
        kind = type(part).__name__
        is_dropout = "Dropout" in kind or "Stochastic" in kind
        if (is_dropout and not dropout) or ("BatchNorm" in kind and not batch_norm):
            part.eval()


def _on_pairs(
    run: Run, encoder: nn.Module, settings: Optimization, feed: Feed, objective: Objective
) -> Phase:
    """Each image of a batch goes through the encoder once, however many pairs it is in."""
    assert run.pairs is not None and run.val_pairs is not None and objective.of_pairs
    of_pairs = objective.of_pairs
    order = runtime.generator(run.seed, "order")
    composed = PairBatches(run.pairs, len(run.train), run.batch_size(settings), order)
    val_pairs = [
        torch.from_numpy(column).to(run.device)
        for column in (run.val_pairs.left, run.val_pairs.right, run.val_pairs.same)
    ]

    def groups() -> Iterator[tuple[PairBatch, PairBatch, Tensor]]:
        # a group is composed while the device has the one before it to do
        for group in composed.epoch():
            sent = _together(group, run.device)
            yield from zip(group, sent, labels_of(run, [of.images for of in sent]), strict=True)

    def batches() -> Iterator[tuple[Tensor, PairBatch, Tensor]]:
        drawn, again = tee(groups())
        images = feed.stream((batch.images, sent.images) for batch, sent, _ in drawn)
        for taken, (_, sent, labels) in zip(images, again, strict=True):
            yield taken, sent, labels

    def score(latents: Tensor, item: tuple[Tensor, PairBatch, Tensor]) -> Tensor:
        _, batch, labels = item
        left, right = batch.left, batch.right
        return of_pairs(latents[left], latents[right], labels[left], batch.same)

    @torch.no_grad()
    def validate() -> dict[str, Tensor]:
        latents = _latents(encoder, feed.val())
        step = max(1, DISTANCE_ELEMENTS // latents.shape[1])
        scored = [
            of_pairs(latents[left], latents[right], run.val.labels[left], same == 1)
            for left, right, same in zip(*(c.split(step) for c in val_pairs), strict=True)
        ]
        return {"val/loss": torch.cat(scored).mean()}

    loss, parts = _in_parts(encoder, feed, score, objective)
    return Phase("", encoder, [], settings, composed.batches, batches, loss, validate, "val_loss",
                 encoder.train, parts=parts)  # fmt: skip


def _on_images(
    run: Run,
    encoder: nn.Module,
    settings: Optimization,
    feed: Feed,
    objective: Objective,
    per_class: int | None,
) -> Phase:
    """Every batch of images is its own set of pairs or triplets, by the labels."""
    assert objective.of_images
    of_images = objective.of_images
    size = run.batch_size(settings)
    order = runtime.generator(run.seed, "order")
    labels = run.train.labels.cpu()
    steps = batch_count(len(labels), size)
    if per_class:
        _class_batch(run, size, per_class)  # refused here rather than in the first epoch
    # the validation images come sorted by class: an order that mixes them, the same in each epoch
    shuffled = runtime.generator(0, "validation")
    val_batches = together(image_batches(len(run.val), EVALUATION_BATCH, shuffled), run.device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        if per_class:
            drawn = m_per_class_batches(labels, size, per_class, steps, order)
        else:
            drawn = image_batches(len(labels), size, order)
        sent = together(drawn, run.device)
        images = feed.stream(zip(drawn, sent, strict=True))
        yield from zip(images, labels_of(run, sent), strict=True)

    def score(latents: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        _, of = batch
        return _mean(*of_images(latents, of)).expand(len(of))

    @torch.no_grad()
    def validate() -> dict[str, Tensor]:
        latents = _latents(encoder, feed.val())
        scored = [of_images(latents[batch], run.val.labels[batch]) for batch in val_batches]
        values, counts = (torch.cat(part) for part in zip(*scored, strict=True))
        return {"val/loss": _mean(values, counts)}

    loss, parts = _in_parts(encoder, feed, score, objective)
    return Phase("", encoder, [], settings, steps, batches, loss, validate, "val_loss",
                 encoder.train, recordable=objective.recordable, parts=parts)  # fmt: skip


def _in_parts(
    encoder: nn.Module, feed: Feed, score: Callable[[Tensor, Any], Tensor], objective: Objective
) -> tuple[Callable[[Any], Tensor], Parts | None]:
    """``loss`` and ``parts`` of a phase; ``score`` takes latents (B, D) and the batch to losses."""

    def encode(taken: Tensor) -> Tensor:
        latents: Tensor = encoder(feed.inputs(taken)).flatten(1).float()
        return latents

    def loss(batch: Any) -> Tensor:
        return score(encode(batch[0]), batch)

    return loss, None if objective.parameters else (encode, score)


def _class_batch(run: Run, size: int, per_class: int) -> int:
    """Images of a batch of ``per_class`` a class that ``size`` allows."""
    where = f"methods.{run.method}.encoder.per_class"
    classes = len(run.train.labels.cpu().unique())
    together, each = class_batch(classes, size, per_class, where)
    return together * each


def _together(drawn: list[PairBatch], device: torch.device) -> list[PairBatch]:
    """Batches of pairs on the device after two transfers."""
    parts = [part for batch in drawn for part in (batch.images, batch.left, batch.right)]
    places = iter(together(parts, device))
    same = together([batch.same for batch in drawn], device)
    return [PairBatch(next(places), next(places), next(places), of) for of in same]


def _latents(encoder: nn.Module, inputs: Iterator[Tensor]) -> Tensor:
    return torch.cat([encoder(batch).flatten(1).float() for batch in inputs])


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean over the anchors that count; 0 without any, and NaN stays NaN."""
    return (values * counts).sum() / counts.sum().clamp(min=1)
