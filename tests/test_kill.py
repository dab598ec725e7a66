"""Stages killed at random moments, as real processes under real DVC: a rerun gives the same bytes.

Minutes of it; ``make torture``.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from tests.projects import (
    bytes_of,
    call,
    edit,
    environment,
    mlflow_runs,
    small_project,
    stages_run,
)
from tests.test_jobs import is_alive, until

pytestmark = pytest.mark.torture

EPOCHS = 150  # as long as the imports before them
MOMENTS = 3  # of each stage
STAGES = {
    "images": "images",
    "prepare": "prepare",
    "weights": "weights",
    "encoder": "encoder@breakdown-3-0",
    "head": "head@breakdown-3-0",
    "baseline": "baseline@finetune-3-0",
    "test": "test_baseline@finetune-3-0",
    "evaluate": "evaluate",
    "publish": "publish",
}
TRAIN = ("weights", "encoder", "head", "baseline")
ALL_AT_ONCE = {  # so that runs of seconds write checkpoints, too
    "CHECKPOINT_SECONDS = 5.0": "CHECKPOINT_SECONDS = 0.0",
    "SHARE = 0.02": "SHARE = 1e9",
}


@pytest.fixture(scope="module")
def never(tmp_path_factory):
    """A project that was reproduced without any interruption."""
    folder = tmp_path_factory.mktemp("never interrupted")
    small_project(folder)
    path = folder / "pipeline/training/checkpoints.py"
    text = path.read_text(encoding="utf-8")
    for slow, fast in ALL_AT_ONCE.items():
        assert text.count(slow) == 1
        text = text.replace(slow, fast)
    path.write_text(text, encoding="utf-8")
    edit(
        folder,
        weights__source__epochs=EPOCHS, methods__breakdown__encoder__epochs=EPOCHS,
        methods__breakdown__head__epochs=EPOCHS, methods__finetune__epochs=EPOCHS,
        tracking__live_after=None,
    )  # fmt: skip
    call(folder, "dvc", "repro")
    return folder


@pytest.fixture(scope="module")
def seconds(never):
    """How long each stage takes as a process."""
    found = {}
    for name, stage in STAGES.items():
        with begun(never, name, stage) as (dvc, process):
            started = time.monotonic()
            until(lambda process=process: not is_alive(process), 120)
            found[name] = time.monotonic() - started
            assert dvc.wait(60) == 0
    return found


@pytest.fixture
def project(never, tmp_path):
    folder = tmp_path / "project"
    store = shutil.ignore_patterns("mlflow.db*", "mlruns")  # its paths are of the other folder
    shutil.copytree(never, folder, symlinks=True, ignore=store)
    return folder


def forget(folder: Path, stage: str) -> None:
    """Let DVC know nothing of a stage, so that it runs it again rather than restore its outputs."""
    tree = locked(folder)
    tree["stages"].pop(stage, None)  # publish has no outputs
    with (folder / "dvc.lock").open("w", encoding="utf-8") as file:
        YAML().dump(tree, file)


def locked(folder: Path):
    return YAML().load((folder / "dvc.lock").read_text(encoding="utf-8"))


@contextmanager
def begun(folder: Path, name: str, stage: str):
    """``dvc repro`` of a single stage, and the process of that stage once it is there."""
    forget(folder, stage)
    words = ("dvc", "repro", "--force", "--single-item", "--no-run-cache", stage)
    dvc = subprocess.Popen(
        words, cwd=folder, env=environment(folder), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started = psutil.Process(dvc.pid)
    found: list[psutil.Process] = []
    try:
        until(lambda: found.extend(processes(started, name)) or found, 60)
        yield dvc, found[0]
    finally:
        for process in (*found, dvc):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        dvc.wait()


def processes(dvc: psutil.Process, name: str) -> list[psutil.Process]:
    """Those of a stage, without shells."""
    found = []
    for process in dvc.children(recursive=True):
        with suppress(psutil.Error):
            if f"pipeline.stages.{name}" in process.cmdline():
                found.append(process)
    return found


def halves(folder: Path) -> list[Path]:
    """What killed processes left of files that they were writing."""
    parts = ("prepared", "weights", "runs", "predictions", "reports", ".checkpoints")
    found = [path for part in parts for path in (folder / part).rglob(".*.*")]
    return [path for path in found if path.suffix[1:].isdecimal()]


def repro(folder: Path, never: Path, stage: str) -> str:
    """Reproduce what was interrupted; it must be what never was."""
    assert stage not in locked(folder)["stages"]
    output = call(folder, "dvc", "repro", "--no-run-cache")
    assert stage in stages_run(output)
    expected, found = bytes_of(never), bytes_of(folder)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
    assert halves(folder) == [] and not (folder / ".checkpoints").exists()
    return output


@contextmanager
def caught(folder: Path, name: str, after: float):
    """A stage that is at work after so many seconds, or sooner where it was faster than before."""
    alive = False
    while not alive:
        with begun(folder, name, STAGES[name]) as (dvc, process):
            time.sleep(after)
            if alive := is_alive(process):
                yield dvc, process
            else:
                dvc.wait(30)
        after /= 2


def moments(name: str) -> list[float]:
    """Shares of a stage's time."""
    draw = random.Random(name)
    return [draw.random() for _ in range(MOMENTS)]


@pytest.mark.parametrize(
    ("name", "moment"), [(name, moment) for name in STAGES for moment in moments(name)]
)
def test_a_stage_killed_at_a_random_moment(name, moment, project, never, seconds):
    with caught(project, name, moment * seconds[name]) as (dvc, process):
        process.kill()
        dvc.wait(30)
    repro(project, never, STAGES[name])
    runs = mlflow_runs(project)
    assert sorted(run["name"] for run in runs) == ["breakdown-n3-s0", "finetune-n3-s0"]
    assert {run["status"] for run in runs} == {"FINISHED"}


@pytest.mark.parametrize("name", TRAIN)
def test_training_goes_on_where_it_was_killed(name, project, never):
    with begun(project, name, STAGES[name]) as (dvc, process):
        until(lambda: list((project / ".checkpoints").glob("*/1.safetensors")), 60)
        process.kill()
        dvc.wait(30)
    assert "goes on after epoch" in repro(project, never, STAGES[name])


@pytest.mark.parametrize("name", ["images", "encoder", "head", "baseline", "evaluate", "publish"])
def test_dvc_alone_killed(name, project, never, seconds):
    """Its child ends by itself, before the one of the next DVC gets to work."""
    with caught(project, name, moments(name)[0] * seconds[name]) as (dvc, process):
        dvc.kill()
        dvc.wait()
        repro(project, never, STAGES[name])
        assert not is_alive(process)


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGTERM, 0.4), (signal.SIGINT, 0.7)])
@pytest.mark.parametrize("name", ["images", "encoder", "evaluate", "publish"])
def test_signals_end_a_stage_within_two_seconds(name, number, moment, project, never, seconds):
    """To all, as a terminal's Ctrl-C, or as what ends a job."""
    with caught(project, name, moment * seconds[name]) as (dvc, process):
        started = time.monotonic()
        os.killpg(dvc.pid, number)
        until(lambda: not is_alive(process), 2)
        dvc.wait(30)
        assert time.monotonic() - started < 10
    repro(project, never, STAGES[name])


def test_this_python_is_the_one_that_dvc_starts(never):
    assert call(never, "python", "-c", "import sys; print(sys.executable)").startswith(
        str(Path(sys.executable).parent)
    )
