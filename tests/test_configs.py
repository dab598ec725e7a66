"""The known systems in ``configs/``: what makes each of them, and that each runs to the end."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import nn
from torchvision.models import AlexNet

from pipeline import check, recipes
from pipeline.errors import InputError
from pipeline.evaluation.metrics import BINARY
from pipeline.models import architectures, weights
from pipeline.models.bvlc import LAYERS
from pipeline.params import Params
from pipeline.params_file import parse, plain, read
from pipeline.records import RunId, runs_of
from pipeline.stages.evaluate import evaluate
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from pipeline.stages.weights import make_weights
from pipeline.training.losses import Setting, contrastive
from tests.training_runs import train_and_test
from tests.verification_data import write_omniglot, write_people

CONFIGS = Path(__file__).parents[1] / "configs"
KNOWN = ["citrus_canker", "alexnet_dogs_cats", "fifteen_classes"]
SHOTS, VAL, TEST, KEEP = 3, 2, 1, 2  # of the small runs; the first three are images a class

SYSTEMS = {
    "citrus_canker": {
        "data.image_size": 227,
        "data.channels": 3,
        "model.architecture": "bvlc_alexnet",
        "model.dropout": None,
        "weights.from": "file",
        "weights.file": "pretrained/bvlc_alexnet.npy",
        "compare.breakdowns": ["breakdown"],
        "compare.baselines": ["finetune", "retrained_head", "features", "layerwise"],
        "compare.positive": "canker",
        "compare.beta": 2.0,
        "compare.shots": [50],
        "compare.seeds": [0, 1, 2],
        "training.batch_size": "auto",
        "methods.breakdown.encoder.latent": "classifier.2",
        "methods.breakdown.encoder.optimizer": "sgd",
        "methods.breakdown.encoder.momentum": 0.0,
        "methods.breakdown.encoder.schedule": "constant",
        "methods.breakdown.encoder.lr": 5e-7,
        "methods.breakdown.encoder.epochs": 100,
        "methods.breakdown.encoder.keep": 5,
        "methods.breakdown.encoder.loss.name": "contrastive",
        "methods.breakdown.encoder.loss.margin_same": [6.0, 8.0],  # canker, healthy
        "methods.breakdown.encoder.loss.margin_different": 7.07,
        "methods.breakdown.encoder.loss.weight_same": [1.0, 1.0],
        "methods.breakdown.encoder.loss.weight_different": 5.0,
        "methods.breakdown.head.optimizer": "sgd",
        "methods.breakdown.head.momentum": 0.0,
        "methods.breakdown.head.schedule": "constant",
        "methods.breakdown.head.lr": 3e-4,
        "methods.breakdown.head.epochs": 100,
        "methods.features.latent": "classifier.2",
        "methods.features.head.kind": "linear",
        "methods.retrained_head.encoder.latent": "classifier.2",
    },
    "alexnet_dogs_cats": {
        "data.layout": "folders",
        "data.image_size": 227,
        "data.splits.val": 0.2,
        "data.val_per_class": 100,
        "model.architecture": "alexnet",
        "weights.from": "imagenet",
        "compare.breakdowns": ["breakdown"],
        "compare.baselines": ["finetune", "layerwise", "features", "scratch"],
        "compare.shots": ["all"],
        "compare.seeds": [0, 1, 2],
        "training.augmentation": {"flip": True, "shear": 10, "zoom": 0.2},
        "methods.scratch.optimizer": "sgd",
        "methods.scratch.lr": 0.01,
        "methods.scratch.momentum": 0.9,
        "methods.scratch.nesterov": True,
        "methods.layerwise.rounds": 8,
        "methods.layerwise.epochs": 10,
        "methods.layerwise.lr": [1e-2, 1e-3],
        "methods.features.latent": "features.12",
        "methods.features.head.kind": "mlp",
        "methods.features.head.units": 256,
    },
    "fifteen_classes": {
        "data.layout": "lists",
        "data.image_size": 227,
        "model.architecture": "alexnet",
        "weights.from": "imagenet",
        "compare.breakdowns": ["breakdown"],
        "compare.baselines": ["scratch", "features", "finetune", "layerwise"],
        "compare.reference": "scratch",
        "compare.shots": [15],
        "compare.seeds": [0, 1, 2],
    },
    "lfw_koch": {
        "task": "verification",
        "data.layout": "pairs",
        "data.image_size": 105,
        "data.channels": 1,
        "data.splits.val": 0.2,
        "model.architecture": "koch",
        "weights.from": "none",
        "compare.breakdowns": ["breakdown"],
        "compare.reference": "siamese",
        "compare.shots": ["all"],
        "compare.seeds": [0, 1, 2],
        "methods.siamese.recipe": "siamese",
        "methods.siamese.latent": "embedding",
        "methods.siamese.head.kind": "difference",
        "methods.siamese.head.dropout": 0.4,
        "methods.siamese.optimizer": "adam",
        "methods.siamese.schedule": "constant",
        "methods.siamese.lr": 5e-5,
        "methods.siamese.batch_size": 32,
        "methods.siamese.epochs": 10,
        "methods.siamese.patience": 5,
        "methods.siamese.min_delta": 0.1,
        "methods.siamese.l2": {"features": 2e-4, "units": 2e-3},
        "training.rule": "val_loss",
    },
    "omniglot_minimal": {
        "task": "verification",
        "data.layout": "omniglot",
        "data.channels": 1,
        "data.splits.whole": "classes",
        "weights.from": "none",
        "compare.shots": ["all"],
        "compare.seeds": [0, 1, 2],
    },
}
SWEEPS = {"lr": (5e-6, 1e-3), "epochs": (1, 30), "batch_size": (8, 64)}  # first and last value
# Methods of a config train equally long, but that features in closed form have no epochs, and each
# kept encoder gets a head of its own.
EPOCHS = {
    "citrus_canker": {
        "breakdown": 100 + 5 * 100, "finetune": 200, "retrained_head": 200, "features": 0,
        "layerwise": 200,
    },
    "alexnet_dogs_cats": dict.fromkeys(
        ["breakdown", "finetune", "layerwise", "features", "scratch"], 80
    ),
    "fifteen_classes": {
        "breakdown": 80, "scratch": 80, "features": 0, "finetune": 80, "layerwise": 80,
    },
}  # fmt: skip
SMALLEST_SIDE = {"bvlc_alexnet": 67, "alexnet": 63}
CLASSES = {
    "citrus_canker": ["canker", "healthy"],
    "alexnet_dogs_cats": ["Cats", "Dogs"],
    "fifteen_classes": [str(number) for number in range(15)],
}
END_TO_END = ["end_to_end"]
ROUNDS = [f"round_{number}" for number in range(1, 9)]
PHASES = {
    "citrus_canker": {
        "breakdown": ["encoder", "head_1", "head_2"],
        "finetune": END_TO_END,
        "retrained_head": ["end_to_end", "head"],
        "features": ["solve"],
        "layerwise": ROUNDS,
    },
    "alexnet_dogs_cats": {
        "breakdown": ["encoder", "head"],
        "finetune": END_TO_END,
        "layerwise": ROUNDS,
        "features": ["head"],
        "scratch": END_TO_END,
    },
    "fifteen_classes": {
        "breakdown": ["encoder", "head"],
        "scratch": END_TO_END,
        "features": ["solve"],
        "finetune": END_TO_END,
        "layerwise": ROUNDS,
    },
}


def config(name: str) -> Path:
    return CONFIGS / f"{name}.yaml"


def tree_of(name: str) -> dict[str, Any]:
    return plain(read(config(name)).tree)


def at(tree: Any, path: list[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def with_values(name: str, values: dict[str, Any]) -> Params:
    """The file's parameters, but for the values of some dotted keys."""
    tree = tree_of(name)
    for dotted, value in values.items():
        *path, last = dotted.split(".")
        at(tree, path)[last] = value
    return parse(Params, tree, read(config(name)))


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_makes_the_system_is_in_the_file(name):
    tree = tree_of(name)
    assert {key: at(tree, key.split(".")) for key in SYSTEMS[name]} == SYSTEMS[name]


