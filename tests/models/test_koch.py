"""The network of Koch et al. against its published counts, distributions and a naive NumPy one."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models import architectures
from pipeline.models.cut import block_ends, cut, valid_latents
from pipeline.models.koch import Koch
from pipeline.models.pairs import Difference, Verifier

CONVOLUTIONS = ("features.0", "features.4", "features.8", "features.12")
NORMS = ("features.1", "features.5", "features.9", "features.13")
LAYERS = (*CONVOLUTIONS, "units", "classifier")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(channels: int = 1, size: int = 65, classes: int = 8, seed: int = 0) -> nn.Module:
    return architectures.build("koch", classes, channels, size, dropout=None, generator_seed=seed)


def verifier(network: nn.Module) -> Verifier:
    encoder, _ = cut(network, "embedding")
    return Verifier(encoder, Difference(4096, dropout=0.4, seed=1, koch=True))


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """At the paper's size."""
    return build(size=105)


@pytest.fixture(scope="module")
def least() -> nn.Module:
    """At the smallest size that there is."""
    return build(size=65)


def as_keras_counts(network: nn.Module) -> dict[str, int]:
    """Weights, biases and the four numbers of batch norm; torch's count of batches is none."""
    statistics = [value for value in network.buffers() if value.is_floating_point()]
    fixed = sum(value.numel() for value in statistics)
    trained = sum(value.numel() for value in network.parameters())
    return {"all": trained + fixed, "not trained": fixed}


def test_the_siamese_network_has_as_many_parameters_as_published(published: nn.Module):
    assert as_keras_counts(verifier(published)) == {"all": 38_954_049, "not trained": 1_152}


def test_shapes_from_layer_to_layer(published: nn.Module):
    shapes = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
        for name, module in published.named_modules()
    ]
    with torch.no_grad():
        published.eval()(torch.zeros(1, 1, 105, 105))
    for hook in hooks:
        hook.remove()
    wanted = {
        "features.0": (64, 96, 96),
        "features.3": (64, 48, 48),
        "features.4": (128, 42, 42),
        "features.7": (128, 21, 21),
        "features.8": (128, 18, 18),
        "features.11": (128, 9, 9),
        "features.12": (256, 6, 6),
        "flatten": (9216,),
        "embedding": (4096,),
        "classifier": (8,),
    }
    assert {name: shapes[name] for name in wanted} == wanted


def assert_drawn(values: Tensor, mean: float) -> None:
    """From N(mean, 0.01): mean, deviation and the share within one deviation, to 4.5 errors."""
    values, count = values.detach().double().flatten() - mean, values.numel()
    inside = math.erf(math.sqrt(0.5))
    assert abs(values.mean()) < 4.5 * 0.01 / math.sqrt(count)
    assert abs(values.std() / 0.01 - 1) < 4.5 / math.sqrt(2 * count)
    share = (values.abs() < 0.01).double().mean()
    assert abs(share - inside) < 4.5 * math.sqrt(inside * (1 - inside) / count)


def test_initial_distributions(published: nn.Module):
    for name in LAYERS:
        layer = published.get_submodule(name)
        assert_drawn(layer.weight, mean=0.0)
        assert_drawn(layer.bias, mean=0.5)
    head = Difference(4096, 0.4, seed=1, koch=True).linear
    assert_drawn(head.weight, mean=0.0)
    assert abs(head.bias.item() - 0.5) < 0.045


def test_batch_norm_starts_and_moves_as_in_keras(least: nn.Module):
    network = build()
    for name in NORMS:
        norm = network.get_submodule(name)
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
        assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()
        assert norm.eps == 1e-3
    images = draw(3, 1, 65, 65).abs()
    maps = least.get_submodule("features.0")(images).detach()
    with torch.no_grad():
        network(images)
    first = network.get_submodule("features.1")
    torch.testing.assert_close(first.running_mean, 0.01 * maps.mean(dim=(0, 2, 3)))
    moved = 0.99 + 0.01 * maps.var(dim=(0, 2, 3))
    torch.testing.assert_close(first.running_var, moved)


@pytest.mark.parametrize("side", [65, 66, 74, 80])
def test_the_dense_layer_fits_every_side(side: int):
    network = build(size=side).eval()
    maps = network.get_submodule("features")(torch.zeros(1, 1, side, side))
    assert network.get_submodule("units").in_features == maps.numel()


def test_below_the_smallest_side_no_pixel_is_left(least: nn.Module):
    assert least.get_submodule("features").eval()(torch.zeros(1, 1, 65, 65)).shape[2:] == (1, 1)
    with pytest.raises(RuntimeError):
        least.get_submodule("features")(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match="the smallest side is 65 pixels"):
        Koch(1, 64, 2)
    architectures.check_size("koch", 65, 1)
    with pytest.raises(InputError, match="koch cannot take images of 64 x 64 pixels"):
        architectures.check_size("koch", 64, 1)


