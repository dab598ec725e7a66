"""The stages called one after the other in this process, on tiny real images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import check, predict, prune, recipes, workspace
from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.params_file import parse, plain, read
from pipeline.records import TIMED, RunId, runs_of
from pipeline.stages.baseline import baseline
from pipeline.stages.encoder import encoder
from pipeline.stages.evaluate import evaluate
from pipeline.stages.head import head
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from pipeline.stages.test import test as predict_test_split
from pipeline.stages.weights import make_weights
from pipeline.tasks.classification.answers import classify
from tests.digits import write_digits
from tests.training_runs import train_and_test

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / "configs/digits.yaml"
EPOCHS = 3


def tiny_params(**changed) -> Params:
    """The default params.yaml at a small size; ``changed`` by dotted key, ``__`` for the dot."""
    source = read(DEFAULT)
    tree = plain(source.tree)
    tree["compare"] |= {"shots": [4], "seeds": [0]}
    tree["weights"]["source"]["epochs"] = EPOCHS
    tree["tracking"]["live_after"] = None
    for block in tree["methods"].values():
        for part in (block, block.get("encoder", {}), block.get("head", {})):
            if "epochs" in part:
                part["epochs"] = EPOCHS
    for key, value in changed.items():
        *path, last = key.split("__")
        place = tree
        for name in path:
            place = place[name]
        place[last] = value
    return parse(Params, tree, source)


def run_all(params: Params) -> None:
    images(params)
    prepare(params)
    make_weights(params)
    train_and_test(params)
    evaluate(params)


def contents(*folders: str, without=(*TIMED, ".lock")):
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.endswith(without)
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project folder after one whole run; tests work on copies."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "pretrained").mkdir()
        shutil.copy(DEFAULT, folder / "params.yaml")
        write_digits(folder / "data/target", [5, 6, 7], 20)
        write_digits(folder / "data/source", [0, 1, 2], 15)
        run_all(tiny_params())
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    copied = tmp_path / "copy"
    shutil.copytree(made, copied)
    monkeypatch.chdir(copied)
    return copied


def test_the_files_have_the_forms_that_others_read(project):
    pixels = np.load("prepared/images.npy")
    table = pd.read_csv("prepared/images.csv")
    assert pixels.dtype == np.uint8 and pixels.shape == (60, 1, 8, 8)
    assert list(table) == ["row", "image", "label", "class", "split", "group"]
    assert table["row"].tolist() == list(range(60))
    for name in ("val", "test"):
        assert list(pd.read_csv(f"prepared/splits/{name}.csv")) == ["row", "label"]
    train = pd.read_csv("prepared/train/shots-4/seed-0.csv")
    assert list(train) == ["row", "label"] and train["label"].value_counts().tolist() == [4, 4, 4]
    pairs = pd.read_csv("prepared/pairs/shots-4/seed-0.csv")
    assert list(pairs) == ["left", "right", "same"]
    assert set(pairs["left"]) | set(pairs["right"]) == set(train["row"])
    for run in runs_of(tiny_params().compare):
        record = json.loads((run.folder / "record.json").read_text())
        assert record["status"] == "finished" and record["classes"] == 3
        assert not {"time", "host", "path", "commit"} & record.keys()
        history = pd.read_csv(run.folder / "history.csv")
        assert list(history)[:3] == ["phase", "epoch", "images_seen"]
        assert history["images_seen"].is_monotonic_increasing
        assert (
            history["images_seen"].iloc[-1]
            == record["metrics"]["cost/images_seen"]
            == 72 // 2 * len(record["phases"])
        )
        timing = json.loads((run.folder / "timing.json").read_text())
        assert set(timing["phases"][0]) == {
            "phase", "images_seen", "seconds", "images_per_second", "peak_memory_mb",
        }  # fmt: skip
        said = pd.read_csv(run.predictions)
        assert list(said) == ["image", "label", "predicted", "p_5", "p_6", "p_7"]
        assert np.allclose(said[["p_5", "p_6", "p_7"]].sum(axis=1), 1, atol=1e-12)
        assert (said[["p_5", "p_6", "p_7"]].to_numpy().argmax(axis=1) == said["predicted"]).all()


def test_splits_share_no_image(project):
    table = pd.read_csv("prepared/images.csv")
    held = {
        name: set(pd.read_csv(f"prepared/splits/{name}.csv")["row"]) for name in ("val", "test")
    }
    train = set(pd.read_csv("prepared/train/shots-4/seed-0.csv")["row"])
    assert not held["val"] & held["test"] and not train & (held["val"] | held["test"])
    assert len(table) == 60


def test_results_are_those_of_the_predictions_counted_by_hand(project):
    results = pd.read_csv("reports/results.csv")
    for run in runs_of(tiny_params().compare):
        said = pd.read_csv(run.predictions)
        right = sum(a == b for a, b in zip(said["label"], said["predicted"], strict=True))
        mine = results.query("method == @run.method and metric == 'test/accuracy'")["value"].item()
        assert mine == pytest.approx(right / len(said), abs=1e-12)


def test_several_shots_and_all_of_them(project):
    params = tiny_params(compare__shots=["all", 2], compare__seeds=[3, 1])
    run_all(params)
    metrics = json.loads(Path("reports/metrics.json").read_text())
    assert metrics["scratch"].keys() == {"all", "2"}
    assert metrics["scratch"]["2"]["test/accuracy"]["n"] == 2
    assert len(pd.read_csv("reports/comparison.csv")) == 2 * 2 * (4 + 3)  # and a recall a class
    assert len(pd.read_csv("reports/accuracy.csv")) == 3 * 2 * 2
    assert Path("reports/figures/learning-curve.svg").exists()


def test_the_model_file_is_the_network_that_predicted(project):
    params = tiny_params()
    for run in runs_of(params.compare):
        table = pd.read_csv("prepared/images.csv").set_index("row")
        rows = pd.read_csv("prepared/splits/test.csv")["row"]
        paths = [Path("data/target") / table["image"][row] for row in rows]
        said = pd.read_csv(run.predictions)[["p_5", "p_6", "p_7"]].to_numpy()
        found = np.array([p for _, p in classify(params, run, paths)])
        assert np.allclose(found, said, atol=1e-6)


def test_a_forced_rerun_gives_the_same_bytes_in_another_order(project):
    before = contents("prepared", "weights", "runs", "predictions", "reports")
    for folder in ("prepared", "weights", "runs", "predictions", "reports"):
        shutil.rmtree(folder)
    params = tiny_params()
    images(params)
    prepare(params)
    make_weights(params)
    train_and_test(params, list(reversed(runs_of(params.compare))))
    evaluate(params)
    after = contents("prepared", "weights", "runs", "predictions", "reports")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_more_seeds_and_shots_change_no_list_that_was_there(project):
    before = contents("prepared")
    prepare(tiny_params(compare__seeds=[7, 0], compare__shots=[2, 4, "all"]))
    after = contents("prepared", without=("summary.json",))
    assert all(after[name] == before[name] for name in before if not name.endswith("summary.json"))
    fewer, more = (Path(f"prepared/train/shots-{n}/seed-0.csv").read_text() for n in (2, 4))
    assert more.startswith(fewer)
    assert Path("prepared/train/shots-all/seed-7.csv").exists()


def test_a_removed_seed_leaves_no_list(project):
    prepare(tiny_params(compare__seeds=[5]))
    assert [path.name for path in Path("prepared/train/shots-4").iterdir()] == ["seed-5.csv"]


def test_leftovers_are_not_compared_and_prune_clears_them(project):
    before = contents("reports")
    stranger = Path("runs/other/shots-4/seed-0")
    shutil.copytree(RunId("finetune", 4, 0).folder, stranger)
    others = [Path(f"predictions/other-n4-s0.{kind}") for kind in ("csv", "png", "timing.json")]
    for path in others:
        shutil.copy(str(path).replace("other", "finetune"), path)
    evaluate(tiny_params())
    assert contents("reports") == before
    removed = prune.prune(tiny_params())
    assert removed == [*others, stranger]
    assert RunId("finetune", 4, 0).examples.exists()
    assert not Path("runs/other").exists() and RunId("finetune", 4, 0).folder.exists()


def test_the_frozen_encoder_is_the_one_that_was_trained(project):
    from safetensors.torch import load_file

    run = RunId("breakdown", 4, 0)
    first = load_file(run.folder / "encoder/model.safetensors")
    whole = load_file(run.folder / "model.safetensors")
    assert first.keys() < whole.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in first.items())


def test_a_changed_head_needs_no_new_encoder(project):
    run = RunId("breakdown", 4, 0)
    before = (run.folder / "encoder/model.safetensors").read_bytes()
    model = (run.folder / "model.safetensors").read_bytes()
    params = tiny_params(methods__breakdown__head__lr=0.001)
    head(params, run)
    assert (run.folder / "encoder/model.safetensors").read_bytes() == before
    assert (run.folder / "model.safetensors").read_bytes() != model


def test_start_weights_are_those_of_the_source_but_for_the_last_layer(project):
    from safetensors.torch import load_file

    params = tiny_params()
    run = RunId("finetune", 4, 0)
    start = load_file(workspace.START)
    made, inputs = workspace.load_run(params, run, recipes.of(params.methods["finetune"]), False)
    network = made.network.state_dict()
    assert all(torch.equal(network[name], tensor) for name, tensor in start.items())
    assert network.keys() - start.keys() == made.classifier
    scratch, _ = workspace.load_run(params, run, recipes.of(params.methods["scratch"]), False)
    assert all(
        torch.equal(scratch.network.state_dict()[name], network[name]) for name in made.classifier
    )
    assert "start" in inputs


def test_a_diverged_run_is_a_result(project, capsys):
    params = tiny_params(methods__finetune__lr=1e18)
    run = RunId("finetune", 4, 0)
    baseline(params, run)
    predict_test_split(params, run)
    evaluate(params)
    record = json.loads((run.folder / "record.json").read_text())
    assert record["status"] == "diverged" and "epoch 1" in record["reason"]
    assert "diverged" in capsys.readouterr().err
    results = pd.read_csv("reports/results.csv").query("metric == 'diverged'")
    assert results.set_index("method")["value"].to_dict() == {
        "breakdown": 0, "finetune": 1, "scratch": 0,
    }  # fmt: skip
    assert "NaN" not in Path("reports/metrics.json").read_text()
    assert "diverged" in Path("reports/index.html").read_text()


def test_a_shuffled_control_has_shuffled_labels(project):
    """Those that are trained on and those that choose the epoch; never those of the test split."""
    truth = pd.read_csv("prepared/images.csv").set_index("row")["label"]
    before = Path("prepared/splits/test.csv").read_bytes()
    prepare(tiny_params(data__shuffle_labels=True, compare__shots=["all"]))
    for path in ("train/shots-all/seed-0.csv", "splits/val.csv"):
        listed = pd.read_csv(f"prepared/{path}")
        assert (listed["label"].to_numpy() == truth[listed["row"]].to_numpy()).mean() < 0.7
        assert listed["label"].value_counts().nunique() == 1
    assert Path("prepared/splits/test.csv").read_bytes() == before


def test_a_breakdown_with_a_margin_a_class(project):
    params = tiny_params(methods__breakdown__encoder__loss__margin_same=[0.1, 0.2, 0.3])
    encoder(params, RunId("breakdown", 4, 0))
    with pytest.raises(InputError, match="margin_same: has 2 values for 3 classes"):
        encoder(
            tiny_params(methods__breakdown__encoder__loss__margin_same=[0.1, 0.2]),
            RunId("breakdown", 4, 0),
        )


def test_no_start_is_none_and_a_start_that_is_not_there_is_an_error(project):
    make_weights(tiny_params(weights__from="none"))
    from safetensors.torch import load_file

    assert load_file(workspace.START) == {}
    Path("pretrained/wrong.pth").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"wrong\.pth"):
        make_weights(tiny_params(weights__from="file", weights__file="pretrained/wrong.pth"))


def test_weights_of_another_architecture_are_named(project):
    torch.save({"fc.weight": torch.zeros(3, 3)}, "pretrained/other.pth")
    with pytest.raises(InputError, match="another architecture"):
        make_weights(tiny_params(weights__from="file", weights__file="pretrained/other.pth"))


def test_shots_larger_than_a_class(project):
    with pytest.raises(InputError, match="50 images a class are asked for"):
        prepare(tiny_params(compare__shots=[50]))


def test_too_few_validation_images_for_pairs(project):
    with pytest.raises(InputError, match="no class has two validation images"):
        prepare(tiny_params(data__val_per_class=1))


def test_a_torchvision_network_on_grey_images(project):
    params = tiny_params(
        model__architecture="squeezenet1_1",
        weights__from="none",
        data__image_size=32,
        methods__breakdown__encoder__latent="features.12",
        methods__breakdown__encoder__epochs=1,
        methods__breakdown__head__epochs=1,
        compare__baselines=[],
        compare__reference="breakdown",
        diagnostics__latent=None,
    )
    images(params)
    prepare(params)
    make_weights(params)
    check.check_models(params, DEFAULT)
    train_and_test(params)
    assert (RunId("breakdown", 4, 0).predictions).exists()


@pytest.mark.parametrize("shots", [None, "4"])
def test_predict_says_class_and_probability(project, capsys, monkeypatch, shots):
    monkeypatch.setattr(check, "load", tiny_params)
    paths = [str(path) for path in sorted(Path("data/target/6").iterdir())[:3]]
    extra = ["--shots", shots] if shots else []
    monkeypatch.setattr("sys.argv", ["predict", "scratch", *paths, *extra])
    predict.main()
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == paths
    assert all(line[1] in "567" and 1 / 3 <= float(line[2]) <= 1 for line in lines)


def test_predict_names_what_it_cannot_do(project, monkeypatch):
    params = tiny_params()
    Path("note.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"note\.jpg"):
        classify(params, RunId("scratch", 4, 0), [Path("note.jpg")])
    with pytest.raises(InputError, match="there is no 'cnn'"):
        predict.find_run(params, "cnn", None, None)
    with pytest.raises(InputError, match="no such trained run"):
        predict.find_run(params, "scratch", "9", None)