@pytest.mark.parametrize("name", KNOWN)
def test_epochs_of_each_method_in_all(name):
    params = check.load(config(name), files=False)
    assert params.methods.keys() == set(params.compare.methods)
    of = {method: recipes.of(block).epochs_in_all() for method, block in params.methods.items()}
    assert of == EPOCHS[name]


@pytest.mark.parametrize("name", SYSTEMS)
def test_latents_and_layers_are_those_of_the_network(name):
    check.check_models(check.load(config(name), files=False), config(name))


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_a_line_holds_one_key_or_value(name):
    events = YAML(typ="safe", pure=True).parse(config(name).read_text(encoding="utf-8"))
    in_one_line = [e.start_mark.line + 1 for e in events if getattr(e, "flow_style", False)]
    assert in_one_line == []


def test_what_is_commented_out_is_right(tmp_path):
    text = config("citrus_canker").read_text(encoding="utf-8")
    text, found = re.subn("# (freeze_to: )", r"\1", text)
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    assert found == 2
    check.check_models(check.load(path, files=False), path)


@pytest.mark.parametrize("network", ["vgg16", "small"])
def test_fifteen_classes_takes_the_other_networks_as_its_comment_says(network):
    text = config("fifteen_classes").read_text(encoding="utf-8").replace("\\\n#", "")
    (line,) = re.findall(f"dvc exp run (.*architecture={network}.*)", text)
    params = with_values("fifteen_classes", dict(re.findall(r"-S (\S+)=(\S+)", line)))
    assert params.model.architecture == network
    check.check_models(params, config("fifteen_classes"))


