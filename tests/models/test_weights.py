import os
import pickle
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models import architectures, weights

SMALL_CLASSIFIER = {"classifier.weight", "classifier.bias"}


def small(seed: int = 0, classes: int = 5, size: int = 8) -> nn.Module:
    return architectures.build("small", classes, 1, size, dropout=None, generator_seed=seed)


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


def shared(path: str) -> Path:
    root = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / ".." / "shared"))
    if not (root / path).exists():
        pytest.skip(f"{root / path} is not there; set SHARED_DATA")
    return root / path


def test_saved_tensors_come_back(tmp_path: Path):
    state = small().state_dict()
    weights.save(tmp_path / "start.safetensors", state)
    assert_equal(weights.load(tmp_path / "start.safetensors"), dict(state))


def test_the_same_tensors_give_the_same_bytes_in_any_order_and_layout(tmp_path: Path):
    matrix = torch.arange(6.0).reshape(2, 3)
    weights.save(tmp_path / "one", {"a": matrix, "b": matrix, "c": matrix[0], "d": matrix.T})
    apart = {"d": matrix.T.contiguous(), "c": matrix[0].clone(), "b": matrix.clone(), "a": matrix}
    weights.save(tmp_path / "two", apart)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert_equal(weights.load(tmp_path / "one"), apart)


def test_load_of_a_missing_or_broken_file_is_one_line(tmp_path: Path):
    broken = tmp_path / "broken.safetensors"
    with pytest.raises(InputError, match=r"broken.safetensors: there is no such file"):
        weights.load(broken)
    weights.save(broken, small().state_dict())
    broken.write_bytes(broken.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"broken.safetensors: not a whole safetensors file"):
        weights.load(broken)


def wrapped(state: dict[str, Tensor], form: str) -> object:
    if form == "state_dict":
        return {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}
    if form == "model":
        return {"model": state, "args": {"lr": 0.1}}
    if form == "module":
        return OrderedDict((f"module.{key}", tensor) for key, tensor in state.items())
    return state


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "module"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_from_file_reads_the_usual_forms(tmp_path: Path, form: str, suffix: str):
    state = dict(small().state_dict())
    torch.save(wrapped(state, form), tmp_path / f"w{suffix}")
    assert_equal(weights.from_file(tmp_path / f"w{suffix}"), state)


def test_from_file_reads_safetensors(tmp_path: Path):
    state = dict(small().state_dict())
    weights.save(tmp_path / "w.safetensors", state)
    assert_equal(weights.from_file(tmp_path / "w.safetensors"), state)


class Harmful:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> object:
        return Path.touch, (self.mark,)


@pytest.mark.filterwarnings("default")
def test_from_file_executes_nothing(tmp_path: Path):
    mark = tmp_path / "mark"
    torch.save({"state_dict": Harmful(mark)}, tmp_path / "torch.pth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Harmful(mark)))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name in ("torch.pth", "plain.pt", "module.pth"):
        with pytest.raises(InputError, match=rf"{name}: holds more than tensors.*state_dict\(\)"):
            weights.from_file(tmp_path / name)
    assert not mark.exists()


def test_from_file_words_every_other_mistake(tmp_path: Path):
    torch.save(dict(small().state_dict()), tmp_path / "whole.pth")
    half = (tmp_path / "whole.pth").read_bytes()[:5000]
    (tmp_path / "half.pth").write_bytes(half)
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "w.bin").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    for name, problem in [
        ("gone.pth", "there is no such file"),
        ("half.pth", "is broken or no PyTorch file"),
        ("empty.pth", "is broken or no PyTorch file"),
        ("text.safetensors", "not a whole safetensors file"),
        ("w.bin", "must end in .safetensors, .pth, .pt, .npy"),
        ("none.pth", "holds no state dict"),
        ("list.pth", "holds no state dict"),
    ]:
        with pytest.raises(InputError, match=rf"^weights.file: .*{name}: {problem}") as raised:
            weights.from_file(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_imagenet_without_a_network_is_one_line_and_no_random_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def no_network(*_: object, **__: object) -> None:
        raise URLError(OSError("no route to host"))

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError) as raised:
        weights.from_imagenet("squeezenet1_1")
    message = str(raised.value)
    assert message.startswith("weights.from: imagenet: could not download https://")
    assert "no route to host" in message
    assert f"put the file at {tmp_path}/checkpoints/squeezenet1_1-b8a52dc0.pth" in message
    assert "weights.from: file" in message
    assert "\n" not in message


