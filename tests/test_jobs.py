"""Runs side by side: real DVC, real processes, against a plain ``dvc repro``."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import filelock
import psutil
import pytest
import zc.lockfile

from benchmarks.side_by_side import differences
from pipeline import jobs, workers
from pipeline.errors import InputError
from pipeline.params import Runtime
from tests.projects import TRAINED, bytes_of, call, edit, environment, small_project, stages_run

HEADS = {"head@breakdown-3-0", "test_breakdown@breakdown-3-0"}
BASELINE = {"baseline@finetune-3-0", "test_baseline@finetune-3-0"}
REST = {"evaluate", "publish"}
SIDE_BY_SIDE = (sys.executable, "-m", "pipeline.jobs", "2")


def told(output: str) -> dict[str, str]:
    """What is said of each stage of a single run, by its name."""
    lines = re.findall(r"^\[\d+/\d+\] ([^:]+): (.*)$", output, re.MULTILINE)
    assert len(dict(lines)) == len(lines), "a stage is told of twice"
    return dict(lines)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project in which all is there but the runs."""
    folder = tmp_path_factory.mktemp("prepared")
    small_project(folder)
    call(folder, "dvc", "repro", "prepare", "weights")
    return folder


@pytest.fixture(scope="module")
def project(prepared):
    """The same project with its runs, made side by side."""
    folder = prepared.parent / "side by side"
    shutil.copytree(prepared, folder, symlinks=True)
    output = call(folder, *SIDE_BY_SIDE)
    (folder / "output.txt").write_text(output, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_outputs_and_lock_are_those_of_a_plain_repro(prepared, project):
    plain = prepared.parent / "plain"
    shutil.copytree(prepared, plain, symlinks=True)
    assert stages_run(call(plain, "dvc", "repro")) == TRAINED | REST
    output = (project / "output.txt").read_text(encoding="utf-8")
    assert told(output).keys() == TRAINED and stages_run(output) == REST
    expected, found = bytes_of(plain), bytes_of(project)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
    assert differences(plain, project) == []
    changed = json.loads(call(project, "dvc", "status", "--json").splitlines()[0])
    assert changed == {"publish": ["always changed"]}


@pytest.mark.slow
def test_a_failing_run_stops_nothing_else_and_is_named(project):
    edit(project, methods__finetune__epochs=4, methods__breakdown__head__epochs=3)
    with filelock.FileLock(project / "runs/finetune/shots-3/seed-0/.lock"):
        output = call(project, *SIDE_BY_SIDE, check=False)
    assert output.endswith("status 1") and "Traceback" not in output
    assert told(output).keys() == HEADS | {"baseline@finetune-3-0"}  # no encoder runs again
    assert "5 stages of single runs: 2 run, 1 unchanged, 1 failed, 1 skipped;" in output
    why = "error: runs/finetune/shots-3/seed-0: another process is working on this run"
    assert f"  baseline@finetune-3-0: {why}" in output
    assert "skipped, since what they need failed: test_baseline@finetune-3-0\n" in output
    assert "not done, since runs are missing: evaluate, publish;" in output
    assert stages_run(output) == set()


@pytest.mark.slow
def test_what_was_run_once_comes_from_the_run_cache(prepared, project):
    edit(project, methods__finetune__epochs=3, methods__breakdown__head__epochs=2)
    output = call(project, *SIDE_BY_SIDE)
    trained = HEADS | {"baseline@finetune-3-0"}  # what was tested of it is still that of before
    assert told(output) == dict.fromkeys(trained, "from DVC's run cache")
    assert stages_run(output) == {"publish"}  # the report is that of these runs
    plain, found = bytes_of(prepared.parent / "plain"), bytes_of(project)
    assert [name for name in plain if plain[name] != found.get(name)] == []


def statuses(folder: Path) -> list[str]:
    """Of the phases followed live, by MLflow's own table."""
    store = folder / "mlflow.db"
    question = (
        "SELECT runs.status FROM runs JOIN experiments USING (experiment_id) "
        "WHERE experiments.name = 'siamese-breakdown-phases'"
    )
    if not store.exists():
        return []
    try:
        with sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True) as asked:
            found = asked.execute(question).fetchall()
        asked.close()
    except sqlite3.OperationalError:  # it is just being made
        return []
    return [status for (status,) in found]


