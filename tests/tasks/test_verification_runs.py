"""Runs of verification through the stages: what is loaded, recorded and said of the test split."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline import recipes, workspace
from pipeline.data.batches import read_list
from pipeline.models import architectures
from pipeline.params import Params
from pipeline.params_file import parse, plain, read
from pipeline.records import RunId, write_json
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from pipeline.stages.test import test as predict_test_split
from pipeline.stages.weights import make_weights
from pipeline.tasks.verification import runs, scoring
from pipeline.tasks.verification.views import views
from tests.digits import write_digits
from tests.training_runs import train, train_and_test

ROOT = Path(__file__).parents[2]
SET = "2_way_1_shot"
TURNS = 4
PHASE = {"epochs": 2, "lr": 0.05}
METHODS = {
    "siamese": {"recipe": "siamese", "latent": "embedding", "head": {"kind": "euclidean"}} | PHASE,
    "breakdown": {
        "recipe": "breakdown",
        "encoder": {"latent": "embedding", "keep": 2} | PHASE,
        "head": {"pairs": {"kind": "difference", "dropout": 0.2}} | PHASE,
    },
    "frozen": {
        "recipe": "features", "latent": "embedding", "head": {"kind": "distance"},
    },
}  # fmt: skip
RUNS = [RunId(method, "all", 0) for method in METHODS]


def params_of() -> Params:
    """A small project that verifies digits: five to train on, two to validate, three to test."""
    source = read(ROOT / "configs/digits.yaml")
    tree = plain(source.tree) | {"task": "verification", "methods": METHODS}
    tree["data"] |= {"source": None, "val_per_class": None}
    tree["pairs"] = {
        "per_image": 4, "positive_fraction": 0.5, "episodes": [{"ways": 2, "count": 6}],
    }  # fmt: skip
    tree["model"]["views"] = 7
    tree["weights"] = {"from": "none"}
    tree["compare"] = {
        "breakdowns": ["breakdown"], "baselines": ["siamese", "frozen"], "reference": "siamese",
        "shots": ["all"], "seeds": [0],
    }  # fmt: skip
    tree["training"] = {
        "batch_size": 16,
        "augmentation": {"rotation": 5.0, "elastic": 0.02, "turns_as_classes": TURNS},
    }
    tree["tracking"]["live_after"] = None
    return parse(Params, tree, source)


def trained_files(run: RunId) -> list[Path]:
    return [
        path
        for path in sorted(run.folder.rglob("*"))
        if path.suffix in (".safetensors", ".json", ".csv") and path.name != "timing.json"
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project after all its runs; tests that write work on a copy."""
    folder = tmp_path_factory.mktemp("verification")
    params = params_of()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_digits(folder / "data/target", list(range(10)), 6)
        images(params)
        prepare(params)
        make_weights(params)
        train_and_test(params)
    return folder


