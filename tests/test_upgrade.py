"""What earlier code left behind: still read, or refused by one line that names the file.

A file is known by its version (records), by the names of its columns, keys or arrays, or by its
tensors. Checkpoints have their version in the key that finds them; see
``tests/training/test_checkpoints.py``. The last test takes the previous commit's tree.
"""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from benchmarks import measure
from pipeline import plan, workspace
from pipeline.data.batches import read_trials
from pipeline.data.identities import read_listed
from pipeline.errors import InputError
from pipeline.records import RunId, runs_of
from pipeline.report.summary import summary_table
from pipeline.stages.baseline import baseline
from pipeline.stages.encoder import encoder
from pipeline.stages.evaluate import evaluate
from pipeline.stages.head import head
from pipeline.stages.prepare import prepare
from pipeline.stages.test import test as predict_test_split
from pipeline.stages.weights import make_weights
from pipeline.tasks import trained
from tests.digits import write_digits
from tests.projects import ROOT, call, copy_project, edit, mlflow_runs, stages_run
from tests.report.fake_runs import fake_params, write_runs
from tests.test_split_readers import DEFAULT, make, small, train_all

BREAKDOWN, BASELINE = RunId("breakdown", 5, 0), RunId("finetune", 5, 0)
ENCODER = BREAKDOWN.folder / "encoder"
VAL, TEST = Path("prepared/splits/val.csv"), Path("prepared/splits/test.csv")
LISTED, TRIALS = Path("prepared/listed.csv"), Path("prepared/splits/trials.csv")
REPORTS = Path("reports")


def other_version(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"version": 99}), encoding="utf-8")


def other_columns(path: Path) -> None:
    header, _, rest = path.read_text(encoding="utf-8").partition("\n")
    names = ",".join(f"old_{name}" for name in header.split(","))
    path.write_text(f"{names}\n{rest}", encoding="utf-8")


def other_keys(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({f"old_{key}": of for key, of in content.items()}), encoding="utf-8")


def other_arrays(path: Path) -> None:
    with np.load(path) as stored:
        arrays = {f"old_{name}": of for name, of in stored.items()}
    np.savez(path, **arrays)


def other_type(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float32))


def other_tensors(path: Path) -> None:
    save_file({f"old.{key}": of for key, of in load_file(path).items()}, path)


def predicted(params):
    predict_test_split(params, BASELINE)


def trained_baseline(params):
    baseline(params, BASELINE)


def trained_encoder(params):
    encoder(params, BREAKDOWN)


def trained_head(params):
    head(params, BREAKDOWN)


def asked(params):
    trained.load(params, BASELINE)


def summed_up(params):
    summary_table()


