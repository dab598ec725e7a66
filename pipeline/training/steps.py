"""One step of a phase, forward, backward and update: made call by call, or as CUDA graphs.

A CUDA graph is a row of kernels that is recorded once and then launched as a whole (PyTorch, "CUDA
semantics", section "CUDA Graphs"). Small networks and small batches are bound by the time that
launches take, of which a recorded step needs few.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.params import PARAMS_FILE, Runtime
from pipeline.training import runtime
from pipeline.training.phase import Phase

WARM = 3  # steps of a shape before it is recorded: what libraries set up once is there by then

Shape: TypeAlias = tuple[tuple[torch.Size, torch.dtype], ...]


class Step:
    """A step call by call."""

    def __init__(
        self, phase: Phase, optimizer: torch.optim.Optimizer, device: torch.device, precision: str
    ):
        """Steps of one phase, with one optimizer."""
        self.phase, self.optimizer = phase, optimizer
        self.device, self.precision = device, precision

    def backward(self, batch: Any) -> Tensor:
        """The losses of a batch, (B,) or (P,); the gradients of their mean stand at the parameters.

        What is returned may be overwritten by the next call.
        """
        with runtime.autocast(self.device, self.precision):
            losses = self.phase.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        return losses.detach()

    def update(self) -> None:
        """Change the parameters by their gradients."""
        self.optimizer.step()


class RecordedStep(Step):
    """The same step, as CUDA graphs for each shape of batches, from the ``WARM`` + 1st on.

    A phase whose ``loss`` is recordable has two graphs, one of its loss and the backward pass, and
    one of the optimizer's step. Else the loss, which may be on any number of pairs, is made call by
    call between a graph of the forward and one of the backward pass.

    Everything must happen on one stream that is not the device's first: see ``own_stream``.
    Learning rates lie on the device, so that a schedule reaches what was recorded. For as long as
    the object lives it holds the memory that a step needs, which all shapes share, and for each
    shape its inputs and gradients. All graphs end together: CUDA takes the workspaces of a stream
    back when one of its graphs ends.
    """

    def __init__(
        self, phase: Phase, optimizer: torch.optim.Optimizer, device: torch.device, precision: str
    ):
        """``phase`` is ``recordable``, or has ``parts``."""
        super().__init__(phase, optimizer, device, precision)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._filled = [0.0 for _ in optimizer.param_groups]
        self._pool = torch.cuda.graph_pool_handle()
        self._met: Counter[Shape] = Counter()
        self._recorded: dict[Shape, _Recorded] = {}
        self._current: _Recorded | None = None  # of the last backward pass, if it was recorded

    def backward(self, batch: Sequence[Any]) -> Tensor:
        """As of ``Step``.

        Raises:
            InputError: the step cannot be recorded.
        """
        read = batch if self.phase.recordable else batch[:1]
        shape = tuple((of.shape, of.dtype) for of in read)
        self._met[shape] += 1
        if self._met[shape] > WARM and shape not in self._recorded:
            self._recorded[shape] = self._record(read)
        before, self._current = self._current, self._recorded.get(shape)
        if self._current is None:
            return super().backward(batch)
        if self._current is not before:
            self._current.attach()
        self._current.read(read)
        if self.phase.recordable:
            return self._current.written
        return self._score(self._current, batch)

    def update(self) -> None:
        """As of ``Step``."""
        for number, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self._filled[number]:
                self._rates[number].fill_(group["lr"])
                self._filled[number] = group["lr"]
        if self._current is None:
            with self._rates_on_device():
                super().update()
        else:
            self._current.update.replay()

    @contextmanager
    def _rates_on_device(self, **changes: Any) -> Iterator[None]:
        """Have the optimizer read learning rates from the device, recorded or not: equal sums."""
        groups = self.optimizer.param_groups
        kept = [dict(group) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, **changes)
        try:
            yield
        finally:
            for group, was in zip(groups, kept, strict=True):
                group.clear()
                group.update(was)

    def _score(self, recorded: _Recorded, batch: Sequence[Any]) -> Tensor:
        """The losses of a batch whose latents are there, and the gradients from them on."""
        assert self.phase.parts is not None and recorded.slope is not None
        latents = recorded.written.detach().requires_grad_()
        with runtime.autocast(self.device, self.precision):
            losses = self.phase.parts[1](latents, batch)
        losses.mean().backward()
        assert latents.grad is not None
        recorded.slope.copy_(latents.grad)
        assert recorded.back is not None
        recorded.back.replay()
        return losses.detach()

    def _record(self, batch: Sequence[Tensor]) -> _Recorded:
        """The graphs of a step; recording them changes nothing.

        Raises:
            InputError: the step cannot be recorded.
        """
        self.optimizer.zero_grad(set_to_none=True)  # else held until the new ones are there
        inputs = [_held(of, self.device) for of in batch]
        on, update = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        back, slope = None, None
        with _in_one_line(), _nothing_collected():
            if self.phase.recordable:
                with self._recording(on):
                    written = super().backward(inputs)
            else:
                back = torch.cuda.CUDAGraph()
                with self._recording(on):
                    written = self._encode(inputs[0])
                slope = torch.zeros_like(written)
                with self._recording(back):
                    self.optimizer.zero_grad(set_to_none=True)
                    written.backward(slope)
                written = written.detach()
            with self._recording(update), self._rates_on_device(capturable=True):
                super().update()
        trained = [of for group in self.optimizer.param_groups for of in group["params"]]
        gradients = [parameter.grad for parameter in trained]
        return _Recorded(on, back, update, inputs, written, slope, trained, gradients)

    def _encode(self, inputs: Tensor) -> Tensor:
        """Latents (B, D)."""
        assert self.phase.parts is not None
        with runtime.autocast(self.device, self.precision):
            return self.phase.parts[0](inputs)

    def _recording(self, graph: torch.cuda.CUDAGraph) -> AbstractContextManager[None]:
        stream = torch.cuda.current_stream(self.device)
        # other threads, such as those that gather batches, may do as they like meanwhile
        return torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local")


@dataclass(frozen=True)
class _Recorded:
    """A step as it was recorded, with the memory that it reads and writes.

    Attributes:
        on: the forward pass; with the backward pass, where there is no ``back``.
        back: the backward pass, from ``slope`` on.
        update: the optimizer's step.
        inputs: what ``on`` reads.
        written: what it writes: losses, or latents.
        slope: gradients of the latents (B, D).
        trained: the parameters.
        gradients: of each, that are written.
    """

    on: torch.cuda.CUDAGraph
    back: torch.cuda.CUDAGraph | None
    update: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    written: Tensor
    slope: Tensor | None
    trained: list[Tensor]
    gradients: list[Tensor | None]

    def read(self, batch: Sequence[Tensor]) -> None:
        """Take in a batch and launch ``on``."""
        for held, of in zip(self.inputs, batch, strict=True):
            if _is_number(of):
                held.fill_(of.item())
            else:
                held.copy_(of)
        self.on.replay()

    def attach(self) -> None:
        """Let the parameters' gradients be those of this step, not of one of another shape."""
        for parameter, gradient in zip(self.trained, self.gradients, strict=True):
            parameter.grad = gradient


