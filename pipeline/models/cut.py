"""Cut a network at latents into parts that, one after the other, are the network exactly.

The network is traced by torch.fx (Reed et al. 2022, "torch.fx: Practical Program Capture and
Transformation for Deep Learning in Python"). A module's output is a cut if every path from the
input to the output goes through it: nothing computed before it is used after it.
"""

from __future__ import annotations

import bisect
import difflib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from pipeline.errors import InputError
from pipeline.models.architectures import AdaptiveAveragePool

LISTED = 20
FRESH = (
    nn.Linear,
    _BatchNorm,
    _ConvNd,
)  # their output is memory of its own, which no gradient needs


def cut(network: nn.Module, latent: str) -> tuple[nn.Module, nn.Module]:
    """``split`` in two: encoder and head, with ``head(encoder(x))`` equal to ``network(x)``."""
    encoder, head = split(network, [latent])
    return encoder, head


def split(network: nn.Module, latents: list[str]) -> list[nn.Module]:
    """Cut a network at the outputs of the named modules, given in order of execution.

    The parts share the network's parameters, buffers and innermost modules under its own
    state-dict keys, each key in one part; ``train()`` and ``eval()`` of a part act on them.
    Functions called with ``inplace=True`` become ordinary ones, as ``architectures.build`` does
    with modules: so no part of a network of its making alters its input. Within a part a ReLU
    overwrites what the layer before it made, where nothing else reads that.

    Args:
        network: maps one tensor to one tensor.
        latents: names as in ``network.named_modules()``, of layers or of whole blocks.

    Returns:
        One part more than latents.

    Raises:
        InputError: ``latent 'x': …``: there is no such module, its output is no cut (the
            valid ones, or those with the nearest names, are listed), or the order is wrong.
    """
    trace = _trace(network)
    ends = [_end(trace, latent) for latent in latents]
    for (before, first), (after, second) in itertools.pairwise(zip(latents, ends, strict=True)):
        if not any(first < place <= second for place in trace.weights):
            raise InputError(
                f"latent '{after}': there is no layer with weights between '{before}' and it; "
                "latents must be named in order of execution"
            )
    bounds = [-1, *ends, len(trace.nodes) - 1]
    return [_part(trace, first, last) for first, last in itertools.pairwise(bounds)]


def valid_latents(network: nn.Module) -> list[str]:
    """Every latent at which ``cut`` works and leaves both parts weights, as executed."""
    return _trace(network).valid


def block_ends(network: nn.Module) -> list[str]:
    """The latents that cut a network into its blocks, the smallest parts with a weight matrix.

    A block is a layer with what follows it up to the next one (normalisation, activation,
    pooling; dropout belongs to the next block), or layers that a skip connection or parallel
    paths hold together. So AlexNet has eight and ResNet-18 ten. The last block has no end.
    """
    trace = _trace(network)
    matrices = sorted(trace.matrices)
    ends: dict[int, str] = {}
    closed: set[int] = set()  # counts of matrices after whose block a dropout has come
    for name in trace.valid:
        before = bisect.bisect_right(matrices, trace.places[trace.outputs[name][0]])
        if isinstance(network.get_submodule(name), _DropoutNd):
            closed.add(before)
        if before and before not in closed:
            ends[before] = name
    return [name for before, name in ends.items() if before < len(matrices)]


@dataclass(frozen=True)
class _Trace:
    """A traced network.

    Attributes:
        network: the root that the names are relative to.
        nodes: its operations in order of execution, input first, output last.
        places: where each operation is carried out; what depends on no input, such as a
            parameter, only where it is first used.
        outputs: for each module called, its outputs, one for each call.
        weights: the places at which parameters are used, in order.
        matrices: those at which parameters of two or more axes are first used.
        valid: the modules at which the network can be cut, in order of execution.
    """

    network: nn.Module
    nodes: list[fx.Node]
    places: dict[fx.Node, int]
    outputs: dict[str, list[fx.Node]]
    weights: list[int]
    matrices: set[int]
    valid: list[str]


class _Tracer(fx.Tracer):
    """Traces into every block and remembers what each module returned."""

    # what a block makes of its buffers is computed in each pass, on the device of the moment
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.returned: dict[str, list[Any]] = defaultdict(list)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # tracing into these would fix for ever whether they train, or for which size they pool
        kept = isinstance(m, AdaptiveAveragePool) or type(m).__name__ == "StochasticDepth"
        return kept or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        self.returned[self.path_of_module(m)].append(result)
        return result