def until(true, seconds: float) -> None:
    """Wait for something."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "it took too long"
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_runs_end_with_the_coordinator_and_a_rerun_completes(project, number, tmp_path):
    edit(project, methods__finetune__epochs=100_000 + number, tracking__live_after=0)
    ended = len(statuses(project))
    with (tmp_path / "said").open("wb") as said:
        coordinator = subprocess.Popen(
            SIDE_BY_SIDE, cwd=project, env=environment(project), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
    try:
        until(lambda: "RUNNING" in statuses(project), 60)
        started = psutil.Process(coordinator.pid).children(recursive=True)
        assert any(process.cpu_times().user > 0 for process in started)
        if number == signal.SIGINT:  # as a terminal does: to all
            os.killpg(coordinator.pid, number)
        else:
            os.kill(coordinator.pid, number)
        until(lambda: not any(map(is_alive, started)), 30)  # the last is the one that MLflow hears
    finally:
        coordinator.kill()
        status = coordinator.wait()
    assert status in {signal.SIGKILL: {-9}, signal.SIGTERM: {143}, signal.SIGINT: {130}}[number]
    if number == signal.SIGINT:
        last = (tmp_path / "said").read_text().splitlines()[-1]
        assert last == "interrupted; start the same command again to go on"
    assert set(statuses(project)[ended:]) == {"KILLED"}
    if number == signal.SIGKILL:
        edit(project, methods__finetune__epochs=5, tracking__live_after=None)
        output = call(project, *SIDE_BY_SIDE)
        assert told(output).keys() == BASELINE and stages_run(output) == REST
    assert not list((project / "runs").rglob(".*.[0-9]*")), "half a file is left"


@pytest.mark.slow
def test_only_one_works_in_a_project(project):
    with filelock.FileLock(project / ".dvc/tmp/jobs/lock"):
        output = call(project, *SIDE_BY_SIDE, check=False)
    assert output.endswith("status 1")
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "runs are going side by side in this project already" in line
    lock = zc.lockfile.LockFile(str(project / ".dvc/tmp/lock"))
    output = call(project, *SIDE_BY_SIDE, check=False)
    lock.close()
    assert output.endswith("status 1") and "Traceback" not in output
    assert "error: another DVC command is at work in this project" in output


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "two", "", "²"])
def test_jobs_is_a_whole_number_above_0(text):
    with pytest.raises(InputError, match=f"^JOBS: '{text}' must be a whole number above 0"):
        jobs.number_of(text)


def test_jobs_is_a_number():
    assert jobs.number_of("12") == 12


def test_outputs_of_old_code_are_never_kept_under_new(tmp_path, monkeypatch, capsys):
    """Nor is a run begun with it: the workers go on with what they have loaded."""
    (tmp_path / "recipe.py").write_text("old = 1", encoding="utf-8")
    monkeypatch.setattr(jobs, "__file__", str(tmp_path / "jobs.py"))
    cells = {"baseline@a": SimpleNamespace(), "baseline@b": SimpleNamespace()}
    pool = jobs.Pool(SimpleNamespace(cells=cells), None, "cpu", jobs.loaded_code())
    assert not pool._edited("baseline@a") and not pool.failed
    (tmp_path / "recipe.py").write_text("newer = 2", encoding="utf-8")
    pool._take(workers.Ended("baseline@a", 0, "", "", 1.0))
    pool._start(SimpleNamespace(name="baseline@b"))
    assert set(pool.failed) == set(cells) and "was edited" in pool.failed["baseline@a"]
    assert capsys.readouterr().out.count("failed") == 2


def test_threads_beyond_the_cores_are_told():
    assert jobs.advice(2, Runtime(threads=1), cores=2) == ""
    line = jobs.advice(4, Runtime(threads=2), cores=6)
    assert "8 threads" in line and "6 cores" in line and "JOBS=3 " in line
    assert "JOBS=1 " in jobs.advice(2, Runtime(threads=8), cores=4)


@pytest.mark.parametrize(
    ("count", "visible", "names"),
    [
        (0, None, []),
        (3, None, ["0", "1", "2"]),
        (2, "2,0", ["2", "0"]),
        (2, "GPU-1f2a, GPU-77bc", ["GPU-1f2a", "GPU-77bc"]),
        (1, "1,-1,0", ["1"]),  # CUDA sees none after a wrong one
        (0, "", []),
    ],
)
def test_gpus_are_those_that_cuda_sees(count, visible, names):
    assert workers.gpu_names(count, visible) == names


def test_places_go_round_the_gpus():
    assert [workers.gpu_of(place, ["2", "GPU-a"]).get(workers.VISIBLE) for place in range(4)] == [
        "2", "GPU-a", "2", "GPU-a",
    ]  # fmt: skip
    assert workers.gpu_of(1, ["0"]) == workers.gpu_of(1, []) == {}


PROGRAM = """
import json, os, signal, sys, time
kind = sys.argv[1]
print(json.dumps([sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OWN"], os.getpid()]))
if kind == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "fails":
    sys.exit("error: no")
if kind == "raises":
    raise ValueError("no")
if kind == "sleeps":
    time.sleep(60)
time.sleep(0.5)
"""  # noqa: E501


@pytest.fixture
def two_workers(tmp_path, monkeypatch):
    (tmp_path / "made_for_workers.py").write_text(PROGRAM, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    pool = workers.Workers(2, tmp_path / "said", [])
    yield pool
    pool.end()


def all_ended(pool: workers.Workers) -> dict[str, workers.Ended]:
    found = {}
    while not pool.idle:
        found |= {ended.name: ended for ended in pool.wait()}
    return found


def test_each_run_has_a_process_of_its_own_on_the_gpu_of_its_place(two_workers):
    two_workers.gpus = ["3", "GPU-a"]
    for name in ("one", "other"):
        assert two_workers.free
        two_workers.start(name, "made_for_workers", [name, "x"], {"OWN": f"of {name}"})
    assert not two_workers.free
    ended = all_ended(two_workers)
    said = {name: json.loads(each.out) for name, each in ended.items()}
    assert [said["one"][:3], said["other"][:3]] == [
        [["one", "x"], "3", "of one"],
        [["other", "x"], "GPU-a", "of other"],
    ]
    assert len({os.getpid(), said["one"][3], said["other"][3]}) == 3
    assert {each.status for each in ended.values()} == {0} and two_workers.free == 2


@pytest.mark.parametrize(
    ("kind", "status", "last"),
    [("fails", 1, "error: no"), ("raises", 1, "ValueError: no"), ("dies", -signal.SIGKILL, "")],
)
def test_how_a_run_ended_is_known(two_workers, kind, status, last):
    two_workers.start("a", "made_for_workers", [kind], {"OWN": ""})
    ended = all_ended(two_workers)["a"]
    assert ended.status == status
    assert ended.err.strip().splitlines()[-1:] == ([last] if last else [])
    assert json.loads(ended.out)[0] == [kind]


def test_what_runs_is_ended(two_workers):
    for name in ("one", "other"):
        two_workers.start(name, "made_for_workers", ["sleeps"], {"OWN": ""})
    started = time.monotonic()
    two_workers.end()
    assert two_workers.idle and time.monotonic() - started < 5
