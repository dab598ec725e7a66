"""The loop: epochs, the choice of the epoch, early stopping and divergence. It knows no method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.models import weights
from pipeline.params import Optimization
from pipeline.training import divergence, gradients, runtime
from pipeline.training.checkpoints import Checkpoint, Memory, Stateful, Tree
from pipeline.training.optimizers import learning_rate_factor, make_optimizer
from pipeline.training.phase import Phase, Solve
from pipeline.training.steps import RecordedStep, Step, own_stream

Log = Callable[[dict[str, Any]], None]
State = dict[str, Tensor]
Batch = TypeVar("Batch")
FINITE = "weights finite"
GRADIENT = "gradient of "
SMALLER_BATCHES = f"lower training.batch_size, or the phase's own batch_size; {runtime.SMALLER}"
RULES = {"val_loss": ("val/loss", -1), "val_accuracy": ("val/accuracy", 1)}


@dataclass(frozen=True)
class Kept:
    """An epoch, the larger value of which is the better, and the weights after it."""

    epoch: int
    value: float
    state: State


@dataclass
class Result:
    """What a phase did: its epochs, the chosen one, and what it cost.

    ``kept`` holds the best epochs, best first; ``found`` what a closed-form phase chose;
    ``gradients`` the rows of ``gradients.csv``, of the epochs in ``history``.
    """

    phase: str
    rule: str
    chosen_epoch: int = 0
    status: str = "finished"
    reason: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    images_seen: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    kept: list[Kept] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)
    gradients: list[dict[str, Any]] = field(default_factory=list)

    @property
    def value(self) -> float:
        """What the rule says of the chosen epoch: the larger, the better."""
        if not self.chosen_epoch:
            return -math.inf
        metric, sign = RULES[self.rule]
        return sign * self.history[self.chosen_epoch - 1][metric]

    def state_dict(self) -> Tree:
        """All of it, for a checkpoint."""
        return {**vars(self), "kept": [vars(kept) for kept in self.kept]}

    @staticmethod
    def from_state(state: Tree) -> Result:
        """The result that ``state_dict`` told of."""
        return Result(**{**state, "kept": [Kept(**kept) for kept in state["kept"]]})

    def rename(self, phase: str) -> None:
        """Give the phase another name, in its history and gradients too."""
        self.phase = phase
        self.history = [{**row, "phase": phase} for row in self.history]
        self.gradients = [{**row, "phase": phase} for row in self.gradients]

    def record(self) -> dict[str, Any]:
        """The phase in ``record.json``, with the metrics of the chosen epoch."""
        chosen = self.history[self.chosen_epoch - 1] if self.chosen_epoch else {}
        several = {"kept_epochs": [kept.epoch for kept in self.kept]} if len(self.kept) > 1 else {}
        return {
            "phase": self.phase,
            "epochs": len(self.history),
            "chosen_epoch": self.chosen_epoch,
            "rule": self.rule,
            "status": self.status,
            "images_seen": self.images_seen,
            **several,
            **({"found": self.found} if self.found else {}),
            **{name: chosen[name] for name in chosen if name.startswith(("train/", "val/"))},
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


def fit(
    phase: Phase | Solve,
    device: torch.device,
    precision: str,
    log: Log = lambda row: None,
    checkpoint: Checkpoint | None = None,
    cuda_graphs: bool = False,
) -> Result:
    """Train a phase's module in place and leave it with the weights of the chosen epoch.

    The epoch is the best by the phase's rule, the earliest of equals. A loss that is no longer
    finite ends the phase as diverged, with the weights of the last finite epoch.

    Args:
        phase: what to train.
        device: where it is.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        log: called once an epoch with its row of ``history.csv``; of a phase that goes on, with
            the rows of the epochs before, too.
        checkpoint: knows whether the phase was begun, and then it goes on from there, or finished,
            and then it is left as it was. What is solved in closed form is done again.
        cuda_graphs: whether steps are recorded, where the phase says that they can be.

    Raises:
        InputError: memory runs out, or an operation has no deterministic form on the device.
    """
    known = checkpoint.known if checkpoint else None
    result = Result.from_state(known["result"]) if known else Result(phase.name, phase.rule)
    measure = _measuring(result, device)
    with runtime.in_one_line(phase.name):
        if isinstance(phase, Solve):
            _solve(phase, result, log)
        elif checkpoint is None or not checkpoint.phase_is_finished:
            recorded = cuda_graphs and (phase.recordable or phase.parts is not None)
            with own_stream(device) if recorded else nullcontext():
                step = _Stepper(phase, device, precision, RecordedStep if recorded else Step)
                try:
                    _descend(phase, step, result, log, checkpoint, measure)
                finally:
                    step.optimizer.zero_grad(set_to_none=True)  # as large as the weights
    measure()
    if isinstance(phase, Phase):
        weights.put(phase.module, result.kept[0].state)
        if checkpoint:
            checkpoint.finish({"result": result.state_dict()})
    return result


def _measuring(result: Result, device: torch.device) -> Callable[[], None]:
    """A function that brings a result's seconds and memory up to now, from when it is made."""
    started, peak = time.perf_counter() - result.seconds, result.peak_memory_mb

    def measure() -> None:
        result.seconds = time.perf_counter() - started
        result.peak_memory_mb = max(peak, runtime.peak_memory_mb(device))

    return measure


