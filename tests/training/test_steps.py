"""Steps as CUDA graphs, recorded and launched on a device that only pretends."""

import gc
from contextlib import contextmanager

import pytest
import torch

from pipeline import recipes
from pipeline.errors import InputError
from pipeline.params import Augmentation, Runtime
from pipeline.training import checkpoints, optimizers, runtime, steps
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.loop import fit
from pipeline.training.optimizers import make_optimizer
from tests.digits import make_run, move, switches_kept
from tests.recipes.test_contract import METHODS, equal, phases_of, shortened, state
from tests.training.pretended_graphs import FIRST, pretended_graphs

CPU = torch.device("cpu")
CHANGED = Augmentation(flip=True, rotation=10, shift=0.1, erasing=0.5)
DEVICES = ["pretended", pytest.param("cuda", marks=pytest.mark.gpu)]
TREATMENTS = {
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "balanced": {"sampler": "balanced", "optimizer": "adam", "label_smoothing": 0.1},
    "weighted": {"class_weights": "balanced", "decay_biases": True},
    "one cycle": {"schedule": "one_cycle", "optimizer": "adamw", "weight_decay": 0.01},
    "cosine": {"schedule": "cosine", "warmup": 0.3, "lr_factors": {"features.0": 0.1}},
    "nesterov": {"nesterov": True},
    "no momentum": {"momentum": 0.0},
}
SIZES = (6, 5)  # 24 images in batches of one shape, and of two


def block_of(name):
    if name in METHODS:
        return shortened(METHODS[name])
    treatment = TREATMENTS[name]
    return shortened(METHODS["finetune"]) | {"epochs": 4} | treatment


@contextmanager
def there(name):
    """The device, and what was recorded on one that only pretends."""
    if name == "cuda":
        with switches_kept():
            yield runtime.start(Runtime(device=name, threads=torch.get_num_threads())), None
    else:
        with pretended_graphs() as streams:
            yield CPU, streams


def run_on(device, folder, size, dropout=0.0):
    run = make_run(per_class=8, batch_size=size, pairs=True, augmentation=CHANGED)
    move(run, device, folder, "resident")
    if dropout:
        run.network.features.add_module("9", torch.nn.Dropout(dropout))
    return run


def train(recipe, folder, recorded=True, size=6, dropout=0.0, precision="fp32", on="pretended"):
    """A run's results, its weights and how often each of its graphs was launched, if known."""
    torch.manual_seed(0)
    results = []
    with there(on) as (device, streams):
        run = run_on(device, folder, size, dropout)
        for phase in phases_of(recipe, run):
            results.append(fit(phase, device, precision, cuda_graphs=recorded))
            assert all(of.grad is None for of in phase.module.parameters())
        if streams is None:
            return results, state(run), None
        assert streams.current == FIRST
        return results, state(run), [graph.replays for graph in streams.graphs]


def told(results):
    return [(r.history, r.gradients, r.chosen_epoch, r.found) for r in results]


@pytest.mark.parametrize("name", [*METHODS, *TREATMENTS])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("on", DEVICES)
def test_what_is_recorded_trains_as_what_is_not(on, name, size, tmp_path, monkeypatch):
    recipe = recipes.of(block_of(name))
    results, weights, replays = train(recipe, tmp_path, size=size, dropout=0.3, on=on)
    monkeypatch.setattr(steps, "WARM", 10**9)
    unrecorded, expected, none = train(recipe, tmp_path, size=size, dropout=0.3, on=on)
    assert told(results) == told(unrecorded) and equal(weights, expected) and not none
    descended = [result for result in results if not result.found]  # others are solved at once
    assert replays is None or (all(replays) and len(replays) >= 2 * len(descended))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_as_without_graphs(precision, tmp_path):
    # the learning rate of 2**-6 is the same number in single and double precision
    recipe = recipes.of(block_of("finetune") | {"epochs": 4, "lr": 2**-6})
    asked = {"size": 5, "dropout": 0.3, "precision": precision}
    results, weights, replays = train(recipe, tmp_path, True, **asked)
    never, expected, none = train(recipe, tmp_path, False, **asked)
    assert told(results) == told(never) and equal(weights, expected)
    # in each of four epochs four steps of one shape and one of another; two graphs a step
    assert replays == [16 - steps.WARM] * 2 + [4 - steps.WARM] * 2 and not none


def test_a_loss_on_any_number_of_pairs_stands_between_two_graphs(tmp_path):
    recipe = recipes.of(block_of("breakdown"))
    encoder, *_ = phases_of(recipe, make_run(per_class=8, batch_size=6, pairs=True))
    pairs = [len(batch.left) for _, batch, _ in encoder.batches()]
    assert not encoder.recordable and len(pairs) == 4 and len(set(pairs)) > 1
    results, _, replays = train(recipe, tmp_path)
    assert [result.phase for result in results] == ["encoder", "head"]
    assert replays == [8 - steps.WARM] * 5  # three of them, and two of the head