def _trace(network: nn.Module) -> _Trace:
    tracer = _Tracer()
    graph = tracer.trace(network)
    nodes = list(graph.nodes)
    for node in nodes:
        if node.kwargs.get("inplace") is True:  # it would overwrite a latent that is kept
            node.kwargs = {**node.kwargs, "inplace": False}
    places = _places(nodes)
    outputs = {
        name: [result.node for result in results]
        for name, results in tracer.returned.items()
        if all(isinstance(result, fx.Proxy) for result in results)
    }
    uses, weights, matrices = _uses(network, places)
    cuts = _cuts(nodes, places, uses, weights)
    valid = [name for name, found in outputs.items() if len(found) == 1 and found[0] in cuts]
    valid.sort(key=lambda name: places[outputs[name][0]])  # stable: blocks after their last layer
    return _Trace(network, nodes, places, outputs, weights, matrices, valid)


def _places(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    variable: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or not variable.isdisjoint(node.all_input_nodes):
            variable.add(node)
    places = {node: place for place, node in enumerate(nodes)}
    for node in reversed(nodes):
        if node not in variable and node.users:
            places[node] = min(places[user] for user in node.users)
    return places


def _uses(
    network: nn.Module, places: dict[fx.Node, int]
) -> tuple[dict[int, list[int]], list[int], set[int]]:
    """The places at which each tensor of the state is used; those with parameters; matrices."""
    state = network.state_dict(keep_vars=True)
    uses: dict[int, list[int]] = defaultdict(list)
    weights = set()
    matrices: dict[int, int] = {}
    for node, place in places.items():
        name = str(node.target)
        used = {name: state[name]} if node.op == "get_attr" and name in state else {}
        if node.op == "call_module":
            used = network.get_submodule(name).state_dict(keep_vars=True)
        for tensor in used.values():
            uses[id(tensor)].append(place)
            if isinstance(tensor, nn.Parameter):
                weights.add(place)
                if tensor.ndim > 1:
                    matrices.setdefault(id(tensor), place)
    return uses, sorted(weights), set(matrices.values())


def _cuts(
    nodes: list[fx.Node],
    places: dict[fx.Node, int],
    uses: dict[int, list[int]],
    weights: list[int],
) -> set[fx.Node]:
    """The nodes after which, of all before, only their own value is used, and no weight again."""
    spans = [(min(found), max(found)) for found in uses.values()]
    for node in nodes:
        if node.users:
            spans.append((places[node], max(places[user] for user in node.users)))
    change = [0] * len(nodes)
    for first, last in spans:
        change[first] += 1
        change[last] -= 1
    crossing = list(itertools.accumulate(change))
    return {
        node
        for place, node in enumerate(nodes)
        if places[node] == place
        and node.users
        and crossing[place] == 1
        and weights[0] <= place < weights[-1]
    }


def _end(trace: _Trace, latent: str) -> int:
    """The place of the latent's output."""
    if latent not in trace.valid:
        raise InputError(f"latent '{latent}': {_problem(trace, latent)}; {_advice(trace, latent)}")
    return trace.places[trace.outputs[latent][0]]


def _problem(trace: _Trace, latent: str) -> str:
    outputs = trace.outputs.get(latent, [])
    if not latent or latent not in dict(trace.network.named_modules()):
        return "the network has no such module"
    if not outputs:
        return "the network does not use its output as a tensor"
    if len(outputs) > 1:
        return f"it is called {len(outputs)} times in a pass, so that its output is no single cut"
    if trace.places[outputs[0]] < trace.weights[0]:
        return "no layer with weights comes before it"
    if trace.places[outputs[0]] >= trace.weights[-1]:
        return "no layer with weights comes after it"
    return "it is no cut: something from before it, such as a skip connection, is used after it"


def _advice(trace: _Trace, latent: str) -> str:
    close = difflib.get_close_matches(latent, trace.valid, n=LISTED, cutoff=0.0)
    more = len(trace.valid) - len(close)
    if not more:
        return f"valid are {', '.join(trace.valid)}"
    near = [name for name in trace.valid if name in close]
    return f"valid are {', '.join(near)} and {more} more"


def _part(trace: _Trace, first: int, last: int) -> nn.Module:
    """What is carried out after place ``first``, up to and with ``last``."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if first >= 0:
        copies[trace.nodes[first]] = graph.placeholder("latent")
    for node in _between(trace, first, last):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    if trace.nodes[last].op != "output":
        graph.output(copies[trace.nodes[last]])
    _overwrite(graph, trace.network)
    return fx.GraphModule(trace.network, graph, class_name="Part")


def _overwrite(graph: fx.Graph, network: nn.Module) -> None:
    """Let each ReLU reuse the memory that the layer before it has filled for it alone."""
    for node in list(graph.nodes):
        if not isinstance(_called(node, network), nn.ReLU):
            continue
        (source,) = node.all_input_nodes
        if isinstance(_called(source, network), FRESH) and len(source.users) == 1:
            with graph.inserting_after(node):
                taken = graph.call_function(functional.relu, (source,), {"inplace": True})
            node.replace_all_uses_with(taken)
            graph.erase_node(node)


def _called(node: fx.Node, network: nn.Module) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _between(trace: _Trace, first: int, last: int) -> Iterator[fx.Node]:
    return (node for node in trace.nodes if first < trace.places[node] <= last)