@pytest.fixture
def project(made, monkeypatch):
    """The project itself, to be read."""
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
    """A copy of the project, to be written to."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def record_of(run: RunId) -> dict:
    return json.loads((run.folder / "record.json").read_text())


def left_by_test(run: RunId) -> dict:
    """What the test stage left beside the answers."""
    return json.loads(run.diagnosis.read_text())


def trials(path):
    return pd.read_csv(path, keep_default_na=False)


def probability(run: RunId):
    """Of two rows of images.npy, by one pass a view of each image."""
    pixels = np.load("prepared/images.npy")
    network = recipes.trained(record_of(run), run.folder / "model.safetensors")

    def encoding(row):
        image = torch.from_numpy(pixels[row : row + 1])
        with torch.no_grad():
            found = [network.encode(architectures.normalise(v, "small")) for v in views(image, 7)]
        return sum(found) / 7

    @torch.no_grad()
    def of_pair(left, right):
        return float(network.head(encoding(left), encoding(right)).double().sigmoid())

    return of_pair


def answers(table, scores):
    """The class that each query of a table of episodes picks, a support image for each class."""
    truth = pd.read_csv("prepared/images.csv").set_index("row")["label"]
    of = {}
    for line, score in zip(table.itertuples(), scores, strict=True):
        of.setdefault((line.episode, line.left), []).append((score, line.right))
    return {
        key: (int(truth[key[1]]), int(truth[max(found)[1]]), sorted(found)[::-1])
        for key, found in of.items()
    }


def test_every_recipe_gets_turned_classes_and_true_pairs(project):
    params, run = params_of(), RUNS[0]
    table = pd.read_csv("prepared/images.csv").set_index("row")
    pixels = np.load("prepared/images.npy")
    for method in METHODS:
        recipe = recipes.of(METHODS[method])
        loaded, inputs = runs.load(params, run, recipe, pairs=False)
        rows, _ = read_list(run.train_list)
        assert len(loaded.train) == TURNS * len(rows) and loaded.classes == TURNS * 5
        assert sorted(loaded.train.labels.unique().tolist()) == list(range(TURNS * 5))
        for place in range(0, len(loaded.train), 7):
            turn, row = divmod(place, len(rows))
            expected = np.rot90(pixels[rows[row]], turn, axes=(1, 2))
            assert np.array_equal(loaded.train.pixels[place].numpy(), expected)
        labels = loaded.train.labels[loaded.pairs.left] == loaded.train.labels[loaded.pairs.right]
        assert labels.tolist() == (loaded.pairs.same == 1).tolist()
        val_rows, _ = read_list(workspace.VAL_LIST)
        ends = [
            table["class"][val_rows[of]] for of in (loaded.val_pairs.left, loaded.val_pairs.right)
        ]
        assert (ends[0].to_numpy() == ends[1].to_numpy()).tolist() == (
            loaded.val_pairs.same == 1
        ).tolist()
        assert inputs.keys() == {"train", "val", "images", "start", "trials", "val_trials"}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.method)
def test_the_threshold_is_the_best_of_the_validation_pairs(project, run):
    values, of_pair = left_by_test(run)["values"], probability(run)
    lists = ("prepared/trials/val.csv", "prepared/trials/val_episodes.csv")
    table = pd.concat([trials(path) for path in lists], ignore_index=True)
    table["score"] = [of_pair(*ends) for ends in zip(table["left"], table["right"], strict=True)]
    pairs = table[table["set"] == "pairs"]
    tried = [
        np.mean((pairs["score"] >= cut) == pairs["same"])
        for cut in [0, *(pairs["score"] + 1e-9), *(pairs["score"] - 1e-9)]
    ]
    accuracy = np.mean((pairs["score"] >= values["best/threshold"]) == pairs["same"])
    assert accuracy == pytest.approx(max(tried))
    assert values["best/val_accuracy"] == pytest.approx(accuracy)
    episodes = table[table["set"] == SET]
    right = [true == said for true, said, _ in answers(episodes, episodes["score"]).values()]
    assert len(right) == 12  # six episodes, a query of each class
    assert values[f"best/val_{SET}_accuracy"] == pytest.approx(np.mean(right))


def test_nothing_that_training_reads_or_leaves_goes_by_episodes_or_views(
    made, tmp_path, monkeypatch
):
    monkeypatch.chdir(made)
    params = params_of()
    pairs = params.pairs.model_copy(update={"episodes": []})
    model = params.model.model_copy(update={"views": 1})
    other = params.model_copy(update={"pairs": pairs, "model": model})
    shutil.copytree("prepared", tmp_path / "prepared")
    shutil.copytree("weights", tmp_path / "weights")
    before = {path: path.read_bytes() for run in RUNS for path in trained_files(run)}
    read = [*Path("prepared").rglob("train/**/*.csv"), *Path("prepared/trials").rglob("*.csv")]
    read = {path: path.read_bytes() for path in read if path.name != "val_episodes.csv"}
    monkeypatch.chdir(tmp_path)
    prepare(other)
    assert trials("prepared/trials/val_episodes.csv").empty
    assert {path: path.read_bytes() for path in read} == read and len(read) == 3
    for run in RUNS:
        train(other, run)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_the_threshold_is_chosen_before_the_test_split_is_read(copied, status):
    run, params = RUNS[0], params_of()
    before = left_by_test(run)["values"]
    write_json(run.folder / "record.json", record_of(run) | {"status": status})
    others = trials("prepared/splits/trials.csv").iloc[::-1]
    others["same"] = 1 - others["same"]
    others[others["set"] == "pairs"].to_csv("prepared/splits/trials.csv", index=False)
    predict_test_split(params, run)
    chosen = {key: of for key, of in left_by_test(run)["values"].items() if key.startswith("best/")}
    assert chosen["best/threshold"] == before["best/threshold"]
    if status == "finished":
        assert chosen == {key: before[key] for key in chosen} and len(chosen) == 3
    else:
        assert len(chosen) == 1  # what a diverged run reaches is no result
    Path("prepared/splits/test.csv").unlink()
    Path("prepared/splits/trials.csv").unlink()
    network = recipes.trained(record_of(run), run.folder / "model.safetensors")
    scorer = scoring.Scorer(network, "small", 7)
    again = scoring.validate(scorer, torch.device("cpu"), "resident")
    assert {key: again[key] for key in chosen} == chosen


def test_fewer_views_are_another_test_of_the_same_run(copied):
    run, params = RUNS[0], params_of()
    before, record = left_by_test(run), (run.folder / "record.json").read_bytes()
    model = params.model.model_copy(update={"views": 1})
    predict_test_split(params.model_copy(update={"model": model}), run)
    after = left_by_test(run)
    assert (run.folder / "record.json").read_bytes() == record
    assert before["asked"]["parameters"] == {"model": {"views": 7}}
    assert after["asked"]["parameters"] == {"model": {"views": 1}}
    assert before["asked"]["inputs"] == after["asked"]["inputs"]
    assert after["multiply_adds"] < before["multiply_adds"]
    assert after["values"]["best/threshold"] != before["values"]["best/threshold"]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.method)
def test_predictions_are_those_of_the_model_pair_by_pair(project, run):
    said, of_pair = trials(run.predictions), probability(run)
    threshold = left_by_test(run)["values"]["best/threshold"]
    assert list(said) == [
        "set", "episode", "left", "right", "left_class", "right_class", "label", "predicted",
        "score",
    ]  # fmt: skip
    table = trials("prepared/splits/trials.csv")
    images = pd.read_csv("prepared/images.csv", dtype=str).set_index("row")
    images.index = images.index.astype(int)
    scores = [of_pair(*ends) for ends in zip(table["left"], table["right"], strict=True)]
    is_pair = (table["set"] == "pairs").to_numpy()
    pairs, rows = table[is_pair], said[said["set"] == "pairs"]
    assert (rows["episode"] == "").all()
    for column in ("left", "right"):
        assert rows[column].tolist() == images["image"][pairs[column]].tolist()
        classes = rows[f"{column}_class"].astype(str).tolist()
        assert classes == images["class"][pairs[column]].tolist()
    assert rows["label"].tolist() == pairs["same"].tolist()
    assert rows["score"].tolist() == pytest.approx(np.array(scores)[is_pair].tolist(), abs=1e-5)
    assert rows["predicted"].tolist() == (rows["score"] >= threshold).astype(int).tolist()

    rows = said[said["set"] == SET]
    asked = answers(table[~is_pair], np.array(scores)[~is_pair])
    assert len(rows) == len(asked) == 12
    truth = images["class"]
    for row, ((episode, query), (_, _, found)) in zip(
        rows.itertuples(), asked.items(), strict=True
    ):
        score, picked = found[0]
        classes = [truth[right] for right in sorted(right for _, right in found)]
        assert str(row.episode) == str(episode)
        assert (row.left, row.right) == (images["image"][query], images["image"][picked])
        assert (str(row.left_class), str(row.right_class)) == (truth[query], truth[picked])
        assert row.label == classes.index(truth[query])
        assert row.predicted == classes.index(truth[picked])
        assert row.score == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.method)
def test_there_is_a_picture_of_examples(project, run):
    with Image.open(run.examples) as image:
        assert image.format == "PNG" and len(image.convert("L").getcolors()) > 10


def test_a_head_on_pairs_is_trained_on_each_kept_encoder(project):
    run = RunId("breakdown", "all", 0)
    record = record_of(run)
    assert [phase["phase"] for phase in record["phases"]] == ["encoder", "head_1", "head_2"]
    path = run.folder / "encoder" / "model.safetensors"
    left, stored = load_file(run.folder / "model.safetensors"), load_file(path)
    keys = {key.removeprefix("encoder.") for key in left if key.startswith("encoder.")}
    kept = workspace.kept_encoders(path, keys)[record["kept_encoder"]["rank"] - 1]
    assert len(stored) > len(keys)
    assert all(torch.equal(left[f"encoder.{key}"], kept[key]) for key in keys)
    losses = {phase["phase"]: phase["val/loss"] for phase in record["phases"]}
    best = min(("head_1", "head_2"), key=losses.__getitem__)
    assert record["kept_encoder"]["rank"] == int(best[-1])


def test_a_forced_rerun_gives_the_same_bytes(copied):
    files = [
        run.folder / name for run in RUNS for name in ("model.safetensors", "record.json",
                                                       "history.csv")
    ] + [path for run in RUNS for path in (run.predictions, run.examples)]  # fmt: skip
    before = [path.read_bytes() for path in files]
    shutil.rmtree("runs")
    shutil.rmtree("predictions")
    train_and_test(params_of(), RUNS[::-1])
    assert [path.read_bytes() for path in files] == before


def test_a_diverged_run_is_a_result(copied):
    params = params_of()
    blown = {name: block | {"lr": 3e37} for name, block in params.methods.items()}
    blown["breakdown"] |= {"encoder": blown["breakdown"]["encoder"] | {"lr": 3e37}}
    del blown["breakdown"]["lr"], blown["frozen"]
    params = params.model_copy(update={"methods": blown})
    for run in RUNS[:2]:
        train_and_test(params, [run])
        record = record_of(run)
        assert record["status"] == "diverged" and "not finite" not in record["reason"]
        assert "learning rate is likely too high" in record["reason"]
        assert list(record["metrics"]) == ["cost/images_seen"]
        values = left_by_test(run)["values"]
        assert 0 <= values["best/threshold"] <= 1 and "best/val_accuracy" not in values
        assert np.isfinite(trials(run.predictions)["score"]).all()
