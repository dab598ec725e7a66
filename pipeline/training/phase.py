"""A phase: one optimisation inside a run, as data and functions that the loop can call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pipeline.data.rows import Rows, in_order
from pipeline.params import Optimization

EVALUATION_BATCH = 256
# inputs to latents, and these with the whole batch to losses
Parts: TypeAlias = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Any], Tensor]]
CPU_BATCH, CPU_VALUES = 16, 2**20  # the fewest images, and the values in a batch of more


@dataclass(frozen=True)
class Phase:
    """What the loop needs to know of an optimisation, and nothing of the method behind it.

    Attributes:
        name: such as ``encoder``, ``head`` or ``end_to_end``, as in ``history.csv``.
        module: what is trained; its state is what the phase chooses by ``rule`` and leaves.
        groups: parameters and their learning rates, as ``torch.optim`` takes them.
        settings: how long, with which optimizer and schedule, when to stop.
        steps: batches an epoch at most.
        batches: the batches of one epoch, called anew for each; a batch's first part is its inputs.
        loss: a batch to its losses, one an item (B,) or (P,).
        validate: validation metrics, ``val/loss`` among them, as tensors on the device.
        rule: ``val_loss`` or ``val_accuracy``: by what the epoch is chosen.
        training_mode: puts ``module`` into the mode it trains in.
        keep: how many of the best epochs' states are handed back.
        network: the whole network, of which ``module`` is a part, for the names of its layers.
        recordable: whether batches are tuples of tensors, for which ``loss`` makes the same
            operations wherever shapes are the same, so that a step can be a CUDA graph.
        parts: where ``loss`` is not recordable, the functions that it is made of, if its first is:
            a batch's inputs to latents, and these and the batch to losses. The latter has no
            parameters of its own.
    """

    name: str
    module: nn.Module
    groups: list[dict[str, Any]]
    settings: Optimization
    steps: int
    batches: Callable[[], Iterable[Any]]
    loss: Callable[[Any], Tensor]
    validate: Callable[[], dict[str, Tensor]]
    rule: str
    training_mode: Callable[[], object]
    keep: int = 1
    network: nn.Module | None = None
    recordable: bool = False
    parts: Parts | None = None


@dataclass(frozen=True)
class Solve:
    """A phase that is solved in closed form instead of step by step.

    Attributes:
        name: as in ``history.csv``.
        module: what is solved for.
        solve: fills ``module``; what was chosen on the way, such as ``C``, for the record.
        images: how many images it looks at, each once.
        metrics: training and validation metrics afterwards, as tensors.
        rule: as of the other phases; there is one state to choose from.
    """

    name: str
    module: nn.Module
    solve: Callable[[], dict[str, float]]
    images: int
    metrics: Callable[[], dict[str, Tensor]]
    rule: str


def image_batches(images: Rows) -> Iterator[Tensor]:
    """Images (N, C, H, W) in order, in batches for a network that learns nothing from them.

    On a CPU a layer's output for many of them falls out of the cache before the next layer reads
    it: 256 photos of 128 pixels at once take SqueezeNet nearly twice as long as 16 at a time.
    """
    size = EVALUATION_BATCH
    if images.device.type == "cpu":
        size = min(max(CPU_VALUES // math.prod(images.shape[1:]), CPU_BATCH), size)
    return in_order(images, size)


@torch.no_grad()
def evaluate(
    network: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Iterator[Tensor],
    labels: Tensor,
    split: str = "val",
) -> dict[str, Tensor]:
    """Mean loss and accuracy of logits over all ``inputs``, whose labels are ``labels`` (N,)."""
    logits = torch.cat([network(batch).float() for batch in inputs])
    return {
        f"{split}/loss": loss(logits, labels).mean(),
        f"{split}/accuracy": (logits.argmax(dim=1) == labels).float().mean(),
    }
