"""What a network is made of and what it costs; its weights; and its latents, seen as it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pipeline.models.cut import cut
from pipeline.models.heads import Assembled
from pipeline.models.pairs import Verifier

BINS = 30
LAYERS = 24
FILTERS = 32

Floats = NDArray[np.float32]
Seen = Callable[[Tensor], tuple[Tensor, Tensor]]


class WeightHistogram(NamedTuple):
    """A layer's weights on ``edges`` (``BINS`` + 1,), before training and after.

    ``before`` is None where they are not known.
    """

    name: str
    edges: list[float]
    before: list[int] | None
    after: list[int]


def parameter_count(network: nn.Module) -> int:
    """Numbers that were trained or fitted: all parameters, and what a fitted head knows."""
    total = sum(parameter.numel() for parameter in network.parameters())
    if isinstance(network, Assembled):
        total += sum(of.numel() for of in network.head.buffers() if of.is_floating_point())
    return total


@torch.no_grad()
def multiply_adds(work: Callable[[], object]) -> int:
    """Multiplications with their additions in the matrix products and convolutions of ``work``.

    Half of the floating-point operations that torch counts; normalisation, activations and pooling
    are left out, as is usual.
    """
    counter = _Counter()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides the products of attention
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:  # of others torch 2.11 does not count all
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.operations // 2


def weighted_layers(network: nn.Module) -> dict[str, Tensor]:
    """Weights of two or more axes by their layers' names, in the network's order.

    The names are those of the whole network, also in an encoder with a head of another kind
    (``Assembled``, ``Verifier``), whose own layers begin with ``head.``.
    """
    return {
        key.removesuffix("weight").rstrip("._"): of.detach()
        for key, of in _named(network)
        if of.ndim > 1 and key.endswith("weight")
    }


def weight_histograms(network: nn.Module, start: Mapping[str, Tensor]) -> list[WeightHistogram]:
    """Histograms of at most ``LAYERS`` layers, evenly chosen, the first and the last among them.

    Args:
        network: trained.
        start: the weights it began with by their state-dict keys; those that are not there, or
            have another shape, are not known.
    """
    layers = weighted_layers(network)
    names = list(layers)
    chosen = np.linspace(0, len(names) - 1, min(len(names), LAYERS)).round().astype(int)
    began = _began(network, start)
    return [_histogram(names[n], began.get(names[n]), layers[names[n]]) for n in chosen]


def first_filters(network: nn.Module, start: Mapping[str, Tensor]) -> tuple[Floats, Floats]:
    """The first layer's filters (K, C, h, w) before and after training, at most ``FILTERS``.

    Of size 0 where the first layer with weights is no two-dimensional convolution, and before
    where ``start`` does not hold it.
    """
    name, after = next(iter(weighted_layers(network).items()), ("", torch.empty(0)))
    if after.ndim != 4:
        return np.zeros((0, 0, 0, 0), np.float32), np.zeros((0, 0, 0, 0), np.float32)
    before = _began(network, start).get(name, after[:0])
    return _array(before[:FILTERS]), _array(after[:FILTERS])


def seen_at(network: nn.Module, latent: str) -> Seen:
    """A function of images that gives the latent and the output, ``cut`` between them.

    Raises:
        InputError: the network cannot be cut there.
    """
    encoder, head = cut(network, latent)

    def seen(inputs: Tensor) -> tuple[Tensor, Tensor]:
        maps = encoder(inputs)
        return maps, head(maps)

    return seen


def seen_before(network: nn.Module, layer: str) -> Seen:
    """A function of images that gives what ``layer`` takes in, and the output."""
    module = network.get_submodule(layer)

    def seen(inputs: Tensor) -> tuple[Tensor, Tensor]:
        taken: list[Tensor] = []
        with module.register_forward_pre_hook(lambda _, given: taken.append(given[0])):
            output = network(inputs)
        return taken[0], output

    return seen


class _Counter(TorchDispatchMode):
    """Adds up floating-point operations by torch's own formulas.

    As ``torch.utils.flop_counter.FlopCounterMode``, which loads torch's compiler, for seconds.
    """

    operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the compiler would be loaded to be told so

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **given, out_val=result)
        return result


def _named(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    if not isinstance(network, Assembled | Verifier):
        yield from network.named_parameters()
        return
    yield from network.encoder.named_parameters()
    yield from network.head.named_parameters(prefix="head")


def _began(network: nn.Module, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The start weights by layer, as far as they fit."""
    return {
        key.removesuffix("weight").rstrip("._"): start[key]
        for key, of in _named(network)
        if key in start and start[key].shape == of.shape
    }


def _histogram(name: str, before: Tensor | None, after: Tensor) -> WeightHistogram:
    known = [after] if before is None else [before, after]
    low, high = min(float(of.min()) for of in known), max(float(of.max()) for of in known)
    if low == high:
        half = max(0.5, abs(low) / 2)
        low, high = low - half, high + half
    counts = [np.histogram(_array(of).astype(np.float64), BINS, (low, high))[0] for of in known]
    edges = np.linspace(low, high, BINS + 1).tolist()
    after_all = counts[-1].tolist()
    return WeightHistogram(name, edges, None if before is None else counts[0].tolist(), after_all)


def _array(tensor: Tensor) -> Floats:
    return tensor.detach().float().cpu().contiguous().numpy()