@pytest.mark.parametrize(
    ("name", "loss", "graphs"),
    [
        ("breakdown", {"name": "triplet", "mining": "hard"}, 2),
        ("breakdown", {"name": "supcon"}, 2),
        ("breakdown", {"name": "TripletMarginLoss"}, 3),  # it waits for the device
        ("breakdown", {"name": "ProxyAnchorLoss"}, 0),  # and has parameters
        ("joint", {"name": "triplet", "mining": "hard"}, 2),
        ("joint", {"name": "TripletMarginLoss"}, 0),
    ],
    ids=str,
)
def test_what_of_a_loss_on_whole_batches_can_be_recorded_is(name, loss, graphs, tmp_path):
    block = block_of(name)
    (block["encoder"] if name == "breakdown" else block)["loss"] = loss
    recipe = recipes.of(block)
    recorded, _, replays = train(recipe, tmp_path, True)
    assert replays == [8 - steps.WARM] * (graphs + 2 * (len(recorded) - 1))
    never, _, _ = train(recipe, tmp_path, False)
    for one, other in zip(recorded, never, strict=True):
        losses = [[row["train/loss"] for row in result.history] for result in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", ["cosine", "breakdown"])
@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("on", DEVICES)
def test_it_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    on, after, name, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)
    block = block_of(name)
    block.get("encoder", block)["epochs"] = 4
    recipe = recipes.of(block)

    class Interrupted(Exception):
        pass

    def work(folder, seed, log=lambda row: None):
        torch.manual_seed(seed)
        with there(on) as (device, streams):
            run = run_on(device, tmp_path, 5, dropout=0.3)
            phase = next(iter(phases_of(recipe, run)))
            checkpoint = Checkpoint(tmp_path / folder, device)
            checkpoint.begin()
            result = fit(phase, device, "fp32", log, checkpoint, cuda_graphs=True)
            return told([result]), state(run), streams and len(streams.graphs)

    def stop(row):
        if row["epoch"] == after + 1:
            raise Interrupted

    whole, weights, recorded = work("never", 0)
    with pytest.raises(Interrupted):
        work("stopped", 0, stop)
    again, resumed, fewer = work("stopped", 1)
    assert again == whole and equal(resumed, weights)
    # the odd batch does not come often enough once more
    assert recorded is None or fewer == recorded / 2 > 0


class Failing(torch.nn.Module):
    """What cannot be recorded: it asks for a value, or the step after ``WARM`` finds no memory."""

    def __init__(self, asks):
        super().__init__()
        self.asks, self.calls = asks, 0

    def forward(self, inputs):
        self.calls += 1
        if not self.asks and self.calls > steps.WARM:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. More.")
        return inputs * float(inputs.sum() > -1e9) if self.asks else inputs


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        (True, r"params.yaml: runtime.cuda_graphs: a step cannot be recorded \(.*operation not "
               r"permitted when stream is capturing\); set it to false"),
        (False, r"end_to_end: epoch 1, a batch of 6 images: out of memory \(CUDA out of memory\); "
                r"set runtime.cuda_graphs to false, or lower training.batch_size"),
    ],
    ids=["waits", "no memory"],
)  # fmt: skip
@pytest.mark.parametrize("on", DEVICES)
def test_a_step_that_cannot_be_recorded_is_refused_in_one_line(on, asks, said, tmp_path):
    with there(on) as (device, streams):
        run = run_on(device, tmp_path, 6)
        (phase,) = recipes.of(block_of("finetune")).phases(run)
        run.network.features.add_module("9", Failing(asks))
        with pytest.raises(InputError, match=said) as caught:
            fit(phase, device, "fp32", cuda_graphs=True)
        assert "\n" not in str(caught.value) and gc.isenabled()
        assert all(of.grad is None for of in phase.module.parameters())
        if streams:
            assert streams.current == FIRST
            (waited,) = streams.first.wait_stream.call_args[0]
            assert waited.waited == [streams.first]  # each for the other


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_graphs_without_cuda_are_refused(device):
    asked = Runtime(device=device, threads=1, cuda_graphs=True)
    with pytest.raises(InputError) as caught:
        steps.check_graphs(asked, CPU)
    assert str(caught.value) == (
        "params.yaml: runtime.cuda_graphs: needs a CUDA device, and runtime.device: "
        f"{device} is cpu here; set it to false"
    )
    steps.check_graphs(asked, torch.device("cuda", 0))
    steps.check_graphs(Runtime(device=device, threads=1), CPU)


def test_gradients_are_of_the_last_step_whatever_its_shape():
    recipe = recipes.of(block_of("finetune"))
    with pretended_graphs() as streams, steps.own_stream(CPU):
        (phase,) = recipe.phases(make_run(per_class=8, batch_size=6))
        (plain,) = recipe.phases(make_run(per_class=8, batch_size=6))
        recorded, step = (
            kind(of, make_optimizer(of.groups, of.settings), CPU, "fp32")
            for kind, of in ((steps.RecordedStep, phase), (steps.Step, plain))
        )
        images, labels = next(iter(phase.batches()))
        for count in (6, 6, 6, 6, 4, 4, 4, 4, 6, 3, 6, 4):
            batch = images[:count].roll(1, 0), labels[:count].roll(1, 0)
            losses, expected = recorded.backward(batch), step.backward(batch)
            assert losses.equal(expected) and len(losses) == count
            gradients = [[of.grad for of in p.module.parameters()] for p in (phase, plain)]
            assert all(one.equal(other) for one, other in zip(*gradients, strict=True))
            recorded.update(), step.update()
    assert [graph.replays for graph in streams.graphs] == [3, 3, 2, 2]


def test_optimizers_are_told_that_they_are_recorded(tmp_path, monkeypatch):
    seen = []
    make = optimizers._Adam.step

    def noted(self):
        seen.append([(group.get("capturable"), group["lr"]) for group in self.param_groups])
        make(self)

    monkeypatch.setattr(optimizers._Adam, "step", noted)
    results, _, _ = train(recipes.of(block_of("balanced")), tmp_path)
    told_so = [[capturable for capturable, _ in groups] for groups in seen]
    assert len(told_so) == steps.WARM + 1 and told_so[-1] == [True] * len(told_so[-1])
    assert not any(map(any, told_so[:-1]))
    assert all(isinstance(lr, torch.Tensor) for groups in seen for _, lr in groups)
    assert len(results[0].history) == 4
