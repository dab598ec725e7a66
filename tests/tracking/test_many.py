"""Several writers at once, and a server that is slow, loses answers or comes back later."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.tracking import client as tracking
from tests.tracking import faults
from tests.tracking.conftest import Project
from tests.tracking.faults import Forward, Handler, serving
from tests.tracking.test_faults import LOST, OUTLIVED, check_warning, results

WRITERS = 4
POINTS = 40
# each call of its own, as fast as the store takes them
WRITE = """
import sys
from pathlib import Path
from pipeline.tracking import client as tracking, follower
number, points = sys.argv[1], int(sys.argv[2])
def messages():
    tags = {"phase": "head", **tracking.process_tags()}
    about = {"name": f"writer {number}", "tags": tags, "params": {"lr": number}}
    yield {**about, "started": 1, "sample_seconds": 1e9}
    print("ready", flush=True)
    sys.stdin.readline()
    for step in range(points):
        yield {"points": [("train/loss", float(step), step, step)]}
    yield {"points": [], "status": "FINISHED"}
follower.follow(tracking.store(Path.cwd()), messages())
"""


def write_at_once(project: Project) -> None:
    """Every point of every writer is there."""
    pipe = subprocess.PIPE
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(number), str(POINTS)], cwd=project.root,
            env=faults.environment(), stdin=pipe, stdout=pipe, stderr=pipe, text=True,
        )
        for number in range(WRITERS)
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == "ready\n", writer.communicate()
    answers = [writer.communicate("go\n", timeout=100) for writer in writers]
    assert answers == [("", "")] * WRITERS
    client = tracking.open_client(project.store)
    number = client.get_experiment_by_name(tracking.PHASES).experiment_id
    runs = client.search_runs([number])
    assert sorted(run.data.params["lr"] for run in runs) == [str(n) for n in range(WRITERS)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [(point.step, point.value) for point in history] == [
            (step, float(step)) for step in range(POINTS)
        ]


@pytest.mark.torture
def test_four_writers_at_once_on_sqlite(project: Project) -> None:
    write_at_once(project)


@pytest.mark.torture
def test_four_writers_at_once_on_a_server(
    project: Project, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    write_at_once(project)


def copies(project: Project, count: int) -> list[Path]:
    """The project, as on several machines: no lock is common to them."""
    made = []
    for number in range(count):
        folder = project.root.parent / f"machine {number}"
        ignored = shutil.ignore_patterns("mlflow*", "mlruns", ".*.lock")
        made.append(Path(shutil.copytree(project.root, folder, ignore=ignored)))
    return made


def forget(uri: str) -> None:
    """Delete the experiments' runs on a server that other tests share."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    for name in (tracking.RESULTS, tracking.PHASES):
        if found := client.get_experiment_by_name(name):
            for run in client.search_runs([found.experiment_id]):
                client.delete_run(run.info.run_id)


