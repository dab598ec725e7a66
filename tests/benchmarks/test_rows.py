"""Every row at a tiny size: both ways run, and do the work that the figures speak of."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.rows import decode, encoder, finetune, head, made, trainers
from benchmarks.rows.made import Setting
from pipeline.models.cut import cut
from pipeline.params import Augmentation, Classification
from pipeline.training import loop
from pipeline.training.steps import RecordedStep, Step, own_stream
from tests.training.pretended_graphs import Graph, pretended_graphs

ROOT = Path(__file__).parents[2]
PERFORMANCE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = Setting("small", 8, images=24, batch_size=8, channels=1, classes=3)


@pytest.fixture(autouse=True)
def same_switches_afterwards():
    deterministic = torch.are_deterministic_algorithms_enabled()
    tf32 = torch.backends.cudnn.allow_tf32
    yield
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.backends.cudnn.allow_tf32 == tf32


@pytest.fixture
def updates():
    """How many weights each update changed, whichever optimizer made it."""
    found: list[int] = []

    def count(optimizer, arguments, named):
        found.append(sum(of.numel() for group in optimizer.param_groups for of in group["params"]))

    handle = register_optimizer_step_post_hook(count)
    yield found
    handle.remove()


def steps_of(work, updates):
    updates.clear()
    taken = work()
    assert taken.seconds > 0
    return taken, list(updates)


def test_encoder_and_bare_loop_make_the_same_updates(updates):
    with encoder.against_bare_loop(SMALL, "embedding", epochs=2) as row:
        ours, our_updates = steps_of(row.ours, updates)
        other, other_updates = steps_of(row.other, updates)
    assert ours.amount == other.amount == 48
    assert our_updates == other_updates and len(our_updates) == 6
    assert "small at 8" in row.name and row.wanted is None


def test_bare_loop_learns_from_as_many_pairs(monkeypatch):
    seen: list[tuple[int, int]] = []
    step = encoder._Loop.step

    def noting(self, inputs, left, right, same):
        seen.append((len(inputs), len(left)))
        assert max(left.max(), right.max()) < len(inputs)
        step(self, inputs, left, right, same)

    monkeypatch.setattr(encoder._Loop, "step", noting)
    with encoder.against_bare_loop(SMALL, "embedding", epochs=1) as row:
        row.other()
    phase = encoder.phase_of(SMALL.run(made.AUGMENTED, 10), "embedding", 1)
    steps, pairs = encoder.learnt_in_an_epoch(phase)
    assert seen == [(8, round(pairs / steps))] * steps


class Operations(TorchDispatchMode):
    """Counts torch's operations but for views: on a GPU, each is a launch."""

    VIEWS = ("view", "t", "transpose", "permute", "expand", "slice", "select", "detach", "alias",
             "unsqueeze", "split_with_sizes", "unbind", "as_strided", "split")  # fmt: skip
    count = 0

    def add(self, launches):
        self.count += launches

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.add(func.overloadpacket.__name__ not in self.VIEWS)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "side", "latent"), [
    ("small", 8, "embedding"), ("squeezenet1_1", 32, "features.12"),
])  # fmt: skip
def test_a_step_takes_hardly_more_operations_than_a_bare_one(name, side, latent):
    """An epoch of 64 steps: augmentation and pairs included, but for some at its beginning."""
    channels = 1 if name == "small" else 3
    setting = Setting(name, side, images=256, batch_size=4, channels=channels)
    phase = encoder.phase_of(setting.run(made.AUGMENTED, 10), latent, 1)
    stepper = loop._Stepper(phase, setting.device, "fp32")
    bare = encoder._Loop(setting, latent)
    given = setting.random_inputs(4), *encoder._random_pairs(4, 4, setting.device)
    stepper.epoch()  # the first step of an optimizer makes its momentum
    bare.step(*given)
    with Operations() as ours:
        _, images = stepper.epoch()
    with Operations() as other:
        bare.step(*given)
    assert ours.count / (images / 4) - other.count <= 15  # a batch without a pair is no step


LAUNCHES = {
    "encoder": "encoder phase, augmented, 10 pairs an image",
    "finetune": "fine-tuning, augmented",
    "head": "head phase on latents",
}


