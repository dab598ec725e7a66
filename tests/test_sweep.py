"""Sweeps: which recorded runs belong to one, the table, the figure, and the command."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from pipeline import check, recipes, sweep, workspace
from pipeline.errors import InputError
from pipeline.records import RunId, write_history, write_json
from pipeline.sweep import Found, Point, Wish, differing, draw, short, swept_value, table
from pipeline.tracking import client as tracking
from pipeline.tracking import mirror
from tests.digits import make_run
from tests.tracking.conftest import MLFLOW_WARNINGS, OURS

pytestmark = [pytest.mark.filterwarnings(name) for name in MLFLOW_WARNINGS]
DIVERGED = None
ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/digits.yaml"


def with_settings(params, method, **settings):
    """Params with other settings of a method; a name with __ is a key of a block in it."""
    block = json.loads(json.dumps(params.methods[method]))
    for key, value in settings.items():
        *blocks, last = key.split("__")
        inner = block
        for name in blocks:
            inner = inner[name]
        inner[last] = value
    return params.model_copy(update={"methods": {**params.methods, method: block}})


def only(params, method, seeds, shots=10):
    """Params that compare one method."""
    kind = "breakdowns" if method == "breakdown" else "baselines"
    compare = {"breakdowns": [], "baselines": [], "reference": method} | {kind: [method]}
    compare |= {"seeds": list(seeds), "shots": [shots]}
    return params.model_copy(update={"compare": params.compare.model_copy(update=compare)})


def record(params, run, score, inputs, device):
    """What a stage records of a run; ``score`` None is one that diverged."""
    made = SimpleNamespace(classes=5, device=torch.device("cpu"))
    recipe = recipes.of(params.methods[run.method])
    reason = "the loss is not finite" if score is DIVERGED else ""
    phase = {"phase": "end_to_end", "epochs": 1, "chosen_epoch": 1, "rule": "val_loss"}
    phases = [phase | {"images_seen": 50}]
    found = workspace.record(params, run, recipe, made, {"images": inputs}, phases, reason)
    metrics = {} if score is DIVERGED else {"best/val_accuracy": score}
    return found | {"metrics": metrics, "device": device}


def run_experiment(root, params, method, scores, seconds=2.0, inputs="a", device="cpu", shots=10):
    """Leave the files of a run a seed, as its stages would, and publish them."""
    params = only(params, method, range(len(scores)), shots)
    for seed, score in enumerate(scores):
        run = RunId(method, shots, seed)
        folder = root / run.folder
        write_json(folder / "record.json", record(params, run, score, inputs, device))
        phase = {"phase": "end_to_end", "images_seen": 50, "seconds": seconds}
        write_json(folder / "timing.json", {"phases": [phase]})
        row = {"phase": "end_to_end", "epoch": 1, "images_seen": 50, "val/loss": 0.1 + seed}
        write_history(folder / "history.csv", [row])
    done = mirror.publish(params, root, tracking.store(root))
    assert done.created == len(scores)
    shutil.rmtree(root / "runs")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the runs of several sweeps of several methods in its store."""
    root = tmp_path_factory.mktemp("project")
    (root / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(CONFIG, root / "params.yaml")
    params = check.load(root / "params.yaml", files=False)
    with pytest.MonkeyPatch.context() as patch:
        for name in OURS:
            patch.delenv(name, raising=False)
        run_experiment(root, params, "finetune", [0.5, 0.7, 0.9], 4.0)
        for lr, scores, seconds in (
            (1e-3, [0.25, 0.5], 3.0),
            (0.1, [0.75, DIVERGED], 2.0),
            (10.0, [DIVERGED], 1.0),
        ):
            changed = with_settings(params, "finetune", lr=lr)
            run_experiment(root, changed, "finetune", scores, seconds)
        both = with_settings(params, "finetune", lr=1e-3, epochs=7)
        run_experiment(root, both, "finetune", [0.11])
        fewer = with_settings(params, "finetune", lr=1e-3)
        run_experiment(root, fewer, "finetune", [0.12], shots=5)
        run_experiment(root, with_settings(params, "scratch", lr=1e-3), "scratch", [0.13])

        # the same settings on images that were replaced since
        run_experiment(root, params, "breakdown", [0.14], inputs="old")
        run_experiment(root, params, "breakdown", [0.4], inputs="new")
        slower = with_settings(params, "breakdown", encoder__lr=0.05)
        run_experiment(root, slower, "breakdown", [0.3], inputs="new", device="cuda")
        run_experiment(root, slower, "breakdown", [0.15], inputs="old")
    client = tracking.open_client(tracking.store(root))
    experiment = client.get_experiment_by_name(tracking.RESULTS)
    tags = {"method": "finetune", "shots": "10", "seed": "9", "publishing": "half"}
    client.create_run(experiment.experiment_id, tags=tags)
    return root


@pytest.fixture
def command(project, monkeypatch, capsys):
    """Run the command in this process; what it printed, and the error if there is one."""
    monkeypatch.chdir(project)
    for name in OURS:
        monkeypatch.delenv(name, raising=False)

    def run(*given):
        monkeypatch.setattr("sys.argv", ["sweep", *given])
        try:
            sweep.main()
        except InputError as error:
            return capsys.readouterr().out, str(error)
        return capsys.readouterr().out, None

    return run


def present_lr(project, method="finetune"):
    return check.load(project / "params.yaml", files=False).methods[method]["lr"]


def test_the_runs_that_differ_in_the_key_alone_are_a_sweep(command, project):
    _, error = command("finetune", "lr")
    assert error is None
    found = pd.read_csv(project / "reports/sweeps/finetune-lr.csv")
    assert list(found) == ["value", "seed", "status", "metric", "score", "seconds"]
    assert set(found["metric"]) == {"best/val_accuracy"}
    none = float("nan")
    expected = [
        (1e-3, 0, "finished", 0.25, 3.0),
        (1e-3, 1, "finished", 0.5, 3.0),
        (present_lr(project), 0, "finished", 0.5, 4.0),
        (present_lr(project), 1, "finished", 0.7, 4.0),
        (present_lr(project), 2, "finished", 0.9, 4.0),
        (0.1, 0, "finished", 0.75, 2.0),
        (0.1, 1, "diverged", none, 2.0),
        (10.0, 0, "diverged", none, 1.0),
    ]
    wanted = pd.DataFrame(expected, columns=["value", "seed", "status", "score", "seconds"])
    pd.testing.assert_frame_equal(found.drop(columns="metric"), wanted)


def test_the_table_has_means_and_says_what_was_left_out(command):
    said, _ = command("finetune", "lr")
    cells = [[cell for cell in line.split("  ") if cell] for line in said.splitlines()]
    cells = [[cell.strip() for cell in line] for line in cells]
    assert cells == [
        ["lr", "validation accuracy", "lowest to highest", "seeds", "seconds"],
        ["1e-3", "37.5 %", "25.0 % to 50.0 %", "2", "3.00"],
        ["0.01", "*", "70.0 %", "50.0 % to 90.0 %", "3", "4.00"],
        ["0.1", "75.0 %", "75.0 % to 75.0 %", "2", "2.00", "1 diverged"],
        ["10", "–", "–", "1", "–", "1 diverged"],
        ["left out: 1 run unlike params.yaml in methods.finetune.epochs"],
        ["not every value has the same seeds, and means over other seeds differ by that too"],
        ["drawn in reports/sweeps/finetune-lr.svg; * is in params.yaml"],
    ]


def test_runs_on_older_images_are_left_out(command, project):
    said, error = command("breakdown", "encoder.lr")
    assert "seeds, and" not in said
    # the newest, which is on the old images, stands for its seed
    assert error is None and "left out: 2 runs on other images or starting weights" in said
    found = pd.read_csv(project / "reports/sweeps/breakdown-encoder.lr.csv")
    assert found["score"].tolist() == [0.15, 0.14]
    assert (project / "reports/sweeps/breakdown-encoder.lr.svg").exists()


def test_several_devices_are_named(command, project):
    client = tracking.open_client(tracking.store(project))
    experiment = client.get_experiment_by_name(tracking.RESULTS)
    of = "tags.method = 'finetune' and tags.seed = '1' and params.`method.lr` = '0.001'"
    (run,) = (run.info.run_id for run in client.search_runs([experiment.experiment_id], of))
    client.set_tag(run, "device", "cuda")
    said, _ = command("finetune", "lr")
    client.set_tag(run, "device", "cpu")
    assert "trained on cpu, cuda: seconds compare on one device alone\n" in said


def test_another_metric_is_that_of_the_last_epoch(command):
    said, error = command("finetune", "lr", "--metric", "val/loss")
    assert error is None and "  val/loss, last epoch  " in said
    (present,) = (line.split() for line in said.splitlines() if line.startswith("0.01 "))
    assert present == ["0.01", "*", "1.1", "0.1", "to", "2.1", "3", "4.00"]


def test_the_same_comes_again_to_the_byte(command, project):
    first = command("finetune", "lr")
    files = sorted((project / "reports/sweeps").glob("finetune-lr.*"))
    before = [file.read_bytes() for file in files]
    assert command("finetune", "lr") == first
    assert len(files) == 2 and [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["finetun", "lr"], "there is no method 'finetun'; did you mean 'finetune'?"),
        (["finetune", "rl"], "has no key 'rl' with one value; did you mean 'lr'?"),
        (["breakdown", "encoder"], "methods.breakdown has no key 'encoder' with one value"),
        (["finetune", "recipe"], "has no key 'recipe'"),
        (["finetune", "lr", "--metric", "test/accuracy"], "looks at the test split"),
        (["finetune", "lr", "--metric", "latent/separable_pairs"], "looks at the test split"),
        (["finetune", "lr", "--metric", "best/val_acuracy"], "did you mean 'best/val_accuracy'?"),
        (["finetune", "lr", "--shots", "3"], "--shots: must be one of 10"),
        (["finetune", "momentum"], "two values are needed and 0.9 is recorded (left out: 6 runs"),
        (["finetune", "momentum"], "exp run --queue -S 'methods.finetune.momentum=VALUE,VALUE'"),
        (["scratch", "epochs"], "two values are needed and none is recorded (left out: 1 run"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_wrong_wishes_are_one_line(command, given, said):
    printed, error = command(*given)
    assert error is not None and said in error and "\n" not in error and printed == ""


def test_where_there_is_no_store_it_says_how_to_make_one(command, project, tmp_path, monkeypatch):
    shutil.copy(project / "params.yaml", tmp_path)
    shutil.copy(project / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    _, error = command("finetune", "lr")
    assert error == f"{tmp_path / 'mlflow.db'}: there is no such store; make it with 'dvc repro'"
    assert not (tmp_path / "mlflow.db").exists()


def test_a_store_of_the_users_is_read(command, project, tmp_path, monkeypatch):
    shutil.copy(project / "mlflow.db", tmp_path / "mine.db")
    expected = command("finetune", "lr")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mine.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(sweep.tracking, "project_root", lambda: tmp_path)
    assert command("finetune", "lr") == expected


@pytest.mark.parametrize("server", ["http://me:secret@127.0.0.1:9", "sqlite:////dev/null"])
def test_a_store_that_cannot_be_read_is_one_line(command, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    _, error = command("finetune", "lr")
    assert error is not None and "\n" not in error and "secret" not in error
    assert ": cannot be read: " in error


def test_every_parameter_but_the_swept_one_counts():
    asked = {
        "method.lr": "0.1", "method.epochs": "3", "training.batch_size": "8", "task": "x",
        "data.size": "8", "data.target": "a", "compare.seeds": "[0]",
    }  # fmt: skip
    wish = Wish("m", "lr", "best/val_accuracy", "10", asked)
    same = {"method.lr": "5", "method.epochs": "3", "training.batch_size": "8", "task": "x"}
    same |= {"data.size": "8", "method": "m", "seed": "4", "shots": "10", "recipe": "r"}
    assert differing(same, wish) == []
    assert differing(same | {"data.size": "9"}, wish) == ["data.size"]
    assert differing(same | {"method.old": "1"}, wish) == ["method.old"]
    assert differing(same | {"task": "y", "method.epochs": "4"}, wish) == ["method.epochs", "task"]
    del same["training.batch_size"]
    assert differing(same, wish) == ["training.batch_size"]


METHOD = "breakdown_supcon"


@pytest.fixture
def matched(tmp_path, monkeypatch):
    """Parameters with a matched budget, in a project that was prepared."""
    monkeypatch.chdir(tmp_path)
    params = check.load(ROOT / "configs/all_methods.yaml", files=False)
    compare = params.compare.model_copy(update={"budget": "matched"})
    training = params.training.model_copy(update={"passes": 40})
    summary = {"images": 300, "classes": 5, "splits": {"train": {"images": 150}}, "pairs": {}}
    write_json("prepared/summary.json", summary)
    return params.model_copy(update={"compare": compare, "training": training})


def recorded(params, method=METHOD, **settings):
    """The parameters of a run with other settings, as it is recorded under the matched budget."""
    changed = with_settings(params, method, **settings)
    made = make_run(classes=5, per_class=10, batch_size=16)
    recipe = workspace.within_budget(params, recipes.of(changed.methods[method]), made)
    found = workspace.record(changed, RunId(method, 10, 3), recipe, made, {}, [], "")
    about = {name: found[name] for name in ("method", "shots", "seed", "recipe")}
    return tracking.flat(found["parameters"]) | tracking.flat(about)


def test_a_matched_budget_s_runs_agree_with_what_it_makes_of_params_yaml(matched):
    wish = sweep.make_wish(matched, METHOD, "encoder.lr", "best/val_accuracy", None)
    found = recorded(matched, encoder__lr=0.3)
    assert found["method.encoder.epochs"] not in ("60", "20")  # an epoch counts 64 of 50 images
    assert differing(found, wish) == []
    assert differing(recorded(matched, encoder__lr=0.3, head__lr=1.0), wish) == ["method.head.lr"]
    kept = recorded(matched, encoder__lr=0.3, encoder__keep=1)
    assert set(differing(kept, wish)) >= {"method.encoder.keep", "method.head.epochs"}


@pytest.mark.parametrize(
    ("key", "value"), [("encoder.keep", 1), ("encoder.per_class", 6), ("encoder.batch_size", 32)]
)
def test_the_swept_value_may_change_what_the_budget_gives(matched, key, value):
    wish = sweep.make_wish(matched, METHOD, key, "best/val_accuracy", None)
    found = recorded(matched, **{key.replace(".", "__"): value})
    epochs = [key for key in found if key.endswith("epochs")]
    present = recorded(matched)
    assert [found[key] for key in epochs] != [present[key] for key in epochs]
    assert differing(found, wish) == differing(present, wish) == []


@pytest.mark.parametrize(
    ("method", "key", "epochs"),
    [
        ("layerwise", "momentum", {"epochs": "10", "rounds": "4"}),
        ("finetune", "momentum", {"epochs": "40"}),
        ("features_mlp", "head.lr", {"head.epochs": "40"}),
    ],
)
def test_rounds_and_epochs_are_those_of_the_budget(matched, method, key, epochs):
    wish = sweep.make_wish(matched, method, key, "best/val_accuracy", None)
    found = recorded(matched, method, **{key.replace(".", "__"): 0.5})
    assert (
        epochs.items() <= {name.removeprefix("method."): of for name, of in found.items()}.items()
    )
    assert differing(found, wish) == []


def test_a_recorded_value_that_no_longer_goes_with_the_rest_is_left_out(matched):
    wish = sweep.make_wish(matched, METHOD, "encoder.keep", "best/val_accuracy", None)
    found = recorded(matched) | {"method.encoder.keep": "61"}
    assert "method.encoder.epochs" in differing(found, wish)


def test_what_a_matched_budget_sets_is_no_sweep(matched):
    for key in ("encoder.epochs", "head.epochs"):
        with pytest.raises(InputError, match=rf"methods.{METHOD}.{key}: is set by compare.budget"):
            sweep.make_wish(matched, METHOD, key, "best/val_accuracy", None)
    pairs = matched.model_copy(update={"task": "verification"})
    with pytest.raises(InputError, match=r"^params.yaml: compare.budget: matched counts the pairs"):
        sweep.make_wish(pairs, METHOD, "encoder.lr", "best/val_accuracy", None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-06", 5e-6), ("32", 32), ("sgd", "sgd"), ("null", "null"), ("true", "true"),
        ("[1, 2]", "[1, 2]"), ("NaN!", "NaN!"),
    ],
)  # fmt: skip
def test_numbers_are_numbers_and_all_else_is_text(text, value):
    found = swept_value({"method.a": text}, "a")
    assert found == value and type(found) is type(value)


def test_no_batch_size_is_the_shared_one():
    params = {"method.batch_size": "null", "method.lr": "null", "training.batch_size": "16"}
    params["method.head.batch_size"] = "null"
    assert swept_value(params, "batch_size") == swept_value(params, "head.batch_size") == 16
    assert swept_value(params, "lr") == "null"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5e-6, "5e-6"), (1e-3, "1e-3"), (1.5e-4, "1.5e-4"), (0.01, "0.01"), (0.25, "0.25"),
        (1, "1"), (30, "30"), (64, "64"), (1000, "1e3"), (1024, "1024"), (0, "0"), (-2.5, "-2.5"),
        (1.0, "1"), ("cosine", "cosine"),
    ],
)  # fmt: skip
def test_values_are_written_short(value, text):
    assert short(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-(10**9), 10**9))
