"""Interrupted equals uninterrupted: every recipe, stopped in each epoch; checkpoints at fault."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from ruamel.yaml import YAML
from torch import nn

from pipeline import prune, recipes, workspace
from pipeline.data import pair_batches
from pipeline.data.pair_batches import PairBatches
from pipeline.data.pairs import draw_pairs
from pipeline.params import Augmentation, Optimization, Runtime
from pipeline.records import RunId, runs_of, whole_or_none, write_json
from pipeline.stages import baseline, encoder, head, weights
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from pipeline.tasks import runs
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint, Memory
from pipeline.training.loop import Result, fit
from pipeline.training.optimizers import parameter_groups
from pipeline.training.phase import Phase
from tests.digits import make_run, write_digits
from tests.recipes.test_contract import METHODS as CLASSIFIERS
from tests.recipes.test_contract import equal, phases_of, quick, state
from tests.recipes.test_verification_contract import METHODS as VERIFIERS
from tests.test_stages import contents, tiny_params

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
RUNTIME = Runtime(threads=1)
SHIFTED = Augmentation(rotation=10, shift=0.1)
TUNE = {"recipe": "finetune", "epochs": 3, "lr": 0.05}
PROXIES = {"name": "ProxyAnchorLoss", "miner": {"name": "MultiSimilarityMiner"}}
MORE = {  # what the contracts leave out of all that goes from one epoch to the next
    "adam": TUNE | {"optimizer": "adam", "schedule": "one_cycle", "lr": 1e-3},
    "adamw": TUNE | {"optimizer": "adamw", "warmup": 0.2, "lr": 1e-3, "weight_decay": 0.1},
    "nesterov": TUNE | {"nesterov": True, "schedule": "step", "step_every": 1},
    "patience": TUNE | {"epochs": 5, "patience": 1, "lr": 0.5},
    "mixed": TUNE | {"mixup": 0.4, "cutmix": 0.4, "sampler": "balanced"},
    "diverging": TUNE  # each step makes weights twice as large
    | {"lr": 1e-3, "weight_decay": 3e3, "momentum": 0.0, "schedule": "constant", "epochs": 9},
    "proxies": {
        "recipe": "breakdown",
        "encoder": {"latent": "embedding", "epochs": 3, "lr": 0.01, "loss": PROXIES},
        "head": {"epochs": 1, "lr": 0.1},
    },
    "joint_proxies": {
        "recipe": "joint", "latent": "embedding", "epochs": 3, "lr": 0.01, "loss": PROXIES,
    },
}  # fmt: skip
CASES = [
    *(f"classification {name}" for name in CLASSIFIERS),
    *(f"verification {name}" for name in VERIFIERS),
    *(f"more {name}" for name in MORE),
]


class Interrupted(Exception):
    """Stands for the end of a process."""


@pytest.fixture
def eager(monkeypatch):
    """A checkpoint after every epoch."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)


def recipe_of(case):
    kind, name = case.split()
    if kind == "classification":
        return quick(name)
    return recipes.of((VERIFIERS if kind == "verification" else MORE)[name])


def train(recipe, folder, log=lambda row: None, **asked):
    """A run with dropout and augmentation; the first phases go by ``folder``'s checkpoint."""
    run = make_run(**{"pairs": True, "augmentation": SHIFTED, "seed": 3} | asked)
    run.network.features.add_module("9", nn.Dropout(0.2))
    phases, checkpoint = phases_of(recipe, run), Checkpoint(folder, CPU)
    results = workspace.train(phases, CPU, RUNTIME, lambda phase: nullcontext(log), checkpoint)
    return run, results


def interrupted(work):
    """Call ``work`` with a log that ends it in its second new epoch, until it comes through.

    Returns:
        what it gave, and how often it was ended. No epoch is done twice beyond the last one.
    """
    done, ends = set(), 0
    while True:
        new = []

        def log(row, new=new):
            at = tuple(row.items())
            if at not in done:
                new.append(at)
            if len(new) == 2:
                raise Interrupted

        try:
            return work(log), ends
        except Interrupted:
            done.add(new[0])
            ends += 1


def told(results):
    return [(r.record(), r.history, r.gradients, r.chosen_epoch, r.reason) for r in results]


