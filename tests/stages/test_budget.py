"""The matched budget and the gradient norms, through the training stages to their files."""

import csv
import json
import shutil
from itertools import groupby
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.params_file import parse, plain, read
from pipeline.records import RunId
from pipeline.stages.baseline import baseline
from pipeline.stages.encoder import encoder
from pipeline.stages.head import head
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from pipeline.stages.weights import make_weights
from tests.digits import write_digits

CONFIG = Path(__file__).parents[2] / "configs/all_methods.yaml"
BREAKDOWNS = ["breakdown_supcon", "breakdown_finetune"]
BASELINES = ["finetune", "layerwise", "retrained_head", "features_mlp", "features_knn"]
IMAGES = 3 * 4
PASSES = 9
LAYERS = ["features.0", "features.4", "embedding", "classifier"]


def params_of(budget="matched", passes=PASSES, **methods) -> Params:
    """Some methods of the config, on a few digits; ``methods`` are changes of their blocks."""
    source = read(CONFIG)
    tree = plain(source.tree)
    tree["compare"] |= {
        "breakdowns": BREAKDOWNS, "baselines": BASELINES, "shots": [4], "seeds": [0],
        "budget": budget,
    }  # fmt: skip
    tree["training"] |= {"passes": passes, "batch_size": 8}
    tree["weights"] = {"from": "none", "file": "pretrained"}
    tree["tracking"]["live_after"] = None
    tree["methods"]["breakdown_supcon"]["encoder"] |= {"keep": 2, "per_class": 4}
    for method, block in methods.items():
        tree["methods"][method] = block
    return parse(Params, tree, source)


def train(params: Params, method: str) -> RunId:
    run = RunId(method, 4, 0)
    for stage in (encoder, head) if method in BREAKDOWNS else (baseline,):
        stage(params, run)
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project whose runs are all trained to a matched budget."""
    folder = tmp_path_factory.mktemp("budget")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copy(CONFIG, folder / "params.yaml")
        write_digits(folder / "data/target", [5, 6, 7], 20)
        write_digits(folder / "data/source", [0, 1, 2], 15)
        params = params_of()
        for stage in (images, prepare, make_weights):
            stage(params)
        for method in BREAKDOWNS + BASELINES:
            train(params, method)
    return folder


@pytest.fixture
def project(made, monkeypatch):
    monkeypatch.chdir(made)


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def record_of(method, part="") -> dict:
    return json.loads((RunId(method, 4, 0).folder / part / "record.json").read_text())


def table(run, name):
    with open(run.folder / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", BREAKDOWNS + BASELINES)
def test_every_method_counts_as_many_images(project, method):
    counted = {
        "features_knn": IMAGES,
        # an epoch of four images of each of two classes in a batch is two batches of eight
        "breakdown_supcon": 4 * 16 + 2 * 2 * IMAGES,
    }
    expected = counted.get(method, PASSES * IMAGES)
    assert record_of(method)["metrics"]["cost/images_seen"] == expected
    assert method == "features_knn" or abs(expected - PASSES * IMAGES) <= 2 * IMAGES / 2


def test_records_have_the_epochs_that_were_made(project):
    asked = {method: record_of(method)["parameters"]["method"] for method in BREAKDOWNS + BASELINES}
    assert asked["finetune"]["epochs"] == asked["features_mlp"]["head"]["epochs"] == 9
    assert (asked["layerwise"]["epochs"], asked["layerwise"]["rounds"]) == ([3, 2, 2, 2], 4)
    control = asked["retrained_head"]
    assert (control["encoder"]["epochs"], control["head"]["epochs"]) == (5, 4)
    kept = asked["breakdown_supcon"]
    assert (kept["encoder"]["epochs"], kept["head"]["epochs"]) == (4, 2)
    parts = asked["breakdown_finetune"]
    assert parts["encoder"]["epochs"] == 5
    assert (parts["head"]["epochs"], parts["head"]["release"]["epochs"]) == (3, 1)
    first = record_of("breakdown_supcon", "encoder")["parameters"]
    assert first["method"]["encoder"] == kept["encoder"]
    assert first["training"]["passes"] == PASSES


def test_an_own_budget_leaves_no_trace_in_a_record(copied):
    train(params_of("own", None, finetune={"recipe": "finetune", "epochs": 2, "lr": 0.1}),
          "finetune")  # fmt: skip
    record = record_of("finetune")
    assert record["parameters"]["method"]["epochs"] == 2
    assert record["parameters"]["training"].keys() == {"batch_size", "rule", "augmentation"}
    assert not any("grad" in key for phase in record["phases"] for key in phase)


def test_other_epochs_of_the_head_leave_the_encoder_as_it_is(copied):
    run = RunId("breakdown_supcon", 4, 0)
    before = {path.name: path.read_bytes() for path in (run.folder / "encoder").iterdir()}
    params = params_of()
    block = params.methods[run.method]
    changed = block | {"head": block["head"] | {"epochs": 7}}
    encoder(params_of(breakdown_supcon=changed), run)
    after = {path.name: path.read_bytes() for path in (run.folder / "encoder").iterdir()}
    assert [name for name in before if before[name] != after[name]] in ([], ["timing.json"])


def test_a_budget_that_is_missing_or_too_small_is_one_line(copied):
    with pytest.raises(InputError, match=r"params.yaml: training.passes: is null"):
        train(params_of(passes=None), "finetune")
    problem = r"^params.yaml: training.passes: 3 are too few for methods.layerwise, .* give 4 or"
    with pytest.raises(InputError, match=problem):
        train(params_of(passes=3), "layerwise")


@pytest.mark.parametrize("method", BREAKDOWNS + BASELINES)
def test_gradients_are_those_of_every_phase_and_epoch(project, method):
    run = RunId(method, 4, 0)
    rows, history = table(run, "gradients.csv"), table(run, "history.csv")
    assert (run.folder / "gradients.csv").read_text().startswith("phase,epoch,layer,norm\n")
    if method == "features_knn":
        assert rows == [] and "grad/first_norm" not in history[0]
        return
    found = [key for key, _ in groupby((row["phase"], row["epoch"]) for row in rows)]
    assert found == [(row["phase"], row["epoch"]) for row in history]
    for epoch in history:
        norms = [
            row["norm"] for row in rows
            if (row["phase"], row["epoch"]) == (epoch["phase"], epoch["epoch"])
        ]  # fmt: skip
        assert (epoch["grad/first_norm"], epoch["grad/last_norm"]) == (norms[0], norms[-1])
        ratio = repr(float(norms[0]) / float(norms[-1])) if len(norms) > 1 else ""
        assert epoch["grad/first_to_last"] == ratio


def test_a_breakdown_s_gradients_go_on_from_its_encoder_s(project):
    run = RunId("breakdown_supcon", 4, 0)
    first = (run.folder / "encoder/gradients.csv").read_text()
    whole = (run.folder / "gradients.csv").read_text()
    assert whole.startswith(first) and len(whole) > len(first)
    layers = {}
    for row in table(run, "gradients.csv"):
        layers.setdefault(row["phase"], dict.fromkeys([])).setdefault(row["layer"])
    assert {phase: list(of) for phase, of in layers.items()} == {
        "encoder": LAYERS[:3], "head_1": LAYERS[3:], "head_2": LAYERS[3:],
    }  # fmt: skip