def test_imagenet_weights_of_a_wrong_hash_are_refused(monkeypatch: pytest.MonkeyPatch):
    def wrong_hash(*_: object, **keywords: object) -> None:
        assert keywords["check_hash"] is True
        raise RuntimeError('invalid hash value (expected "b8a52dc0", got "00000000")')

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", wrong_hash)
    with pytest.raises(InputError, match=r"is not what https://.*invalid hash value"):
        weights.from_imagenet("squeezenet1_1")


def test_imagenet_weights_come_as_torchvision_gives_them(monkeypatch: pytest.MonkeyPatch):
    given = {"features.0.weight": torch.ones(2)}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: given)
    assert_equal(weights.from_imagenet("squeezenet1_1"), given)


def test_imagenet_is_not_for_small_nor_for_the_unknown():
    with pytest.raises(InputError, match=r"^weights.from: imagenet: small has no such weights"):
        weights.from_imagenet("small")
    with pytest.raises(InputError, match="'resnet18'"):
        weights.from_imagenet("resnet81")


def test_old_names_become_those_that_torchvision_uses_now(tmp_path: Path):
    old = {
        "features.denseblock1.denselayer2.norm.1.running_mean": "denselayer2.norm1.running_mean",
        "features.denseblock1.denselayer2.conv.2.weight": "denselayer2.conv2.weight",
        "encoder.layers.encoder_layer_0.mlp.linear_1.weight": "mlp.0.weight",
        "encoder.layers.encoder_layer_0.mlp.linear_2.bias": "mlp.3.bias",
        "features.norm5.weight": "features.norm5.weight",
    }
    torch.save({key: torch.zeros(1) for key in old}, tmp_path / "old.pth")
    keys = set(weights.from_file(tmp_path / "old.pth"))
    assert len(keys) == len(old)
    known = {
        key
        for name in ("densenet121", "vit_b_16")
        for key in architectures._construct_on_meta(name, 2, 3, 32).state_dict()
    }
    assert keys <= known
    assert all(any(key.endswith(new) for key in keys) for new in old.values())


def test_fit_leaves_out_the_classifier_whatever_it_is():
    wanted = {k: v for k, v in small(0).state_dict().items() if k not in SMALL_CLASSIFIER}
    same, other = dict(small(0).state_dict()), dict(small(0, classes=9).state_dict())
    other |= {key: same[key] for key in wanted}
    for given in (same, other, wanted):
        fitting, notes = weights.fit(given, small(1), SMALL_CLASSIFIER, "w.pth")
        assert_equal(fitting, wanted)
        assert notes == []


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_fit_casts_to_the_networks_dtypes(kind: torch.dtype):
    state = small().state_dict()
    given = {k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}
    fitting, _ = weights.fit(given, small(1), SMALL_CLASSIFIER, "w.pth")
    for key, tensor in fitting.items():
        assert tensor.dtype == state[key].dtype
        torch.testing.assert_close(tensor, state[key], atol=2e-2, rtol=0)


def test_fit_reports_what_is_unexpected():
    given = dict(small().state_dict()) | {"AuxLogits.fc.weight": torch.zeros(3)}
    fitting, notes = weights.fit(given, small(1), SMALL_CLASSIFIER, "w.pth")
    assert notes == ["w.pth: 1 tensors not used (AuxLogits.fc.weight)"]
    assert "AuxLogits.fc.weight" not in fitting


def test_fit_lets_old_files_lack_the_counters_of_batch_norm():
    given = {k: v for k, v in small().state_dict().items() if "num_batches" not in k}
    network = small(1)
    network(torch.rand(4, 1, 8, 8))
    fitting, _ = weights.fit(given, network, SMALL_CLASSIFIER, "w.pth")
    assert fitting["features.1.num_batches_tracked"] == 0