def test_short_values_keep_nine_digits(value):
    assert float(short(value)) == pytest.approx(value, rel=1e-9)


def made_up(values, seeds=3, diverged=(), key="lr", present=""):
    """A sweep whose scores and seconds are made up."""
    points = [
        Point(value, seed, "diverged", None, 1.0)
        if (value, seed) in diverged
        else Point(value, seed, "finished", 0.5 + 0.01 * place + 0.02 * seed, 3.0 + place)
        for place, value in enumerate(values)
        for seed in range(seeds)
    ]
    wish = Wish("siamese", key, "best/val_accuracy", "all", {f"method.{key}": present})
    return Found(points, []), wish


def texts(svg):
    return [node.text for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def uses(svg):
    """How often each marker is drawn."""
    markers = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}use")
    return pd.Series([node.get("href") for node in markers]).value_counts()


def test_the_figure_has_every_run_and_value():
    found, wish = made_up([5e-6, 1e-5, 1e-4, 1e-3], diverged=[(1e-3, 1)], present="0.0001")
    svg = draw(found, wish, 0)
    said = texts(svg)
    for text in ("5e-6", "1e-5", "1e-4", "1e-3", "lr", "seconds", "validation accuracy", "siamese"):
        assert said.count(text) == 1
    for text in ("mean", "one seed", "diverged", "in params.yaml"):
        assert said.count(text) == 1
    # in two panels, and once in the legend: 11 runs that finished, and 4 means
    assert {11 * 2 + 1, 4 * 2 + 1, 1 + 1} <= set(uses(svg))
    assert "currentColor" in svg and "#010203" not in svg
    without = draw(*made_up([5e-6, 1e-5], present="3"), 0)
    assert "diverged" not in texts(without) and "in params.yaml" not in texts(without)


