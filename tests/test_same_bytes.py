"""The same settings give the same bytes, wherever, whenever and beside whatever they run.

Stages run twice in one process, and under DVC, are compared in ``tests/test_stages.py`` and
``tests/test_dvc.py``; runs side by side in ``tests/test_jobs.py``; on one device in
``tests/training/test_gpu.py``. ``pipeline.records.TIMED`` names what may differ.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from pipeline import workspace
from pipeline.params import Runtime
from pipeline.records import TIMED, RunId, file_digest, read_json, runs_of
from pipeline.stages.baseline import baseline
from pipeline.stages.evaluate import evaluate
from tests.digits import write_digits
from tests.projects import call, copy_project, edit, stages_run
from tests.test_split_readers import ROOT, make, small
from tests.training_runs import train_and_test

PARTS = ("prepared", "weights", "runs", "predictions", "reports")
ELSEWHERE = {  # all that a computer may have otherwise
    "HOME": "/nonexistent", "USER": "somebody", "LOGNAME": "somebody", "LANG": "C", "LC_ALL": "C",
    "LANGUAGE": "de", "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "4321", "COLUMNS": "40",
    "SOURCE_DATE_EPOCH": "1",
}  # fmt: skip


def digests(folder: Path, *parts: str) -> dict[str, str]:
    """The MD5 of every output but those that hold times."""
    return {
        str(path.relative_to(folder)): file_digest(path)
        for part in parts or PARTS
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and not path.name.endswith((*TIMED, ".lock"))
    }


def different(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of files that only one has, or that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def run_all(task: str, backwards: bool) -> None:
    """All stages of a small project in this folder, its runs in one order or the other."""
    make(task)
    params = small(task)
    runs = runs_of(params.compare)
    train_and_test(params, reversed(runs) if backwards else runs)
    evaluate(params)


@contextmanager
def busy():
    """Another process that never rests."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def beside(words: list[str], folder: Path, **environment: str):
    """A process that runs meanwhile, for another user as far as that can be, and ends well."""
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, umask=0o077, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield
        _, said = process.communicate(timeout=400)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", ["classification", pytest.param("verification", marks=pytest.mark.torture)]
)
def test_elsewhere_at_once_in_another_order_under_load(task, tmp_path, monkeypatch):
    """Another folder, home, user, locale, time zone, hash seed and umask; two at the same time."""
    here, there = tmp_path / "here", tmp_path / "a much longer näme of a folder" / "b"
    here.mkdir()
    there.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr("pipeline.report.figures.draw", lambda *_: [])
    program = (
        "from tests import test_same_bytes as here; from pipeline.report import figures\n"
        f"figures.draw = lambda *_: []; here.run_all({task!r}, backwards=True)\n"
    )
    with busy(), beside(["-c", program], there, **ELSEWHERE):
        run_all(task, backwards=False)
    found = digests(here)
    assert {Path(name).parts[0] for name in found} == set(PARTS) and len(found) > 30
    assert different(found, digests(there)) == []


def test_another_number_of_threads_is_another_setting(tmp_path, monkeypatch):
    """The record tells of it, and DVC and the checkpoints' keys go by it."""
    monkeypatch.chdir(tmp_path)
    make("classification")
    params, run = small("classification"), RunId("finetune", 5, 0)
    two = params.model_copy(update={"runtime": Runtime(threads=2)})
    kept, records, keys = torch.get_num_threads(), [], []

    def noting(*given):
        made = checkpoint(*given)
        keys.append(made._folder.name)
        return made

    checkpoint = workspace.checkpoint
    monkeypatch.setattr(workspace, "checkpoint", noting)
    try:
        for asked in (params, two):
            baseline(asked, run)
            records.append(read_json(run.folder / "record.json"))
            assert torch.get_num_threads() == asked.runtime.threads
    finally:
        torch.set_num_threads(kept)
    assert [record["threads"] for record in records] == [1, 2]
    assert [record["parameters"]["runtime"]["threads"] for record in records] == [1, 2]
    assert len(set(keys)) == 2


def test_every_stage_that_computes_depends_on_the_threads():
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    asking = {name for name, of in stages["stages"].items() if "runtime" in of.get("params", [])}
    assert asking == {
        "weights", "encoder", "head", "baseline", "test_breakdown", "test_baseline", "evaluate",
    }  # fmt: skip


def write_default_data(folder: Path) -> None:
    """Digits as in the default data: all there are of 5 to 9, and of 0 to 4 to pretrain on."""
    write_digits(folder / "target", list(range(5, 10)), 200)
    write_digits(folder / "source", list(range(5)), 200)


def of_seed(found: dict[str, str], seed: int) -> dict[str, str]:
    """The files of one repetition."""
    named = (f"/seed-{seed}/", f"-s{seed}.", f"/seed-{seed}.csv")
    return {name: of for name, of in found.items() if any(part in name for part in named)}


@pytest.mark.torture
def test_the_default_alone_and_beside_others_and_under_dvc(tmp_path):
    """Twice at once with seeds in another order; one seed alone in a temporary experiment, forced.

    What a seed gives depends on no other seed.
    """
    write_default_data(tmp_path / "data")
    folders = [tmp_path / "one", tmp_path / "another, of another user"]
    config = [str(ROOT / "configs/digits.yaml"), str(tmp_path / "data")]
    one, other = (["-m", "benchmarks.compare", *config, str(folder)] for folder in folders)
    with beside(one, ROOT), beside([*other, "compare.seeds=[2, 0, 1]"], ROOT, **ELSEWHERE):
        pass
    lists = [f"prepared/{name}" for name in ("splits", "train", "pairs", "trials")]
    whole, other = (digests(folder, *lists, "weights", "runs", "predictions") for folder in folders)
    assert different(whole, other) == []

    project = tmp_path / "project"
    project.mkdir()
    copy_project(project)
    call(project, "dvc", "remove", "data.dvc")
    shutil.copytree(tmp_path / "data", project / "data", dirs_exist_ok=True)
    edit(project, compare__seeds=[1])
    call(project, "dvc", "add", "data")
    call(project, "git", "add", "-A")
    call(project, "git", "commit", "-qm", "start")
    call(project, "dvc", "exp", "run", "--temp", "-n", "apart")
    assert digests(project, "weights", "runs", "predictions") == {}  # they are there alone
    call(project, "dvc", "exp", "apply", "apart")
    call(project, "dvc", "checkout")
    apart = digests(project)
    assert of_seed(apart, 1).keys() == of_seed(whole, 1).keys()
    assert different(of_seed(apart, 1), of_seed(whole, 1)) == []
    assert apart["weights/start.safetensors"] == whole["weights/start.safetensors"]

    repeated = stages_run(call(project, "dvc", "repro", "-f"))
    assert {"images", "prepare", "weights", "evaluate", "baseline@scratch-10-1"} <= repeated
    assert different(digests(project), apart) == []


def test_the_files_that_may_differ_are_those_that_hold_times():
    """All others of a report are compared; none is left out by chance."""
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    outputs = [out for stage in stages["stages"].values() for out in stage.get("outs", [])]
    timed = {Path(out).name for out in outputs if out.endswith(TIMED)}
    named = {"timing.json", "${item.method}-n${item.shots}-s${item.seed}.timing.json"}
    assert timed == named | {"costs.csv", "index.html", "report.md"}
