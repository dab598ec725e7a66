"""None but the test stages opens the test split, and no training depends on a test image.

What each stage opens is heard from Python itself, in a process of its own. Then test images, their
labels and their lists are spoiled or taken away, and everything that is trained stays the same.
``prepare`` alone looks at all pixels, by design: it finds copies of one picture in two splits.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from pipeline import check, lr_finder
from pipeline.params import Params
from pipeline.params_file import parse, plain, read
from pipeline.records import RunId, runs_of
from pipeline.report import figures
from pipeline.stages.baseline import baseline
from pipeline.stages.encoder import encoder
from pipeline.stages.evaluate import evaluate
from pipeline.stages.head import head
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from pipeline.stages.test import test as predict_test_split
from pipeline.stages.weights import make_weights
from tests.digits import write_digits
from tests.test_stages import contents
from tests.training_runs import train

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / "configs/digits.yaml"
STAGES = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
TASKS = ("classification", "verification")
TEST_LISTS = ("prepared/splits/test.csv", "prepared/splits/trials.csv")
TELLS_OF_TEST = (*TEST_LISTS, "prepared/images.csv", "prepared/listed.csv")
PHASE = {"epochs": 2, "lr": 0.05}
VERIFYING = {
    "siamese": {"recipe": "siamese", "latent": "embedding", "head": {"kind": "difference"}} | PHASE,
    "breakdown": {
        "recipe": "breakdown",
        "encoder": {"latent": "embedding", "keep": 2} | PHASE,
        "head": {"pairs": {"kind": "difference"}} | PHASE,
    },
}
CLASSIFYING = {
    "finetune": {"recipe": "finetune"} | PHASE,
    "frozen": {"recipe": "features", "latent": "embedding", "head": {"kind": "svm"}},
    "breakdown": {
        "recipe": "breakdown",
        "encoder": {"latent": "embedding", "keep": 2} | PHASE,
        "head": PHASE,
    },
}


def small(task: str, **data) -> Params:
    """A small project of a task; ``data`` changes that section."""
    source = read(DEFAULT)
    tree = plain(source.tree) | {"task": task}
    tree["data"] |= {"val_per_class": None} | data
    tree["weights"]["source"]["epochs"] = 1
    tree["methods"] = VERIFYING if task == "verification" else CLASSIFYING
    tree["pairs"] = {"per_image": 3, "positive_fraction": 0.5}
    if task == "verification":
        tree["pairs"]["episodes"] = [{"ways": 2, "count": 5}]
    baselines = [name for name in tree["methods"] if name != "breakdown"]
    tree["compare"] |= {
        "breakdowns": ["breakdown"], "baselines": baselines, "reference": baselines[0],
        "shots": ["all" if task == "verification" else 5], "seeds": [0],
    }  # fmt: skip
    tree["tracking"]["live_after"] = None
    return parse(Params, tree, source)


def make(task: str) -> None:
    """The images of a task in this folder, and all that comes before training."""
    Path("pretrained").mkdir()
    write_digits(
        Path("data/target"), list(range(2, 10)) if task == "verification" else [5, 6, 7], 16
    )
    write_digits(Path("data/source"), [0, 1], 8)
    params = small(task)
    images(params)
    prepare(params)
    make_weights(params)


def train_all(params: Params) -> None:
    for run in runs_of(params.compare):
        train(params, run)


# Who opens what


def opened_by_each_stage(task: str) -> dict[str, list[str]]:
    """Run all stages of a task in this folder; the files under ``prepared/`` that each one reads.

    Python tells of every file that it or NumPy or pandas opens; libraries that open files by
    themselves read none but model files.
    """
    params, opened, stage = small(task), dict[str, set[str]](), ""
    here = Path.cwd()

    def hear(event: str, given: tuple) -> None:
        if event != "open" or not stage or not isinstance(given[0], str | bytes | os.PathLike):
            return
        path = Path(os.path.abspath(os.fsdecode(given[0])))
        reads = given[2] & os.O_ACCMODE != os.O_WRONLY and not given[2] & os.O_CREAT
        if reads and path.is_file() and path.is_relative_to(here / "prepared"):
            opened[stage].add(str(path.relative_to(here)))

    figures.draw = lambda *_: []  # it takes longest
    sys.addaudithook(hear)  # for ever: hence a process of its own
    methods = params.compare.methods
    first, other = (RunId(of, params.compare.shots[0], 0) for of in ("breakdown", methods[1]))
    steps = {
        "check": check.load,
        "images": lambda: images(params),
        "prepare": lambda: prepare(params),
        "weights": lambda: make_weights(params),
        "encoder": lambda: encoder(params, first),
        "head": lambda: head(params, first),
        "baseline": lambda: [baseline(params, RunId(of, first.shots, 0)) for of in methods[1:]],
        "lr_finder": lambda: lr_finder.find_phase(params, other, None),
        "test_breakdown": lambda: predict_test_split(params, first),
        "test_baseline": lambda: [
            predict_test_split(params, RunId(of, first.shots, 0)) for of in methods[1:]
        ],
        "evaluate": lambda: evaluate(params),
    }
    for stage, step in steps.items():
        opened[stage] = set()
        step()
    return {name: sorted(files) for name, files in opened.items()}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """By task and stage, what it opens under ``prepared/``."""
    program = (
        "import json, os, sys; from tests import test_split_readers as here\n"
        "for task in here.TASKS:\n"
        "    os.makedirs(task); os.chdir(task); here.shutil.copy(here.DEFAULT, 'params.yaml')\n"
        "    here.make(task); print(json.dumps(here.opened_by_each_stage(task))); os.chdir('..')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path_factory.mktemp("opened"),
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    return dict(zip(TASKS, told, strict=True))


def inputs_of(stage: str) -> set[str]:
    """The dependencies of a stage under ``prepared/`` in dvc.yaml, of the run that was opened."""
    return {dep for dep in STAGES[stage]["deps"] if dep.startswith("prepared")}


@pytest.mark.parametrize("task", TASKS)
def test_the_test_lists_are_opened_by_the_test_stages_alone(opened, task):
    """But by ``prepare``, which makes them."""
    found = opened[task]
    for test_list in TEST_LISTS:
        readers = {stage for stage, files in found.items() if test_list in files} - {"prepare"}
        used = test_list == TEST_LISTS[0] or task == "verification"
        assert readers == ({"test_breakdown", "test_baseline"} if used else set())


@pytest.mark.parametrize("task", TASKS)
def test_training_opens_nothing_that_tells_of_test_images(opened, task):
    """But the pixels of all images, one file, of which it takes the rows that its lists name."""
    found = opened[task]
    for stage in ("check", "weights", "encoder", "head", "baseline", "lr_finder"):
        assert not set(found[stage]) & set(TELLS_OF_TEST), stage
    assert found["check"] == []
    assert found["weights"] == ["prepared/source.csv", "prepared/source.npy"]
    assert "prepared/images.npy" in found["encoder"]


@pytest.mark.parametrize("task", TASKS)
def test_a_stage_opens_nothing_but_what_dvc_watches(opened, task):
    shots = small(task).compare.shots[0]
    for stage in STAGES.keys() & opened[task].keys():
        listed = {
            dep.replace("${item.shots}", str(shots)).replace("${item.seed}", "0")
            for dep in inputs_of(stage)
        }
        if stage in ("images", "prepare"):  # they read some of what they write again
            listed |= set(STAGES[stage]["outs"])
        if stage == "prepare":
            listed |= {file for file in opened[task][stage] if Path(file).parent.name == "trials"}
        assert set(opened[task][stage]) <= listed, stage


@pytest.mark.parametrize("stage", ["images", "weights", "encoder", "head", "baseline"])
def test_no_training_stage_names_a_list_of_the_test_split(stage):
    assert not inputs_of(stage) & {*TELLS_OF_TEST, "prepared", "prepared/splits"}


# What depends on a test image


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By task, a project with all runs trained, and none tested."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        for task in TASKS:
            folders[task] = tmp_path_factory.mktemp(task)
            patch.chdir(folders[task])
            make(task)
            train_all(small(task))
    return folders


@pytest.fixture(params=TASKS)
def project(request, trained, tmp_path, monkeypatch):
    """A copy of a task's project; the task."""
    shutil.copytree(trained[request.param], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return request.param


def test_rows() -> np.ndarray:
    return pd.read_csv("prepared/splits/test.csv")["row"].to_numpy()


test_rows.__test__ = False


def paint(rows: np.ndarray, draw: np.random.Generator) -> None:
    """Put noise in the place of some images."""
    pixels = np.load("prepared/images.npy")
    pixels[rows] = draw.integers(0, 256, pixels[rows].shape, dtype=np.uint8)
    np.save("prepared/images.npy", pixels)


def rename(rows: np.ndarray) -> None:
    """Give some images other labels, classes and names."""
    table = pd.read_csv("prepared/images.csv", dtype=str, keep_default_na=False).set_index("row")
    others = table.loc[rows.astype(str)]
    table.loc[others.index, ["label", "class"]] = others[["label", "class"]].to_numpy()[::-1]
    table.loc[others.index, "image"] = "elsewhere/" + others["image"]
    table.to_csv("prepared/images.csv")


def suggested(params: Params) -> tuple[bytes, bytes]:
    """What the learning-rate finder sees."""
    run = RunId("finetune" if params.task == "classification" else "siamese",
                params.compare.shots[0], 0)  # fmt: skip
    phase, device = lr_finder.find_phase(params, run, None)
    found = lr_finder.sweep(phase, device, "fp32", 1e-4, 1e-1, 6)
    return found.rates.tobytes(), found.losses.tobytes()


@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_no_test_image_and_no_label_of_one_alters_what_is_trained(project, placement):
    """Models, histories, chosen epochs, settings and thresholds, and the rates that are found."""
    params = small(project, placement=placement)
    before, rates = contents("runs"), suggested(params)
    assert len(before) == 4 * (len(params.compare.methods) + 1)  # an encoder has files of its own
    draw = np.random.default_rng(0)
    rows = test_rows()
    rename(rows)
    for path in (*TEST_LISTS, "prepared/listed.csv"):
        Path(path).unlink()
    for _ in range(2):
        paint(rows, draw)
        shutil.rmtree("runs")
        train_all(params)
        after = contents("runs")
        assert before.keys() == after.keys()
        assert [name for name in before if before[name] != after[name]] == []
    assert suggested(params) == rates


def test_a_training_or_validation_image_does(project):
    """So that the test above could fail."""
    params = small(project)
    run = runs_of(params.compare)[0]
    lists = {"model.safetensors": run.train_list, "history.csv": Path("prepared/splits/val.csv")}
    for file, listed in lists.items():
        path = run.folder / "encoder" / file
        before = path.read_bytes()
        paint(pd.read_csv(listed)["row"].to_numpy()[:1], np.random.default_rng(1))
        encoder(params, run)
        assert path.read_bytes() != before


def test_start_weights_need_no_target_image(project):
    before = contents("weights")
    for path in Path("prepared").glob("images.*"):
        path.unlink()
    shutil.rmtree("weights")
    make_weights(small(project))
    assert contents("weights") == before


def test_pixels_of_test_images_alter_no_list(project):
    """``prepare`` looks at them for copies alone; where it only warns, its lists stay."""
    named = ("summary.json", "near_duplicates.csv", "images.npy")  # these tell of copies
    before = contents("prepared", without=named)
    paint(test_rows(), np.random.default_rng(2))
    prepare(small(project))
    assert contents("prepared", without=named) == before


@pytest.mark.parametrize("project", ["classification"], indirect=True)
def test_a_copy_in_the_test_split_leaves_where_that_is_asked_for(project):
    """The other way round: with ``data.exact_duplicates: drop`` pixels of a test image matter."""
    labels = pd.read_csv("prepared/images.csv").set_index("row")["label"]
    copy = test_rows()[0]
    validated = pd.read_csv("prepared/splits/val.csv")["row"]
    pixels = np.load("prepared/images.npy")
    pixels[copy] = pixels[next(row for row in validated if labels[row] == labels[copy])]
    np.save("prepared/images.npy", pixels)
    before = contents("prepared/splits")
    prepare(small(project, exact_duplicates="drop"))
    assert contents("prepared/splits") != before