FORMS = [  # a file, how it is of another form, and who reads it
    (BASELINE.folder / "record.json", other_version, evaluate),
    (BASELINE.folder / "record.json", other_version, predicted),
    (BASELINE.folder / "record.json", other_version, asked),
    (BASELINE.folder / "record.json", other_keys, asked),
    (ENCODER / "record.json", other_version, trained_head),
    (ENCODER / "model.safetensors", other_tensors, trained_head),
    (ENCODER / "history.csv", other_columns, trained_head),
    (ENCODER / "gradients.csv", other_columns, trained_head),
    (ENCODER / "timing.json", other_keys, evaluate),
    (BASELINE.folder / "model.safetensors", other_tensors, predicted),
    (BASELINE.folder / "model.safetensors", other_tensors, asked),
    (BASELINE.folder / "history.csv", other_columns, evaluate),
    (BASELINE.gradients, other_columns, evaluate),
    (BASELINE.folder / "timing.json", other_keys, evaluate),
    (BASELINE.predictions, other_columns, evaluate),
    (BASELINE.test_timing, other_keys, evaluate),
    (BASELINE.diagnosis, other_keys, evaluate),
    (BASELINE.latents, other_arrays, evaluate),
    (Path("prepared/images.npy"), other_type, trained_baseline),
    (Path("prepared/images.npy"), other_type, predicted),
    (Path("prepared/images.csv"), other_columns, prepare),
    (Path("prepared/images.csv"), other_columns, predicted),
    (LISTED, other_columns, lambda params: read_listed(LISTED)),
    (Path("prepared/source.csv"), other_columns, make_weights),
    (Path("prepared/source.npy"), other_type, make_weights),
    (VAL, other_columns, trained_baseline),
    (TEST, other_columns, predicted),
    (TRIALS, other_columns, lambda params: read_trials(TRIALS, np.arange(0))),
    (BASELINE.train_list, other_columns, trained_baseline),
    (BREAKDOWN.pair_list, other_columns, trained_encoder),
    (workspace.VAL_PAIRS, other_columns, trained_encoder),
    (workspace.START, other_tensors, trained_baseline),
    (Path("prepared/near_duplicates.csv"), other_columns, evaluate),
    (Path("prepared/summary.json"), other_keys, evaluate),
    (REPORTS / "results.csv", other_columns, summed_up),
    (REPORTS / "comparison.csv", other_columns, summed_up),
    (REPORTS / "metrics.json", other_keys, summed_up),
]
WRITTEN_ONLY = {  # for people and other programs; MLflow takes tables of the report as they are
    *("weights/record.json", ".png"),
    *(f"reports/{name}" for name in (
        "accuracy.csv", "training.csv", "confusion.csv", "pairwise.csv", "variance.csv",
        "crossover.csv", "claims.csv", "identity_intervals.csv", "costs.csv", "index.html",
        "report.md", "figures",
    )),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small project after all its stages; its reports are those of made-up runs."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("reports"))
        patch.setattr("pipeline.report.figures.draw", lambda *_: [])
        write_runs(fake_params())
        evaluate(fake_params())
        shutil.copytree("reports", folder / "reports")
        patch.chdir(folder)
        make("classification")
        params = small("classification")
        train_all(params)
        for run in runs_of(params.compare):
            predict_test_split(params, run)
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


@pytest.mark.parametrize(
    ("path", "change", "read"),
    FORMS,
    ids=[f"{path} {change.__name__} {read.__name__}" for path, change, read in FORMS],
)
def test_another_form_is_known_and_named(project, path, change, read):
    change(path)
    with pytest.raises(InputError) as error:
        read(small("classification"))
    said = str(error.value)
    assert said.startswith((str(path), "reports: ")) and "\n" not in said
    assert "dvc repro" in said or str(path) == str(workspace.START)


def test_every_output_is_among_them_or_never_read_back():
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    outputs = [out for stage in stages["stages"].values() for out in stage.get("outs", [])]
    run = str(BASELINE.folder)
    there = [
        out.replace("runs/${item.method}/shots-${item.shots}/seed-${item.seed}", run)
        .replace("${item.method}-n${item.shots}-s${item.seed}", BASELINE.name)
        .replace("runs/finetune/shots-5/seed-0/encoder", str(ENCODER))
        for out in outputs
    ]
    known = [str(path) for path, _, _ in FORMS]
    unknown = {
        out
        for out in there
        if not any(path == out or path.startswith(out + "/") for path in known)
        and not out.endswith(tuple(WRITTEN_ONLY))
    }
    assert unknown == {"prepared/trials"}  # their form is that of prepared/splits/trials.csv


def test_a_plan_does_not_go_by_counts_of_another_form(project):
    """It counts the raw images then, as before the first ``prepare``."""
    params = small("classification")
    Path("prepared/summary.json").write_text('{"splits": {"train": {}}}', encoding="utf-8")
    assert plan.count(params).images == 3 * 16


@pytest.mark.parametrize("text", ["{}", "[]", '{"rows": [{}]}', '{"rows": [{"name": "a"}]}', "no"])
def test_a_table_of_measurements_of_another_form_is_named(tmp_path, text):
    stored = tmp_path / "measured.json"
    stored.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"measured\.json: no table of measurements .* --store"):
        measure.fallen([], stored)