@pytest.mark.parametrize("of", LAUNCHES)
@pytest.mark.parametrize("kind", [Step, RecordedStep])
@pytest.mark.parametrize(("name", "side", "latent"), [
    ("small", 8, "embedding"), ("squeezenet1_1", 32, "features.12"),
])  # fmt: skip
def test_a_step_takes_as_many_launches_as_is_said(name, side, latent, kind, of, monkeypatch):
    """The same, with optimizers as on CUDA; a graph is one launch."""
    channels = 1 if name == "small" else 3
    setting = Setting(name, side, images=256, batch_size=4, channels=channels)
    network = setting.network()
    if of == "encoder":
        phase = encoder.phase_of(setting.run(made.AUGMENTED, 10, network), latent, 3)
    elif of == "head":
        frozen, module = cut(network, latent)
        settings = Classification(epochs=3, lr=made.LR, momentum=made.MOMENTUM, schedule="constant")
        run = setting.run(Augmentation(), network=network)
        phase = run.classification("head", module, settings, frozen=frozen)
    else:
        phase = finetune._phase(setting.run(made.AUGMENTED, network=network), 3)
    with pretended_graphs(), own_stream(setting.device):
        stepper = loop._Stepper(phase, setting.device, "fp32", kind)
        stepper.epoch()
        with Operations() as launched:
            monkeypatch.setattr(Graph, "replay", lambda graph: launched.add(1))
            _, images = stepper.epoch()
    counted = launched.count / (images / 4)
    (line,) = re.findall(rf"^\| {LAUNCHES[of]} \|(.*)\|$", PERFORMANCE, re.MULTILINE)
    said = [int(cell) for cell in line.split("|")]
    column = 2 * (name != "small") + (kind is RecordedStep)
    assert counted == pytest.approx(said[column], abs=1.5)
    if (name, of) == ("squeezenet1_1", "finetune"):
        assert f"16 launches instead of {said[2]}" in README and said[3] == 16


def test_pairs_learnt_from_are_those_within_batches():
    run = SMALL.run(Augmentation(), 10)
    phase = encoder.phase_of(run, "embedding", 1)
    steps, pairs = encoder.learnt_in_an_epoch(phase)
    assert steps == 3
    assert 3 * 7 <= pairs <= 3 * 28 < len(run.pairs.left)  # connected batches of 8, not all pairs
    whole = Setting("small", 8, images=24, batch_size=24, channels=1, classes=3)
    run = whole.run(Augmentation(), 10)
    phase = encoder.phase_of(run, "embedding", 1)
    assert encoder.learnt_in_an_epoch(phase) == (1, len(run.pairs.left))


def test_two_towers_send_two_images_a_pair(monkeypatch):
    seen: list[tuple[int, int]] = []
    step = encoder._Loop.step

    def noting(self, inputs, left, right, same):
        seen.append((len(inputs), len(left)))
        assert set(left.tolist()).isdisjoint(right.tolist())
        assert 0 < same.sum() < len(same)
        step(self, inputs, left, right, same)

    monkeypatch.setattr(encoder._Loop, "step", noting)
    with encoder.against_two_towers(SMALL, "embedding", epochs=2, tower_steps=5) as row:
        assert row.other().amount == 40
        ours = row.ours().amount
    assert seen == [(16, 8)] * 5
    phase = encoder.phase_of(SMALL.run(made.AUGMENTED, 10), "embedding", 1)
    assert ours == 2 * encoder.learnt_in_an_epoch(phase)[1]


def test_the_bare_loop_is_the_networks_own_encoder():
    loop = encoder._Loop(SMALL, "embedding")
    expected, _ = cut(SMALL.network(), "embedding")
    inputs = SMALL.random_inputs(4)
    torch.testing.assert_close(loop.encoder.eval()(inputs), expected.eval()(inputs))


def test_head_and_linear_evaluation_make_the_same_updates(updates):
    with head.against_encoder_each_epoch(SMALL, "embedding", epochs=4, other_epochs=4) as row:
        ours, our_updates = steps_of(row.ours, updates)
        other, other_updates = steps_of(row.other, updates)
    assert ours.amount == other.amount == 4
    assert our_updates == other_updates and len(our_updates) == 12