def _descend(
    phase: Phase,
    step: _Stepper,
    result: Result,
    log: Log,
    checkpoint: Checkpoint | None,
    measure: Callable[[], None],
) -> None:
    device, precision = step.device, step.precision
    best = _Best(phase.keep, phase.settings, phase.module)
    carried: dict[str, Stateful] = {"steps": step, "best": best, "memory": Memory(phase, device)}
    if checkpoint and checkpoint.known:
        for name, part in carried.items():
            part.load_state_dict(checkpoint.known[name])
        weights.put(phase.module, best.last.state)
        for row in result.history:
            log(row)

    def progress() -> Tree:
        measure()
        told = {name: part.state_dict() for name, part in carried.items()}
        return {"result": result.state_dict(), **told}

    for epoch in range(len(result.history) + 1, phase.settings.epochs + 1):
        if best.stop:
            break
        with runtime.in_one_line(partial(step.at_work, epoch), step.advice):
            loss, images = step.epoch()
        result.images_seen += images
        phase.module.eval()
        doing = f"{phase.name}: validation after epoch {epoch}"
        with runtime.in_one_line(doing), runtime.autocast(device, precision):
            metrics = {"train/loss": loss, **phase.validate()}
        told = {GRADIENT + layer: norm for layer, norm in step.gradients.items()}
        values = fetch({**metrics, FINITE: all_finite(phase.module), **told})
        norms = {layer: values.pop(GRADIENT + layer) for layer in step.gradients}
        finite = values.pop(FINITE) == 1 and all(map(math.isfinite, values.values()))
        row = {"phase": phase.name, "epoch": epoch, "images_seen": result.images_seen, **values}
        if not finite:
            result.status, result.reason = "diverged", _why(phase, epoch, step, values, best)
            result.chosen_epoch, result.kept = best.last.epoch, [best.last]
            break
        row |= gradients.summary(norms)
        result.history.append(row)
        result.gradients += gradients.rows(phase.name, epoch, norms)
        log(row)
        metric, sign = RULES[phase.rule]
        best.add(epoch, sign * values[metric], phase.module)
        if checkpoint:
            checkpoint.offer(progress)
    if result.status == "finished":
        result.chosen_epoch, result.kept = best.kept[0].epoch, best.kept


def _solve(phase: Solve, result: Result, log: Log) -> None:
    result.found = phase.solve()
    result.images_seen = phase.images
    values = fetch(phase.metrics())
    row = {"phase": phase.name, "epoch": 1, "images_seen": phase.images, **values}
    finite = all(map(math.isfinite, values.values())) and all_finite(phase.module)
    if finite:
        result.history, result.chosen_epoch = [row], 1
        log(row)
    else:
        result.status = "diverged"
        result.reason = f"{phase.name}: the solution is not finite; are the start weights?"


class _Stepper:
    """Makes the steps of a phase, epoch by epoch.

    ``gradients`` are the norms by layer in the last batch of the epoch made last, on the device.
    """

    def __init__(self, phase: Phase, device: torch.device, precision: str, kind: type[Step] = Step):
        self.phase, self.device, self.precision = phase, device, precision
        settings = phase.settings
        self.optimizer = make_optimizer(phase.groups, settings)
        self.step = kind(phase, self.optimizer, device, precision)
        self.advice = SMALLER_BATCHES
        if kind is RecordedStep:
            self.advice = f"set runtime.cuda_graphs to false, or {SMALLER_BATCHES}"
        total = settings.epochs * phase.steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, total, phase.steps, settings)
        )
        trained = (of for group in phase.groups for of in group["params"])
        self.layers = gradients.trained_layers(phase.network or phase.module, trained)
        self.gradients: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []
        self.batch_size = 0

    def at_work(self, epoch: int) -> str:
        """What is being done, for errors."""
        return f"{self.phase.name}: epoch {epoch}, a batch of {self.batch_size} images"

    def epoch(self) -> tuple[Tensor, int]:
        """Mean loss of an epoch, still on the device, and the images that went through."""
        self.phase.training_mode()
        self.gradients, self.losses = {}, []
        loss_sum, items, images = torch.zeros((), device=self.device), 0, 0
        for batch, is_last in _marking_last(self.phase.batches()):
            self.batch_size = len(batch[0])
            losses = self.step.backward(batch)
            if is_last:  # before the step, in which Nesterov's momentum may alter gradients
                self.gradients = gradients.norms(self.layers)
            self.step.update()
            self.schedule.step()
            images += self.batch_size
            self.losses.append(losses.sum())  # read if the epoch diverges
            loss_sum += self.losses[-1]
            items += len(losses)
        return loss_sum / items, images

    def state_dict(self) -> Tree:
        """How far optimizer and schedule are; tensors are not copied."""
        states = [self.optimizer.state.get(parameter, {}) for parameter in self._parameters()]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return {"optimizer": states, "rates": rates, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: Tree) -> None:
        """Go on from what ``state_dict`` told."""
        for parameter, was in zip(self._parameters(), state["optimizer"], strict=True):
            if was:
                self.optimizer.state[parameter] = {
                    name: _laid_out_as(parameter, of) for name, of in was.items()
                }
        for group, rate in zip(self.optimizer.param_groups, state["rates"], strict=True):
            group["lr"] = rate
        self.schedule.load_state_dict(state["schedule"])

    def _parameters(self) -> list[nn.Parameter]:
        return [of for group in self.optimizer.param_groups for of in group["params"]]


