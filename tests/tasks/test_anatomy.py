"""What networks are made of and cost, counted by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.models.architectures import build
from pipeline.models.cut import cut
from pipeline.models.heads import Assembled, LinearHead, NeighboursHead
from pipeline.models.pairs import Cosine, Verifier, build_pair_head
from pipeline.tasks import anatomy
from pipeline.tasks.anatomy import (
    first_filters,
    multiply_adds,
    parameter_count,
    seen_at,
    seen_before,
    weight_histograms,
    weighted_layers,
)


def small(classes=5):
    return build("small", classes, 1, 8, None, 0).eval()


def fitted(classes=5, dimension=64):
    head = LinearHead(
        torch.zeros(dimension), torch.ones(dimension), torch.ones(classes, dimension),
        torch.zeros(classes),
    )  # fmt: skip
    return Assembled(cut(small(classes), "embedding")[0], head)


def verifier():
    return Verifier(cut(small(), "embedding")[0], build_pair_head("difference", 64, 0.0, 0))


def cost(module, *shape):
    return multiply_adds(lambda: module(torch.zeros(shape)))


# --- counting


def test_multiplications_of_a_linear_layer_and_of_convolutions_by_hand():
    assert cost(nn.Linear(7, 3), 1, 7) == 7 * 3
    assert cost(nn.Conv2d(3, 8, 5, padding=2), 1, 3, 12, 10) == 12 * 10 * 8 * 3 * 5 * 5
    assert cost(nn.Conv2d(4, 8, 3, stride=2, groups=2), 1, 4, 9, 9) == 4 * 4 * 8 * 2 * 3 * 3
    assert cost(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), 1, 3, 8, 8) == 0


def test_multiplications_of_a_network_are_those_of_its_layers():
    convolutions = 8 * 8 * 32 * 9 + 4 * 4 * 64 * 32 * 9
    assert cost(small(), 1, 1, 8, 8) == convolutions + 256 * 64 + 64 * 5
    assert cost(fitted(), 1, 1, 8, 8) == cost(small(), 1, 1, 8, 8)


def test_attention_is_counted_whatever_the_fast_path():
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = 5
    projections = tokens * 8 * 8 * 4  # queries, keys, values, output
    products = 2 * tokens * tokens * 8
    before = torch.backends.mha.get_fastpath_enabled()

    def attend():
        inputs = torch.zeros(1, tokens, 8)
        return layer(inputs, inputs, inputs, need_weights=False)

    assert multiply_adds(attend) == projections + products
    assert torch.backends.mha.get_fastpath_enabled() is before


def test_parameters_are_counted_with_what_a_fitted_head_knows():
    convolutions = 32 * 9 + 2 * 32 + 64 * 32 * 9 + 2 * 64
    encoder = convolutions + 256 * 64 + 64
    assert parameter_count(small()) == encoder + 64 * 5 + 5
    assert parameter_count(fitted()) == encoder + 64 * 5 + 5 + 2 * 64  # means and scales
    votes = NeighboursHead(
        torch.zeros(64), torch.ones(64), torch.ones(9, 64), torch.zeros(9, dtype=torch.int64),
        torch.ones(5), torch.tensor(3),
    )  # fmt: skip
    network = Assembled(cut(small(), "embedding")[0], votes)
    assert parameter_count(network) == encoder + 2 * 64 + 9 * 64 + 5
    assert parameter_count(Verifier(nn.Linear(2, 3), Cosine())) == 2 * 3 + 3 + 2


# --- weights


def test_layers_have_the_names_of_the_whole_network():
    shared = ["features.0", "features.4", "embedding"]
    assert list(weighted_layers(small())) == [*shared, "classifier"]
    assert list(weighted_layers(fitted())) == shared
    assert list(weighted_layers(verifier())) == [*shared, "head.linear"]
    attention = nn.Sequential(nn.Linear(4, 8), nn.MultiheadAttention(8, 2))
    assert list(weighted_layers(attention)) == ["0", "1.in_proj", "1.out_proj"]


def test_histograms_count_all_weights_before_and_after_on_shared_edges():
    network, start = small(), small().state_dict()
    with torch.no_grad():
        network.embedding.weight.mul_(3).add_(0.5)
    del start["features.4.weight"]
    start["classifier.weight"] = torch.zeros(9, 64)  # of other classes
    found = {layer.name: layer for layer in weight_histograms(network, start)}
    assert list(found) == ["features.0", "features.4", "embedding", "classifier"]
    for name, layer in found.items():
        after = network.get_submodule(name).weight.detach().double().numpy()
        known = name in ("features.0", "embedding")
        before = start[f"{name}.weight"].double().numpy() if known else after
        low, high = min(after.min(), before.min()), max(after.max(), before.max())
        edges = np.linspace(low, high, anatomy.BINS + 1)
        assert layer.edges == edges.tolist()
        for counts, weights in ((layer.after, after), (layer.before, before)):
            if counts is not None:
                inner = [((a <= weights) & (weights < b)).sum() for a, b in pairwise(edges)]
                inner[-1] += (weights == high).sum()
                assert counts == pytest.approx(inner, abs=1)  # on an edge by rounding
                assert sum(counts) == weights.size
        assert (layer.before is not None) is known
    assert found["features.0"].before == found["features.0"].after


@pytest.mark.parametrize("value", [0.0, 0.1, -3e38])
def test_weights_that_are_all_the_same_have_a_histogram(value):
    layer = nn.Linear(3, 4)
    nn.init.constant_(layer.weight, value)
    (found,) = weight_histograms(nn.Sequential(layer), {})
    assert sum(found.after) == 12 and found.edges[0] <= layer.weight[0, 0] <= found.edges[-1]


def test_weights_as_large_as_there_are_have_a_histogram():
    layer = nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[-3e38, 3e38]])
    (found,) = weight_histograms(nn.Sequential(layer), {})
    assert found.after[0] == found.after[-1] == 1 and sum(found.after) == 2


def test_of_many_layers_the_first_the_last_and_some_between_are_taken():
    layers = weight_histograms(nn.Sequential(*(nn.Linear(1, 1) for _ in range(100))), {})
    places = [int(layer.name) for layer in layers]
    assert len(places) == anatomy.LAYERS and places[0] == 0 and places[-1] == 99
    assert set(np.diff(places)) <= {4, 5}


def test_the_first_filters_are_raw_weights():
    network, start = small(), {"features.0.weight": torch.arange(288.0).reshape(32, 1, 3, 3)}
    before, after = first_filters(network, start)
    assert np.array_equal(before, start["features.0.weight"].numpy())
    assert np.array_equal(after, network.features[0].weight.detach().numpy())
    assert before.dtype == after.dtype == np.float32
    for other in (fitted(), verifier()):
        assert np.array_equal(first_filters(other, start)[1], after)
        assert np.array_equal(first_filters(other, start)[0], before)


def test_filters_that_there_are_not_have_size_zero():
    before, after = first_filters(small(), {})
    assert before.size == 0 and after.shape == (32, 1, 3, 3)
    assert [of.size for of in first_filters(nn.Sequential(nn.Linear(2, 3)), {})] == [0, 0]
    assert [of.size for of in first_filters(nn.Sequential(nn.ReLU()), {})] == [0, 0]
    many = nn.Sequential(nn.Conv2d(1, 50, 2))
    assert first_filters(many, many.state_dict())[0].shape == (anatomy.FILTERS, 1, 2, 2)


# --- latents


@torch.no_grad()
def test_a_network_is_seen_at_a_module_and_before_its_last_layer():
    network, images = small(), torch.randn(3, 1, 8, 8)
    flat = network.flatten(network.features(images))
    maps, output = seen_at(network, "features")(images)
    assert torch.equal(maps, network.features(images)) and torch.equal(output, network(images))
    latents, output = seen_at(network, "embedding")(images)
    assert torch.equal(latents, network.embedding(flat)) and torch.equal(output, network(images))
    latents, output = seen_before(network, "classifier")(images)
    assert torch.equal(latents, network.embedding(flat).relu())
    assert torch.equal(output, network(images))
    assert not network.classifier._forward_pre_hooks


def test_a_module_that_is_no_cut_is_refused():
    with pytest.raises(InputError, match="latent 'classifier': no layer with weights comes after"):
        seen_at(small(), "classifier")