def test_channels_are_taken_as_they_are():
    pixels = torch.zeros(2, 3, 65, 65, dtype=torch.uint8)
    network = build(channels=3).eval()
    assert network(architectures.normalise(pixels, "koch")).shape == (2, 8)
    architectures.check_size("koch", 65, 3)


def test_the_start_depends_on_the_seed_alone_and_no_global_generator_moves(least: nn.Module):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again, other, wider = build(), build(seed=1), build(classes=9)
    assert torch.equal(torch.get_rng_state(), before)
    for name in LAYERS:
        weight = least.get_submodule(name).weight
        assert torch.equal(again.get_submodule(name).weight, weight)
        assert not torch.equal(other.get_submodule(name).weight, weight)
        # the encoder does not depend on how many classes there are
        same_number = name != "classifier"
        assert torch.equal(wider.get_submodule(name).weight, weight) == same_number


def test_it_is_cut_into_its_blocks_and_before_its_classifier(least: nn.Module):
    assert {"features", "flatten", "units", "embedding"} <= set(valid_latents(least))
    ends = block_ends(least)
    assert len(ends) == 5 and ends[-1] == "embedding"
    encoder, head = cut(least.eval(), "embedding")
    images = draw(2, 1, 65, 65)
    with torch.no_grad():
        assert torch.equal(head(encoder(images)), least(images))
    assert set(head.state_dict()) == {"classifier.weight", "classifier.bias"}


def test_it_trains_under_bf16():
    network = verifier(build()).train()
    left, right = draw(2, 1, 65, 65), draw(2, 1, 65, 65, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(left, right)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    # but the classifier's, which the encoder does not have
    assert len(gradients) == len(list(network.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def spread(network: nn.Module, seed: int = 5) -> None:
    """Weights that keep images apart from layer to layer, and statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.01, 1.0, generator=generator)
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, generator=generator)


def naive_logit(state: dict[str, np.ndarray], left: np.ndarray, right: np.ndarray) -> float:
    """The Siamese network on two images (C, H, W), in float64."""
    encodings = []
    for maps in (left.astype(np.float64), right.astype(np.float64)):
        for number, (convolution, norm) in enumerate(zip(CONVOLUTIONS, NORMS, strict=True)):
            maps = naive_convolution(maps, *layer(state, f"encoder.{convolution}"))
            maps = np.maximum(naive_norm(maps, state, f"encoder.{norm}"), 0)
            maps = naive_pool(maps) if number < 3 else maps
        weights, biases = layer(state, "encoder.units")
        encodings.append(1 / (1 + np.exp(-(weights @ maps.reshape(-1) + biases))))
    alphas, bias = layer(state, "head.linear")
    return (alphas[0] * np.abs(encodings[0] - encodings[1])).sum() + bias[0]


def layer(state: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    return state[f"{name}.weight"].astype(np.float64), state[f"{name}.bias"].astype(np.float64)


def naive_convolution(maps: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Valid, (C, H, W) by (O, C, K, K) to (O, H', W'): a sum over the kernel's places."""
    outputs, _, size, _ = weights.shape
    side = maps.shape[1] - size + 1
    result = np.tile(biases[:, None, None], (1, side, side))
    for i in range(size):
        for j in range(size):
            seen = maps[:, i : i + side, j : j + side]
            result += (weights[:, :, i, j] @ seen.reshape(len(maps), -1)).reshape(outputs, side, -1)
    return result


def naive_norm(maps: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    result = np.empty_like(maps)
    for channel, values in enumerate(maps):
        mean, variance, scale, shift = (
            float(state[f"{name}.{part}"][channel])
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        result[channel] = scale * (values - mean) / math.sqrt(variance + 1e-3) + shift
    return result


def naive_pool(maps: np.ndarray) -> np.ndarray:
    side = maps.shape[1] // 2
    result = np.empty((len(maps), side, side))
    for i in range(side):
        for j in range(side):
            result[:, i, j] = maps[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    return result


@pytest.mark.parametrize(("size", "channels"), [(67, 3), (105, 1)])
def test_a_forward_pass_is_the_naive_one(size: int, channels: int):
    network = verifier(build(channels, size)).eval()
    spread(network)
    generator = torch.Generator().manual_seed(0)
    pixels = 255 * torch.rand(2, channels, size, size, generator=generator)
    left, right = architectures.normalise(pixels, "koch").split(1)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    wanted = naive_logit(state, left[0].numpy(), right[0].numpy())
    with torch.no_grad():
        assert network(left, right).item() == pytest.approx(wanted, abs=2e-5)
        equal = network(left, left).item()
    assert abs(wanted - equal) > 0.02  # so that a wrong layer would show
