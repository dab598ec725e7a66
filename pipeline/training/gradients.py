"""Gradient norms by layer: whether they vanish or explode on the way through a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Layers = dict[str, list[nn.Parameter]]
FIRST, LAST, RATIO = "grad/first_norm", "grad/last_norm", "grad/first_to_last"


def trained_layers(network: nn.Module, trained: Iterable[nn.Parameter]) -> Layers:
    """The layers with a weight that is trained, in the network's order, and their parameters.

    A layer is a module that owns a ``weight`` of at least two dimensions, as convolutions and
    linear layers do and normalisation does not; its parameters are that and a ``bias``.

    Args:
        network: the whole network, whose names the layers get.
        trained: the parameters that the optimizer changes.
    """
    known = {id(parameter) for parameter in trained}
    found = {}
    for name, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        weight = own.get("weight")
        if weight is not None and weight.ndim >= 2 and id(weight) in known:
            found[name] = [own[key] for key in ("weight", "bias") if key in own]
    return found


@torch.no_grad()
def norms(layers: Layers) -> dict[str, Tensor]:
    """The L2 norm of each layer's gradient over all its parameters, on the device.

    A layer without a gradient is left out.
    """
    gradients = {
        name: [parameter.grad for parameter in layer if parameter.grad is not None]
        for name, layer in layers.items()
    }
    return {name: _norm(parts) for name, parts in gradients.items() if parts}


def rows(phase: str, epoch: int, found: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows of ``gradients.csv``; a norm beyond the largest float is None."""
    return [
        {"phase": phase, "epoch": epoch, "layer": name, "norm": _finite(norm)}
        for name, norm in found.items()
    ]


def summary(found: Mapping[str, float]) -> dict[str, float]:
    """The norms of the first and the last layer, and the first divided by the last.

    What is not known, or no finite number, is left out: the ratio of a single layer to itself, or
    to a norm of zero.
    """
    if not found:
        return {}
    listed = list(found.values())
    first, last = listed[0], listed[-1]
    values = {FIRST: first, LAST: last}
    if len(listed) > 1 and last > 0:
        values[RATIO] = first / last
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _norm(gradients: list[Tensor]) -> Tensor:
    parts = [torch.linalg.vector_norm(gradient.float()) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(parts))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
