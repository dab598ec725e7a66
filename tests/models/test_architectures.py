import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.models import architectures
from pipeline.models.architectures import AdaptiveAveragePool, build, normalise


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    return build("squeezenet1_1", 5, 3, 64, dropout=None, generator_seed=0)


def same_state(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


def test_the_networks_of_our_own_import_neither_torchvision_nor_the_compiler():
    work = (
        "import sys, torch; from pipeline.models import architectures as a, cut, weights;"
        "network = a.build('small', 5, 1, 8, None, 0); a.check_size('small', 8, 1);"
        "a.classifier_keys('small', 1, 8); cut.cut(network, 'embedding');"
        "network(a.normalise(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 'small'));"
        "a.check_size('bvlc_alexnet', 67, 1); a.classifier_keys('bvlc_alexnet', 1, 67);"
        "a.check_size('koch', 65, 1); a.classifier_keys('koch', 1, 65);"
        "sys.exit(any(name in sys.modules for name in ('torchvision', 'torch._dynamo', 'sympy')))"
    )
    assert subprocess.run([sys.executable, "-c", work]).returncode == 0


@pytest.mark.parametrize(("architecture", "smallest"), [("small", 4), ("drawings", 8)])
def test_our_own_networks_refuse_when_they_are_made_what_they_cannot_take(architecture, smallest):
    """The check makes no pass through them, which would import torch's compiler."""
    for side in range(1, 40):
        if side < smallest:
            with pytest.raises(InputError, match=r"data\.image_size"):
                architectures.check_size(architecture, side, 1)
        else:
            architectures.check_size(architecture, side, 1)
            network = build(architecture, 3, 1, side, None, 0).eval()
            assert network(torch.zeros(1, 1, side, side)).shape == (1, 3)


def test_names_are_our_own_and_torchvisions_classification_networks():
    names = architectures.names()
    assert names[:4] == ["small", "bvlc_alexnet", "koch", "drawings"]
    assert len(set(names)) == len(names)
    assert {"alexnet", "resnet18", "vit_b_16"} <= set(names)
    assert not {"fcn_resnet50", "raft_large", "quantized_resnet18"} & set(names)


@pytest.mark.parametrize("size", [4, 5, 6, 7, 8, 9, 12, 16, 28, 33, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_takes_one_image_in_train_mode_at_every_size(size: int, channels: int):
    network = build("small", 5, channels, size, dropout=0.5, generator_seed=0)
    logits = network(torch.rand(1, channels, size, size))
    assert logits.shape == (1, 5)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_small_learns():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(20, 1, 8, 8, generator=generator)
    labels = torch.arange(20) % 5
    network = build("small", 5, 1, 8, dropout=None, generator_seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert (network.eval()(images).argmax(1) == labels).all()


@pytest.mark.parametrize("architecture", ["small", "squeezenet1_1", "convnext_tiny"])
def test_the_start_depends_on_the_seed_alone(architecture: str):
    def make(seed: int) -> nn.Module:
        return build(architecture, 5, 3, 32, dropout=None, generator_seed=seed)

    torch.manual_seed(1)
    first = make(7)
    torch.manual_seed(2)
    assert same_state(make(7), first)
    assert not same_state(make(8), first)


def test_global_generators_stay_untouched():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    build("squeezenet1_1", 5, 3, 64, dropout=None, generator_seed=0)
    architectures.check_size("squeezenet1_1", 64, 3)
    architectures.classifier_keys("squeezenet1_1", 3, 64)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_dropout_sets_every_dropout_layer():
    network = build("alexnet", 5, 3, 64, dropout=0.3, generator_seed=0)
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    assert [layer.p for layer in layers] == [0.3, 0.3]


def test_dropout_without_a_layer_for_it_is_an_error():
    with pytest.raises(InputError, match=r"^params.yaml: model.dropout: resnet18 has no dropout"):
        build("resnet18", 5, 3, 64, dropout=0.3, generator_seed=0)
    build("resnet18", 5, 3, 64, dropout=0.0, generator_seed=0)


def test_nothing_works_in_place(squeezenet: nn.Module):
    assert any(isinstance(module, nn.ReLU) for module in squeezenet.modules())
    assert not any(getattr(module, "inplace", False) for module in squeezenet.modules())


def test_an_unknown_architecture_gets_the_nearest_name():
    message = r"^params.yaml: model.architecture: .*'resnet81'.*'resnet18'"
    for attempt in (
        lambda: build("resnet81", 5, 3, 64, None, 0),
        lambda: architectures.check_size("resnet81", 64, 3),
        lambda: architectures.classifier_keys("resnet81", 3, 64),
    ):
        with pytest.raises(InputError, match=message):
            attempt()


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_no_auxiliary_logits_in_train_mode(architecture: str):
    network = build(architecture, 5, 3, 96, dropout=None, generator_seed=0)
    logits = network(torch.rand(2, 3, 96, 96))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("architecture", "too_small", "enough"),
    [("alexnet", 62, 63), ("squeezenet1_1", 16, 17), ("inception_v3", 74, 75)],
)
def test_check_size_agrees_with_a_real_forward_pass(architecture: str, too_small: int, enough: int):
    network = build(architecture, 2, 3, enough, dropout=None, generator_seed=0).eval()
    architectures.check_size(architecture, enough, 3)
    network(torch.zeros(1, 3, enough, enough))
    with pytest.raises(InputError, match=f"data.image_size: {architecture}.*{too_small} x"):
        architectures.check_size(architecture, too_small, 3)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, too_small, too_small))


def test_check_size_names_a_size_that_works():
    with pytest.raises(InputError, match=r"24 x 24 pixels \(.*indivisible.*\); 32 would do$"):
        architectures.check_size("vit_b_16", 24, 3)
    architectures.check_size("vit_b_16", 32, 3)
    with pytest.raises(InputError, match=r"small cannot take images of 3 x 3 pixels"):
        architectures.check_size("small", 3, 1)


def test_a_network_that_cannot_be_built_for_the_size_says_so():
    with pytest.raises(InputError, match=r"^params.yaml: data.image_size: maxvit_t.*224 would do"):
        build("maxvit_t", 5, 3, 64, dropout=None, generator_seed=0)
    message = (
        r"data.image_size: koch .* 64 x 64 pixels \(the smallest side is 65 pixels\); 96 would"
    )
    with pytest.raises(InputError, match=message):
        build("koch", 5, 1, 64, dropout=None, generator_seed=0)
    with pytest.raises(InputError, match=r"drawings .* 7 x 7 pixels \(the smallest side is 8 pix"):
        build("drawings", 5, 1, 7, dropout=None, generator_seed=0)
    with pytest.raises(InputError, match=r"^params.yaml: data.image_size: small"):
        build("small", 5, 1, 3, dropout=None, generator_seed=0)


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("small", {"classifier.weight", "classifier.bias"}),
        ("koch", {"classifier.weight", "classifier.bias"}),
        ("drawings", {"classifier.weight", "classifier.bias"}),
        ("squeezenet1_1", {"classifier.1.weight", "classifier.1.bias"}),
        ("alexnet", {"classifier.6.weight", "classifier.6.bias"}),
        ("vit_b_16", {"heads.head.weight", "heads.head.bias"}),
        ("regnet_y_400mf", {"fc.weight", "fc.bias"}),
    ],
)
def test_classifier_keys(architecture: str, keys: set[str]):
    assert architectures.classifier_keys(architecture, 3, 96) == keys


