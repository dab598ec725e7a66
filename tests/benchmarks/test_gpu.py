"""The GPU's table: that all of it runs without what a borrowed machine lacks, and its parts."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import gpu
from benchmarks.measure import Row, Taken, measure
from benchmarks.rows.made import Setting
from benchmarks.rows.streaming import against_resident, phase_from, write_images
from pipeline.data.rows import Streamed
from pipeline.errors import InputError
from pipeline.training import loop, steps
from pipeline.training.loop import fit, snapshot
from tests.training.pretended_cuda import CUDA, pretended_cuda

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Setting("small", 8, 12, 4, channels=1, classes=2)
# a machine with PyTorch alone: the project's other dependencies are not found
ALONE = """
import sys
from importlib.machinery import PathFinder

class Few:
    @staticmethod
    def find_spec(name, path=None, target=None):
        hidden = name.partition(".")[0] in {
            "dvc", "matplotlib", "mlflow", "pandas", "psutil", "pydantic", "pydantic_core",
            "pytorch_metric_learning", "ruamel", "safetensors", "scipy", "sklearn",
            "threadpoolctl", "tqdm", "yaml",
        }
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Few
"""
SETTINGS = """
import json
from benchmarks.rows.made import AUGMENTED
from pipeline import recipes
from pipeline.params import Block, Classification, Runtime, Training, Weights

def told(value):
    if isinstance(value, Block):
        return {type(value).__name__: {name: told(part) for name, part in value}}
    return [told(part) for part in value] if isinstance(value, list) else value

