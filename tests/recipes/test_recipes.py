"""What is particular to each recipe; what all promise is in test_contract."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from pipeline import recipes
from pipeline.errors import InputError
from pipeline.models import weights
from pipeline.params import Augmentation
from pipeline.training.loop import fit, snapshot
from tests.digits import make_run
from tests.recipes.test_contract import METHODS, phases_of, quick

BLOCKS = [("features.0.", "features.1."), ("features.4.", "features.5."), ("embedding.",),
          ("classifier.",)]  # fmt: skip
ALL = range(4)
SHIFT = "embedding.bias"  # no distance depends on it, so that rounding alone may move it


def made(recipe, **block):
    return recipes.of({"recipe": recipe} | block)


def phase_settings(**asked):
    return {"epochs": 2, "lr": 0.1} | asked


def names_of(run, blocks):
    return {name for name in run.network.state_dict() for k in blocks if name.startswith(BLOCKS[k])}


def state(run):
    return {name: tensor.clone() for name, tensor in run.network.state_dict().items()}


def changed(run, before):
    """Names of parameters and buffers with other bytes than before."""
    after = run.network.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}


def by_phase(run, phases):
    """Train phases; of each its name, result, and which tensors it changed."""
    seen = []
    for phase in phases:
        before = state(run)
        result = fit(phase, run.device, "fp32")
        seen.append((phase.name, result, changed(run, before)))
    return seen


def test_layerwise_trains_the_last_blocks_one_more_each_round():
    run = make_run()
    recipe = made("layerwise", epochs=[1, 3, 2], lr=[0.1, 0.05])
    seen = []
    for phase in recipe.phases(run):
        before = state(run)
        result = fit(phase, run.device, "fp32")
        seen.append((phase.name, len(result.history), phase.settings.lr, changed(run, before)))
    assert [row[:3] for row in seen] == [
        ("round_1", 1, 0.1), ("round_2", 3, 0.05), ("round_3", 2, 0.05), ("round_4", 2, 0.05),
    ]  # fmt: skip
    for number, (*_, moved) in enumerate(seen, start=1):
        assert moved == names_of(run, ALL[-number:])


@pytest.mark.parametrize(("rounds", "done"), [(1, 1), (2, 2), (4, 4), (None, 4)])
def test_layerwise_makes_as_many_rounds_as_asked_for_or_there_are(rounds, done):
    run = make_run()
    recipe = made("layerwise", epochs=1, lr=0.1, rounds=rounds)
    before = state(run)
    seen = by_phase(run, recipe.phases(run))
    assert [name for name, *_ in seen] == [f"round_{n + 1}" for n in range(done)]
    assert changed(run, before) == names_of(run, ALL[-done:])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"rounds": 5, "lr": 0.1},
            r"methods\.mine\.rounds: 5 are more than the network's 4 blocks",
        ),
        ({"lr": [0.1] * 5}, r"methods\.mine\.lr: has 5 values for 4 rounds"),
    ],
)
def test_layerwise_refuses_rounds_that_there_cannot_be(asked, said):
    run = make_run()
    run.method = "mine"
    recipe = made("layerwise", epochs=1, **asked)
    with pytest.raises(InputError, match=said):
        next(recipe.phases(run))


def test_phases_of_a_run_augment_anew_in_the_same_order():
    run = make_run(augmentation=Augmentation(shift=0.3))
    recipe = made("layerwise", epochs=1, lr=0.1, rounds=2)
    first, second = (list(phase.batches()) for phase in recipe.phases(run))
    assert [b[1].tolist() for b in first] == [b[1].tolist() for b in second]
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


def test_layerwise_hands_every_setting_to_its_rounds():
    asked = {"label_smoothing": 0.1, "mixup": 0.2, "nesterov": True, "batch_size": 6}
    recipe = made("layerwise", epochs=[1, 2], lr=0.1, **asked, sampler="balanced")
    (first, second, *_) = recipe.phases(make_run())
    for phase, epochs in ((first, 1), (second, 2)):
        found = phase.settings.model_dump()
        assert found.items() >= (asked | {"sampler": "balanced", "epochs": epochs}).items()


def test_the_retrained_head_starts_anew_on_a_fixed_encoder():
    run = make_run()
    start = state(run)
    recipe = made(
        "retrained_head",
        encoder=phase_settings(latent="embedding"),
        head=phase_settings(lr=1e-30),  # moves nothing, so that the head's start is seen
    )
    first, second = by_phase(run, recipe.phases(run))
    assert (first[0], second[0]) == ("end_to_end", "head")
    assert first[2] == names_of(run, ALL) and second[2] == set()
    assert changed(run, start) == names_of(run, ALL[:-1])


def test_the_retrained_head_s_encoder_is_fine_tuning_s():
    encoders = []
    for recipe in (
        made("retrained_head", encoder=phase_settings(latent="embedding"), head=phase_settings()),
        made("finetune", **phase_settings()),
    ):
        run = make_run()
        by_phase(run, recipe.phases(run))
        encoders.append(run.part(upto="embedding").state_dict())
    one, other = encoders
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_retrained_head_learns_as_the_breakdown_s_does():
    """On the same encoder they are the same: same start, batches and latents."""
    shared = phase_settings(latent="embedding"), phase_settings(lr=0.3)
    control = make_run()
    by_phase(control, made("retrained_head", encoder=shared[0], head=shared[1]).phases(control))
    run = make_run()
    weights.put(run.part(upto="embedding"), control.part(upto="embedding").state_dict())
    breakdown = made("breakdown", encoder=shared[0], head=shared[1])
    by_phase(run, breakdown.head_phases(run))
    assert changed(run, state(control)) == set()


def test_breakdown_finetune_releases_every_layer():
    run = make_run(pairs=True)
    head = phase_settings() | {"release": phase_settings(lr=0.01)}
    recipe = made("breakdown_finetune", encoder=phase_settings(latent="embedding"), head=head)
    encoder = by_phase(run, recipe.encoder_phases(run))
    heads = by_phase(run, recipe.head_phases(run))
    assert [name for name, *_ in encoder + heads] == ["encoder", "head", "release"]
    assert encoder[0][2] - {SHIFT} == names_of(run, ALL[:-1]) - {SHIFT}
    assert heads[0][2] == names_of(run, ALL[-1:])
    assert heads[1][2] == names_of(run, ALL)


def test_a_head_may_begin_after_the_latent():
    run = make_run(pairs=True)
    recipe = made(
        "breakdown",
        encoder=phase_settings(latent="features.3"),
        head=phase_settings(freeze_to="embedding"),
    )
    (encoder,) = by_phase(run, recipe.encoder_phases(run))
    (head,) = by_phase(run, recipe.head_phases(run))
    assert encoder[2] == names_of(run, [0])
    assert head[2] == names_of(run, [3])  # the two between stay as they started


def test_one_loss_serves_all_latents_or_each_has_its_own():
    latents = ["features.3", "embedding"]
    shared = made("breakdown", encoder=phase_settings(latent=latents), head=phase_settings())
    assert [key for key, _ in shared.encoder.losses()] == ["encoder.loss"] * 2
    listed = [{"name": "supcon"}, {"name": "cosine"}]
    own = made(
        "breakdown", encoder=phase_settings(latent=latents, loss=listed), head=phase_settings()
    )
    assert [(key, loss.name) for key, loss in own.encoder.losses()] == [
        ("encoder.loss.0", "supcon"), ("encoder.loss.1", "cosine"),
    ]  # fmt: skip


FEATURE_HEADS = [
    {"kind": "linear"},
    {"kind": "linear", "c": 0.5, "balanced": True},
    {"kind": "svm"},
    {"kind": "svm", "kernel": "rbf", "c": 10.0},
    {"kind": "knn"},
    {"kind": "knn", "k": 1},
    {"kind": "mlp", "units": 16, "epochs": 30, "lr": 0.2, "dropout": 0.1},
]


@pytest.mark.parametrize("head", FEATURE_HEADS, ids=lambda head: "-".join(map(str, head.values())))
@pytest.mark.parametrize(("latent", "pool"), [("embedding", "none"), ("features.3", "average")])
def test_features_fit_a_head_on_the_start(head, latent, pool, tmp_path):
    run = make_run(per_class=8)
    start = state(run)
    network = run.network
    encoder = run.part(upto=latent).eval()
    recipe = made("features", latent=latent, head=head, pool=pool)
    (phase,) = recipe.phases(run)
    result = fit(phase, run.device, "fp32")
    assert phase.name == ("head" if head["kind"] == "mlp" else "solve")
    assert all(torch.equal(network.state_dict()[key], of) for key, of in start.items())
    with torch.no_grad():
        latents = next(run.encode(encoder, run.val))
        rows = latents.mean((2, 3)) if pool == "average" else latents
        logits = run.network.eval()(next(run.encode(None, run.val)))
        assert torch.allclose(run.network.head(rows), logits, atol=1e-6)
    chosen = result.history[result.chosen_epoch - 1]
    assert chosen["val/loss"] == pytest.approx(
        float(functional.cross_entropy(logits, run.val.labels)), abs=1e-6
    )
    if head["kind"] == "mlp":
        assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]
    else:
        assert result.found and chosen["val/accuracy"] > 0.5  # of three digits
    weights.save(tmp_path / "model.safetensors", run.network.state_dict())
    again = recipe.restore(make_run(seed=9).network, tmp_path / "model.safetensors").eval()
    assert torch.equal(again(next(run.encode(None, run.val))), logits)


def test_the_nearest_neighbour_of_features_by_hand():
    run = make_run(per_class=6)
    encoder = run.part(upto="flatten").eval()
    recipe = made("features", latent="flatten", head={"kind": "knn", "k": 1})
    (phase,) = recipe.phases(run)
    fit(phase, run.device, "fp32")
    with torch.no_grad():
        train, val = (next(run.encode(encoder, of)).double() for of in (run.train, run.val))
        spread = train.std(0, correction=0)
        spread[spread < 1e-6] = 1
        found = run.network.eval()(next(run.encode(None, run.val))).argmax(1)
    nearest = [
        int(run.train.labels[(((train - image) / spread) ** 2).sum(1).argmin()]) for image in val
    ]
    assert found.tolist() == nearest


def test_the_hidden_layer_of_features_starts_by_the_seed():
    heads = []
    for seed in (1, 1, 2):
        run = make_run(seed=seed)
        recipe = quick("features_mlp")
        next(iter(recipe.phases(run)))
        heads.append(snapshot(run.network.head))
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert not torch.equal(heads[0]["hidden.weight"], heads[2]["hidden.weight"])


def test_the_layers_a_head_of_features_names_are_its_own():
    recipe = made("features", latent="flatten", head=METHODS["features_mlp"]["head"])
    named = dict(recipe.layers(recipe.head, make_run().network).named_modules())
    assert {"hidden", "classifier"} <= named.keys() and "features" not in named
    assert made("finetune", **phase_settings()).layers(recipe.head, recipe) is recipe


@pytest.mark.parametrize("name", METHODS)
def test_the_plan_counts_the_epochs_that_are_made(name):
    recipe = quick(name)
    if recipe.recipe == "layerwise":  # how many blocks there are is not known to the plan
        recipe = recipe.model_copy(update={"rounds": 3})
    run = make_run(pairs=isinstance(recipe, recipes.Breakdown))
    made_epochs = 0
    kept = recipe.encoder.keep if isinstance(recipe, recipes.Breakdown) else 1
    for phase in phases_of(recipe, run):
        result = fit(phase, run.device, "fp32")
        times = kept if phase.name in ("head", "release") else 1  # a head for each encoder
        made_epochs += times * len(result.history) * (phase.name != "solve")
    assert recipe.epochs_in_all() == made_epochs


def test_the_plan_counts_the_parts_of_an_encoder_and_its_heads():
    encoder = {"latent": ["features.3", "embedding"], "epochs": [5, 7], "lr": 0.1, "keep": 3}
    assert made("breakdown", encoder=encoder, head={"epochs": 2, "lr": 1.0}).epochs_in_all() == 18
    head = {"epochs": 2, "lr": 1.0, "release": {"epochs": 4, "lr": 0.1}}
    recipe = made("breakdown_finetune", encoder=encoder | {"epochs": 5}, head=head)
    assert recipe.epochs_in_all() == 5 + 5 + 3 * (2 + 4)
    assert made("layerwise", epochs=[5, 1], lr=0.1, rounds=4).epochs_in_all() == 8


def test_where_the_network_must_come_apart():
    encoder = {"latent": ["b", "c"], "freeze_to": "a", "epochs": 1, "lr": 0.1}
    recipe = made("breakdown", encoder=encoder, head=phase_settings(freeze_to="d"))
    assert list(recipe.cuts()) == [
        (("encoder", "latent"), ["b", "c"]),
        (("encoder", "freeze_to"), ["a", "b"]),
        (("head", "freeze_to"), ["c", "d"]),
    ]
    assert list(made("finetune", **phase_settings(freeze_to="a")).cuts()) == [
        (("freeze_to",), ["a"])
    ]
    assert list(made("scratch", **phase_settings()).cuts()) == []
    assert list(made("joint", **phase_settings(latent="a")).cuts()) == [(("latent",), ["a"])]


def test_where_a_siamese_network_comes_apart_and_which_layers_it_names():
    recipe = made("siamese", **phase_settings(latent="features.3"))
    assert list(recipe.cuts()) == [(("latent",), ["features.3"])]
    for block in (recipe, recipe.head):
        named = {name for name, _ in recipe.layers(block, make_run().network).named_parameters()}
        assert named == {"features.0.weight", "features.1.weight", "features.1.bias"}


@pytest.mark.parametrize(
    "asked", [{"freeze_to": "embedding"}, {"weight_decays": {"classifier": 0.1}}, {"mixup": 0.2}]
)
def test_a_head_on_pairs_has_nothing_of_a_classifier_s(asked):
    encoder = phase_settings(latent="embedding")
    head = phase_settings(pairs={"kind": "cosine"})
    assert made("breakdown", encoder=encoder, head=head).task == "verification"
    made("breakdown", encoder=encoder, head=phase_settings(**asked))
    (key,) = asked
    with pytest.raises(ValidationError, match=f"{key} is for a head that classifies"):
        made("breakdown", encoder=encoder, head=head | asked)


def test_a_release_is_for_classification():
    head = phase_settings(release=phase_settings(lr=0.01))
    encoder = phase_settings(latent="embedding")
    made("breakdown_finetune", encoder=encoder, head=head)
    with pytest.raises(ValidationError, match="pairs is for the recipe breakdown"):
        made("breakdown_finetune", encoder=encoder, head=head | {"pairs": {"kind": "cosine"}})
