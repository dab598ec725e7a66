"""Why a phase diverged, in words: where the first number that is not finite came up, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def reason(
    phase: str,
    epoch: int,
    losses: Sequence[Tensor],
    values: Mapping[str, float],
    lr: float,
    start: Mapping[str, Tensor],
) -> str:
    """One sentence with the phase, the epoch, the batch and the likely cause.

    Before the first step nothing was learnt, so that a first loss that is not finite is no fault
    of the learning rate. Everything after it most likely is: steps that are too long make weights
    that grow until they overflow.

    Args:
        phase: its name.
        epoch: in which it diverged, from 1.
        losses: of the batches of that epoch, in order; read only here, as reading waits for the
            device.
        values: the epoch's metrics.
        lr: the phase's learning rate.
        start: the weights before that epoch.
    """
    batch = _first_not_finite(losses)
    bad = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if batch is not None:
        what = f"the training loss was {float(losses[batch - 1])} in epoch {epoch}, batch {batch}"
    elif bad is not None:
        what = f"{bad} was {values[bad]} after epoch {epoch}"
    else:
        what = f"weights were no longer finite after epoch {epoch}"
    return f"{phase}: {what}; {_cause(epoch, batch, lr, start)}"


def _cause(epoch: int, batch: int | None, lr: float, start: Mapping[str, Tensor]) -> str:
    broken = [name for name, of in start.items() if not bool(of.isfinite().all())]
    if broken:
        return f"the weights that it began with are not finite, first in {broken[0]}"
    if (epoch, batch) == (1, 1):
        return (
            "no step was made before, so likely its inputs (the start weights' latents) are not "
            "finite, or the loss's margin, temperature or weight is far too large"
        )
    return f"the learning rate is likely too high (lr {lr:g})"


def _first_not_finite(losses: Sequence[Tensor]) -> int | None:
    """The first batch, from 1, whose loss is not finite."""
    if not losses:
        return None
    found = torch.stack([of.detach().float() for of in losses]).tolist()
    return next((n for n, loss in enumerate(found, start=1) if not math.isfinite(loss)), None)
