"""Every way of training on a device that is none: what would fail on CUDA, and can fail here."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from pipeline import recipes
from pipeline.data.rows import Streamed, together
from pipeline.models import architectures
from pipeline.params import Augmentation
from pipeline.training import loop
from pipeline.training.loop import fit
from pipeline.training.phase import Solve
from tests.digits import make_run, move
from tests.recipes.test_contract import METHODS, phases_of, shortened
from tests.recipes.test_verification_contract import METHODS as VERIFIERS
from tests.training.pretended_cuda import CUDA, THERE, pretended_cuda

CHANGED = Augmentation(flip=True, rotation=10, shift=0.1, brightness=0.1, erasing=0.5, elastic=0.05)
FETCHED = 0.5


@pytest.fixture
def device(monkeypatch):
    """The device; no epoch fetches anything but its metrics, at its end, which are all the same."""
    made = loop._Stepper.epoch

    def fetch(metrics):
        assert all(isinstance(of, FakeTensor) and of.device == THERE for of in metrics.values())
        return dict.fromkeys(metrics, FETCHED) | {loop.FINITE: 1.0}

    def epoch(stepper):
        before = mode.waits
        found = made(stepper)
        assert mode.waits == before
        return found

    monkeypatch.setattr(loop, "fetch", fetch)
    monkeypatch.setattr(loop._Stepper, "epoch", epoch)
    with pretended_cuda() as mode:
        yield CUDA


@pytest.mark.parametrize(
    ("name", "side", "channels"),
    [("bvlc_alexnet", 67, 3), ("koch", 65, 1), ("drawings", 28, 1), ("squeezenet1_1", 64, 3),
     ("alexnet", 67, 3), ("resnet18", 64, 3), ("vgg11_bn", 48, 1), ("convnext_tiny", 32, 3)],
)  # fmt: skip
def test_networks_take_images_of_the_device(name, side, channels, device):
    network = architectures.build(name, 4, channels, side, None, 0).to(device)
    pixels = torch.zeros(3, channels, side, side, dtype=torch.uint8).to(device)
    logits = network(architectures.normalise(pixels, name))
    assert logits.shape == (3, 4) and logits.device == THERE


def on(device, folder, placement="resident", **asked):
    """A run on the device, its images from a file."""
    run = make_run(per_class=6, batch_size=6, pairs=True, **asked)
    move(run, device, folder, placement)
    some = torch.zeros(1, 1, 8, 8, dtype=torch.uint8).to(device)
    architectures.normalise(some, "small")  # whose constants come to the device once
    return run


def trained(recipe, run, precision, **asked):
    """The phases' results; of what is solved on the CPU there is none."""
    found = []
    for phase in phases_of(recipe, run):
        if isinstance(phase, Solve):
            break
        found.append(fit(phase, run.device, precision, **asked))
        assert all(of.device == THERE for of in phase.module.state_dict().values())
    return found


def test_the_device_refuses_what_would_wait_for_it_or_mix_devices(device):
    there, here = torch.ones(3, device=device), torch.ones(3)
    assert (here + here).tolist() == [2, 2, 2] and (there + there).device == THERE
    with pytest.raises(DataDependentOutputException):
        there.sum().item()
    assert there.to("cpu").device.type == "cpu"
    with pytest.raises(Exception, match=r"same device|different devices"):
        there + here


def test_what_the_host_would_wait_for_is_counted():
    with pretended_cuda() as mode:
        there, here = torch.ones(3, device=CUDA), torch.ones(3)
        (there + 1).sum()
        assert together([here, here], CUDA)[0].device == THERE and mode.waits == 0
        for wait in (there.cpu, lambda: here.copy_(there), lambda: here.to(CUDA),
                     torch.cuda.synchronize):  # fmt: skip
            before = mode.waits
            wait()
            assert mode.waits == before + 1


@pytest.mark.parametrize(
    ("precision", "cuda_graphs"),
    [("fp32", False), ("bf16", False), ("fp32", True)],
    ids=["fp32", "bf16", "graphs"],
)
@pytest.mark.parametrize("name", [*METHODS, *(f"verify {name}" for name in VERIFIERS)])
def test_no_recipe_waits_for_the_device_or_mixes_devices(
    name, precision, cuda_graphs, device, tmp_path
):
    block = METHODS[name] if name in METHODS else VERIFIERS[name.removeprefix("verify ")]
    recipe = recipes.of(shortened(block))
    run = on(device, tmp_path, augmentation=CHANGED)
    for result in trained(recipe, run, precision, cuda_graphs=cuda_graphs):
        assert result.status == "finished" and len(result.history) == 2


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "contrastive", "margin_same": [0.1, 0.0, 0.2]},
        {"name": "cosine"},
        *({"name": "triplet", "mining": mining} for mining in ("all", "semihard", "hard")),
        {"name": "supcon"},
    ],
    ids=lambda loss: " ".join(map(str, loss.values())),
)
@pytest.mark.parametrize("name", ["breakdown", "joint"])
def test_no_loss_of_ours_waits_for_the_device_or_mixes_devices(name, loss, device, tmp_path):
    block = shortened(METHODS[name])
    (block["encoder"] if name == "breakdown" else block)["loss"] = loss
    results = trained(recipes.of(block), on(device, tmp_path), "fp32")
    assert [result.status for result in results] == ["finished"] * len(results)


@pytest.mark.parametrize(
    "treatment",
    [
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"label_smoothing": 0.1, "class_weights": "balanced"},
        {"sampler": "balanced", "optimizer": "adam", "schedule": "one_cycle"},
        {"optimizer": "adamw", "weight_decay": 0.01, "warmup": 0.5, "schedule": "cosine"},
        {"nesterov": True, "patience": 1},
    ],
    ids=", ".join,
)
def test_no_treatment_waits_for_the_device_or_mixes_devices(treatment, device, tmp_path):
    recipe = recipes.of(shortened(METHODS["finetune"]) | treatment)
    for cuda_graphs in (False, True):
        (result,) = trained(recipe, on(device, tmp_path), "fp32", cuda_graphs=cuda_graphs)
        assert result.status == "finished"


@pytest.mark.parametrize("name", ["breakdown", "finetune", "features_mlp"])
def test_streamed_images_and_latents_come_to_the_device(name, device, tmp_path):
    run = on(device, tmp_path, placement="streamed")
    assert isinstance(run.train.pixels, Streamed)
    results = trained(recipes.of(shortened(METHODS[name])), run, "fp32")
    assert [result.status for result in results] == ["finished"] * len(results)