@pytest.mark.parametrize("case", CASES)
def test_a_run_stopped_in_every_epoch_is_the_run_that_never_was(case, tmp_path, eager):
    recipe = recipe_of(case)
    never, expected = train(recipe, tmp_path / "never")
    torch.rand(5)  # a new process has torch's own generator in another state
    (run, results), ends = interrupted(lambda log: train(recipe, tmp_path / "stopped", log))
    epochs = sum(len(result.history) for result in expected if result.phase != "solve")
    assert ends == max(0, epochs - 1)
    assert told(results) == told(expected)
    assert equal(state(run), state(never))
    for result, other in zip(results, expected, strict=True):
        assert [kept.epoch for kept in result.kept] == [kept.epoch for kept in other.kept]
        assert all(equal(k.state, o.state) for k, o in zip(result.kept, other.kept, strict=True))
    if case == "more diverging":
        assert results[-1].status == "diverged" and epochs > 1


@pytest.mark.parametrize("forgotten", ["_Stepper", "_Best", "Memory"])
def test_all_that_is_put_back_is_needed(forgotten, tmp_path, eager, monkeypatch):
    from pipeline.training import loop

    recipe = recipes.of(TUNE)
    never, _ = train(recipe, tmp_path / "never")
    monkeypatch.setattr(getattr(loop, forgotten), "load_state_dict", lambda self, state: None)
    (run, _), ends = interrupted(lambda log: train(recipe, tmp_path / "stopped", log))
    assert ends == 2 and not equal(state(run), state(never))


def test_phases_that_were_finished_are_not_trained_again(tmp_path, eager):
    recipe = recipes.of(CLASSIFIERS["layerwise"] | {"epochs": 2})

    def stop(row):
        if (row["phase"], row["epoch"]) == ("round_3", 2):
            raise Interrupted

    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", stop)
    rows = []
    _, results = train(recipe, tmp_path / "run", rows.append)
    assert {row["phase"] for row in rows} == {"round_3", "round_4"}
    assert [len(result.history) for result in results] == [2, 2, 2, 2]
    assert all(result.seconds > 0 for result in results)


def test_seconds_of_all_processes_are_added(tmp_path, eager, monkeypatch):
    (phase,) = recipes.of(TUNE).phases(make_run())
    checkpoint = Checkpoint(tmp_path / "run", CPU)
    checkpoint.begin()
    fit(phase, CPU, "fp32", checkpoint=checkpoint)
    path = tmp_path / "run/1.safetensors"
    tree, tensors = checkpoints._pack(checkpoints._read(path, CPU))
    tree["result"]["seconds"] = 1000.0
    checkpoints._write(path, tree, tensors)
    (phase,) = recipes.of(TUNE).phases(make_run())
    again = Checkpoint(tmp_path / "run", CPU)
    again.begin()
    assert 1000 < fit(phase, CPU, "fp32", checkpoint=again).seconds < 1100


