"""CUDA graphs without CUDA: what is recorded on the CPU is made again in the same memory.

Between the beginning and the end of a recording operations are written down, with the tensors that
they read and wrote; what they changed is put back then, as a device that records does nothing. A
replay makes each of them again and writes its results where they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.training import optimizers

FIRST = "the device's first stream"


class Graph(TorchDispatchMode):
    """A graph; ``replays`` counts how often it was launched."""

    def __init__(self) -> None:
        """Nothing is recorded yet."""
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: dict[int, Tensor] = {}
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nand more lines")
        for of in tensors(args, kwargs):
            place = of.untyped_storage().data_ptr()
            if place not in self.made and place not in self.before:
                whole = torch.empty(0, dtype=torch.uint8).set_(of.untyped_storage())
                self.before[place] = whole, whole.clone()
        found = func(*args, **kwargs)
        for of in tensors(found):
            self.made.setdefault(of.untyped_storage().data_ptr(), of)  # kept, as addresses tell
        self.calls.append((func, args, kwargs, found))
        return found

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what recording did to memory that was there before."""
        for whole, was in self.before.values():
            whole.copy_(was)

    @torch.no_grad()
    def replay(self) -> None:
        """Do what was recorded."""
        self.replays += 1
        for func, args, kwargs, found in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tensors(found), tensors(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class Streams:
    """Which stream is the current one, and what was recorded."""

    def __init__(self) -> None:
        """The first stream is current."""
        self.current: Any = FIRST
        self.first = mock.Mock()
        self.graphs: list[Graph] = []

    def new_graph(self) -> Graph:
        """As ``torch.cuda.CUDAGraph``."""
        self.graphs.append(Graph())
        return self.graphs[-1]

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        """As ``torch.cuda.stream``."""
        kept, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = kept

    @contextmanager
    def graph(
        self, graph: Graph, pool: object, stream: Any, capture_error_mode: str
    ) -> Iterator[None]:
        """As ``torch.cuda.graph``."""
        assert stream is self.current is not FIRST and capture_error_mode == "thread_local"
        assert pool == "pool" and not graph.calls
        random = torch.get_rng_state()
        try:
            with graph:
                yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        finally:
            graph.put_back()
            torch.set_rng_state(random)


class Stream:
    """A stream other than the first; ``waited`` are those that it waited for."""

    def __init__(self, device: torch.device):
        """On a device."""
        self.waited: list[Any] = []

    def wait_stream(self, stream: Any) -> None:
        """As torch's."""
        self.waited.append(stream)


@contextmanager
def pretended_graphs() -> Iterator[Streams]:
    """What ``pipeline.training.steps`` asks of CUDA, and optimizers as they are there."""
    streams = Streams()
    stubs = {
        "CUDAGraph": streams.new_graph,
        "graph": streams.graph,
        "graph_pool_handle": lambda: "pool",
        "Stream": Stream,
        "stream": streams.stream,
        "current_stream": lambda device: (
            streams.first if streams.current is FIRST else streams.current
        ),
    }
    with (
        mock.patch.multiple(torch.cuda, **stubs),
        mock.patch.object(optimizers, "_on_cuda", lambda groups: True),
    ):
        yield streams


def tensors(*of: Any) -> list[Tensor]:
    """All tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(of) if isinstance(leaf, Tensor)]
