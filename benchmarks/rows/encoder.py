"""The encoder phase against a bare loop, and against two towers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.measure import Row, Taken
from benchmarks.rows.made import (
    AUGMENTED,
    LR,
    MOMENTUM,
    Setting,
    as_a_loop,
    as_a_run,
    in_place,
    timed,
    without_validation,
)
from pipeline import recipes
from pipeline.models.cut import cut
from pipeline.training import losses, runtime
from pipeline.training.loop import fit
from pipeline.training.losses import Contrastive, Objective
from pipeline.training.phase import Phase
from pipeline.training.run import Run
from pipeline.training.siamese import train_mode

PAIRS_PER_IMAGE = 10


@contextmanager
def against_bare_loop(
    setting: Setting, latent: str, epochs: int, wanted: float | None = None
) -> Iterator[Row]:
    """Images a second of the encoder phase, pairs and augmentation included, and of a bare loop.

    The loop does forward, the same loss on as many pairs a batch, backward and step, on one random
    batch that is on the device already. It makes as many steps with as many images. Neither
    validates.

    Args:
        setting: network, images and device.
        latent: where the encoder ends.
        epochs: that are trained in one repetition.
        wanted: the ratio that is asked for.
    """
    made = setting.run(AUGMENTED, PAIRS_PER_IMAGE)
    steps, pairs = learnt_in_an_epoch(phase_of(made, latent, epochs))
    loop = _Loop(setting, latent)
    inputs = setting.random_inputs(math.ceil(setting.images / steps))
    left, right, same = _random_pairs(len(inputs), round(pairs / steps), setting.device)

    def other() -> Taken:
        with as_a_loop(setting):
            return timed(work, setting.device)

    def work() -> float:
        for _ in range(epochs * steps):
            loop.step(inputs, left, right, same)
        return epochs * steps * len(inputs)

    yield Row(
        name=f"encoder phase, {setting.name}",
        against="bare loop of forward, loss, backward and step",
        ours=lambda: images_of(setting, phase_of(made, latent, epochs)),
        other=other,
        unit="images",
        wanted=wanted,
        note=f"batches of {setting.batch_size}, {pairs / steps:.0f} pairs in each",
    )


@contextmanager
def against_two_towers(
    setting: Setting, latent: str, epochs: int, tower_steps: int, wanted: float | None = None
) -> Iterator[Row]:
    """Pairs a second that the encoder phase learns from, and those of two towers.

    Ten pairs an image. Two towers take ``batch_size`` listed pairs a step, in random order, and
    send both images of each through the network, stacked: the form of Siamese systems in Keras.
    Ours takes ``batch_size`` images a step, each once, and learns from the listed pairs among
    them. What is counted is pairs that were learnt from: a pair whose images fall into two of our
    batches rests for the epoch and does not count. The towers' images are normalised beforehand
    and not augmented; ours are augmented on the way.

    Args:
        setting: network, images and device.
        latent: where the encoder ends.
        epochs: of ours in one repetition.
        tower_steps: steps of the towers in one repetition.
        wanted: the ratio that is asked for.
    """
    made = setting.run(AUGMENTED, PAIRS_PER_IMAGE)
    steps, pairs = learnt_in_an_epoch(phase_of(made, latent, epochs))
    assert made.pairs is not None
    listed = [
        torch.from_numpy(column).to(setting.device)
        for column in (made.pairs.left, made.pairs.right, made.pairs.same)
    ]
    inputs = setting.random_inputs(setting.images)
    loop = _Loop(setting, latent)
    order = torch.Generator().manual_seed(0)

    def ours() -> Taken:
        taken = images_of(setting, phase_of(made, latent, epochs))
        return Taken(taken.seconds, epochs * pairs)

    def other() -> Taken:
        with as_a_loop(setting):
            return timed(work, setting.device)

    def work() -> float:
        learnt = 0
        for _ in range(tower_steps):
            drawn = torch.randperm(len(listed[0]), generator=order)[: setting.batch_size]
            left, right, same = (column[drawn.to(setting.device)] for column in listed)
            towers = torch.arange(len(drawn), device=setting.device)
            both = inputs[torch.cat([left, right])]
            loop.step(both, towers, towers + len(drawn), same == 1)
            learnt += len(drawn)
        return learnt

    yield Row(
        name=f"encoder phase, {PAIRS_PER_IMAGE} pairs an image, {setting.name}",
        against="two towers",
        ours=ours,
        other=other,
        unit="pairs",
        wanted=wanted,
        note=f"{setting.images} images in batches of {setting.batch_size}; "
        f"{pairs / steps:.0f} pairs a batch, {pairs / len(listed[0]):.0%} of all in an epoch",
    )


def phase_of(made: Run, latent: str, epochs: int) -> Phase:
    """A new encoder phase of a breakdown up to ``latent``, without validation.

    A phase composes batches of several epochs ahead: one that was trained already would have some.
    """
    settings = {"epochs": epochs, "lr": LR, "momentum": MOMENTUM, "schedule": "constant"}
    recipe = recipes.of(
        {"recipe": "breakdown", "encoder": {"latent": latent, **settings}, "head": settings}
    )
    assert isinstance(recipe, recipes.Breakdown)
    (phase,) = recipe.encoder_phases(made)
    assert isinstance(phase, Phase)
    return without_validation(phase)


@torch.no_grad()
def learnt_in_an_epoch(phase: Phase) -> tuple[int, int]:
    """Steps of one epoch, and the pairs that it learns from; the first epoch stands for all."""
    counts = [len(phase.loss(batch)) for batch in phase.batches()]
    return len(counts), sum(counts)


def images_of(setting: Setting, phase: Phase) -> Taken:
    """Train a phase once; the amount is the images that went through.

    Raises:
        RuntimeError: it diverged, so that its time would say nothing.
    """

    def work() -> float:
        result = fit(phase, setting.device, setting.precision, cuda_graphs=setting.cuda_graphs)
        if result.status != "finished":
            raise RuntimeError(result.reason)
        return result.images_seen

    with as_a_run(setting):
        return timed(work, setting.device)


class _Loop:
    """Steps of a network's part up to a latent with the contrastive loss, and nothing else."""

    def __init__(self, setting: Setting, latent: str):
        self.encoder = in_place(cut(copy.deepcopy(setting.network()), latent)[0])
        train_mode(self.encoder, dropout=False)  # as an encoder phase is trained
        self.optimizer = torch.optim.SGD(self.encoder.parameters(), LR, momentum=MOMENTUM)
        self.labels = torch.zeros(1, dtype=torch.int64, device=setting.device)
        self.setting = setting
        self.of_pairs = _contrastive(setting).of_pairs

    def step(self, inputs: Tensor, left: Tensor, right: Tensor, same: Tensor) -> None:
        """One update from images (B, C, H, W) and pairs of them (P,)."""
        assert self.of_pairs is not None
        with runtime.autocast(self.setting.device, self.setting.precision):
            latents = self.encoder(inputs).flatten(1).float()
            labels = self.labels.expand(len(inputs))[left]
            losses = self.of_pairs(latents[left], latents[right], labels, same)
        self.optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        self.optimizer.step()


def _contrastive(setting: Setting) -> Objective:
    return Contrastive().make(losses.Setting(setting.classes, 1, setting.device, 0, ""))


def _random_pairs(images: int, pairs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randint(0, images, (2, pairs), generator=generator)
    same = torch.rand(pairs, generator=generator) < 0.5
    return left.to(device), right.to(device), same.to(device)
