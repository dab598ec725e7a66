import subprocess

import pytest

from pipeline.params import Params
from pipeline.report.page import provenance
from pipeline.report.page.provenance import differing, made
from tests.report.fake_runs import fake_params


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "reports").mkdir()
    (tmp_path / "data.dvc").write_text("outs:\n- md5: 3b7.dir\n  path: data\n")
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / "reports/metrics.json").write_text("{}\n")
    (tmp_path / "dvc.lock").write_text("a\n")
    return tmp_path


def test_the_commit_and_what_differs_from_it(project):
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-q", "-m", "all")
    found = made(project)
    assert found.commit == git(project, "rev-parse", "HEAD") and len(found.commit) == 40
    assert found.data == "3b7.dir" and not found.dirty
    for name in ("reports/metrics.json", "dvc.lock"):  # what a run writes itself
        (project / name).write_text("other\n")
    (project / "untracked").write_text("")
    assert not made(project).dirty
    (project / "code.py").write_text("2\n")
    assert made(project).changed == ("code.py",)


def test_files_are_named_by_their_paths_in_the_project(project):
    inner = project / "inner"
    inner.mkdir()
    (inner / "params.yaml").write_text("1\n")
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-q", "-m", "all")
    (inner / "params.yaml").write_text("2\n")
    (project / "code.py").write_text("2\n")
    assert made(inner).changed == ("params.yaml",)


def test_outside_a_repository_and_without_data_nothing_is_named(project):
    assert made(project).commit == "" and made(project).changed == ()
    (project / "data.dvc").write_text("[\n")
    assert made(project).data == ""
    (project / "data.dvc").unlink()
    assert made(project).data == ""


def test_without_git_nothing_is_named(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert made(project).commit == ""


def test_the_default_is_that_of_the_project(project):
    assert made(project).default is None
    root = provenance.DEFAULT.resolve().parents[1]
    found = made(root)
    assert isinstance(found.default, Params) and found.default.compare.reference == "finetune"
    assert found.versions["numpy"].count(".") == 2
    assert differing(found.default, found.default) == []


def test_keys_that_differ_have_both_values():
    ours = fake_params(shots=(5,), baselines=("finetune",))
    theirs = fake_params(shots=(5, 20), baselines=("finetune", "scratch"))
    found = {key: (one, other) for key, one, other in differing(ours, theirs)}
    assert found == {
        "compare.baselines": (["finetune"], ["finetune", "scratch"]),
        "compare.shots": ([5], [5, 20]),
        "methods.scratch": (None, {"recipe": "scratch", "lr": 0.01}),
    }
