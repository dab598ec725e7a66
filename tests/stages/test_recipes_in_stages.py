"""Every recipe through the stages: its record, history, model file, and the same bytes again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pipeline import check, recipes
from pipeline.params import Params
from pipeline.params_file import parse, plain, read
from pipeline.records import RunId, runs_of
from pipeline.stages.encoder import encoder
from pipeline.stages.head import head
from pipeline.stages.test import test as predict_test_split
from pipeline.tasks.classification.answers import classify
from tests.digits import write_digits
from tests.test_stages import ROOT, contents, run_all
from tests.training_runs import train_and_test

CONFIG = ROOT / "configs/all_methods.yaml"
METHODS = [
    "breakdown", "breakdown_parts", "breakdown_finetune", "finetune", "layerwise", "joint",
    "retrained_head", "features_svm", "features_mlp", "scratch",
]  # fmt: skip
VERIFIES = {"siamese"}  # alone; tests/recipes/test_verification_contract.py
FOLDERS = ("prepared", "weights", "runs", "predictions", "reports")
MADE = ("timing.json", "costs.csv", "index.html", ".lock")


def shortened(block: dict) -> dict:
    """A method with two epochs a phase."""
    parts = {key: shortened(part) for key, part in block.items() if isinstance(part, dict)}
    return block | parts | ({"epochs": 2} if "epochs" in block else {})


def small_params(**encoder_settings) -> Params:
    """One method of every recipe; ``breakdown`` keeps two encoders and has ``encoder_settings``."""
    source = read(CONFIG)
    tree = plain(source.tree)
    tree["compare"] |= {
        "breakdowns": [name for name in METHODS if name.startswith("breakdown")],
        "baselines": [name for name in METHODS if not name.startswith("breakdown")],
        "shots": [4],
        "seeds": [0],
    }
    tree["weights"]["source"]["epochs"] = 2
    tree["tracking"]["live_after"] = None
    tree["methods"] = {name: shortened(tree["methods"][name]) for name in METHODS}
    tree["methods"]["breakdown"]["encoder"] |= {"epochs": 3, "keep": 2} | encoder_settings
    return parse(Params, tree, source)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project after one whole run of all recipes; tests that write work on a copy."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "pretrained").mkdir()
        shutil.copy(CONFIG, folder / "params.yaml")
        write_digits(folder / "data/target", [5, 6, 7], 20)
        write_digits(folder / "data/source", [0, 1, 2], 15)
        run_all(small_params())
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


def test_every_recipe_is_here():
    params = small_params()
    assert {block["recipe"] for block in params.methods.values()} == set(recipes.names()) - VERIFIES


@pytest.mark.parametrize("method", METHODS)
def test_record_history_and_timing_agree(project, method):
    run = RunId(method, 4, 0)
    record = record_of(run)
    history = pd.read_csv(run.folder / "history.csv")
    timing = json.loads((run.folder / "timing.json").read_text())["phases"]
    names = [phase["phase"] for phase in record["phases"]]
    assert record["status"] == "finished" and len(set(names)) == len(names)
    assert list(dict.fromkeys(history["phase"])) == names
    for phase in record["phases"]:
        rows = history[history["phase"] == phase["phase"]]
        assert len(rows) == phase["epochs"]
        chosen = rows[rows["epoch"] == phase["chosen_epoch"]].iloc[0]
        assert chosen["val/loss"] == pytest.approx(phase["val/loss"])
        assert chosen["val/loss"] == rows["val/loss"].min()
    seen = record["metrics"]["cost/images_seen"]
    assert seen == sum(phase["images_seen"] for phase in record["phases"])
    assert (
        history["images_seen"].is_monotonic_increasing and history["images_seen"].iloc[-1] == seen
    )
    own = names[1:] if method.startswith("breakdown_fin") or method == "breakdown" else names
    own = [name for name in own if not name.startswith("encoder")]
    assert [phase["phase"] for phase in timing] == own


def test_phases_have_their_names(project):
    found = {
        method: [phase["phase"] for phase in record_of(RunId(method, 4, 0))["phases"]]
        for method in METHODS
    }
    assert found == {
        "breakdown": ["encoder", "head_1", "head_2"],
        "breakdown_parts": ["encoder_1", "encoder_2", "head"],
        "breakdown_finetune": ["encoder", "head", "release"],
        "finetune": ["end_to_end"],
        "layerwise": ["round_1", "round_2", "round_3", "round_4"],
        "joint": ["joint"],
        "retrained_head": ["end_to_end", "head"],
        "features_svm": ["solve"],
        "features_mlp": ["head"],
        "scratch": ["end_to_end"],
    }


def test_costs_results_and_page_have_every_method(project):
    costs = pd.read_csv("reports/costs.csv")
    for method in METHODS:
        record = record_of(RunId(method, 4, 0))
        phases = costs[(costs["method"] == method) & (costs["phase"] != "test")]
        assert phases["phase"].tolist() == [phase["phase"] for phase in record["phases"]]
        assert phases["images_seen"].sum() == record["metrics"]["cost/images_seen"]
    results = pd.read_csv("reports/results.csv")
    accuracy = results[results["metric"] == "test/accuracy"].set_index("method")["value"]
    assert set(accuracy.index) == set(METHODS)
    for method in METHODS:
        said = pd.read_csv(RunId(method, 4, 0).predictions)
        assert accuracy[method] == pytest.approx((said["label"] == said["predicted"]).mean())
    page = Path("reports/index.html").read_text()
    assert all(method in page for method in METHODS)


def test_validation_picks_one_of_the_kept_encoders(project):
    run = RunId("breakdown", 4, 0)
    record = record_of(run)
    first, *heads = record["phases"]
    assert len(first["kept_epochs"]) == len(heads) == 2
    best = min(range(2), key=lambda number: heads[number]["val/loss"])
    assert record["kept_encoder"] == {"rank": best + 1, "epoch": first["kept_epochs"][best]}
    assert record["metrics"]["best/val_accuracy"] == heads[best]["val/accuracy"]
    stored = load_file(run.folder / "encoder/model.safetensors")
    whole = load_file(run.folder / "model.safetensors")
    prefixes = ["", "kept.2."]
    for number, prefix in enumerate(prefixes):
        same = all(torch.equal(stored[prefix + key], whole[key]) for key in stored if key in whole)
        assert same == (number == best)


@pytest.mark.parametrize("rule", ["val_loss", "val_accuracy"])
def test_the_rule_picks_the_encoder_and_heads_start_alike(copied, rule, monkeypatch):
    """Each head starts from the same values, whichever was trained before it."""
    from pipeline.training.run import Run

    run, starts = RunId("breakdown", 4, 0), []
    untold = Run.classification

    def told(self, name, module, *given, **named):
        starts.append({key: tensor.clone() for key, tensor in module.state_dict().items()})
        return untold(self, name, module, *given, **named)

    monkeypatch.setattr(Run, "classification", told)
    params = small_params()
    training = params.training.model_copy(update={"rule": rule})
    head(params.model_copy(update={"training": training}), run)
    record = record_of(run)
    heads = record["phases"][1:]
    metric, sign = ("val/loss", 1) if rule == "val_loss" else ("val/accuracy", -1)
    best = min(range(2), key=lambda number: sign * heads[number][metric])
    assert record["kept_encoder"]["rank"] == best + 1
    assert len(starts) == 2 and starts[0].keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(starts[0][key], starts[1][key]) for key in starts[0])


def test_the_second_head_is_the_one_it_would_be_alone(copied):
    """A head on the second encoder is as if no other had been trained before it."""
    run = RunId("breakdown", 4, 0)
    before = {phase["phase"]: phase for phase in record_of(run)["phases"]}
    path = run.folder / "encoder/model.safetensors"
    from pipeline.models import weights

    tensors = load_file(path)
    second = {key.removeprefix("kept.2."): of for key, of in tensors.items() if "kept.2." in key}
    weights.save(path, second)
    head(small_params(), run)
    alone = record_of(run)["phases"][-1]
    assert alone["phase"] == "head" and "kept_encoder" not in record_of(run)
    assert alone["val/loss"] == before["head_2"]["val/loss"]


@pytest.mark.parametrize("method", METHODS)
def test_the_model_file_predicts_what_was_tested(project, method):
    params = small_params()
    run = RunId(method, 4, 0)
    table = pd.read_csv("prepared/images.csv").set_index("row")
    rows = pd.read_csv("prepared/splits/test.csv")["row"][:6]
    paths = [Path("data/target") / table["image"][row] for row in rows]
    said = pd.read_csv(run.predictions)[["p_5", "p_6", "p_7"]].to_numpy()[:6]
    found = np.array([p for _, p in classify(params, run, paths)])
    assert np.allclose(found, said, atol=1e-6)


def test_a_diverged_encoder_with_keep_is_a_result(copied, capsys):
    params = small_params(lr=1e18)
    run = RunId("breakdown", 4, 0)
    encoder(params, run)
    head(params, run)
    predict_test_split(params, run)
    record = record_of(run)
    assert record["status"] == "diverged" and record["reason"].startswith("encoder: ")
    assert "kept_encoder" not in record and "best/val_accuracy" not in record["metrics"]
    assert [phase["phase"] for phase in record["phases"]] == ["encoder", "head"]
    assert all(
        tensor.isfinite().all() for tensor in load_file(run.folder / "model.safetensors").values()
    )
    assert "diverged" in capsys.readouterr().err


def test_a_forced_rerun_gives_the_same_bytes(copied):
    """Another order of the runs, and no run left to read."""
    before = contents(*FOLDERS, without=MADE)
    shutil.rmtree("runs")
    shutil.rmtree("predictions")
    params = small_params()
    train_and_test(params, list(reversed(runs_of(params.compare))))
    after = contents("runs", "predictions", without=MADE)
    assert after.keys() == {name for name in before if name.startswith(("runs", "predictions"))}
    assert [name for name in after if before[name] != after[name]] == []


def test_the_config_s_models_are_right(project):
    check.check_models(small_params(), CONFIG)
