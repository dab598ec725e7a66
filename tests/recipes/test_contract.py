"""What every recipe promises that classifies, tested alike for all of them."""

import json
from pathlib import Path

import pytest
import torch

from pipeline import check, recipes
from pipeline.models import weights
from pipeline.models.cut import block_ends
from pipeline.params import Augmentation
from pipeline.training.budget import Budget
from pipeline.training.loop import fit
from pipeline.training.phase import Phase
from tests.digits import make_run

METHODS = check.load(Path(__file__).parents[2] / "configs/all_methods.yaml").methods
SHIFTED = Augmentation(rotation=10, shift=0.1)
EPOCHS = 2


def quick(name):
    """A method of the config that has them all, two epochs a phase, for batches of four."""
    return recipes.of(shortened(METHODS[name]))


def shortened(block):
    parts = {key: shortened(part) for key, part in block.items() if isinstance(part, dict)}
    less = {"epochs": EPOCHS, "per_class": 2, "keep": 2}
    return block | parts | {key: value for key, value in less.items() if key in block}


def phases_of(recipe, run):
    if isinstance(recipe, recipes.Breakdown):
        yield from recipe.encoder_phases(run)
        yield from recipe.head_phases(run)
    else:
        yield from recipe.phases(run)


def recipe_draws_each_image_once(recipe):
    return not getattr(getattr(recipe, "encoder", None), "per_class", None)


def train(recipe, **asked):
    run = make_run(**asked, pairs=isinstance(recipe, recipes.Breakdown))
    results = [fit(phase, run.device, "fp32") for phase in phases_of(recipe, run)]
    return run, results