class Running(nn.Module):
    """A loss with a running mean in a buffer, which is part of its value."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, logits, labels):
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        self.mean.mul_(0.5).add_(losses.detach().mean())
        return losses * (1 + self.mean)


def test_a_loss_with_buffers_goes_on_with_them(tmp_path, eager):
    def work(log, name="stopped"):
        run = make_run(seed=2)
        (phase,) = recipes.of(TUNE).phases(run)
        running, inner = Running(), phase.batches
        network = phase.module
        phase = dataclasses.replace(
            phase, batches=inner, loss=lambda batch: running(network(batch[0]), batch[1])
        )
        follow = lambda phase: nullcontext(log)  # noqa: E731
        checkpoint = Checkpoint(tmp_path / name, CPU)
        results = workspace.train(iter([phase]), CPU, RUNTIME, follow, checkpoint)
        return run, results, running.mean.item()

    expected = work(lambda row: None, "never")
    found, ends = interrupted(work)
    assert ends == 2 and found[2] == expected[2] != 0
    assert equal(state(found[0]), state(expected[0])) and told(found[1]) == told(expected[1])


def test_memory_finds_what_functions_hold_and_leaves_the_network_alone():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    deep, default, bare = (torch.Generator().manual_seed(n) for n in range(3))
    proxy = nn.Parameter(torch.ones(3))

    class Holder:
        def __init__(self):
            self.inside = {"list": [network, (deep,)]}

        def batches(self):
            return []

    def loss(batch, generator=default):
        return (bare, network, proxy)

    settings = Optimization(epochs=1, lr=0.1)
    groups = [*parameter_groups(network, settings), {"params": [proxy], "lr": 0.1}]
    phase = Phase("a", network, groups, settings, 1, Holder().batches, loss, dict, "val_loss",
                  network.train)  # fmt: skip
    memory = Memory(phase, CPU)
    found = memory.state_dict()
    assert len(found["generators"]) == 3 and found["others"] == []
    assert [tensor.tolist() for tensor in found["tensors"]] == [[1, 1, 1]]
    for generator in (deep, default, bare):
        torch.rand(4, generator=generator)
    drawn = torch.rand(3)
    memory.load_state_dict(found)
    assert [of.get_state().tolist() for of in (deep, default, bare)] == [
        torch.Generator().manual_seed(n).get_state().tolist() for n in range(3)
    ]
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize(("few", "size"), [(4096, 4), (0, 4), (4096, 100)])
def test_composed_epochs_go_on_wherever_they_are_taken_down(few, size, monkeypatch):
    monkeypatch.setattr(pair_batches, "FEW_IMAGES", few)
    monkeypatch.setattr(pair_batches, "FIRST_EPOCHS", 2)
    labels = np.repeat(np.arange(3), 4)
    pairs, _ = draw_pairs(np.arange(12), labels, 4, 0.5, np.random.default_rng(0))

    def epochs(batches, count):
        return [
            [(b.images.tolist(), b.left.tolist()) for group in batches.epoch() for b in group]
            for _ in range(count)
        ]

    def new(seed):
        return PairBatches(pairs, 12, size, torch.Generator().manual_seed(seed))

    expected = epochs(new(1), 9)
    for done in range(9):
        before = new(1)
        epochs(before, done)
        after = new(2)
        after.load_state_dict(before.state_dict())
        assert epochs(after, 9 - done) == expected[done:]
    assert len({str(epoch) for epoch in expected}) == 9


def interrupted_in(folder, recipe):
    """Train until the second epoch ends, and leave the checkpoint of the first."""

    def stop(row):
        if row["epoch"] == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(recipe, folder, stop)
    return folder / "1.safetensors"


DAMAGES = {
    "empty": lambda whole: b"",
    "one byte": lambda whole: whole[:1],
    "half a header": lambda whole: whole[:100],
    "half": lambda whole: whole[: len(whole) // 2],
    "all but a byte": lambda whole: whole[:-1],
    "a byte over": lambda whole: whole + b"\0",
    "zeros": lambda whole: bytes(len(whole)),
    "a length of 2^63": lambda whole: b"\xff" * 8 + whole[8:],
    "no JSON": lambda whole: whole[:8] + b"\xff" * 32 + whole[40:],
    "a flipped bit in a tensor": lambda whole: whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
    "a wrong tree": lambda whole: whole.replace(b"tree", b"trex", 1),
    "another place": lambda whole: whole.replace(b'$tensor\\": 3', b'$tensor\\": x', 1),
    "a pickle": lambda whole: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_ignored_with_a_line(damage, tmp_path, eager, capsys):
    recipe = recipes.of(TUNE | {"epochs": 2})
    path = interrupted_in(tmp_path / "run", recipe)
    whole = path.read_bytes()
    broken = DAMAGES[damage](whole)
    assert broken != whole
    path.write_bytes(broken)
    rows = []
    run, _ = train(recipe, tmp_path / "run", rows.append)
    never, _ = train(recipe, tmp_path / "never")
    assert [row["epoch"] for row in rows] == [1, 2] and equal(state(run), state(never))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"warning: {path}: is damaged and ignored" in said


def test_a_folder_in_the_place_of_a_file_is_no_checkpoint(tmp_path, eager):
    (tmp_path / "run/1.safetensors").mkdir(parents=True)
    rows = []
    train(recipes.of(TUNE), tmp_path / "run", rows.append)
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_where_none_can_be_written_training_goes_on_with_a_line(tmp_path, eager, capsys):
    (tmp_path / "run").write_text("no folder")
    _, results = train(recipes.of(TUNE), tmp_path / "run")
    assert len(results[0].history) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no checkpoint could be written" in said


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, eager, monkeypatch, capsys):
    save, calls = safetensors.torch.save_file, []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) > 1:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    train(recipes.of(TUNE), tmp_path / "run")
    assert "No space left on device" in capsys.readouterr().err and len(calls) == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["1.safetensors"]
    assert len(checkpoints._read(tmp_path / "run/1.safetensors", CPU)["result"]["history"]) == 1


class Clock:
    """Time that passes as it is told; writing takes as long as the bytes say."""

    def __init__(self, monkeypatch):
        self.now, self.written, self.speed = 0.0, [], 1e8
        monkeypatch.setattr(checkpoints.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(checkpoints, "_write", self.write)

    def write(self, path, tree, tensors):
        self.written.append(self.now)
        self.now += sum(of.nbytes for of in tensors) / self.speed

    def train(self, epochs, seconds, megabytes):
        tensor = torch.empty(int(megabytes * 1e6), dtype=torch.uint8)
        checkpoint = Checkpoint(Path("nowhere"), CPU)
        checkpoint.begin()
        started = self.now
        for _ in range(epochs):
            self.now += seconds
            checkpoint.offer(lambda: {"tensor": tensor})
        writing = self.now - started - epochs * seconds
        return writing / (epochs * seconds)


def test_a_run_of_seconds_writes_none_and_a_long_one_every_epoch(monkeypatch):
    clock = Clock(monkeypatch)
    clock.train(40, 0.1, 0.01)
    assert clock.written == []
    assert clock.train(10, 20.0, 10) < 0.02 and len(clock.written) == 10


@pytest.mark.parametrize("megabytes", [0.1, 5, 60])
@pytest.mark.parametrize("seconds", [0.05, 1.3, 40])
def test_checkpoints_cost_little_of_the_time(monkeypatch, seconds, megabytes):
    """Two percent, but for the first, of which only a guess says how long it takes."""
    clock = Clock(monkeypatch)
    shares = clock.train(int(400 / seconds), seconds, megabytes)
    first = megabytes * 1e6 / clock.speed
    assert clock.written and shares * 400 <= 0.02 * 400 + first
    pause = max(checkpoints.CHECKPOINT_SECONDS, first / checkpoints.SHARE)
    gaps = np.diff(clock.written)
    assert (gaps <= pause + first + seconds + 1e-6).all()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_digits(folder / "data/target", [5, 6, 7], 20)
        write_digits(folder / "data/source", [0, 1, 2], 15)
        images(small())
        prepare(small())
    return folder


@pytest.fixture
def project(prepared, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def small(**more):
    epochs = {
        "weights__source__epochs": 2,
        "methods__breakdown__encoder__epochs": 3,
        "methods__breakdown__encoder__keep": 2,
        "methods__breakdown__head__epochs": 2,
        "methods__finetune__epochs": 3,
    }
    return tiny_params(**{**epochs, **more})


def run_named(method):
    return next(run for run in runs_of(small().compare) if run.method == method)


def stages_of(params):
    """All stages that train, by name."""
    return {
        "weights": lambda: weights.make_weights(params),
        "encoder": lambda: encoder.encoder(params, run_named("breakdown")),
        "head": lambda: head.head(params, run_named("breakdown")),
        "baseline": lambda: baseline.baseline(params, run_named("finetune")),
    }


def followed_by(log, monkeypatch):
    for module in (weights, encoder, head, baseline):
        monkeypatch.setattr(module, "follow", lambda params, run: lambda phase: nullcontext(log))


def test_stages_stopped_in_every_epoch_leave_the_same_files_and_no_checkpoint(
    project, eager, monkeypatch
):
    made = ("weights", "runs")
    for stage in stages_of(small()).values():
        stage()
    expected = contents(*made)
    assert len(expected) == 2 + 4 * 3  # timings differ
    for folder in made:
        shutil.rmtree(folder)
    ends = {}
    for name, stage in stages_of(small()).items():

        def work(log, stage=stage):
            followed_by(log, monkeypatch)
            return stage()

        _, ends[name] = interrupted(work)
        assert not Path(".checkpoints").exists()
    assert contents(*made) == expected
    assert ends == {"weights": 1, "encoder": 2, "head": 2 * 2 - 1, "baseline": 2}


def stop(row):
    if row["epoch"] == 2:
        raise Interrupted


def test_a_checkpoint_of_other_settings_is_not_taken(project, eager, monkeypatch):
    weights.make_weights(small())
    followed_by(stop, monkeypatch)
    with pytest.raises(Interrupted):
        stages_of(small())["baseline"]()
    (left,) = Path(".checkpoints").iterdir()
    rows = []
    followed_by(rows.append, monkeypatch)
    other = small(methods__finetune__lr=0.0123)
    stages_of(other)["baseline"]()
    assert list(Path(".checkpoints").iterdir()) == [left]
    found = contents("runs")
    shutil.rmtree("runs")
    shutil.rmtree(".checkpoints")
    stages_of(other)["baseline"]()
    assert contents("runs") == found and len(rows) == 6


def folder_of(params, method="finetune", stage="baseline", device=CPU, **inputs):
    run = run_named(method)
    recipe = recipes.of(params.methods[method])
    asked = workspace.asked(params, recipe)
    return workspace.checkpoint(params, stage, run, asked, inputs, device)._folder


def test_whatever_can_alter_the_result_is_in_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same = folder_of(small())
    assert same == folder_of(small()) and same.parent == tmp_path / ".checkpoints"
    assert same.name.startswith(f"baseline-{run_named('finetune').name}.")
    assert same == folder_of(small(data__placement="streamed", tracking__live_after=3))
    others = [
        folder_of(small(methods__finetune__epochs=4)),
        folder_of(small(training__batch_size=4)),
        folder_of(small(runtime__threads=2)),
        folder_of(small(model__dropout=0.2)),
        folder_of(small(), images="another"),
        folder_of(small(), stage="head"),
        folder_of(small(), device=torch.device("meta")),
    ]
    monkeypatch.setattr(workspace.runtime, "versions", lambda: {"torch": "0.1"})
    others.append(folder_of(small()))
    assert len({*others, same}) == len(others) + 1


@pytest.mark.parametrize("stage", ["weights", "encoder", "head", "baseline"])
def test_the_code_in_the_key_is_all_that_dvc_watches(stage, tmp_path, monkeypatch):
    """A changed byte of any of it makes another key."""
    copied = tmp_path / "pipeline"
    shutil.copytree(ROOT / "pipeline", copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(workspace, "__file__", str(copied / "workspace.py"))
    before = workspace.code_digest(stage)
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
    watched = [tmp_path / dep for dep in stages[stage]["deps"] if dep.startswith("pipeline")]
    files = [f for of in watched for f in ([of] if of.is_file() else of.rglob("*.py"))]
    assert len(files) > 20
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole + b"#")
        assert workspace.code_digest(stage) != before, file
        file.write_bytes(whole)
    (copied / "report/words.py").write_bytes(b"#")
    assert workspace.code_digest(stage) == before


def test_checkpoints_lie_in_the_real_project(tmp_path, monkeypatch):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path / "deep/er")
    assert folder_of(small()).parents[1] == tmp_path
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "real"))
    assert folder_of(small()).parents[1] == tmp_path / "real"


def test_prune_clears_checkpoints_that_are_no_longer_of_use(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = run_named("finetune").name
    names = [f"baseline-{name}.old", f"baseline-{name}.new", "baseline-gone-n4-s0.a",
             "weights-source-nall-s0.b", f"encoder-{name}.c"]  # fmt: skip
    for age, name in enumerate(names):
        folder = tmp_path / ".checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "1.safetensors").touch()
        os.utime(folder, (1000 + age, 1000 + age))
    removed = prune.prune(small())
    assert {path.name for path in removed} == {names[0], names[2]}
    assert {path.name for path in (tmp_path / ".checkpoints").iterdir()} == {*names} - {
        path.name for path in removed
    }
    for folder in (tmp_path / ".checkpoints").iterdir():
        shutil.rmtree(folder)
    assert prune.prune(small()) == [] and not (tmp_path / ".checkpoints").exists()


def dead_process():
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_half_files_of_killed_processes_go_when_their_file_is_written(tmp_path):
    dead = dead_process()
    halves = {number: tmp_path / f".record.json.{number}" for number in (dead, os.getppid())}
    others = [tmp_path / f".history.csv.{dead}", tmp_path / ".record.json.bak", tmp_path / ".lock"]
    for path in (*halves.values(), *others):
        path.write_text("half")
    write_json(tmp_path / "record.json", {"a": 1})
    left = {path.name for path in tmp_path.iterdir()}
    kept = {halves[os.getppid()].name, *(path.name for path in others)}
    assert left == kept | {"record.json"}
    assert json.loads((tmp_path / "record.json").read_text()) == {"a": 1}


def test_a_half_file_of_a_process_with_our_number_goes_too(tmp_path):
    (tmp_path / f".a.csv.{os.getpid()}").write_text("half")
    with whole_or_none(tmp_path / "b.csv") as beside:
        beside.write_text("b")
    with whole_or_none(tmp_path / "a.csv") as beside:
        assert not beside.exists()
        beside.write_text("a")
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "b.csv"}


def test_a_result_comes_back_whole():
    result = Result("head", "val_loss", 2, history=[{"epoch": 1, "val/loss": math.pi}])
    packed, tensors = checkpoints._pack(result.state_dict())
    assert tensors == [] and Result.from_state(json.loads(json.dumps(packed))) == result


def test_every_task_loads_what_a_key_needs():
    assert set(runs.BY_TASK) == {"classification", "verification"}
    assert RunId("source", "all", 0).name == "source-nall-s0"  # as prune tells it from others