def check_graphs(settings: Runtime, device: torch.device) -> None:
    """Refuse CUDA graphs where there is no CUDA.

    Raises:
        InputError: they are asked for, and ``device`` is another.
    """
    if settings.cuda_graphs and device.type != "cuda":
        raise InputError(
            f"{PARAMS_FILE}: runtime.cuda_graphs: needs a CUDA device, and runtime.device: "
            f"{settings.device} is {device.type} here; set it to false"
        )


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Do all that follows on a stream of its own, as the device's first cannot be recorded."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keep Python from freeing what was forgotten, which may take a call that spoils a graph."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _held(of: Tensor, device: torch.device) -> Tensor:
    """A copy on the device."""
    if _is_number(of):
        return torch.full((), of.item(), dtype=of.dtype, device=device)
    return of.clone()


def _is_number(of: Tensor) -> bool:
    """Whether it lies on the CPU, as a share of mixing does, to be sent with a kernel's launch."""
    return of.ndim == 0 and of.device.type == "cpu"


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Say what a step that cannot be recorded needs.

    Raises:
        InputError: it cannot be recorded, for another reason than memory.
    """
    try:
        yield
    except RuntimeError as error:
        first: BaseException = error
        while isinstance(first.__context__, RuntimeError):  # ending the recording failed, too
            first = first.__context__
        if runtime.is_out_of_memory(first):
            raise first from None
        said = str(first).strip().partition("\n")[0]
        raise InputError(
            f"{PARAMS_FILE}: runtime.cuda_graphs: a step cannot be recorded ({said}); set it to "
            "false"
        ) from error
