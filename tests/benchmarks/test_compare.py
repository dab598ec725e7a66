"""A comparison without DVC or MLflow, in a process of its own in which neither can be imported."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import dogs_cats, siamese_systems
from benchmarks.compare import place
from pipeline import check
from tests.digits import write_digits

ROOT = Path(__file__).parents[2]
PROGRAM = """
import runpy, sys
for name in ("mlflow", "dvc", "pytorch_metric_learning"):
    sys.modules[name] = None
sys.argv = ["compare", *sys.argv[1:]]
runpy.run_module("benchmarks.compare", run_name="__main__")
"""


def compare(*words):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_it_runs_a_config_from_images_to_report(tmp_path):
    write_digits(tmp_path / "data/target", [5, 6], 16)
    write_digits(tmp_path / "data/source", [0, 1], 10)
    changes = [
        "compare.shots=[3]", "compare.seeds=[0]", "compare.baselines=[finetune]",
        "methods.breakdown.encoder.epochs=2", "methods.breakdown.head.epochs=2",
        "methods.finetune.epochs=2", "weights.source.epochs=1",
    ]  # fmt: skip
    done = compare("configs/digits.yaml", tmp_path / "data", tmp_path / "work", *changes)
    assert done.returncode == 0, done.stderr
    results = pd.read_csv(tmp_path / "work/reports/results.csv")
    assert set(results["method"]) == {"breakdown", "finetune"}
    assert "finetune" in done.stdout


@pytest.mark.parametrize("name", dogs_cats.COMPARISONS)
def test_dogs_and_cats_asks_for_what_there_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    changes = dogs_cats.COMPARISONS[name]
    place(Path(dogs_cats.CONFIG), tmp_path, tmp_path / "work", changes)
    params = check.load(files=False)
    check.check_models(params)
    assert params.model.architecture == name
    assert ("breakdown" in params.compare.methods) == (name != "alexnet")


@pytest.mark.parametrize("name", siamese_systems.COMPARISONS)
def test_siamese_systems_ask_for_what_there_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, changes = siamese_systems.COMPARISONS[name]
    place(Path(config), tmp_path, tmp_path / "work", changes)
    params = check.load(files=False)
    check.check_models(params)
    assert params.task == "verification"
    assert (params.model.architecture == "koch") == name.endswith("koch")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "usage: "),
        (("nowhere.yaml", ".", "x"), "nowhere.yaml: there is no such file"),
        (("configs/digits.yaml", ".", "x", "compare.sedes=[1]"), "'compare.sedes=[1]' must be"),
        (("configs/digits.yaml", ".", "x", "compare.seeds"), "'compare.seeds' must be"),
        (("configs/digits.yaml", ".", "x", "compare.seeds.0=1"), "'compare.seeds.0=1' must be"),
        (("configs/digits.yaml", ".", "x", "compare.seeds=[1"), "'compare.seeds=[1' must be"),
        (("configs/digits.yaml", ".", "."), "is a project of its own"),
    ],
)
def test_what_is_wrong_is_one_line(words, said):
    done = compare(*words)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
