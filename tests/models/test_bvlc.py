import functools
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.models import architectures, bvlc, weights
from pipeline.models.bvlc import BVLC, BVLCAlexNet, LocalResponseNorm
from pipeline.models.cut import cut, valid_latents

Layers = dict[str, tuple[np.ndarray, np.ndarray]]
# As in the published file: (height, width, in / groups, out) and (in, out).
SHAPES = {
    "conv1": (11, 11, 3, 96),
    "conv2": (5, 5, 48, 256),
    "conv3": (3, 3, 256, 384),
    "conv4": (3, 3, 192, 384),
    "conv5": (3, 3, 192, 256),
    "fc6": (9216, 4096),
    "fc7": (4096, 4096),
    "fc8": (4096, 15),
}
SMALL_SHAPES = {name: (2, 3, 4, 5) if name.startswith("conv") else (4 * 256, 3) for name in SHAPES}


def random_layers(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Layers:
    """Of a scale that keeps activations as large as pixels, where the response norm matters."""
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    return {
        name: (draw(*shape) * np.float32((2 / np.prod(shape[:-1])) ** 0.5), 5 * draw(shape[-1]))
        for name, shape in shapes.items()
    }


def form_of(layers: Layers, form: str) -> dict[str, object]:
    if form == "lists":
        return {name: list(layer) for name, layer in layers.items()}
    if form == "tuples":
        return dict(layers)
    if form == "arrays":
        return {name: objects(*layer) for name, layer in layers.items()}
    return {name: {"weights": w, "biases": b} for name, (w, b) in layers.items()}


def objects(*values: object) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def npy(content: object, dumps: Callable[[object], bytes] = pickle.dumps) -> bytes:
    """What ``numpy.save`` writes of a dict, with the array's pickle by ``dumps``."""
    array = np.empty((), dtype=object)
    array[()] = content
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue() + dumps(array)


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes alike as Python 2's strings, and NumPy's names of that time."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2_dumps(content: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def naive_forward(image: np.ndarray, layers: Layers) -> np.ndarray:
    """Logits of an image (H, W, 3), in float64, with the layouts of the file throughout."""
    maps = image.astype(np.float64)
    maps = naive_pool(naive_norm(relu(naive_convolution(maps, *layers["conv1"], 4, 0, 1))))
    maps = naive_pool(naive_norm(relu(naive_convolution(maps, *layers["conv2"], 1, 2, 2))))
    maps = relu(naive_convolution(maps, *layers["conv3"], 1, 1, 1))
    maps = relu(naive_convolution(maps, *layers["conv4"], 1, 1, 2))
    maps = naive_pool(relu(naive_convolution(maps, *layers["conv5"], 1, 1, 2)))
    values = maps.reshape(-1)
    for name in ("fc6", "fc7"):
        values = relu(values @ layers[name][0] + layers[name][1])
    return values @ layers["fc8"][0] + layers["fc8"][1]


def relu(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0)


def naive_convolution(
    maps: np.ndarray,
    weights: np.ndarray,
    biases: np.ndarray,
    stride: int,
    padding: int,
    groups: int,
) -> np.ndarray:
    size, _, inputs, outputs = weights.shape
    maps = np.pad(maps, ((padding, padding), (padding, padding), (0, 0)))
    side = (len(maps) - size) // stride + 1
    result = np.empty((side, side, outputs))
    for group in range(groups):
        taken = slice(group * inputs, (group + 1) * inputs)
        made = slice(group * outputs // groups, (group + 1) * outputs // groups)
        kernel = weights[..., made].astype(np.float64).reshape(-1, outputs // groups)
        for i in range(side):
            for j in range(side):
                top, left = i * stride, j * stride
                window = maps[top : top + size, left : left + size, taken]
                result[i, j, made] = window.reshape(-1) @ kernel + biases[made]
    return result


def naive_norm(maps: np.ndarray) -> np.ndarray:
    """As TensorFlow defines it: depth_radius 2, alpha 2e-5, beta 0.75, bias 1."""
    result = np.empty_like(maps)
    for channel in range(maps.shape[-1]):
        near = maps[..., max(channel - 2, 0) : channel + 3]
        result[..., channel] = maps[..., channel] / (1 + 2e-5 * (near**2).sum(-1)) ** 0.75
    return result


def naive_pool(maps: np.ndarray) -> np.ndarray:
    side = (len(maps) - 3) // 2 + 1
    result = np.empty((side, side, maps.shape[-1]))
    for i in range(side):
        for j in range(side):
            result[i, j] = maps[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1))
    return result


def meta_network(image_size: int = 227, classes: int = 15) -> nn.Module:
    return architectures._construct_on_meta(BVLC, classes, 3, image_size)


def test_a_file_of_random_arrays_computes_what_plain_numpy_does(tmp_path: Path):
    layers = random_layers(SHAPES)
    array = np.array(form_of(layers, "lists"), dtype=object)
    np.save(tmp_path / "bvlc_alexnet.npy", array, allow_pickle=True)
    tensors = weights.from_file(tmp_path / "bvlc_alexnet.npy")
    network = meta_network().eval()
    keys = architectures.classifier_keys(BVLC, 3, 227)
    assert keys == {"classifier.6.weight", "classifier.6.bias"}
    fitting, notes = weights.fit(tensors, network, keys, "w.npy")
    assert notes == []
    assert fitting.keys() == network.state_dict().keys() - keys
    network.load_state_dict(fitting | {key: tensors[key] for key in keys}, assign=True)

    generator = np.random.default_rng(1)
    rgb = generator.integers(256, size=(227, 227, 3), dtype=np.uint8)
    bgr = rgb[..., ::-1] - np.array([104.00698793, 116.66876762, 122.67891434])
    wanted = naive_forward(bgr, layers)
    pixels = torch.from_numpy(rgb.transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        logits = network(architectures.normalise(pixels, BVLC))[0].numpy()
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", ["lists", "tuples", "dicts", "arrays"])
def test_every_form_and_protocol_gives_the_same_tensors(tmp_path: Path, form: str, protocol: int):
    layers = random_layers(SMALL_SHAPES)
    content = form_of(layers, form)
    dumps = functools.partial(pickle.dumps, protocol=protocol)
    (tmp_path / "w.npy").write_bytes(npy(content, dumps))
    assert_converted(weights.from_file(tmp_path / "w.npy"), layers)


@pytest.mark.parametrize("form", ["lists", "dicts"])
def test_a_file_of_python_2_is_read(tmp_path: Path, form: str):
    layers = random_layers(SMALL_SHAPES)
    content = npy(form_of(layers, form), python2_dumps)
    assert b"cnumpy.core.multiarray" in content
    assert b"_codecs" not in content
    (tmp_path / "w.npy").write_bytes(content)
    assert_converted(weights.from_file(tmp_path / "w.npy"), layers)


def assert_converted(tensors: dict[str, torch.Tensor], layers: Layers) -> None:
    """The layouts, element by element."""
    assert len(tensors) == 2 * len(layers)
    for name, (matrix, biases) in layers.items():
        key = bvlc.LAYERS[name].module
        own = tensors[f"{key}.weight"].numpy()
        assert tensors[f"{key}.bias"].numpy().tolist() == biases.tolist()
        assert own.dtype == matrix.dtype
        assert own.size == matrix.size
        for index, value in np.ndenumerate(matrix):
            if name == "fc6":
                (place, output), side = index, 2
                row, column, channel = np.unravel_index(place, (side, side, 256))
                own_index = (output, (channel * side + row) * side + column)
            else:
                own_index = index[:-3:-1] + index[:-2] if len(index) == 4 else index[::-1]
            assert own[own_index] == value


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda array: array.astype(">f4"),
        lambda array: array.astype("<f8"),
        lambda array: np.repeat(array, 2, axis=0)[::2],
    ],
)
def test_arrays_may_lie_in_memory_in_any_way(tmp_path: Path, change: Callable):
    layers = {name: (change(w), change(b)) for name, (w, b) in random_layers(SMALL_SHAPES).items()}
    np.save(tmp_path / "w.npy", np.array(form_of(layers, "lists"), dtype=object))
    tensors = weights.from_file(tmp_path / "w.npy")
    for name in ("conv1", "fc7"):
        own = tensors[f"{bvlc.LAYERS[name].module}.weight"].numpy()
        axes = (3, 2, 0, 1) if name == "conv1" else (1, 0)
        np.testing.assert_array_equal(own, layers[name][0].transpose(axes))


class Reduced:
    """Pickled as the call of a function."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call


class Stateful:
    """Pickled as an instance of a class with a state."""

    def __init__(self):
        self.state = 1


def harmful(kind: str, mark: Path) -> object:
    touch = f"touch {mark}"
    return {
        "os.system": Reduced(os.system, touch),
        "builtins.eval": Reduced(eval, f"__import__('pathlib').Path({str(mark)!r}).touch()"),
        "builtins.getattr": Reduced(getattr, mark, "touch"),
        "functools.partial": Reduced(functools.partial, Path.touch, mark),
        "pathlib.Path.touch": Reduced(Path.touch, mark),
        "numpy.load": Reduced(np.load, str(mark)),
        "a class": Stateful(),
        "a function": os.system,
        "a numpy scalar": np.float32(1),
    }[kind]


KINDS = [
    "os.system", "builtins.eval", "builtins.getattr", "functools.partial", "pathlib.Path.touch",
    "numpy.load", "a class", "a function", "a numpy scalar",
]  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_names_anything_else_is_refused_and_not_executed(
    tmp_path: Path, kind: str, protocol: int
):
    mark = tmp_path / "mark"
    evil = harmful(kind, mark)
    layers = form_of(random_layers({"conv1": (1, 1, 1, 1)}), "lists")
    nested = objects(1, [objects({"deep": (evil,)})])
    dumps = functools.partial(pickle.dumps, protocol=protocol)
    contents = [npy(place, dumps) for place in (evil, {**layers, "conv2": [evil]}, nested)]
    contents.append(npy(None, lambda _: dumps(evil)))  # no array at all
    for content in contents:
        (tmp_path / "w.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"^weights.file: \S+w.npy: refused, since") as raised:
            weights.from_file(tmp_path / "w.npy")
        assert "\n" not in str(raised.value)
    assert not mark.exists()


def test_the_harmful_files_of_these_tests_do_harm_elsewhere(tmp_path: Path):
    """So that their refusal means something."""
    for kind in ("os.system", "builtins.eval", "pathlib.Path.touch"):
        mark = tmp_path / kind
        (tmp_path / "w.npy").write_bytes(npy(harmful(kind, mark)))
        np.load(tmp_path / "w.npy", allow_pickle=True)
        assert mark.exists()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["text"]),
        np.array([b"bytes"]),
        np.zeros(2, dtype="c8"),
        np.zeros(2, dtype=[("a", "f4"), ("b", "O")]),
        np.zeros(2, dtype="datetime64[s]"),
    ],
)
def test_an_array_of_other_than_numbers_is_refused(tmp_path: Path, array: np.ndarray):
    (tmp_path / "w.npy").write_bytes(npy({"conv1": [array, array]}))
    with pytest.raises(InputError, match=r"w.npy: refused, since it holds 'an array of "):
        weights.from_file(tmp_path / "w.npy")


def by_hand(*operations: bytes) -> bytes:
    return npy(None, lambda _: b"\x80\x02" + b"".join(operations) + b".")


RECONSTRUCT, DTYPE = b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\ndtype\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04 a zip",
        npy({"conv1": [np.zeros(9, "f4")] * 2})[:-20],
        npy({"conv1": [np.zeros(9, "f4")] * 2})[:140],
        npy(None, lambda _: b""),
        npy(None, lambda _: b"no pickle"),
        by_hand(DTYPE, b"(U\x02O8tR(K\x03U\x01|tb", DTYPE, b"}b"),  # a state for a class
        by_hand(b"cnumpy\nndarray\n(K\x02tR"),  # a call of the array type
        by_hand(b"cnumpy\nndarray\n}U\x01aK\x01sb"),  # a state for the array type
        by_hand(RECONSTRUCT, b")R(K\x01K\x02NI00\nU\x04abcdtb"),  # no dtype
        by_hand(RECONSTRUCT, b")R(K\x01K\x02\x85", DTYPE, b"U\x02f4\x85RI00\nU\x04abcdtb"),
        by_hand(b"U\x01xQ"),  # a persistent id
        by_hand(b"\x82\x01"),  # an extension code
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "w.npy").write_bytes(content)
    with pytest.raises(InputError) as raised:
        weights.from_file(tmp_path / "w.npy")
    problem = "is broken or no NumPy file"
    assert str(raised.value) == f"weights.file: {tmp_path / 'w.npy'}: {problem}"


def test_every_truncation_is_one_line(tmp_path: Path):
    whole = npy({"conv1": {"weights": np.zeros((1, 1, 1, 1), "f4"), "biases": np.zeros(1, "f4")}})
    for length in range(len(whole)):
        (tmp_path / "w.npy").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"is broken or no NumPy file$"):
            weights.from_file(tmp_path / "w.npy")


@pytest.mark.parametrize(
    "content",
    [
        npy([1, 2]),
        npy("text"),
        npy(np.zeros(3)),
        by_hand(RECONSTRUCT, b")\x81"),  # an array that never got its state
        by_hand(RECONSTRUCT, b")R"),
        by_hand(b"}"),
    ],
)
def test_a_file_without_a_dict_of_layers_says_so(tmp_path: Path, content: bytes):
    (tmp_path / "w.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"w.npy: holds no dict of layers, .*'conv1'"):
        weights.from_file(tmp_path / "w.npy")


@pytest.mark.parametrize("array", [np.zeros((2, 3)), objects({"conv1": 1}, 2), objects({})])
def test_an_array_that_is_no_single_dict_says_so(tmp_path: Path, array: np.ndarray):
    np.save(tmp_path / "w.npy", array)
    with pytest.raises(InputError, match=r"w.npy: holds no dict of layers"):
        weights.from_file(tmp_path / "w.npy")


def changed(name: str, layer: object) -> dict[str, object]:
    return form_of(random_layers(SMALL_SHAPES), "lists") | {name: layer}


@pytest.mark.parametrize(
    ("name", "layer", "problem"),
    [
        ("conv6", [], "'conv6' is no layer of bvlc_alexnet; did you mean 'conv5'?"),
        ("two\nlines", [], r"'two\nlines' is no layer of bvlc_alexnet; valid are conv1, "),
        (3, [], "'3' is no layer of bvlc_alexnet; "),
        ("conv1", [np.zeros((2, 2, 3, 4))], "layer conv1 must be two arrays of floats, as ["),
        ("conv1", [np.zeros(2), np.zeros(2), np.zeros(2)], "layer conv1 must be two arrays"),
        ("conv1", {"weights": np.zeros(2)}, "layer conv1 must be two arrays"),
        ("conv1", np.zeros((2, 2)), "layer conv1 must be two arrays"),
        ("fc6", [np.zeros((2, 2), int), np.zeros(2)], "layer fc6 must be two arrays of floats"),
        ("fc6", [[0.5], [0.5]], "layer fc6 must be two arrays of floats"),
        ("fc7", "text", "layer fc7 must be two arrays of floats"),
        ("conv2", [np.zeros((3, 4)), np.zeros(4)], "layer conv2 has weights of shape (3, 4); "),
        ("fc6", [np.zeros((6, 6, 256, 2)), np.zeros(2)], "layer fc6 has weights of shape (6, 6, "),
    ],
)
def test_a_wrong_layer_is_named(tmp_path: Path, name: str, layer: object, problem: str):
    (tmp_path / "w.npy").write_bytes(npy(changed(name, layer)))
    with pytest.raises(InputError) as raised:
        weights.from_file(tmp_path / "w.npy")
    message = str(raised.value)
    assert message.startswith(f"weights.file: {tmp_path / 'w.npy'}: {problem}")
    assert "\n" not in message


def test_a_layer_that_holds_itself_is_a_wrong_layer(tmp_path: Path):
    layer: list[object] = []
    layer += [layer, layer]
    (tmp_path / "w.npy").write_bytes(npy(changed("fc7", layer)))
    with pytest.raises(InputError, match="layer fc7 must be two arrays"):
        weights.from_file(tmp_path / "w.npy")


def test_all_layers_are_needed_but_the_last(tmp_path: Path):
    content = form_of(random_layers(SMALL_SHAPES), "lists")
    del content["fc8"]
    (tmp_path / "w.npy").write_bytes(npy(content))
    assert "classifier.3.weight" in weights.from_file(tmp_path / "w.npy")
    del content["conv3"], content["fc7"]
    (tmp_path / "w.npy").write_bytes(npy(content))
    with pytest.raises(InputError, match=r"w.npy: has no layer conv3, fc7; bvlc_alexnet needs it$"):
        weights.from_file(tmp_path / "w.npy")


def zeros_like_published() -> dict[str, torch.Tensor]:
    layers = {
        name: [np.broadcast_to(np.float32(0), shape), np.zeros(shape[-1], np.float32)]
        for name, shape in SHAPES.items()
        if name not in ("fc7", "fc8")
    }
    tensors = bvlc.state_dict(layers | {"fc7": [np.zeros((2, 2)), np.zeros(2)]}, "w.npy")
    tensors["classifier.3.weight"] = torch.zeros(1).expand(4096, 4096)
    tensors["classifier.3.bias"] = torch.zeros(4096)
    return tensors


def test_fit_says_when_fc6_is_of_another_image_size_or_the_network_another():
    tensors = zeros_like_published()
    keys = architectures.classifier_keys(BVLC, 3, 227)
    assert weights.fit(tensors, meta_network(), keys, "w.npy")[1] == []
    with pytest.raises(InputError) as raised:
        weights.fit(tensors, meta_network(image_size=128), keys, "w.npy")
    assert str(raised.value) == (
        "w.npy: 1 of 14 tensors do not fit the network (classifier.0.weight is 4096x9216 instead "
        "of 4096x1024); weights of another architecture or image size?"
    )
    alexnet = architectures._construct_on_meta("alexnet", 15, 3, 227)
    with pytest.raises(InputError, match=r"features.0.weight is 96x3x11x11 instead of 64x3x11x11"):
        weights.fit(tensors, alexnet, {"classifier.6.weight", "classifier.6.bias"}, "w.npy")


def test_imagenet_weights_are_refused():
    message = r"^weights.from: imagenet: bvlc_alexnet has no such weights; use none, file or source"
    with pytest.raises(InputError, match=message):
        weights.from_imagenet(BVLC)


def test_the_published_network_has_its_parameters_and_names():
    network = meta_network(classes=1000)
    assert sum(weight.numel() for weight in network.parameters()) == 60_965_224
    modules = dict(network.named_modules())
    for name, shape in SHAPES.items():
        weight = modules[bvlc.LAYERS[name].module].weight
        outputs = 1000 if name == "fc8" else shape[-1]
        assert weight.shape[0] == outputs
        assert weight[0].numel() == np.prod(shape[:-1])
    order = [type(module).__name__ for module in modules["features"]]
    assert order[:4] == order[4:8] == ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"]
    assert isinstance(modules["classifier.2"], nn.Dropout)
    assert modules["classifier.2"].p == modules["classifier.5"].p == 0.5


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return architectures.build(BVLC, 3, 3, 67, dropout=None, generator_seed=7)


def test_the_start_is_caffes_and_depends_on_the_seed_alone(network: nn.Module):
    torch.manual_seed(1)
    same, other = (architectures.build(BVLC, 3, 3, 67, None, seed) for seed in (7, 8))
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[key])
        assert tensor.ndim == 1 or not torch.equal(tensor, other.state_dict()[key])
    with_bias = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    for name, layer in bvlc.LAYERS.items():
        weight, bias = network.get_submodule(layer.module).state_dict().values()
        std = 0.005 if name in ("fc6", "fc7") else 0.01
        assert abs(float(weight.std()) / std - 1) < 0.05
        assert abs(float(weight.mean())) < std / 20
        assert (bias == (0.1 if name in with_bias else 0.0)).all()


@pytest.mark.parametrize("latent", ["features.2", "features", "classifier.2", "classifier.4"])
def test_the_network_is_cut_exactly(network: nn.Module, latent: str):
    images = 50 * torch.randn(2, 3, 67, 67, generator=torch.Generator().manual_seed(0))
    encoder, head = cut(network.eval(), latent)
    with torch.no_grad():
        assert torch.equal(head(encoder(images)), network(images))


def test_the_first_dropout_is_a_latent_that_drops_half_in_training(network: nn.Module):
    assert "classifier.2" in valid_latents(network)
    encoder, _ = cut(network, "classifier.2")
    before, _ = cut(network, "classifier.1")
    images = torch.zeros(4, 3, 67, 67)
    encoder.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped, whole = encoder(images), before(images)
    assert dropped.shape == (4, 4096)
    kept = dropped != 0
    assert 0.4 < float(kept.float().sum() / (whole != 0).sum()) < 0.6
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


def test_the_smallest_image_is_67_pixels(network: nn.Module):
    architectures.check_size(BVLC, 67, 3)
    architectures.check_size(BVLC, 67, 1)
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 67, 67)).shape == (1, 3)
    message = r"^params.yaml: data.image_size: bvlc_alexnet .* 66 x 66 pixels \(.*67.*\); 96 would"
    with pytest.raises(InputError, match=message):
        architectures.check_size(BVLC, 66, 3)
    with pytest.raises(InputError, match=message):
        architectures.build(BVLC, 3, 3, 66, None, 0)


@pytest.mark.parametrize("side", [67, 98, 99, 128, 224, 226, 227, 258, 259])
def test_fc6_takes_what_the_convolutions_give(side: int):
    architectures.check_size(BVLC, side, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("channels", [1, 2, 4, 9])
def test_response_norm_and_its_gradient_equal_torchs(channels: int, size: int):
    generator = torch.Generator().manual_seed(0)
    maps = 30 * torch.randn(2, channels, 3, 4, dtype=torch.float64, generator=generator)
    ours, theirs = (maps.clone().requires_grad_() for _ in range(2))
    settings = {"alpha": 0.02, "beta": 0.75, "k": 2.0}
    normed = LocalResponseNorm(size, **settings)(ours)
    wanted = nn.LocalResponseNorm(size, **settings)(theirs)
    torch.testing.assert_close(normed, wanted)
    slope = torch.randn(maps.shape, dtype=torch.float64, generator=generator)
    normed.backward(slope)
    wanted.backward(slope)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_response_norm_is_tensorflows():
    maps = 100 * torch.randn(1, 8, 2, 3, generator=torch.Generator().manual_seed(0))
    (norm, _) = (m for m in meta_network().modules() if isinstance(m, LocalResponseNorm))
    wanted = naive_norm(maps[0].permute(1, 2, 0).double().numpy())
    np.testing.assert_allclose(norm(maps)[0].permute(1, 2, 0).numpy(), wanted, rtol=1e-5)


@pytest.mark.gpu
def test_response_norm_has_a_deterministic_gradient_on_cuda():
    torch.use_deterministic_algorithms(True)
    try:
        maps = torch.randn(2, 96, 5, 5, device="cuda", requires_grad=True)
        LocalResponseNorm(5)(maps).square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert maps.grad is not None


def test_pixels_are_bgr_less_the_mean():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8, generator=generator)
    normalised = architectures.normalise(images, BVLC)
    assert normalised.dtype == torch.float32
    for channel, (source, mean) in enumerate(
        [(2, 104.00698793), (1, 116.66876762), (0, 122.67891434)]
    ):
        torch.testing.assert_close(normalised[:, channel], images[:, source].float() - mean)


def test_one_grey_channel_serves_as_all_three():
    grey = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3) * 50
    normalised = architectures.normalise(grey, BVLC)
    assert torch.equal(normalised, architectures.normalise(grey.expand(-1, 3, -1, -1), BVLC))


def test_the_network_is_built_for_the_size_it_is_given():
    assert BVLCAlexNet(67, 2).classifier[0].in_features == 256
    assert meta_network(image_size=224).classifier[0].in_features == 25 * 256


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"}" + b")" + b"\x85" * 1_000_000 + b"K\x01s.", "keys that are no text or numbers"),
        (b"}" + b")" + b"2\x86" * 60 + b"K\x01s.", "keys that are no text or numbers"),
        (b"}(" + b")" + b"2\x86" * 60 + b"K\x01u.", "keys that are no text or numbers"),
        (b"(" + b")" + b"2\x86" * 60 + b"K\x01d.", "keys that are no text or numbers"),
        (b"\x8f.", "a set"),
        (b"}r" + (2**26).to_bytes(4, "little") + b".", "holds no dict of layers"),
    ],
    ids=["deep", "exponential", "of several", "of a mark", "set", "huge index"],
)
def test_a_file_that_would_crash_or_stall_an_unpickler_is_refused(tmp_path, body, said):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|O", "fortran_order": False, "shape": ()}
    )
    path = tmp_path / "w.npy"
    path.write_bytes(header.getvalue() + b"\x80\x04" + body)
    with pytest.raises(InputError, match=said):
        weights.from_file(path)
