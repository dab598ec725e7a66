"""What a plan says of runs to come, against counting one by one."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import plan
from pipeline.data.batches import image_batches
from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.params_file import parse, plain, read
from pipeline.plan import Counts
from pipeline.records import RunId, runs_of, write_json
from tests.digits import write_digits
from tests.recipes.test_contract import METHODS
from tests.test_params import CLASSIFIES, VERIFICATION, changed

COUNTS = Counts(images=500, training=300, classes=30, pairs={}, listed=0)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def params_of(text=VERIFICATION, *changes) -> Params:
    Path("params.yaml").write_text(changed(text, *changes), encoding="utf-8")
    source = read("params.yaml")
    return parse(Params, plain(source.tree), source)


def matched(text, number) -> Params:
    """The same parameters with a matched budget."""
    params = params_of(text)
    compare = params.compare.model_copy(update={"budget": "matched"})
    training = params.training.model_copy(update={"passes": number})
    return params.model_copy(update={"compare": compare, "training": training})


def passes(params, method, counts=COUNTS, shots=4, seed=0):
    return plan.image_passes(params, RunId(method, shots, seed), counts)


def different_images(images, pairs, batch_size, seed):
    """The different images of each batch in one epoch of random pairs, counted."""
    ends = np.random.default_rng(seed).integers(images, size=(pairs, 2))
    generator = torch.Generator().manual_seed(seed)
    batches = image_batches(pairs, batch_size, generator)
    return sum(len(set(ends[batch].flatten().tolist())) for batch in batches)


@pytest.mark.parametrize("batch_size", [8, 64, 500])
def test_a_pass_of_pairs_is_the_different_images_of_each_batch(batch_size):
    batch = ("batch_size: 8", f"batch_size: {batch_size}")
    params = params_of(VERIFICATION, batch, ("{turns_as_classes: 4}", "{}"))
    counted = np.mean([different_images(120, 480, batch_size, seed) for seed in range(20)])
    assert passes(params, "siamese") == pytest.approx(5 * counted, rel=0.02)


def test_turned_images_and_their_pairs_count_as_well():
    counted = np.mean([different_images(4 * 120, 4 * 480, 8, seed) for seed in range(20)])
    assert passes(params_of(), "siamese") == pytest.approx(5 * counted, rel=0.02)


def test_pairs_are_those_listed_or_made_and_else_drawn():
    params = params_of(VERIFICATION, ("{turns_as_classes: 4}", "{}"))
    listed = Counts(500, 300, 30, {}, listed=50)
    made = Counts(500, 300, 30, {"shots-4/seed-0": 90}, listed=50)
    for counts, seed, pairs in ((COUNTS, 0, 480), (listed, 0, 50), (made, 0, 90), (made, 1, 50)):
        counted = np.mean([different_images(120, pairs, 8, seed) for seed in range(20)])
        found = passes(params, "siamese", counts, seed=seed)
        assert found == pytest.approx(5 * counted, rel=0.02)


def test_a_head_on_pairs_takes_each_image_once_unless_it_is_augmented():
    params = params_of(VERIFICATION, ("{turns_as_classes: 4}", "{}"))
    assert passes(params, "breakdown") == 2 * 120 + 120
    assert passes(params_of(), "breakdown") == 4 * (2 * 120 + 120)
    kept = params_of(VERIFICATION, ("epochs: 2, lr", "keep: 2, epochs: 2, lr"))
    assert passes(kept, "breakdown") == 4 * (2 * 120 + 2 * 120)
    augmented = params_of(VERIFICATION, ("{turns_as_classes: 4}", "{flip: true}"))
    counted = np.mean([different_images(120, 480, 8, seed) for seed in range(20)])
    found = passes(augmented, "breakdown")
    assert found == pytest.approx(2 * 120 + 3 * counted, rel=0.02)


def test_features_take_each_image_once():
    assert passes(params_of(), "features") == 4 * 120
    assert passes(params_of(), "features", shots="all") == 4 * 300
    assert passes(params_of(), "features", shots=20) == 4 * 300  # no class has as many


def test_a_classifier_takes_each_image_once_an_epoch():
    assert passes(params_of(CLASSIFIES), "classifier") == 5 * 120
    assert passes(params_of(CLASSIFIES), "classifier", shots="all") == 5 * 300


def test_a_matched_budget_is_the_passes_of_every_classifier():
    assert passes(matched(CLASSIFIES, 20), "classifier") == 20 * 120
    assert passes(matched(CLASSIFIES, 20), "classifier", shots="all") == 20 * 300


@pytest.mark.parametrize(
    ("shots", "of_epoch", "epochs"), [(4, 32, (4, 2)), (10, 64, (5, 2)), ("all", 48, (6, 2))]
)
def test_batches_by_class_are_planned_as_they_are_drawn(shots, of_epoch, epochs):
    """As in tests/recipes/test_contract.py, where such epochs are trained."""
    block = METHODS["breakdown_supcon"]
    base = matched(CLASSIFIES, 13)
    training = base.training.model_copy(update={"batch_size": 16})
    params = base.model_copy(update={"methods": {"supcon": block}, "training": training})
    counts = Counts(images=100, training=40 if shots == "all" else 60, classes=5, pairs={})
    images = {4: 20, 10: 50, "all": 40}[shots]
    recipe = plan.recipe_of(params, RunId("supcon", shots, 0), counts)
    assert (recipe.encoder.epochs, recipe.head.epochs) == epochs
    expected = epochs[0] * of_epoch + 3 * epochs[1] * images
    assert passes(params, "supcon", counts, shots) == expected
    own = params.model_copy(update={"compare": params_of(CLASSIFIES).compare})
    assert passes(own, "supcon", counts, shots) == 60 * of_epoch + 3 * 60 * images


def test_a_plan_with_batches_of_one_class_is_one_line():
    base = matched(CLASSIFIES, 13)
    training = base.training.model_copy(update={"batch_size": 6})
    methods = {"supcon": METHODS["breakdown_supcon"]}
    params = base.model_copy(update={"methods": methods, "training": training})
    problem = r"^params.yaml: methods.supcon.encoder.per_class: 4 of a class .* use at most 3,"
    with pytest.raises(InputError, match=problem):
        plan.recipe_of(params, RunId("supcon", 4, 0), COUNTS)


def test_a_matched_budget_is_shared_out_over_epochs_of_pairs():
    params = matched(VERIFICATION, 80)
    counted = np.mean([different_images(4 * 120, 4 * 480, 8, seed) for seed in range(20)])
    one = counted / (4 * 120)  # passes of an epoch of pairs
    run = RunId("siamese", 4, 0)
    siamese = plan.recipe_of(params, run, COUNTS)
    assert siamese.epochs == round(80 / one) != 5
    assert passes(params, "siamese") == pytest.approx(siamese.epochs * counted, rel=0.02)
    breakdown = plan.recipe_of(params, RunId("breakdown", 4, 0), COUNTS)
    assert (breakdown.encoder.epochs, breakdown.head.epochs) == (40, round(40 / one))
    assert passes(params, "breakdown") == 4 * (40 * 120 + 120)  # encodings are computed once
    assert passes(params, "features") == 4 * 120


def test_before_prepare_the_raw_folder_is_counted():
    write_digits(Path("data/target"), list(range(10)), 6)
    drawn = params_of(VERIFICATION, ("    val: 0.2", "    val: 0.2\n    test: 0.3"))
    assert plan.count(drawn) == Counts(60, 30, 5, {}, 0)
    same_classes = params_of(CLASSIFIES, ("    val: 0.2", "    val: 0.2\n    test: 0.3"))
    assert plan.count(same_classes) == Counts(60, 30, 10, {}, 0)


def test_listed_pairs_are_counted_in_the_raw_folder():
    write_digits(Path("digits"), list(range(8)), 3)
    for path in sorted(Path("digits").rglob("*.png")):
        name = f"digit{path.parent.name}"
        copy = Path("data/target", name, f"{name}_{int(path.stem) + 1:04}.png")
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, copy)
    for split, first in (("train", 0), ("test", 4)):
        lines = [
            f"digit{d}\t{i}\t{j}" for d in range(first, first + 4) for i, j in ((1, 2), (2, 3))
        ]
        lines += [f"digit{d}\t1\tdigit{d + 1}\t1" for d in (first, first + 2)]
        Path(f"data/target/pairs_{split}.txt").write_text("\n".join(lines))
    params = params_of(VERIFICATION, ("layout: folders", "layout: pairs"))
    # a fifth of the pairs is left for validation
    assert plan.count(params) == Counts(24, round(0.8 * 12), round(0.8 * 4), {}, round(0.8 * 10))


def test_what_prepare_counted_is_taken_if_it_is_of_the_task():
    write_digits(Path("data/target"), list(range(10)), 6)
    lists = {"shots-4/seed-0": {"same": 3, "different": 4}, "val": {"same": 50, "different": 50}}
    summary = {
        "images": 100,
        "classes": 20,
        "splits": {"train": {"images": 50, "classes": 10}},
        "pairs": lists,
    }
    write_json("prepared/summary.json", summary)
    assert plan.count(params_of()) == Counts(100, 50, 10, {"shots-4/seed-0": 7}, 0)
    listed = params_of(VERIFICATION, ("layout: folders", "layout: pairs"))
    assert plan.count(listed) == Counts(100, 50, 10, {"shots-4/seed-0": 7}, 7)
    assert plan.count(params_of(CLASSIFIES)).images == 60
    summary["splits"] = {"train": {"images": 50, "by_class": {"a": 50}}}
    write_json("prepared/summary.json", summary)
    assert plan.count(params_of(CLASSIFIES)) == Counts(100, 50, 20, {"shots-4/seed-0": 7}, 0)
    assert plan.count(params_of()).images == 60


@pytest.mark.parametrize("text", [VERIFICATION, CLASSIFIES], ids=["verification", "classification"])
def test_the_plan_names_runs_passes_time_and_disk(text, monkeypatch):
    write_digits(Path("data/target"), list(range(10)), 6)
    params = params_of(text)
    runs = runs_of(params.compare)
    monkeypatch.setattr(plan, "stale_runs", lambda params: runs)
    found = plan.describe(params)
    counts = plan.count(params)
    expected = sum(plan.image_passes(params, run, counts) for run in runs)
    assert f"{len(runs)} of them are to be trained on cpu: about {expected:,} image passes" in found
    assert " seconds, " in found and found.endswith(" MB of disk")
    monkeypatch.setattr(plan, "stale_runs", lambda params: [])
    assert plan.describe(params).endswith("none of them is to be trained")


def test_the_plan_names_the_epochs_of_a_matched_budget(monkeypatch):
    write_digits(Path("data/target"), list(range(10)), 6)
    params = matched(VERIFICATION, 40)
    monkeypatch.setattr(plan, "stale_runs", lambda params: runs_of(params.compare))
    counts = plan.count(params)
    epochs = {
        method: plan.recipe_of(params, RunId(method, 4, 0), counts).epochs_in_all()
        for method in ("breakdown", "siamese")
    }
    assert (
        f"matched to 40 passes; epochs in all: breakdown {epochs['breakdown']}, siamese "
        f"{epochs['siamese']}, features as it is, without epochs\n"
    ) in plan.describe(params)
    assert "matched" not in plan.describe(params_of())


def test_graphs_without_cuda_are_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    params = params_of(VERIFICATION, ("threads: 1", "threads: 1\n  cuda_graphs: true"))
    with pytest.raises(InputError, match=r"runtime.cuda_graphs: needs a CUDA device"):
        plan._measure(params)


def test_a_matched_budget_without_passes_is_no_plan(monkeypatch):
    monkeypatch.setattr(plan, "stale_runs", lambda params: [])
    with pytest.raises(InputError, match=r"^params.yaml: training.passes: is null"):
        plan.describe(matched(VERIFICATION, None))


@pytest.mark.parametrize(("at_a_time", "told"), [(None, 31), (2, 15), (4, 8), (100, 5)])
def test_runs_at_a_time_take_as_much_less_time(at_a_time, told, monkeypatch):
    """1800 s of training and 12 stages of 5 s, or 1 s where imports are done; 6 runs, 8 cores."""
    params = params_of(CLASSIFIES)
    runs = [RunId("classifier", 4, seed) for seed in range(6)]
    monkeypatch.setattr(plan, "stale_runs", lambda params: runs)
    monkeypatch.setattr(plan, "count", lambda params: COUNTS)
    monkeypatch.setattr(plan, "image_passes", lambda params, run, counts: 300)
    monkeypatch.setattr(plan, "_measure", lambda params: (1.0, 1.0, "cpu"))
    monkeypatch.setattr(plan, "cores", lambda: 8)
    assert params.runtime.threads == 1
    assert f"on cpu: about 1,800 image passes at most, about {told} minutes" in plan.describe(
        params, at_a_time
    )


@pytest.mark.parametrize("given", [["--jobs"], ["2"], ["--jobs", "2", "3"]])
def test_a_plan_takes_no_other_arguments(given, monkeypatch):
    monkeypatch.setattr("sys.argv", ["plan", *given])
    with pytest.raises(InputError, match=r"^usage: python -m pipeline\.plan"):
        plan.main()
