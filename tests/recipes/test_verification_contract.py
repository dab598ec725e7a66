"""What every recipe promises that verifies, tested alike for all of them."""

import json

import pytest
import torch

from pipeline import recipes
from pipeline.models import weights
from pipeline.models.pairs import Verifier
from pipeline.params import Augmentation
from pipeline.training.budget import Budget
from pipeline.training.loop import fit
from pipeline.training.phase import Phase
from tests.digits import make_run
from tests.recipes.test_contract import METHODS as CLASSIFIERS
from tests.recipes.test_contract import equal, images_seen, phases_of, state, with_rate

SHIFTED = Augmentation(rotation=10, shift=0.1)
EPOCHS = 2
PHASE = {"epochs": EPOCHS, "lr": 0.05}
SUPCON = {"name": "supcon", "temperature": 0.2}
COSINE = {"pairs": {"kind": "cosine"}}


def siamese(**asked):
    return {"recipe": "siamese", "latent": "embedding"} | PHASE | asked


def breakdown(encoder, head):
    return {
        "recipe": "breakdown",
        "encoder": {"latent": "embedding"} | PHASE | encoder,
        "head": PHASE | head,
    }


def distance(metric, latent="embedding"):
    return {"recipe": "features", "latent": latent, "head": {"kind": "distance", "metric": metric}}


METHODS = {
    "siamese": siamese(head={"kind": "difference", "dropout": 0.4}, l2={"features": 1e-3}),
    "siamese_cosine": siamese(head={"kind": "cosine"}, optimizer="adam", lr=1e-3),
    "siamese_maps": siamese(head={"kind": "euclidean"}, latent="features.3"),
    "breakdown": breakdown({}, {"pairs": {"kind": "difference", "dropout": 0.2}}),
    "breakdown_supcon": breakdown({"loss": SUPCON, "per_class": 2}, COSINE),
    "breakdown_kept": breakdown({"freeze_to": "features.3", "keep": 2}, COSINE),
    "breakdown_parts": breakdown(
        {"latent": ["features.3", "embedding"], "loss": [SUPCON, {"name": "contrastive"}]},
        {"pairs": {"kind": "euclidean"}},
    ),
    "cosine": distance("cosine"),
    "euclidean": distance("euclidean", latent="features.3"),
}


@pytest.fixture(params=METHODS)
def recipe(request):
    return recipes.of(METHODS[request.param])


def train(recipe, precision="fp32", **asked):
    run = make_run(**{"pairs": True} | asked)
    return run, [fit(phase, run.device, precision) for phase in phases_of(recipe, run)]