def state(run):
    return {name: tensor.clone() for name, tensor in run.network.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def budget_of(run, passes):
    blocks = len(block_ends(run.network)) + 1
    return Budget(passes, "mine", blocks, run.passes_of_pairs, run.passes_of_classes)


def images_seen(results, kept=1):
    """Images of all phases; one head was trained of those that each get a kept encoder."""
    after = [result for result in results if result.phase in ("head", "release")]
    return sum(r.images_seen for r in results) + (kept - 1) * sum(r.images_seen for r in after)


@pytest.fixture(params=METHODS)
def recipe(request):
    return quick(request.param)


@pytest.mark.parametrize("classes", [2, 15])
def test_it_gives_finite_logits_for_every_class(recipe, classes):
    run, results = train(recipe, classes=classes)
    logits = run.network.eval()(torch.zeros(3, 1, 8, 8))
    assert logits.shape == (3, classes) and torch.isfinite(logits).all()
    assert all(result.status == "finished" for result in results)


def test_it_trains_and_says_what_it_did(recipe):
    start = state(make_run(per_class=6))
    run, results = train(recipe, per_class=6)
    assert not equal(start, state(run))
    last = results[-1].history[-1]
    assert {"train/loss", "val/loss", "val/accuracy"} <= last.keys()
    assert len({result.phase for result in results}) == len(results)
    for result in results:
        epochs = 1 if result.phase == "solve" else EPOCHS
        assert [row["epoch"] for row in result.history] == list(range(1, epochs + 1))
        if recipe_draws_each_image_once(recipe):
            assert [row["images_seen"] for row in result.history] == [18, 36][:epochs]
        assert {row["phase"] for row in result.history} == {result.phase}
        assert 1 <= result.chosen_epoch <= epochs
    done = sum(len(result.history) for result in results)
    assert done <= max(1, recipe.epochs_in_all()) or recipe.recipe == "layerwise"


@pytest.mark.parametrize(("passes", "augmentation"), [(9, None), (14, SHIFTED)])
def test_a_matched_budget_is_used_to_the_image(recipe, passes, augmentation):
    run = make_run(augmentation=augmentation, pairs=isinstance(recipe, recipes.Breakdown))
    matched = recipe.matched(budget_of(run, passes))
    results = [fit(phase, run.device, "fp32") for phase in phases_of(matched, run)]
    if results[0].phase == "solve":
        assert images_seen(results) == len(run.train)
        return
    kept = recipe.encoder.keep if isinstance(recipe, recipes.Breakdown) else 1
    over = 0 if recipe_draws_each_image_once(recipe) else kept * len(run.train) / 2
    assert abs(images_seen(results, kept) - passes * len(run.train)) <= over


@pytest.mark.parametrize(
    ("per_class", "of_epoch", "epochs"), [(4, 32, (4, 2)), (10, 64, (5, 2)), (8, 48, (6, 2))]
)
def test_epochs_of_batches_by_class_are_matched_by_what_they_count(per_class, of_epoch, epochs):
    """Five classes, of which batches of sixteen have four of four images, 13 passes of each."""
    run = make_run(classes=5, per_class=per_class, batch_size=16, pairs=True)
    recipe = recipes.of(METHODS["breakdown_supcon"])
    matched = recipe.matched(budget_of(run, 13))
    encoder, *heads = [fit(phase, run.device, "fp32") for phase in phases_of(matched, run)]
    assert encoder.images_seen == of_epoch * len(encoder.history)
    assert (len(encoder.history), len(heads[0].history)) == epochs
    assert matched.encoder.keep == 3
    off = images_seen([encoder, *heads], 3) - 13 * len(run.train)
    assert abs(off) <= 3 * len(run.train) / 2  # an epoch more of three heads would be no nearer
    assert abs(off) <= min(abs(off + of_epoch), abs(off - of_epoch))


@pytest.mark.parametrize("per_class", [2, 3, 8])
@pytest.mark.parametrize(("classes", "each"), [(5, 4), (5, 10), (3, 6), (12, 3)])
def test_an_epoch_of_batches_by_class_counts_what_it_takes(classes, each, per_class):
    run = make_run(classes, each, batch_size=16, pairs=True)
    recipe = quick("breakdown_supcon")
    encoder = recipe.encoder.model_copy(update={"per_class": per_class})
    (phase,) = recipe.model_copy(update={"encoder": encoder}).encoder_phases(run)
    taken = sum(len(labels) for _, labels in phase.batches())
    assert run.passes_of_classes(encoder, per_class) * len(run.train) == pytest.approx(taken)


def test_a_balanced_sampler_counts_each_image_once():
    run = make_run(classes=5, per_class=4, batch_size=16)
    recipe = recipes.of(METHODS["finetune"] | {"sampler": "balanced"})
    (phase,) = recipe.matched(budget_of(run, 13)).phases(run)
    assert fit(phase, run.device, "fp32").images_seen == 13 * len(run.train)


@pytest.mark.parametrize("augmentation", [None, SHIFTED], ids=["plain", "augmented"])
def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(recipe, augmentation):
    first, results = train(recipe, seed=1, augmentation=augmentation)
    torch.rand(7)  # whatever else draws from torch's own generator must not matter
    again, results_again = train(recipe, seed=1, augmentation=augmentation)
    other, _ = train(recipe, seed=2, augmentation=augmentation)
    assert equal(state(first), state(again)) and not equal(state(first), state(other))
    assert [r.history for r in results] == [r.history for r in results_again]


def test_an_image_over_makes_no_batch_of_one(recipe):
    """Nine images in fours, four in threes: batch norm has nothing to normalise one image by."""
    sizes = []
    for classes, per_class, batch_size in ((3, 3, 4), (2, 2, 3)):
        if batch_size == 3 and not recipe_draws_each_image_once(recipe):
            continue  # two of each of two classes need batches of four
        run = make_run(classes, per_class, batch_size=batch_size, pairs=True)
        for phase in phases_of(recipe, run):
            if isinstance(phase, Phase):
                sizes += [len(batch[0]) for batch in phase.batches()]
            assert fit(phase, run.device, "fp32").status == "finished"
        assert all(torch.isfinite(tensor).all() for tensor in state(run).values())
    assert not sizes or min(sizes) >= 2


def test_nothing_outside_a_phase_changes(recipe):
    """Parameters and buffers that are not of the phase's module keep their bytes."""
    run = make_run(pairs=isinstance(recipe, recipes.Breakdown))
    for phase in phases_of(recipe, run):
        mine = {id(t) for t in phase.module.state_dict(keep_vars=True).values()}
        before = {n: t.clone() for n, t in run.network.state_dict(keep_vars=True).items()}
        fit(phase, run.device, "fp32")
        after = run.network.state_dict(keep_vars=True)
        for name, tensor in before.items():
            if id(after[name]) not in mine or phase.name == "solve":
                assert torch.equal(after[name], tensor), name


def test_it_diverges_politely(recipe):
    blown = recipes.of(with_rate(recipe.model_dump(), 1e18))
    run, results = train(blown)
    if results[0].phase != "solve":
        assert any(result.status == "diverged" for result in results)
    assert all(torch.isfinite(tensor).all() for tensor in state(run).values())


def with_rate(block, rate):
    parts = {key: with_rate(part, rate) for key, part in block.items() if isinstance(part, dict)}
    return block | parts | ({"lr": rate, "warmup": 0.0} if "lr" in block else {})


def test_its_files_give_the_same_network_back(recipe, tmp_path):
    run, _ = train(recipe)
    weights.save(tmp_path / "model.safetensors", run.network.state_dict())
    record = {
        "classes": run.classes,
        "parameters": {
            "method": json.loads(json.dumps(recipe.model_dump())),
            "model": {"architecture": "small"},
            "data": {"channels": 1, "image_size": 8},
        },
    }
    again = recipes.trained(record, tmp_path / "model.safetensors")
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(again(images), run.network.eval()(images))


def test_methods_of_a_seed_are_paired():
    """Same head initialisation, and the same batches in the same order and augmentation."""
    runs = {name: make_run(seed=3, pairs=True, augmentation=SHIFTED) for name in ("one", "other")}
    finetune = next(iter(quick("finetune").phases(runs["one"])))
    breakdown = quick("breakdown")
    head = next(iter(breakdown.head_phases(runs["other"])))
    for (left, labels), (right, other_labels) in zip(
        finetune.batches(), head.batches(), strict=True
    ):
        assert torch.equal(labels, other_labels) and torch.equal(left, right)
    assert equal(state(runs["one"]), state(runs["other"]))


def test_cached_latents_train_the_same_head_as_the_frozen_encoder_run_each_time():
    """Caching is a shortcut and nothing else: an augmentation that does nothing must agree."""
    recipe = quick("breakdown")
    nothing = Augmentation(shift=1e-9)
    heads = []
    for augmentation in (Augmentation(), nothing):
        run = make_run(pairs=True, augmentation=augmentation)
        (phase,) = recipe.head_phases(run)
        fit(phase, run.device, "fp32")
        heads.append(phase.module.state_dict())
    for name, tensor in heads[0].items():
        assert torch.allclose(tensor, heads[1][name], atol=1e-4), name


def test_dropout_is_off_in_the_encoder_phase_unless_asked_for():
    recipe = quick("breakdown")
    for wanted in (False, True):
        run = make_run(pairs=True)
        run.network.features.add_module("9", torch.nn.Dropout(0.5))
        asked = recipe.encoder.model_copy(update={"dropout": wanted})
        (phase,) = recipe.model_copy(update={"encoder": asked}).encoder_phases(run)
        phase.training_mode()
        modes = {m.training for m in phase.module.modules() if isinstance(m, torch.nn.Dropout)}
        assert modes == {wanted}


def test_each_image_passes_the_encoder_once_a_batch():
    run = make_run(classes=3, per_class=6, batch_size=18, pairs=True)
    (phase,) = quick("breakdown").encoder_phases(run)
    passed = []
    phase.module.register_forward_hook(lambda module, inputs, output: passed.append(len(inputs[0])))
    (batch,) = phase.batches()
    losses = phase.loss(batch)
    assert passed == [18] and len(losses) == len(run.pairs.left) > 18


def test_it_trains_in_bf16(recipe):
    run = make_run(pairs=isinstance(recipe, recipes.Breakdown))
    results = [fit(phase, run.device, "bf16") for phase in phases_of(recipe, run)]
    assert all(result.status == "finished" for result in results)
    assert all(tensor.dtype != torch.bfloat16 for tensor in state(run).values())
    exact, _ = train(recipe)
    if results[0].phase == "solve":  # its latents are computed exactly
        return
    assert not equal(state(run), state(exact))


@pytest.mark.gpu
def test_it_gives_the_same_bytes_on_a_gpu(recipe):
    def on_gpu():
        run = make_run(pairs=isinstance(recipe, recipes.Breakdown), augmentation=SHIFTED)
        run.device = torch.device("cuda")
        run.network.to("cuda")
        for name in ("train", "val"):
            images = getattr(run, name)
            setattr(run, name, type(images)(images.pixels.to("cuda"), images.labels.to("cuda")))
        for phase in phases_of(recipe, run):
            fit(phase, run.device, "fp32")
        return state(run)

    assert equal(on_gpu(), on_gpu())