def _laid_out_as(parameter: Tensor, value: Any) -> Any:
    """A tensor of an optimizer's state in memory as its parameter is, or what is no such tensor."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or not value.ndim:
        return value
    return torch.empty_like(parameter).copy_(value).detach()


def _marking_last(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each batch, and whether it is the last."""
    held: list[Batch] = []
    for batch in batches:
        yield from ((earlier, False) for earlier in held)
        held = [batch]
    yield from ((last, True) for last in held)


class _Best:
    """The last epoch, the best ones so far, and whether patience has run out.

    Memory of a state that is no longer held takes the next one: new memory costs a large network
    on a CPU several times as long as the copy.
    """

    def __init__(self, keep: int, settings: Optimization, start: nn.Module):
        self.keep, self.settings = keep, settings
        self.last = Kept(0, -math.inf, snapshot(start))
        self.kept: list[Kept] = []
        self.improved_to, self.waited = -math.inf, 0
        self._spare: State | None = None

    def add(self, epoch: int, value: float, module: nn.Module) -> None:
        """Take an epoch's state, among the best if it is; of equals the earlier is better."""
        held = [self.last, *self.kept]
        self.last = Kept(epoch, value, snapshot(module, self._spare))
        self.kept = sorted([*self.kept, self.last], key=lambda kept: -kept.value)[: self.keep]
        used = {kept.epoch for kept in (self.last, *self.kept)}
        self._spare = next((old.state for old in held if old.epoch not in used), None)
        if value > self.improved_to + self.settings.min_delta:
            self.improved_to, self.waited = value, 0
        else:
            self.waited += 1

    def state_dict(self) -> Tree:
        """All of it, for a checkpoint; tensors are not copied."""
        kept = [vars(kept) for kept in self.kept]
        about = {"improved_to": self.improved_to, "waited": self.waited}
        return {"last": vars(self.last), "kept": kept, **about}

    def load_state_dict(self, state: Tree) -> None:
        """Go on from what ``state_dict`` told."""
        self.last = Kept(**state["last"])
        self.kept = [Kept(**kept) for kept in state["kept"]]
        self.improved_to, self.waited = state["improved_to"], state["waited"]

    @property
    def stop(self) -> bool:
        """Whether there was no improvement for as long as ``patience`` allows."""
        return bool(self.settings.patience) and self.waited >= self.settings.patience


def snapshot(module: nn.Module, into: State | None = None) -> State:
    """A copy of a module's state; ``into``, an earlier one of the same module, is written over."""
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    if into is None:
        return {name: tensor.clone() for name, tensor in state.items()}
    for name, tensor in state.items():
        into[name].copy_(tensor)
    return into


def all_finite(module: nn.Module) -> Tensor:
    """1 if every weight and statistic of a module is finite, else 0, on its device.

    The smallest and the largest of each tensor tell, in one pass through it: NaN is both.
    """
    state = module.state_dict().values()
    extremes = [of.aminmax() for of in state if of.is_floating_point() and of.numel()]
    return torch.stack([of for pair in extremes for of in pair]).isfinite().all()


def fetch(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Bring an epoch's metrics to the host in one transfer."""
    stacked = torch.stack([value.float() for value in metrics.values()])
    return dict(zip(metrics, stacked.tolist(), strict=True))


def _why(phase: Phase, epoch: int, step: _Stepper, values: dict[str, float], best: _Best) -> str:
    before = best.last.state
    return divergence.reason(phase.name, epoch, step.losses, values, phase.settings.lr, before)