def pairs_of(count=5):
    """Images twice, as a verifier takes pairs."""
    return torch.rand(2, count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_every_recipe_is_under_this_contract_or_that_of_classification():
    named = {block["recipe"] for methods in (METHODS, CLASSIFIERS) for block in methods.values()}
    assert named == set(recipes.names())
    tasks = {recipes.of(block).task for block in METHODS.values()}
    assert tasks == {"verification"}


def test_it_gives_each_pair_a_finite_logit_the_same_both_ways(recipe):
    run, results = train(recipe)
    assert isinstance(run.network, Verifier)
    left, right = pairs_of()
    logits = run.network.eval()(left, right)
    assert logits.shape == (5,) and torch.isfinite(logits).all()
    assert torch.allclose(logits, run.network(right, left), atol=1e-5)
    assert all(result.status == "finished" for result in results)


def test_it_trains_and_says_what_it_did(recipe):
    run = make_run(pairs=True)
    begin = state(run)
    results = [fit(phase, run.device, "fp32") for phase in phases_of(recipe, run)]
    last = results[-1].history[-1]
    assert {"train/loss", "val/loss", "val/accuracy"} <= last.keys()
    assert len({result.phase for result in results}) == len(results)
    for result in results:
        epochs = 1 if result.phase == "solve" else EPOCHS
        assert [row["epoch"] for row in result.history] == list(range(1, epochs + 1))
        assert {row["phase"] for row in result.history} == {result.phase}
        assert 1 <= result.chosen_epoch <= epochs
        assert result.images_seen == result.history[-1]["images_seen"] > 0
    after = {key.removeprefix("encoder."): tensor for key, tensor in state(run).items()}
    learned = {
        key for key, tensor in begin.items() if not torch.equal(tensor, after.get(key, tensor))
    }
    assert bool(learned) == (recipe.recipe != "features")
    done = sum(len(result.history) for result in results if result.phase != "solve")
    kept = recipe.encoder.keep if recipe.recipe == "breakdown" else 1  # a head for each of them
    assert recipe.epochs_in_all() == done + (kept - 1) * EPOCHS


@pytest.mark.parametrize("passes", [31])
def test_a_matched_budget_is_used_as_nearly_as_whole_epochs_of_pairs_allow(recipe, passes):
    run = make_run(pairs=True)
    budget = Budget(passes, "mine", 4, run.passes_of_pairs, run.passes_of_classes)
    matched = recipe.matched(budget)
    results = [fit(phase, run.device, "fp32") for phase in phases_of(matched, run)]
    if results[0].phase == "solve":
        assert images_seen(results) == len(run.train)
        return
    kept = matched.encoder.keep if isinstance(matched, recipes.Breakdown) else 1
    last = results[-1]
    one = last.images_seen / len(last.history)  # images of an epoch of pairs
    assert one > len(run.train)
    off = images_seen(results, kept) - passes * len(run.train)
    # epochs of pairs differ by some images
    assert abs(off) <= 1.1 * kept * one / 2


def test_an_epoch_of_pairs_counts_what_the_first_one_takes():
    recipe = recipes.of(METHODS["siamese"] | {"epochs": 1, "batch_size": 7})
    run = make_run(pairs=True)
    (result,) = [fit(phase, run.device, "fp32") for phase in recipe.phases(run)]
    assert run.passes_of_pairs(recipe) * len(run.train) == pytest.approx(result.images_seen)


@pytest.mark.parametrize("augmentation", [None, SHIFTED], ids=["plain", "augmented"])
def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(recipe, augmentation):
    first, results = train(recipe, seed=1, augmentation=augmentation)
    torch.rand(7)  # whatever else draws from torch's own generator must not matter
    again, results_again = train(recipe, seed=1, augmentation=augmentation)
    other, _ = train(recipe, seed=2, augmentation=augmentation)
    assert equal(state(first), state(again)) and not equal(state(first), state(other))
    assert [r.history for r in results] == [r.history for r in results_again]


def test_an_image_over_makes_no_batch_of_one(recipe):
    """Nine images in fours: batch norm has nothing to normalise one image by."""
    run = make_run(3, 3, batch_size=4, pairs=True)
    sizes = []
    for phase in phases_of(recipe, run):
        if isinstance(phase, Phase):
            sizes += [len(batch[0]) for batch in phase.batches()]
        assert fit(phase, run.device, "fp32").status == "finished"
    assert recipe.recipe == "features" or min(sizes) >= 2


def test_nothing_outside_a_phase_changes(recipe):
    """Parameters and buffers that are not of the phase's module keep their bytes."""
    run = make_run(pairs=True)
    for phase in phases_of(recipe, run):
        mine = {id(tensor) for tensor in phase.module.state_dict(keep_vars=True).values()}
        before = state(run)
        fit(phase, run.device, "fp32")
        for name, tensor in run.network.state_dict(keep_vars=True).items():
            fitted = phase.name == "solve" and name.startswith("head.")
            if id(tensor) not in mine or (phase.name == "solve" and not fitted):
                assert torch.equal(before[name], tensor), name


def test_the_head_phase_of_a_breakdown_leaves_the_encoder_s_file_true():
    """The encoder of the verifier is the encoder stage's, bit for bit."""
    recipe = recipes.of(METHODS["breakdown_supcon"])
    run = make_run(pairs=True)
    module = recipe.encoder_module(run)
    for phase in recipe.encoder_phases(run):
        fit(phase, run.device, "fp32")
    left_behind = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    (head,) = recipe.head_phases(run)
    fit(head, run.device, "fp32")
    assert equal(left_behind, run.network.encoder.state_dict())


def test_it_diverges_politely(recipe):
    run, results = train(recipes.of(with_rate(recipe.model_dump(), 3e37)))
    if results[0].phase != "solve":
        assert any(result.status == "diverged" for result in results)
    assert all(torch.isfinite(tensor).all() for tensor in state(run).values())


def test_its_file_gives_the_same_network_back(recipe, tmp_path):
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
    left, right = pairs_of()
    assert torch.equal(again(left, right), run.network.eval()(left, right))


def test_it_trains_in_bf16(recipe):
    run, results = train(recipe, precision="bf16")
    assert all(result.status == "finished" for result in results)
    assert all(tensor.dtype != torch.bfloat16 for tensor in state(run).values())
    exact, _ = train(recipe)
    assert equal(state(run), state(exact)) == (results[0].phase == "solve")


def test_methods_of_a_seed_are_paired():
    """Same pairs in the same order, the same augmentation, and the same head to begin with."""
    phases = []
    for name in ("siamese", "breakdown"):
        recipe, run = recipes.of(METHODS[name]), make_run(seed=3, pairs=True, augmentation=SHIFTED)
        method_phases = recipe.phases if name == "siamese" else recipe.head_phases
        phases.append((next(iter(method_phases(run))), run.network.head.state_dict()))
    (one, head), (other, other_head) = phases
    for batch, same in zip(one.batches(), other.batches(), strict=True):
        assert all(torch.equal(*ends) for ends in zip(batch, same, strict=True))
    assert equal(head, other_head)


@pytest.mark.gpu
def test_it_gives_the_same_bytes_on_a_gpu(recipe):
    def on_gpu():
        run = make_run(pairs=True, augmentation=SHIFTED)
        run.device = torch.device("cuda")
        run.network.to("cuda")
        for name in ("train", "val"):
            images = getattr(run, name)
            setattr(run, name, type(images)(images.pixels.to("cuda"), images.labels.to("cuda")))
        for phase in phases_of(recipe, run):
            fit(phase, run.device, "fp32")
        return state(run)

    assert equal(on_gpu(), on_gpu())