steps = {"epochs": 3, "lr": 1}
breakdown = {"recipe": "breakdown", "encoder": {"latent": "a", **steps}, "head": steps}
loss = {"name": "triplet", "margin": 1}
print(json.dumps([
    *map(told, [
        Training(batch_size=8, augmentation=AUGMENTED), Runtime(threads=2, device="cpu"),
        Classification(epochs=1, lr=0.1, schedule="constant"), Weights(**{"from": "none"}),
        recipes.of(breakdown),
        recipes.of(breakdown | {"encoder": {"latent": ["a", "b"], "loss": loss, **steps}}),
        recipes.of({"recipe": "finetune", "lr_factors": {"a": 1}, **steps}),
    ]),
    AUGMENTED == AUGMENTED.model_copy(update={"flip": True}),
    AUGMENTED == AUGMENTED.model_copy(update={"flip": False}),
    AUGMENTED.off,
], sort_keys=True))
"""


def run_python(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_all_rows_run_with_pytorch_alone(tmp_path):
    file = tmp_path / "gpu.json"
    asked = ["--device", "cpu", "--quick", "--repetitions", "1", "--json", str(file)]
    said = run_python(f"{ALONE}\nfrom benchmarks.gpu import main\nmain()", *asked)
    told = json.loads(file.read_text())
    without = [name for name in gpu.entries(CPU, gpu.QUICK) if not name.startswith("trainers")]
    names = [row["name"] for row in told["rows"]]
    assert len(names) == len(set(names)) == len(without) == 16
    assert {"date", "device", "torch", "torchvision"} <= told["about"].keys()
    assert "left out, as pytorch-metric-learning is not installed: trainers_small" in said
    table = [line for line in said.splitlines() if line.startswith("| ")]
    assert all(any(line.startswith(f"| {name} |") for line in table) for name in names)


def test_settings_are_the_same_without_pydantic():
    checked, plain = run_python(SETTINGS), run_python(ALONE + SETTINGS)
    assert json.loads(plain) == json.loads(checked)


# one of each kind, but for the library's trainers, which wait in each batch, and what is compiled
KINDS = (
    "encoder_small_fp32",
    "encoder_resnet50_bf16",
    "towers",
    "head_resnet18",
    "streaming_small",
    "encoder_small_fp32_graphs",
    "head_squeezenet1_1_graphs",
)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # in a deep copy
@pytest.mark.parametrize("name", KINDS)
def test_both_ways_of_a_row_keep_to_the_device(name, monkeypatch):
    monkeypatch.setattr(loop, "fetch", lambda metrics: dict.fromkeys(metrics, 1.0))
    record, recorded = steps.RecordedStep._record, []

    def noted(self, batch):
        recorded.append(batch)
        return record(self, batch)

    monkeypatch.setattr(steps.RecordedStep, "_record", noted)
    with pretended_cuda(), gpu.entries(CUDA, gpu.QUICK)[name]() as row:
        ours, other = row.ours(), row.other()
    assert ours.amount > 0 and other.amount > 0
    assert bool(recorded) == name.endswith("_graphs")


def test_a_row_that_fails_costs_no_other_but_those_with_graphs(tmp_path, monkeypatch, capsys):
    @contextmanager
    def broken():
        raise RuntimeError("no such kernel")
        yield

    @contextmanager
    def begun():
        pytest.fail("the device may be recording still")
        yield

    tiny = gpu.entries(CPU, gpu.QUICK)["encoder_small_fp32"]
    taken = {"broken": broken, "first_graphs": broken, "tiny": tiny, "second_graphs": begun}
    monkeypatch.setattr(gpu, "entries", lambda device, sizes: taken)
    file = tmp_path / "gpu.json"
    asked = ["--device", "cpu", "--quick", "--repetitions", "1", "--json", str(file)]
    with pytest.raises(InputError, match=r"above: broken, first_graphs, second_graphs$"):
        gpu.main(asked)
    (row,) = json.loads(file.read_text())["rows"]
    told = capsys.readouterr()
    assert row["name"] == "encoder phase, small at 8, fp32"
    assert "no such kernel" in told.err and f"| {row['name']} |" in told.out


def test_the_other_way_of_a_row_with_graphs_is_made_once_untimed():
    made = []

    @contextmanager
    def make():
        yield Row("", "", lambda: Taken(1.0), lambda: made.append(1) or Taken(len(made)), "")

    with gpu._warmed(make)() as row:
        assert row.other() == Taken(2) and len(made) == 2


def test_rows_of_training_come_with_cuda_graphs_where_there_is_cuda():
    plain, both = gpu.entries(CPU, gpu.QUICK), gpu.entries(CUDA, gpu.QUICK)
    assert plain.keys() < both.keys()
    added = {name.removesuffix("_graphs") for name in both.keys() - plain.keys()}
    kept = {name for name in plain if name.startswith(("streaming", "towers"))}
    assert added == plain.keys() - kept


def test_a_row_says_its_precision():
    rows = gpu.entries(CPU, gpu.QUICK)
    with rows["encoder_small_fp32"]() as exact, rows["encoder_small_bf16"]() as fast:
        assert exact.name.endswith(", fp32") and fast.name.endswith(", bf16")


def test_a_profile_says_where_the_time_goes(capsys):
    gpu.main(["--device", "cpu", "--quick", "--profile", "encoder_small_fp32"])
    told = capsys.readouterr().out
    assert told.startswith("encoder phase, small at 8")
    assert (
        "by the host's time" in told and "aten::convolution_backward" in told and "busy" not in told
    )


@pytest.mark.gpu
def test_a_profile_says_how_busy_a_gpu_was(capsys):
    gpu.main(["--quick", "--profile", "encoder_small_fp32"])
    told = capsys.readouterr().out
    assert "the GPU was busy for" in told and "by the GPU's time" in told


def event(start, end, device=DeviceType.CUDA):
    return SimpleNamespace(device_type=device, time_range=SimpleNamespace(start=start, end=end))


def test_busy_time_counts_what_overlaps_once():
    spans = [(10.0, 20.0), (0.0, 5.0), (12.0, 15.0), (18.0, 30.0), (30.0, 31.0)]
    host = event(0.0, 1000.0, DeviceType.CPU)
    assert gpu.busy_seconds([host, *(event(*span) for span in spans)]) == pytest.approx(26e-6)
    assert gpu.busy_seconds([host]) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--device", "cpu", "--rows", "finetun"], "--rows: there is no row 'finetun'.*finetune"),
        (["--device", "cpu", "--profile", "towrs"], "--profile: there is no row 'towrs'.*towers"),
        (["--device", "tpu"], "--device tpu: must be cuda"),
        (["--device", "cuda:x"], "--device cuda:x: must be cuda"),
        (["--device", "cuda:99"], "--device cuda:99: is not there"),
        (["--device", "cpu", "--repetitions", "0"], "--repetitions 0: must be at least 1"),
    ],
)
def test_what_cannot_be_is_said(given, said):
    with pytest.raises(InputError, match=said):
        gpu.main(given)


def test_both_places_of_images_train_alike(tmp_path):
    file = tmp_path / "images.npy"
    write_images(file, TINY)
    trained = {}
    for placement in ("streamed", "resident"):
        phase = phase_from(file, TINY, "embedding", 2, placement)
        result = fit(phase, CPU, "fp32")
        trained[placement] = result.images_seen, snapshot(phase.module)
    (seen, streamed), (seen_resident, resident) = trained.values()
    assert seen == seen_resident == 24
    assert all(streamed[name].equal(resident[name]) for name in resident)


def test_the_streamed_way_streams(monkeypatch):
    asked = []
    stream = Streamed.stream

    def noted(self, drawn):
        asked.append(len(self))
        return stream(self, drawn)

    monkeypatch.setattr(Streamed, "stream", noted)
    with against_resident(TINY, "embedding", 2, 0.8) as row:
        streamed = row.ours()
        assert asked == [12, 12]  # once an epoch
        resident = row.other()
        assert asked == [12, 12] and streamed.amount == resident.amount == 24
        assert measure(row, 1).wanted == 0.8