# The previous commit


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def previous() -> str:
    """The commit before this tree: the last one where something is not committed."""
    return git("rev-parse", "HEAD" if git("status", "--porcelain") else "HEAD~1")


def shrink(folder: Path) -> None:
    """The default at a small size, in a project whose params.yaml is the default."""
    edit(
        folder,
        compare__baselines=["finetune"], compare__shots=[3], compare__seeds=[0],
        weights__source__epochs=2, methods__breakdown__encoder__epochs=2,
        methods__breakdown__head__epochs=2, methods__finetune__epochs=3,
    )  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    """All code of a tree, and what its stages are."""
    paths = [*(folder / "pipeline").rglob("*.py"), folder / "configs/digits.yaml"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def stages_of(folder: Path) -> dict:
    return YAML(typ="safe", pure=True).load((folder / "dvc.yaml").read_text("utf-8"))["stages"]


def changed_stages(old: Path, new: Path) -> set[str]:
    """Those whose code or definition is another."""
    files, stages = (files_of(old), files_of(new)), (stages_of(old), stages_of(new))
    edited = {name for name in files[0].keys() | files[1].keys()
              if files[0].get(name) != files[1].get(name)}  # fmt: skip
    return {
        name
        for name, stage in stages[1].items()
        if stage != stages[0].get(name)
        or any(f == dep or f.startswith(dep + "/") for dep in stage["deps"] for f in edited)
    }


@pytest.mark.torture
def test_what_the_previous_commit_made_is_still_read(tmp_path):
    commit = previous()
    if not commit:
        pytest.skip("there is no git history here, or a shallow one")
    folder, old, new = tmp_path / "project", tmp_path / "old", tmp_path / "new"
    old.mkdir()
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    unpacking = ["tar", "-x", "--exclude=./dvcstore/files", "--exclude=dvcstore/files"]
    subprocess.run(unpacking, cwd=old, input=packed.stdout, check=True)
    new.mkdir()
    copy_project(new)

    shutil.copytree(old, folder, symlinks=True)
    shutil.copy(folder / "configs/digits.yaml", folder / "params.yaml")
    (folder / "dvc.lock").unlink(missing_ok=True)
    call(folder, "git", "init", "-q")
    call(folder, "dvc", "remove", "data.dvc")
    write_digits(folder / "data/target", [5, 6], 16)
    write_digits(folder / "data/source", [0, 1], 10)
    shrink(folder)
    call(folder, "dvc", "add", "data")
    call(folder, "dvc", "repro")
    runs = mlflow_runs(folder)
    names = sorted(run["name"] for run in runs)
    assert names == ["breakdown-n3-s0", "finetune-n3-s0"]

    shutil.rmtree(folder / "pipeline")
    for name in ("pipeline", "configs", ".dvc/plots"):
        shutil.copytree(new / name, folder / name, dirs_exist_ok=True)
    shutil.copy(new / "dvc.yaml", folder)
    shutil.copy(DEFAULT, folder / "params.yaml")
    shrink(folder)

    status = json.loads(call(folder, "dvc", "status", "--json").splitlines()[0])
    found = {name.partition("@")[0] for name in status} - {"publish", "data.dvc"}
    assert found == changed_stages(old, new) - {"publish"}

    # as after a dvc commit: new code on all the old files
    said = call(folder, "python", "-m", "pipeline.stages.evaluate", check=False)
    if not said.endswith("status 0"):
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "version" in line and "dvc repro" in line
    for _ in range(2):
        call(folder, "python", "-m", "pipeline.stages.publish")
        published = mlflow_runs(folder)
        assert sorted(run["name"] for run in published) == names
        assert {run["status"] for run in published} == {"FINISHED"}

    assert stages_run(call(folder, "dvc", "repro")) >= {"publish"}
    published = mlflow_runs(folder)
    assert sorted(run["name"] for run in published) == names
    assert stages_run(call(folder, "dvc", "repro")) == {"publish"}