def test_head_phase_runs_the_encoder_once_and_the_other_way_in_each_epoch():
    calls = {"ours": 0, "other": 0}
    network = SMALL.network()
    before, after = cut(network, "embedding")
    run = SMALL.run(Augmentation(), network=network)
    loop = head._Loop(SMALL, before, after, run.train.labels, SMALL.random_inputs(24))

    def count(who):
        return before.register_forward_hook(
            lambda module, inputs, output: calls.__setitem__(who, calls[who] + len(output))
        )

    hook = count("ours")
    head.head_phase(SMALL, run, before, after, epochs=5)
    hook.remove()
    hook = count("other")
    loop.epochs(5)
    hook.remove()
    assert calls == {"ours": 24 + made.VAL_IMAGES, "other": 5 * 24}


def test_the_bound_counts_the_encoder_once():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU())
    last = nn.Linear(100, 10)
    # two operations a weight forward; backward of a last layer has no gradient of its input
    encoder_operations, head_operations = 2 * 6400, 2 * 1000 * 2
    expected = (
        20 * (encoder_operations + head_operations) / (encoder_operations + 20 * head_operations)
    )
    assert head.bound_of(SMALL, wide, last, 20) == pytest.approx(expected)


@pytest.mark.parametrize(
    "setting",
    [
        Setting("small", 8, images=20, batch_size=10, channels=1, classes=5),
        Setting("squeezenet1_1", 33, images=8, batch_size=4, classes=2),
    ],
)
def test_trainers_make_as_many_updates(setting, updates):
    latent = "embedding" if setting.architecture == "small" else "features.12"
    with trainers.against_metric_learning(setting, latent, epochs=2, workers=0) as row:
        ours, our_updates = steps_of(row.ours, updates)
        other, other_updates = steps_of(row.other, updates)
    assert ours.amount == other.amount == 4
    assert our_updates == other_updates and len(our_updates) == 8


def test_threads_pack_what_one_after_another_packs(monkeypatch):
    packed = []
    replace = decode.decode_all

    def keeping(items, out, *arguments, **named):
        replace(items, out, *arguments, **named)
        packed.append((np.load(out), items))

    monkeypatch.setattr(decode, "decode_all", keeping)
    with decode.in_threads(photos=4, side=16) as row:
        assert row.ours().amount == row.other().amount == 4
        (pixels, items) = packed[0]
        assert pixels.shape == (4, 3, 16, 16)
        np.testing.assert_array_equal(pixels, np.load(items[0].file.parents[2] / "other.npy"))


def test_photos_are_as_large_as_photos(tmp_path):
    made.write_photos(tmp_path, 2, classes=2)
    first, second = (tmp_path / f"class{n}/0000{n}.jpg" for n in (0, 1))
    assert first.read_bytes() != second.read_bytes()
    assert 30_000 < len(first.read_bytes()) < 150_000
    assert Image.open(io.BytesIO(first.read_bytes())).size == made.PHOTO


def test_finetune_and_its_step_make_the_same_updates(updates):
    with finetune.against_compiled_step(SMALL, epochs=2, compiled=False) as row:
        ours, our_updates = steps_of(row.ours, updates)
        other, other_updates = steps_of(row.other, updates)
    assert ours.amount == other.amount == 48
    assert our_updates == other_updates and len(our_updates) == 6
    assert row.peak is None and row.operations > 0


def test_operations_of_a_network_are_those_counted_by_hand(monkeypatch):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 3))
    monkeypatch.setattr(Setting, "network", lambda self: network)
    forward = 2 * (6400 + 300)
    backward = 2 * (6400 + 300) + 2 * 300  # weights of both, and the input of the second
    assert finetune.operations_an_image(SMALL) == forward + backward


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H200", 989.5e12), ("NVIDIA H100 PCIe", 756.5e12), ("NVIDIA L4", 121e12),
     ("NVIDIA L40S", 362e12), ("Tesla T4", None)],
)  # fmt: skip
def test_the_peak_goes_by_the_devices_name(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    cuda = torch.device("cuda")
    assert finetune.peak(Setting("small", 8, 4, 2, device=cuda, precision="bf16")) == peak
    assert finetune.peak(Setting("small", 8, 4, 2, device=cuda)) is None


def test_a_diverged_phase_is_no_figure():
    phase = encoder.phase_of(SMALL.run(Augmentation(), 10), "embedding", 1)
    with torch.no_grad():
        next(phase.module.parameters()).fill_(torch.nan)
    with pytest.raises(RuntimeError, match="nan in epoch 1"):
        encoder.images_of(SMALL, phase)
