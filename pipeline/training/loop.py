"""The loop: epochs, the choice of the epoch, early stopping and divergence. It knows no method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.params import Optimization
from pipeline.training import runtime
from pipeline.training.phase import Phase

Log = Callable[[dict[str, Any]], None]
FINITE = "weights finite"
RULES = {"val_loss": ("val/loss", -1), "val_accuracy": ("val/accuracy", 1)}


@dataclass
class Result:
    """What a phase did: its epochs, the chosen one, and what it cost."""

    phase: str
    rule: str
    chosen_epoch: int = 0
    status: str = "finished"
    reason: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    images_seen: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def record(self) -> dict[str, Any]:
        """The phase in ``record.json``, with the metrics of the chosen epoch."""
        chosen = self.history[self.chosen_epoch - 1] if self.chosen_epoch else {}
        return {
            "phase": self.phase,
            "epochs": len(self.history),
            "chosen_epoch": self.chosen_epoch,
            "rule": self.rule,
            "status": self.status,
            "images_seen": self.images_seen,
            **{name: value for name, value in chosen.items() if "/" in name},
        }

    def timing(self) -> dict[str, Any]:
        """The phase in ``timing.json``."""
        return {
            "phase": self.phase,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "images_per_second": self.images_seen / self.seconds if self.seconds else 0.0,
            "peak_memory_mb": self.peak_memory_mb,
        }


def fit(phase: Phase, device: torch.device, precision: str, log: Log = lambda row: None) -> Result:
    """Train a phase's module in place and leave it with the weights of the chosen epoch.

    The epoch is the best by the phase's rule, the earliest of equals. A loss that is no longer
    finite ends the phase as diverged, with the weights of the last finite epoch.

    Args:
        phase: what to train.
        device: where it is.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        log: called once an epoch with its row of ``history.csv``.
    """
    settings = phase.settings
    result = Result(phase.name, phase.rule)
    optimizer = make_optimizer(phase.groups, settings)
    total = settings.epochs * phase.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, total, settings)
    )
    metric, sign = RULES[phase.rule]
    best, best_state, improved_to, waited = -math.inf, snapshot(phase.module), -math.inf, 0
    last_state = best_state
    started = time.perf_counter()
    for epoch in range(1, settings.epochs + 1):
        phase.training_mode()
        loss_sum, items = torch.zeros((), device=device), 0
        for batch in phase.batches():
            with runtime.autocast(device, precision):
                losses = phase.loss(batch)
            optimizer.zero_grad(set_to_none=True)
            losses.mean().backward()
            optimizer.step()
            schedule.step()
            result.images_seen += len(batch[0])
            loss_sum += losses.detach().sum()
            items += len(losses)
        phase.module.eval()
        with runtime.autocast(device, precision):
            metrics = {"train/loss": loss_sum / items, **phase.validate()}
        values = fetch({**metrics, FINITE: all_finite(phase.module)})
        finite = values.pop(FINITE) == 1 and all(map(math.isfinite, values.values()))
        row = {"phase": phase.name, "epoch": epoch, "images_seen": result.images_seen, **values}
        if not finite:
            result.status = "diverged"
            result.reason = _reason(phase.name, epoch, values)
            result.chosen_epoch, best_state = epoch - 1, last_state
            break
        result.history.append(row)
        log(row)
        last_state = snapshot(phase.module)
        value = sign * values[metric]
        if value > best:
            best, best_state, result.chosen_epoch = value, last_state, epoch
        if value > improved_to + settings.min_delta:
            improved_to, waited = value, 0
        else:
            waited += 1
            if settings.patience and waited >= settings.patience:
                break
    phase.module.load_state_dict(best_state)
    result.seconds = time.perf_counter() - started
    result.peak_memory_mb = runtime.peak_memory_mb(device)
    return result


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def all_finite(module: nn.Module) -> Tensor:
    """1 if every weight and statistic of a module is finite, else 0, on its device."""
    return torch.stack([tensor.isfinite().all() for tensor in module.state_dict().values()]).all()


def fetch(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Bring an epoch's metrics to the host in one transfer."""
    stacked = torch.stack([value.float() for value in metrics.values()])
    return dict(zip(metrics, stacked.tolist(), strict=True))


def make_optimizer(groups: list[dict[str, Any]], settings: Optimization) -> torch.optim.Optimizer:
    """SGD with momentum (Nesterov's is off) or AdamW; each group brings its learning rate."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay)


def learning_rate_factor(step: int, total: int, settings: Optimization) -> float:
    """Share of the learning rate at a step (from 0): linear warm-up, then constant or cosine.

    The cosine falls to zero at the end of all steps: Loshchilov and Hutter, "SGDR" (ICLR 2017),
    equation 5, without restarts.
    """
    warmup = round(settings.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _reason(phase: str, epoch: int, values: dict[str, float]) -> str:
    bad = [f"{name} was {value}" for name, value in values.items() if not math.isfinite(value)]
    what = bad[0] if bad else "weights were no longer finite"
    return f"{phase}: {what} in epoch {epoch}; the learning rate is likely too high"
