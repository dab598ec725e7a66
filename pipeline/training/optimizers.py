"""Optimizers, learning-rate schedules, and parameters in groups with rates of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.params import MOST, Optimization, Optimizer, nearest

ONE_CYCLE_WARMUP = 0.3
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25e4  # shares of the peak, as torch's OneCycleLR

Value = TypeVar("Value")


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of torch's without the wrapper that keeps torch.compile out of it."""
    return getattr(method, "__wrapped__", method)


class _Light(torch.optim.Optimizer):
    """An optimizer that leaves torch's compiler alone: importing it takes a second and 150 MB."""

    add_param_group = _plain(torch.optim.Optimizer.add_param_group)
    zero_grad = _plain(torch.optim.Optimizer.zero_grad)


class _SGD(_Light, torch.optim.SGD):
    step = torch.no_grad()(_plain(torch.optim.SGD.step))


class _Adam(_Light, torch.optim.Adam):
    step = torch.no_grad()(_plain(torch.optim.Adam.step))


class _AdamW(_Light, torch.optim.AdamW):
    step = torch.no_grad()(_plain(torch.optim.AdamW.step))


def make_optimizer(groups: list[dict[str, Any]], settings: Optimization) -> torch.optim.Optimizer:
    """SGD with momentum, Adam or AdamW; each group brings its learning rate and weight decay.

    Weight decay is an L2 penalty in SGD and Adam, and apart from the gradient in AdamW
    (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019). Parameters on a
    CUDA device are all stepped in one kernel.
    """
    fused = True if _on_cuda(groups) else None  # None: torch's choice, which keeps a CPU's bytes
    if settings.optimizer == "sgd":
        return _SGD(
            groups,
            settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            fused=fused,
        )
    kind = _Adam if settings.optimizer == "adam" else _AdamW
    return kind(groups, settings.lr, fused=fused)


def _on_cuda(groups: list[dict[str, Any]]) -> bool:
    return all(of.is_cuda for group in groups for of in group["params"])


def parameter_groups(
    module: nn.Module,
    settings: Optimization,
    lr_factor: Callable[[str], float] = lambda name: 1.0,
) -> list[dict[str, Any]]:
    """The parameters of a module, those of one learning rate and weight decay together.

    Args:
        module: what is trained.
        settings: its learning rate and weight decays.
        lr_factor: of a parameter's name, what its learning rate is multiplied by; 0 leaves the
            parameter out.

    Raises:
        InputError: a learning rate with which a step is no number in single precision.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    biases = set() if settings.decay_biases else _biases(module)
    for name, parameter in module.named_parameters():
        factor = lr_factor(name)
        decay = 0.0 if name in biases else longest(settings.weight_decays, name)
        rates = (settings.lr * factor, settings.weight_decay if decay is None else decay)
        if factor > 0:
            lr, weight_decay = rates
            if lr > MOST:
                raise InputError(
                    f"params.yaml: the learning rate of {name} is lr times its factor, {lr:g}, "
                    f"and must be at most {MOST:g}"
                )
            new = {"params": [], "lr": lr, "weight_decay": weight_decay}
            groups.setdefault(rates, new)["params"].append(parameter)
    return list(groups.values())


def longest(by_prefix: Mapping[str, Value], name: str) -> Value | None:
    """The value of the longest key that is ``name`` or a module around it; None without one."""
    found = [key for key in by_prefix if name == key or name.startswith(f"{key}.")]
    return by_prefix[max(found, key=len)] if found else None


def check_prefixes(by_prefix: Mapping[str, object], network: nn.Module) -> None:
    """Refuse keys that name no module with parameters.

    Raises:
        InputError: naming the key and what is near.
    """
    known = {name for name, module in network.named_modules() if name and list(module.parameters())}
    known |= {name for name, _ in network.named_parameters()}
    for key in by_prefix:
        if key not in known:
            raise InputError(f"no layer with weights is named '{key}'; {nearest(key, list(known))}")


def learning_rate_factor(step: int, total: int, steps: int, settings: Optimizer) -> float:
    """Share of the learning rate at a step (from 0).

    ``warmup`` of all steps rise linearly. Then ``constant``; ``step``, by ``step_factor`` every
    ``step_every`` epochs, counted from the first; ``cosine`` to zero at the end of all steps
    (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts). ``one_cycle`` rises
    along a cosine from 1/25 and falls to 1/250,000 (Smith and Topin, "Super-Convergence", 2018,
    as in torch's ``OneCycleLR``, the momentum left as it is).

    Args:
        step: the step, from 0.
        total: how many there are in all.
        steps: how many an epoch.
        settings: schedule and warm-up.
    """
    if settings.schedule == "one_cycle":
        return _one_cycle(step, total, settings.warmup or ONE_CYCLE_WARMUP)
    warmup = round(settings.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "step":
        return settings.step_factor ** (step // steps // settings.step_every)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _one_cycle(step: int, total: int, warmup: float) -> float:
    peak, last = warmup * total - 1, total - 1
    if peak > 0 and step <= peak:
        return _cosine_between(ONE_CYCLE_START, 1.0, step / peak)
    peak = max(peak, 0)
    return _cosine_between(1.0, ONE_CYCLE_END, (step - peak) / ((last - peak) or 1))


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def batch_norms(module: nn.Module) -> set[str]:
    """Names of the scales and shifts of batch normalisation."""
    return {
        f"{name}.{own}" if name else own
        for name, part in module.named_modules()
        if "BatchNorm" in type(part).__name__
        for own, _ in part.named_parameters(recurse=False)
    }


def _biases(module: nn.Module) -> set[str]:
    """Parameters with one axis or none: biases and the scales of normalisation layers."""
    return {name for name, parameter in module.named_parameters() if parameter.ndim <= 1}