@pytest.mark.torture
def test_publishers_of_four_machines_make_each_run_once(
    project: Project, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(server)
    asked = faults.asked(project)
    several = [
        faults.start(faults.PUBLISH, folder, *asked, MLFLOW_TRACKING_URI=server)
        for folder in copies(project, WRITERS)
    ]
    for process in several:
        done = faults.finish(process)
        assert (done.status, done.err) == (0, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert set(results(project).values()) == {1} and results(project).total() == 4


@pytest.mark.torture
def test_answers_that_are_lost_double_nothing(
    project: Project, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked is done, but the client hears of it only when it asks again."""
    forget(server)
    asked: Counter[str] = Counter()

    def lose_the_first(handler: Handler, forward: Callable[[], None]) -> None:
        about = f"{handler.command} {handler.path}"
        asked[about] += 1
        if asked[about] == 1:
            faults.Forward(server, lose_the_first).ask(handler)
            handler.close_connection = True
        else:
            forward()

    with serving(Forward(server, lose_the_first)) as lossy:
        first = faults.publish(project, MLFLOW_TRACKING_URI=lossy.uri)
    assert (first.status, first.err) == (0, "")
    second = faults.publish(project, MLFLOW_TRACKING_URI=server)
    assert (second.status, second.err) == (0, "")
    assert "0 runs created, 0 replaced, 4 unchanged" in second.out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert set(results(project).values()) == {1} and results(project).total() == 4


@pytest.mark.torture
def test_a_server_that_goes_away_and_comes_back(
    project: Project, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs in the middle of a run; then each publish completes what the last one began."""
    forget(server)
    left = [18]

    def until_none_is_left(handler: Handler, forward: Callable[[], None]) -> None:
        left[0] -= 1
        forward() if left[0] >= 0 else faults.hung(handler)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with serving(Forward(server, until_none_is_left)) as proxy:
        check_warning(faults.publish(project, MLFLOW_TRACKING_URI=proxy.uri), within=60)
    done = faults.publish(project, MLFLOW_TRACKING_URI=server)
    assert (done.status, done.err) == (0, "")
    assert "0 runs created" not in done.out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert set(results(project).values()) == {1} and results(project).total() == 4


@pytest.mark.torture
def test_a_slow_server(project: Project, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds a call: a phase is followed to its end, and publishing ends when it must."""
    forget(server)

    def late(handler: Handler, forward: Callable[[], None]) -> None:
        time.sleep(2)
        forward()

    with serving(Forward(server, late)) as slow:
        training = faults.train(project, seconds=20, MLFLOW_TRACKING_URI=slow.uri)
        assert training.status == 0 and float(training.out) < LOST
        assert len(training.err.splitlines()) <= 1
        assert faults.no_follower_within(project.root, OUTLIVED)
        check_warning(faults.publish(project, longest=10, MLFLOW_TRACKING_URI=slow.uri), 30)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    client = tracking.open_client(project.store)
    (phase,) = client.search_runs([client.get_experiment_by_name(tracking.PHASES).experiment_id])
    assert phase.info.status == "FINISHED"
    assert len(client.get_metric_history(phase.info.run_id, "train/loss")) > 100
    done = faults.publish(project, MLFLOW_TRACKING_URI=server)
    assert (done.status, done.err) == (0, "")
    assert set(results(project).values()) == {1} and results(project).total() == 4


@pytest.mark.torture
def test_a_hung_server_with_the_usual_patience(project: Project) -> None:
    with serving(faults.hung) as server:
        check_warning(faults.publish(project, MLFLOW_TRACKING_URI=server.uri), within=15)


@pytest.mark.torture
def test_a_store_that_is_locked_for_half_a_minute(project: Project) -> None:
    """Training ends; who publishes meanwhile says so, and who does so afterwards completes it."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        database = sqlite3.connect(project.root / "mlflow.db", isolation_level=None)
        database.execute("BEGIN EXCLUSIVE")
        held.set()
        release.wait(30)
        database.execute("ROLLBACK")
        database.close()

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(10)
    training = faults.train(project, phases=3, seconds=3)
    check_warning(faults.publish(project), within=30)
    release.set() if not other.is_alive() else other.join()
    assert training.status == 0 and float(training.out) < LOST
    assert len(training.err.splitlines()) == 1
    assert faults.publish(project).err == ""
    assert results(project).total() == 4


@pytest.mark.torture
def test_a_journal_of_a_deleted_store_is_not_played_into_the_next(project: Project) -> None:
    """Its writer was killed in the middle of a transaction, then somebody removed ``mlflow.db``."""
    code = """
import os, sqlite3
database = sqlite3.connect("mlflow.db", isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("PRAGMA synchronous = OFF")
database.execute("BEGIN IMMEDIATE")
database.execute("CREATE TABLE much (text)")
database.executemany("INSERT INTO much VALUES (?)", [("x" * 4000,)] * 500)
database.execute("UPDATE runs SET name = 'half'")
database.execute("DELETE FROM tags")
os._exit(1)
"""
    assert faults.publish(project).err == ""  # so that its pages are not those of a new store
    subprocess.run([sys.executable, "-c", code], cwd=project.root)
    assert (project.root / "mlflow.db-journal").stat().st_size > 0
    (project.root / "mlflow.db").unlink()
    done = faults.publish(project)
    assert (done.status, done.err) == (0, "")
    assert results(project).total() == 4
    with sqlite3.connect(project.root / "mlflow.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