def test_a_sweep_in_which_all_runs_diverged_is_drawn():
    found, wish = made_up([1.0, 2.0], seeds=1, diverged=[(1.0, 0), (2.0, 0)])
    assert "diverged" in texts(draw(found, wish, 0))
    assert table(found, wish).count("1 diverged") == 2


@pytest.mark.parametrize(
    ("values", "scale", "places"),
    [
        ([5e-6, 1e-3], "log", [5e-6, 1e-3]),
        ([1, 3, 10], "log", [1, 3, 10]),
        ([1, 3, 9], "linear", [1, 3, 9]),
        ([0, 5, 10], "linear", [0, 5, 10]),
        ([-1, 10], "linear", [-1, 10]),
        (["adam", "sgd"], "linear", [0, 1]),
        ([16, "auto"], "linear", [0, 1]),
    ],
)
def test_the_axis_is_logarithmic_for_wide_positive_values(values, scale, places):
    axes = Figure().subplots()
    assert sweep._places(values, axes) == dict(zip(values, places, strict=True))
    assert axes.get_xscale() == scale
    assert [label.get_text() for label in axes.get_xticklabels()] == [short(v) for v in values]


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=25, unique=True).map(sorted))
def test_labels_do_not_run_into_each_other_and_the_ends_have_theirs(values):
    shares = {value: (value - values[0]) / (values[-1] - values[0]) for value in values}
    labels = sweep._labels(shares)
    assert labels[0] and labels[-1]
    spans = [
        (share - sweep.LETTER * len(text) / 2, share + sweep.LETTER * len(text) / 2)
        for text, share in zip(labels, shares.values(), strict=True)
        if text
    ]
    assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(spans))


def test_means_by_hand():
    found, wish = made_up([1, 2])
    rows = table(found, wish).splitlines()[1:]
    for place, row in enumerate(rows):
        scores = [0.5 + 0.01 * place + 0.02 * seed for seed in range(3)]
        assert f"{100 * fmean(scores):.1f} %" in row and row.endswith(f"3     {3 + place}.00")


@pytest.mark.slow
def test_it_is_a_program_without_torch(project):
    code = (
        "import runpy, sys; runpy.run_module('pipeline.sweep', run_name='__main__');"
        "print('torch' in sys.modules)"
    )
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "finetune", "lr"],
        cwd=project,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.stderr == ""
    assert "drawn in reports/sweeps/finetune-lr.svg" in made.stdout
    assert made.stdout.splitlines()[-1] == "False"