def test_a_third_class_needs_what_the_comment_says():
    """A margin and a weight more: with those of two classes alone, the loss is refused."""
    block = with_values("citrus_canker", {}).methods["breakdown"]
    loss = recipes.of(block).encoder.loss
    with pytest.raises(InputError, match="has 2 values for 3 classes"):
        loss.make(Setting(3, 4096, torch.device("cpu"), 0, "loss"))
    three = {"margin_same": [6.0, 8.0, 7.0], "weight_same": [1.0, 1.0, 1.0]}
    longer = block["encoder"]["loss"] | three
    block["encoder"]["loss"] = longer
    assert recipes.of(block).encoder.loss.make(Setting(3, 4096, torch.device("cpu"), 0, "loss"))


def test_euclidean_margins_are_had_as_the_comment_says():
    """A 64th of the margins and 4,096 times the learning rate: the same update."""
    random = torch.Generator().manual_seed(0)
    left, right = 0.075 * torch.randn(2, 60, 4096, generator=random, dtype=torch.float64)
    left.requires_grad_()
    labels, same = torch.arange(60) % 2, torch.arange(60) % 3 > 0
    loss = tree_of("citrus_canker")["methods"]["breakdown"]["encoder"]["loss"]
    margins, weights_same = torch.tensor(loss["margin_same"]), torch.tensor(loss["weight_same"])
    different, weight_different = loss["margin_different"], loss["weight_different"]

    euclidean = (left - right).square().sum(dim=1).sqrt()
    pull = weights_same[labels] * (euclidean - margins[labels]).clamp(min=0) ** 2
    push = weight_different * (different - euclidean).clamp(min=0) ** 2
    (wanted,) = torch.autograd.grad(torch.where(same, pull, push).mean(), left)

    ours = contrastive(
        left, right, labels, same,
        margin_same=margins / 64, margin_different=different / 64,
        weight_same=weights_same, weight_different=weight_different,
    )  # fmt: skip
    (found,) = torch.autograd.grad(ours.mean(), left)
    assert (pull[same] > 0).any() and (push[~same] > 0).any()
    torch.testing.assert_close(4096 * found, wanted, rtol=1e-5, atol=0)


def test_the_omniglot_set_is_a_minimal_one():
    target = Path(tree_of("omniglot_minimal")["data"]["target"])
    assert target == Path("data/omniglot") or re.fullmatch(
        "images_background_small[12].zip", target.name
    )
    assert "images_background_small1" in config("omniglot_minimal").read_text(encoding="utf-8")


