"""A CUDA device that is not there: shapes, types and devices of all that would run on it.

Tensors on the CPU are what they are. Those on ``cuda`` are torch's fake tensors, which have no
values: whoever asks for one, or mixes the two devices, gets an error. What makes the host wait for
the device is counted: copies to the CPU, from which comes what had come from there, all else as
zeros; copies from it that are to be waited for; synchronisation. What only a driver can do
(streams, events, page-locked memory, the backward pass) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.models import architectures

CUDA = torch.device("cuda")  # as a run asks for it
THERE = torch.device("cuda", 0)  # as its tensors say


class OnlyCudaIsFake(TorchDispatchMode):
    """Between the operations and the mode below, which would fake those of the CPU, too.

    ``waits`` counts what the host would wait for.
    """

    waits, recording = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: of for name, of in (kwargs or {}).items() if name != "pin_memory"}
        device = torch.device(kwargs.get("device") or "meta")
        tensors = [of for of in tree_leaves((args, kwargs)) if isinstance(of, Tensor)]
        assert not self.recording or all(isinstance(of, FakeTensor) for of in tensors)
        if func.overloadpacket.__name__.startswith("_fused_"):  # these have no fake form
            assert {of.device for of in tensors} == {THERE}
            return None
        if device.type == "cuda" or any(isinstance(of, FakeTensor) for of in tensors):
            if device.type == "cpu":
                return self._fetched(tensors[0])
            if func is torch.ops.aten.copy_.default and not isinstance(args[0], FakeTensor):
                return args[0].copy_(self._fetched(args[1]))
            made = func(*args, **kwargs)
            if device.type == "cuda" and tensors and not isinstance(tensors[0], FakeTensor):
                made.brought = tensors[0]
                self.waits += not (kwargs.get("non_blocking") or tensors[0].ndim == 0)
            return made
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        """Record, which takes in nothing of the CPU's."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    def synchronize(self, *device: Any) -> None:
        """Wait for all that the device has to do."""
        self.waits += 1

    def _fetched(self, there: Tensor) -> Tensor:
        self.waits += 1
        with unset_fake_temporarily():
            return getattr(there, "brought", torch.zeros(there.shape, dtype=there.dtype))


class _Nothing:
    """A stream, an event or a graph."""

    def __init__(self, *given: Any, **named: Any):
        """Be told what torch's are told."""

    def nothing(self, *given: Any, **named: Any) -> None:
        """Be called as torch's are."""

    wait_stream = wait_event = record = synchronize = replay = nothing


def _zero_gradients(loss: Tensor, *given: Any, **named: Any) -> None:
    """Instead of the backward pass: a gradient for each leaf that the loss depends on."""
    assert loss.grad_fn is not None and loss.device == THERE and (given or loss.ndim == 0)
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        nodes += [following for following, _ in node.next_functions]


@contextmanager
def pretended_cuda() -> Iterator[OnlyCudaIsFake]:
    """The device, as long as it is there."""
    mode = OnlyCudaIsFake()
    stubs: dict[str, Any] = {
        "is_available": lambda: False,  # else torch would look for the driver
        "device_count": lambda: 1,
        "get_device_name": lambda *device: "none",
        "synchronize": mode.synchronize,
        "max_memory_allocated": lambda *device: 0,
        "memory_allocated": lambda *device: 0,
        "memory_reserved": lambda *device: 0,
        "mem_get_info": lambda *device: (2**40, 2**40),
        "manual_seed": lambda seed: None,
        "get_rng_state": lambda device: torch.empty(0),
        "set_rng_state": lambda state, device: None,
        "is_bf16_supported": lambda: True,
        "device": lambda device: nullcontext(),
        "Stream": _Nothing,
        "Event": _Nothing,
        "current_stream": _Nothing,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": _Nothing,
        "graph": mode.graph,
        "graph_pool_handle": _Nothing,
    }
    with (
        mock.patch.multiple(torch.cuda, **stubs),
        mock.patch.object(Tensor, "pin_memory", lambda of: of),
        mock.patch.object(Tensor, "backward", _zero_gradients),
        mock.patch("torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available",
                   lambda: False),
        FakeTensorMode(allow_non_fake_inputs=True),
        mode,
    ):  # fmt: skip
        try:
            yield mode
        finally:
            for kept in (architectures._affine, architectures._averages):
                kept.cache_clear()  # a real device may follow
