"""The pipeline as users run it: real DVC, real MLflow stores, in folders of their own.

A small project is reproduced once; what happens to it after is told in order, as a story, since
each step costs seconds of real training.
"""

import json
import re
import shutil
import sys

import pytest
from ruamel.yaml import YAML

from tests.projects import (
    ROOT,
    TRAINED,
    bytes_of,
    call,
    edit,
    mlflow_runs,
    small_project,
    stages_run,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project with space")
    small_project(folder)
    call(folder, "dvc", "repro")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-qm", "start")
    return folder


def test_a_first_repro_makes_every_run_and_the_report(project):
    runs = mlflow_runs(project)
    assert sorted(run["name"] for run in runs) == ["breakdown-n3-s0", "finetune-n3-s0"]
    commit = call(project, "git", "rev-parse", "HEAD").split()[0]
    for run in runs:
        assert run["status"] == "FINISHED"
        tags = run["tags"]
        assert {"method", "shots", "seed", "data.md5", "mlflow.runColor"} <= tags.keys()
        assert tags.get("git.commit") in (None, commit)  # there was no commit before the first run
        assert {"train/loss", "val/loss", "val/accuracy", "test/accuracy", "test/macro_f1",
                "test/nll", "test/ece", "best/val_accuracy", "cost/images_seen",
                "cost/train_seconds", "cost/peak_memory_mb"} <= run["metrics"].keys()  # fmt: skip
    for name in ("results.csv", "metrics.json", "comparison.csv", "costs.csv", "index.html"):
        assert (project / "reports" / name).stat().st_size > 0
    (summary,) = mlflow_runs(project, kind="summary")
    assert "one seed cannot tell the methods apart" in summary["tags"]["mlflow.note.content"]
    artifacts = project / "mlruns/siamese-breakdown" / summary["id"] / "artifacts"
    for name in ("index.html", "report.md", "comparison.csv"):
        (attached,) = artifacts.rglob(name)
        assert attached.read_bytes() == (project / "reports" / name).read_bytes()
    assert "finetune" in call(project, "dvc", "metrics", "show")
    assert not (project / "runs" / ".gitignore").exists()


def test_a_second_repro_runs_nothing_but_publish(project):
    output = call(project, "dvc", "repro")
    assert stages_run(output) == {"publish"}
    assert "2 unchanged" in output
    assert call(project, "git", "status", "--porcelain").split("status")[0].strip() == ""


def test_a_forced_rerun_gives_the_same_bytes(project):
    before = bytes_of(project)
    assert stages_run(call(project, "dvc", "repro", "-f")) >= TRAINED
    after = bytes_of(project)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []
    assert len(mlflow_runs(project)) == 2


def test_a_changed_head_reruns_heads_alone(project):
    edit(project, methods__breakdown__head__lr=0.01)
    assert stages_run(call(project, "dvc", "repro")) == {
        "head@breakdown-3-0", "test_breakdown@breakdown-3-0", "evaluate", "publish",
    }  # fmt: skip
    runs = mlflow_runs(project)
    assert sorted(run["name"] for run in runs) == [
        "breakdown-n3-s0", "breakdown-n3-s0", "finetune-n3-s0",
    ]  # fmt: skip
    rates = {run["params"].get("method.head.lr") for run in runs if "breakdown" in run["name"]}
    assert rates == {"0.05", "0.01"}


def test_a_new_seed_runs_its_runs_alone_and_changes_no_other(project):
    before = bytes_of(project)
    edit(project, compare__seeds=[2, 0])
    assert stages_run(call(project, "dvc", "repro")) == {
        "prepare", "encoder@breakdown-3-2", "head@breakdown-3-2", "baseline@finetune-3-2",
        "test_breakdown@breakdown-3-2", "test_baseline@finetune-3-2", "evaluate", "publish",
    }  # fmt: skip
    after = bytes_of(project)
    kept = [name for name in before if name.startswith(("runs/", "predictions/"))]
    assert [name for name in kept if before[name] != after[name]] == []
    edit(project, compare__seeds=[0])
    assert stages_run(call(project, "dvc", "repro")) <= {"prepare", "evaluate", "publish"}
    fresh = {name: text for name, text in bytes_of(project).items() if name.startswith("reports/")}
    assert {name: before[name] for name in fresh} == fresh  # leftovers of seed 2 change nothing


def test_other_pairs_rerun_no_baseline(project):
    edit(project, pairs__per_image=1)
    assert stages_run(call(project, "dvc", "repro")) == {
        "prepare", "encoder@breakdown-3-0", "head@breakdown-3-0", "test_breakdown@breakdown-3-0",
        "evaluate", "publish",
    }  # fmt: skip
    edit(project, pairs__per_image=8)
    assert stages_run(call(project, "dvc", "repro")) == {"publish"}  # the rest is remembered


def test_a_deleted_store_comes_back_without_training(project):
    for name in ("mlflow.db", "mlruns"):
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for _ in range(2):
        assert stages_run(call(project, "dvc", "repro")) == {"publish"}
        assert len(mlflow_runs(project)) == 2


def test_experiments_in_temporary_folders_land_in_the_project_s_store(project):
    call(project, "git", "add", "-A")
    call(project, "git", "commit", "-qm", "changed")
    change = "methods.breakdown.encoder.loss.margin_different=1.5,2.0"
    call(project, "dvc", "exp", "run", "--queue", "-S", change)
    call(project, "dvc", "exp", "run", "--temp", "-n", "lonely", "-S",
         "methods.breakdown.head.lr=0.03")  # fmt: skip
    call(project, "dvc", "exp", "run", "--run-all")
    shown = json.loads(call(project, "dvc", "exp", "show", "--json").splitlines()[0])
    names = {exp["name"] for exp in shown[1]["experiments"] or []}
    assert len(names) == 3 and "lonely" in names
    runs = mlflow_runs(project)
    tagged = {run["tags"].get("dvc.experiment") for run in runs} - {None}
    assert tagged == names
    for run in runs:
        assert not run["name"].startswith("finetune") or all(
            f"dvc.experiment.{name}" in run["tags"] for name in names
        )
    assert len(runs) == 2 + 3
    assert not list((project / ".dvc/tmp").rglob("mlflow.db"))
    assert (project / "mlruns").is_dir()


def test_an_own_data_set_never_goes_into_the_embedded_store(project, tmp_path):
    embedded, mine = project / "dvcstore", tmp_path / "mine"
    assert "remote" not in (project / "data.dvc").read_text()
    call(project, sys.executable, "-m", "pipeline.prune")
    call(project, "dvc", "repro")
    call(project, "dvc", "remote", "add", "-d", "mine", str(mine))
    call(project, "dvc", "push")
    pushed = {path.name for path in mine.rglob("*") if path.is_file()}
    data = YAML(typ="safe").load((project / "data.dvc").read_text())["outs"][0]["md5"]
    assert data[2:] in pushed  # the list of the folder, whose files lie beside it
    assert len(pushed) > 52
    assert [path for path in embedded.rglob("*") if path.is_file()] == [embedded / ".gitattributes"]
    call(project, "git", "commit", "-qam", "remote")
    clone = tmp_path / "clone"
    call(tmp_path, "git", "clone", "-q", str(project), str(clone))
    call(clone, "dvc", "pull")
    assert stages_run(call(clone, "dvc", "repro")) == {"publish"}
    assert len(mlflow_runs(clone)) == 2
    assert bytes_of(clone) == bytes_of(project)


def test_a_new_recipe_is_one_file(project):
    """README's recipe: nothing but its file, its block and its name under compare."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(code.splitlines()) < 30
    (project / "pipeline/recipes/gradual.py").write_text(code, encoding="utf-8")
    call(project, "dvc", "commit", "-f")
    edit(
        project,
        methods__gradual={"recipe": "gradual", "epochs": 2, "lr": 0.01},
        compare__baselines=["finetune", "gradual"],
    )
    assert stages_run(call(project, "dvc", "repro")) == {
        "baseline@gradual-3-0", "test_baseline@gradual-3-0", "evaluate", "publish",
    }  # fmt: skip
    for name in ("results.csv", "comparison.csv", "metrics.json", "costs.csv", "index.html"):
        assert "gradual" in (project / "reports" / name).read_text(encoding="utf-8")
    (run,) = (run for run in mlflow_runs(project) if run["name"] == "gradual-n3-s0")
    assert {"val/accuracy", "test/accuracy", "cost/images_seen"} <= run["metrics"].keys()
    assert run["params"]["method.release_factor"] == "0.1"
    (project / "pipeline/recipes/gradual.py").unlink()
    edit(project, compare__baselines=["finetune"])
    tree = YAML().load((project / "params.yaml").read_text(encoding="utf-8"))
    del tree["methods"]["gradual"]
    with (project / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(tree, file)
    call(project, "dvc", "commit", "-f")
    call(project, "dvc", "repro")


def test_wrong_input_stops_the_stage_with_one_line(project):
    picture = next((project / "data/target/5").iterdir())
    kept = picture.read_bytes()
    before = bytes_of(project)
    picture.unlink()  # DVC may have linked it to its cache
    picture.write_text("this is no picture")
    output = call(project, "dvc", "repro", check=False)
    assert "status 0" not in output and "Traceback" not in output
    lines = [line for line in output.splitlines() if picture.name in line]
    assert lines and "5/" in lines[0]
    picture.write_bytes(kept)
    call(project, "dvc", "repro")
    assert bytes_of(project).keys() == before.keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compare__referenc": "finetune"}, "did you mean 'reference'"),
        ({"methods__breakdown__encoder__latent": "embeding"}, "embedding"),
        ({"model__architecture": "resnet19"}, "resnet18"),
    ],
)
def test_the_check_command_ends_with_status_1(project, tmp_path, change, said):
    for name in ("params.yaml", "pretrained"):
        path = project / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / name)
    edit(tmp_path, **change)
    output = call(tmp_path, sys.executable, "-m", "pipeline.check", check=False,
                  PYTHONPATH=str(project))  # fmt: skip
    assert output.endswith("status 1") and said in output and "Traceback" not in output
    assert len([line for line in output.splitlines() if line.startswith("error: ")]) == 1


def test_two_processes_never_work_on_one_run(project):
    import filelock

    with filelock.FileLock(project / "runs/finetune/shots-3/seed-0/.lock"):
        output = call(
            project, sys.executable, "-m", "pipeline.stages.baseline", "finetune", "3", "0",
            check=False,
        )  # fmt: skip
    assert output.endswith("status 1") and "another process is working on this run" in output