def test_drawings_pads_with_white_paper():
    white = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    assert normalise(white, "drawings").abs().max() < 1e-6
    assert (normalise(torch.zeros_like(white), "drawings") - 1).abs().max() < 1e-6
    maps = build("drawings", 5, 1, 29, None, 0).eval().features(torch.zeros(2, 1, 29, 29))
    assert maps.shape == (2, 256, 3, 3)
    assert torch.equal(maps[:, :, :1, :1].expand_as(maps), maps)  # the border is no feature


def test_normalise_for_small_spreads_pixels_over_minus_one_to_one():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    wanted = torch.tensor([-1.0, -0.6, 1.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(normalise(images, "small"), wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_for_koch_spreads_pixels_over_zero_to_one(channels: int):
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    wanted = torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1, 1).expand(-1, channels, 1, 1)
    torch.testing.assert_close(normalise(images.expand(-1, channels, 1, 1), "koch"), wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_for_torchvision_is_its_own_transform(channels: int):
    from torchvision.transforms import v2

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, channels, 5, 6), dtype=torch.uint8, generator=generator)
    oracle = v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    wanted = oracle(images.expand(-1, 3, -1, -1).float() / 255)
    normalised = normalise(images, "resnet18")
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised, wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(normalise(images.float(), "resnet18"), wanted, atol=1e-6, rtol=0)


def test_constants_made_in_inference_mode_serve_training():
    pool = AdaptiveAveragePool((5, 5))
    with torch.inference_mode():
        normalise(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "small")
        pool(torch.zeros(1, 1, 13, 13))
    maps = torch.zeros(1, 1, 13, 13, requires_grad=True)
    pool(maps).sum().backward()
    assert maps.grad is not None


@pytest.mark.parametrize("sides", [(1, 1), (2, 3), (6, 6), (7, 5), (12, 12), (13, 8), (14, 7)])
@pytest.mark.parametrize("size", [1, (1, 1), 3, (6, 6), (7, 7), (2, None), (None, 5), (1, 4)])
def test_pooling_and_its_gradient_equal_torchs(sides: tuple[int, int], size: object):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, *sides, generator=generator, requires_grad=True)
    same = maps.detach().clone().requires_grad_()
    pooled, wanted = AdaptiveAveragePool(size)(maps), nn.AdaptiveAvgPool2d(size)(same)
    assert pooled.shape == wanted.shape
    torch.testing.assert_close(pooled, wanted, atol=1e-6, rtol=1e-6)
    slope = torch.randn(wanted.shape, generator=generator)
    pooled.backward(slope)
    wanted.backward(slope)
    torch.testing.assert_close(maps.grad, same.grad, atol=1e-6, rtol=1e-6)


def test_build_replaces_the_pooling_and_keeps_keys_and_outputs():
    import torchvision

    network = build("alexnet", 5, 3, 96, dropout=None, generator_seed=0).eval()
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in network.modules())
    original = torchvision.models.alexnet(num_classes=5).eval()
    original.load_state_dict(network.state_dict(), strict=True)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), original(images), atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
def test_pooling_is_deterministic_on_cuda():
    torch.use_deterministic_algorithms(True)
    try:
        maps = torch.randn(2, 3, 13, 13, device="cuda", requires_grad=True)
        AdaptiveAveragePool((6, 6))(maps).square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert maps.grad is not None
