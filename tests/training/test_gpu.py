"""Training on a CUDA device: repeatable, near to fp32 in other arithmetic, without waiting."""

import pytest
import torch

from pipeline import recipes
from pipeline.params import Augmentation, Runtime
from pipeline.training import loop, runtime
from pipeline.training.loop import fit, snapshot
from pipeline.training.steps import RecordedStep, Step, own_stream
from tests.digits import make_run, move, switches_kept

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CHANGED = Augmentation(flip=True, rotation=10, shift=0.1)
RECIPES = ["breakdown", "finetune"]


@pytest.fixture(autouse=True)
def switches():
    with switches_kept():
        yield


def phase_on(device, folder, recipe, precision="fp32", placement="resident"):
    """The first phase of a recipe on images of a file."""
    device = runtime.start(Runtime(device=device, precision=precision, threads=1))
    run = make_run(classes=3, per_class=20, batch_size=16, pairs=True, augmentation=CHANGED)
    move(run, device, folder, placement)
    block = {"epochs": 4, "lr": 0.01}
    if recipe == "finetune":
        phases = recipes.of({"recipe": recipe, **block}).phases(run)
    else:
        asked = {"encoder": {**block, "latent": "embedding"}, "head": block}
        phases = recipes.of({"recipe": recipe, **asked}).encoder_phases(run)
    return next(iter(phases)), device


def trained(*given, precision="fp32", placement="resident", cuda_graphs=False):
    """Weights and history of a phase."""
    phase, device = phase_on(*given, precision, placement)
    result = fit(phase, device, precision, cuda_graphs=cuda_graphs)
    return snapshot(phase.module), result.history


def same_bytes(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_fp32_gives_the_same_bytes_again_resident_or_streamed(device, recipe, tmp_path):
    first, history = trained(device, tmp_path, recipe)
    for placement in ("resident", "streamed"):
        again, history_again = trained(device, tmp_path, recipe, placement=placement)
        assert same_bytes(first, again) and history == history_again


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 0.01), ("bf16", 0.05)])
def test_other_arithmetic_is_near_fp32(device, recipe, precision, tolerance, tmp_path):
    _, exact = trained(device, tmp_path, recipe)
    _, near = trained(device, tmp_path, recipe, precision=precision)
    for metric in ("train/loss", "val/loss"):
        found, expected = ([row[metric] for row in of] for of in (near, exact))
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance / 10)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_cpu_and_a_gpu_learn_alike(recipe, tmp_path):
    _, on_cpu = trained("cpu", tmp_path, recipe)
    _, on_gpu = trained("cuda", tmp_path, recipe)
    found, expected = ([row["val/loss"] for row in of] for of in (on_gpu, on_cpu))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_recorded_steps_learn_as_those_that_are_not(recipe, precision, tolerance, tmp_path):
    _, never = trained("cuda", tmp_path, recipe, precision=precision)
    first, history = trained("cuda", tmp_path, recipe, precision=precision, cuda_graphs=True)
    for metric in ("train/loss", "val/loss"):
        found, expected = ([row[metric] for row in of] for of in (history, never))
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance / 10)
    for placement in ("resident", "streamed"):
        again, history_again = trained(
            "cuda", tmp_path, recipe, precision=precision, placement=placement, cuda_graphs=True
        )
        assert same_bytes(first, again) and history == history_again


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", [Step, RecordedStep])
def test_the_host_never_waits_inside_an_epoch_on_cuda(kind, recipe, tmp_path):
    phase, device = phase_on("cuda", tmp_path, recipe)
    with own_stream(device):
        step = loop._Stepper(phase, device, "fp32", kind)
        step.epoch()  # of 60 images in four batches: one step is recorded
        torch.cuda.set_sync_debug_mode("error")
        try:
            step.epoch()
        finally:
            torch.cuda.set_sync_debug_mode("default")
