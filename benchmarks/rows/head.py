"""The head phase on latents that are computed once, against the frozen encoder run each epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, Taken
from benchmarks.rows.encoder import images_of
from benchmarks.rows.made import (
    LR,
    MOMENTUM,
    Setting,
    as_a_loop,
    as_a_run,
    timed,
    without_validation,
)
from pipeline.models.cut import cut
from pipeline.params import Augmentation, Classification
from pipeline.training import runtime
from pipeline.training.run import Run

SHARE = 0.85  # of the bound that counting operations gives


@contextmanager
def against_encoder_each_epoch(
    setting: Setting, latent: str, epochs: int = 20, other_epochs: int = 2
) -> Iterator[Row]:
    """Epochs a second of a whole head phase, latents included, and of encoder and head together.

    The other way, as linear evaluation of self-supervised encoders is mostly written, sends every
    image through the frozen encoder, without gradients, in each epoch. All its epochs are alike,
    so it makes only ``other_epochs`` of them. Its images are normalised beforehand. Neither
    augments or validates.

    Args:
        setting: network, images and device.
        latent: where the network is cut.
        epochs: of the head phase.
        other_epochs: of the other way, in one repetition.
    """
    network = setting.network()
    made = setting.run(Augmentation(), network=network)
    encoder, head = cut(network, latent)
    inputs = setting.random_inputs(setting.images)
    loop = _Loop(setting, encoder, copy.deepcopy(head), made.train.labels, inputs)
    bound = bound_of(setting, encoder, head, epochs)

    def other() -> Taken:
        with as_a_loop(setting):
            return timed(lambda: loop.epochs(other_epochs), setting.device)

    yield Row(
        name=f"head phase of {epochs} epochs, {setting.name} cut at {latent}",
        against="the frozen encoder again in each epoch",
        ours=lambda: head_phase(setting, made, encoder, head, epochs),
        other=other,
        unit="epochs",
        wanted=SHARE * bound,
        note=f"{setting.images} images in batches of {setting.batch_size}; "
        f"counting operations gives {bound:.1f}",
    )


def head_phase(
    setting: Setting, made: Run, encoder: nn.Module, head: nn.Module, epochs: int
) -> Taken:
    """Make and train a head phase as a breakdown does; the amount is its epochs."""

    def work() -> float:
        phase = made.classification("head", head, settings, frozen=encoder)
        images_of(setting, without_validation(phase))
        return epochs

    settings = Classification(epochs=epochs, lr=LR, momentum=MOMENTUM, schedule="constant")
    with as_a_run(setting):
        return timed(work, setting.device)


def bound_of(setting: Setting, encoder: nn.Module, head: nn.Module, epochs: int) -> float:
    """How much less there is to count where the encoder runs once: matrix operations alone.

    Both are counted on one image: the encoder's forward pass, and forward and backward of the head
    with all its weights.
    """
    inputs = setting.random_inputs(2)
    with torch.no_grad():
        encoder_operations, latents = _counted(lambda: encoder.eval()(inputs))
    head.train()
    head_operations, _ = _counted(lambda: head(latents).float().sum().backward())
    head.zero_grad(set_to_none=True)
    return (
        epochs
        * (encoder_operations + head_operations)
        / (encoder_operations + epochs * head_operations)
    )


def _counted(work: Callable[[], Any]) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        found = work()
    return counter.get_total_flops(), found


class _Loop:
    """Linear evaluation as it is mostly written."""

    def __init__(
        self, setting: Setting, encoder: nn.Module, head: nn.Module, labels: Tensor, inputs: Tensor
    ):
        self.setting, self.encoder, self.head = setting, encoder, head
        self.labels, self.inputs = labels, inputs
        self.optimizer = torch.optim.SGD(head.parameters(), LR, momentum=MOMENTUM)
        self.order = torch.Generator().manual_seed(0)

    def epochs(self, count: int) -> float:
        """Train the head for some epochs."""
        self.encoder.eval()
        self.head.train()
        for _ in range(count):
            order = torch.randperm(len(self.labels), generator=self.order)
            for index in order.to(self.setting.device).split(self.setting.batch_size):
                self._step(index)
        return count

    def _step(self, index: Tensor) -> None:
        with runtime.autocast(self.setting.device, self.setting.precision):
            with torch.no_grad():
                latents = self.encoder(self.inputs[index])
            loss = functional.cross_entropy(self.head(latents), self.labels[index])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