def test_omniglot_compares_the_recipes_of_verification():
    params = check.load(config("omniglot_minimal"), files=False)
    compared = {params.methods[method]["recipe"] for method in params.compare.methods}
    assert compared >= {"breakdown", "siamese"}


@pytest.mark.parametrize("key", SWEEPS)
def test_a_sweep_is_one_line_of_valid_values(key):
    """As the comment has it: whatever value it takes, params.yaml is right."""
    text = config("lfw_koch").read_text(encoding="utf-8")
    (line,) = re.findall(f"dvc exp run --queue -S 'methods.siamese.{key}=(.*)'", text)
    values = YAML(typ="safe", pure=True).load(f"[{line}]")
    assert (min(values), max(values)) == SWEEPS[key] and len(values) > 2
    for value in values:
        params = with_values("lfw_koch", {f"methods.siamese.{key}": value})
        assert getattr(recipes.of(params.methods["siamese"]), key) == value


# of scikit-learn's solver, at the limits of rounding
@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_the_system_runs_to_the_end(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # the package has a function of this name, too
    module = importlib.import_module("torchvision.models.alexnet")
    monkeypatch.setattr(module, "AlexNet", narrow_alexnet)
    params = small_params(name)
    write_images(name, Path(params.data.target))
    write_weights(params)
    run_all(params)

    for method, phases in PHASES[name].items():
        assert [phase["phase"] for phase in record(RunId(method, SHOTS, 0).folder)] == phases
    kept = record(RunId("breakdown", SHOTS, 0).folder / "encoder")[0].get("kept_epochs")
    assert kept is None if name != "citrus_canker" else sorted(kept) == [1, 2]

    results = pd.read_csv("reports/results.csv")
    assert set(results["method"]) == set(params.compare.methods)
    assert not results.loc[results["metric"] == "diverged", "value"].any()
    for _, metrics in results.groupby("method")["metric"]:
        assert (
            set(BINARY) <= set(metrics) if len(CLASSES[name]) == 2 else "test/f_beta" not in metrics
        )
        assert {f"test/recall/{of}" for of in CLASSES[name]} <= set(metrics)


@pytest.mark.slow
def test_lfw_koch_runs_to_the_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = small_verification("lfw_koch", 65, batch_size=4)  # the smallest that the network takes
    write_people(Path(params.data.target), train=6, test=6, side=65)
    run_all(params)
    check_verification(params, {"pairs", "5_way_1_shot"})
    assert phases_of(params, "siamese") == ["end_to_end"]
    assert phases_of(params, "breakdown") == ["encoder", "head"]


@pytest.mark.slow
def test_omniglot_minimal_runs_to_the_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = small_verification("omniglot_minimal", 28, batch_size=32)
    target = Path(params.data.target)
    write_omniglot(target.parent if target.suffix == ".zip" else target)
    run_all(params)
    check_verification(params, {"pairs", "official"})
    # the official runs are read by the test stage alone
    trained_on = [*Path("prepared/trials").rglob("*.csv"), *Path("prepared/pairs").rglob("*.csv")]
    assert trained_on and not any("official" in path.read_text() for path in trained_on)


def small_verification(name: str, image_size: int, batch_size: int) -> Params:
    """The file's own settings with small images, small batches, an epoch a phase and one seed."""
    tree = tree_of(name)
    _shorten(tree["methods"], batch_size)
    values = {
        "data.image_size": image_size,
        "data.splits.val": 0.4,  # of few classes, so that there are pairs of two among them
        "compare.seeds": [0],
        "training.batch_size": batch_size,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "methods": tree["methods"],
    }
    return with_values(name, values)


def _shorten(block: Any, batch_size: int) -> None:
    for key, value in block.items():
        if key in ("epochs", "keep"):
            block[key] = 1
        elif key == "batch_size":
            block[key] = batch_size
        elif isinstance(value, dict):
            _shorten(value, batch_size)


def phases_of(params: Params, method: str) -> list[str]:
    return [
        phase["phase"] for phase in record(RunId(method, "all", params.compare.seeds[0]).folder)
    ]


def check_verification(params: Params, sets: set[str]) -> None:
    """Every run is finished and scored on the pairs and episodes that there are."""
    results = pd.read_csv("reports/results.csv")
    assert set(results["method"]) == set(params.compare.methods)
    assert not results.loc[results["metric"] == "diverged", "value"].any()
    wanted = {"test/accuracy", "test/roc_auc", "test/eer"}
    wanted |= {f"test/{name}_accuracy" for name in sets - {"pairs"}}
    for _, metrics in results.groupby("method")["metric"]:
        assert wanted <= set(metrics)
    for run in runs_of(params.compare):
        answers = pd.read_csv(run.predictions)
        assert set(answers["set"]) == sets and answers["score"].between(0, 1).all()


def small_params(name: str) -> Params:
    """The file's own settings at a small size, with weights of a file instead of a download."""
    tree = tree_of(name)
    for block in tree["methods"].values():
        for part in (block, block.get("encoder", {}), block.get("head", {})):
            if "epochs" in part:
                part["epochs"] = 1
    encoder_block = tree["methods"]["breakdown"]["encoder"]
    if "keep" in encoder_block:
        encoder_block |= {"keep": KEEP, "epochs": KEEP}
    bvlc = tree["model"]["architecture"] == "bvlc_alexnet"
    values = {
        "data.image_size": 67 if bvlc else 63,  # the smallest that the network takes
        "data.val_per_class": VAL,
        "weights.from": "file",
        "weights.file": tree["weights"]["file"] if bvlc else "pretrained/alexnet.safetensors",
        "compare.shots": [SHOTS],
        "compare.seeds": [0],
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "methods": tree["methods"],
    }
    return with_values(name, values)


def narrow_alexnet(**arguments: Any) -> nn.Module:
    """torchvision's AlexNet with 256 units for 4,096, which would take minutes and gigabytes."""
    network = AlexNet(**arguments)
    for place, inputs, outputs in ((1, 256 * 6 * 6, 256), (4, 256, 256), (6, 256, None)):
        outputs = outputs or network.classifier[place].out_features
        network.classifier[place] = nn.Linear(inputs, outputs)
    return network


def write_images(name: str, folder: Path) -> None:
    """Random pictures in the layout that the file asks for."""
    random = np.random.default_rng(0)

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)

    for of in CLASSES[name]:
        if name == "citrus_canker":
            for number in range(10):
                write(folder / of / f"{number}.png")
        elif name == "alexnet_dogs_cats":
            for number in range(10):
                write(folder / ("TRAIN" if number < 8 else "Test") / of / f"{number}.png")
        else:
            for split, count in (("train", SHOTS), ("val", VAL), ("test", TEST)):
                for number in range(count):
                    write(folder / "images" / of / f"{split} {number}.png")
                    with (folder / f"{split}.txt").open("a") as lines:
                        lines.write(f"images/{of}/{split} {number}.png {of}\n")


def write_weights(params: Params) -> None:
    """Random weights in the form that the file asks for, of a network of 1,000 classes."""
    name, size, path = params.model.architecture, params.data.image_size, Path(params.weights.file)
    path.parent.mkdir()
    network = architectures.build(name, 1000, 3, size, None, 0)
    if path.suffix == ".safetensors":
        weights.save(path, network.state_dict())
        return
    layers = {}
    for layer, (module, *_) in LAYERS.items():
        weight, bias = (of.detach().numpy() for of in network.get_submodule(module).parameters())
        # one pixel is left of the maps at this size, so that fc6 needs no other order of its inputs
        layers[layer] = [weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0), bias]
    np.save(path, np.array(layers, dtype=object))


def run_all(params: Params) -> None:
    images(params)
    prepare(params)
    make_weights(params)
    for run in runs_of(params.compare):
        train_and_test(params, [run])
        (run.folder / "model.safetensors").unlink()  # large, and not read again
    evaluate(params)


def record(folder: Path) -> list[dict[str, Any]]:
    """The phases that a run or its encoder recorded."""
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))["phases"]