def test_fit_says_what_does_not_fit_and_why():
    given = dict(small().state_dict())
    del given["embedding.bias"]
    given["features.0.weight"] = torch.zeros(32, 3, 3, 3)
    with pytest.raises(InputError) as raised:
        weights.fit(given, small(), SMALL_CLASSIFIER, "weights.file: w.pth")
    assert str(raised.value) == (
        "weights.file: w.pth: 2 of 14 tensors do not fit the network (features.0.weight is "
        "32x3x3x3 instead of 32x1x3x3; embedding.bias is missing); weights of another "
        "architecture or image size?"
    )
    with pytest.raises(InputError, match=r"12 of 14 tensors do not fit .*; …\)"):
        weights.fit({"conv1.weight": torch.zeros(2)}, small(), SMALL_CLASSIFIER, "w.pth")


def test_a_start_is_taken_over_but_for_the_classifier(tmp_path: Path):
    source, network, before = small(0, classes=3), small(1), small(1)
    fitting, _ = weights.fit(source.state_dict(), network, SMALL_CLASSIFIER, "source")
    weights.save(tmp_path / "start.safetensors", fitting)
    weights.load_start(network, tmp_path / "start.safetensors", SMALL_CLASSIFIER)
    for key, tensor in network.state_dict().items():
        origin = before if key in SMALL_CLASSIFIER else source
        assert torch.equal(tensor, origin.state_dict()[key]), key


def test_an_empty_start_leaves_the_network_as_it_is(tmp_path: Path):
    weights.save(tmp_path / "start.safetensors", {})
    network = small(1)
    weights.load_start(network, tmp_path / "start.safetensors", SMALL_CLASSIFIER)
    assert_equal(dict(network.state_dict()), dict(small(1).state_dict()))


def test_a_start_of_another_network_is_refused(tmp_path: Path):
    weights.save(tmp_path / "start.safetensors", small(size=16).state_dict())
    with pytest.raises(InputError, match=r"start.safetensors: .* do not fit the network"):
        weights.load_start(small(size=8), tmp_path / "start.safetensors", SMALL_CLASSIFIER)


def test_put_serves_a_network_whose_load_state_dict_refuses_plain_dicts():
    network = architectures.build("mnasnet0_5", 2, 3, 32, dropout=None, generator_seed=0)
    source = architectures.build("mnasnet0_5", 2, 3, 32, dropout=None, generator_seed=1)
    plain = dict(source.state_dict())
    with pytest.raises(ValueError, match="version"):
        network.load_state_dict(plain)
    weights.put(network, plain)
    assert_equal(dict(network.state_dict()), plain)


@pytest.mark.shared
def test_real_imagenet_weights_fit_their_network_and_no_other():
    path = shared("weights/squeezenet1_1_imagenet.safetensors")
    keys = architectures.classifier_keys("squeezenet1_1", 3, 128)
    network = architectures.build("squeezenet1_1", 2, 3, 128, dropout=None, generator_seed=0)
    fitting, notes = weights.fit(weights.from_file(path), network, keys, str(path))
    assert notes == []
    assert fitting.keys() == network.state_dict().keys() - keys
    other = architectures.build("squeezenet1_0", 2, 3, 128, dropout=None, generator_seed=0)
    with pytest.raises(InputError, match="another architecture"):
        weights.fit(weights.from_file(path), other, keys, str(path))


def test_weights_that_are_not_finite_are_refused_by_name():
    network = architectures.build("small", 3, 1, 8, None, 0)
    classifier = architectures.classifier_keys("small", 1, 8)
    for bad in (float("nan"), float("inf")):
        tensors = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        tensors["embedding.bias"][3] = bad
        with pytest.raises(InputError, match=r"mine: 1 tensors hold NaN .*embedding\.bias"):
            weights.fit(tensors, network, classifier, "mine")
    tensors["embedding.bias"][3] = 0.0
    tensors["classifier.bias"][0] = float("nan")  # not taken
    weights.fit(tensors, network, classifier, "mine")
