"""A real ``dvc repro`` and ``dvc exp run --temp`` under each fault of tracking.

Training ends as without the fault, at the cost of seconds and a warning, and once the fault is gone
publishing completes every run, once. Minutes of it; ``make torture``.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.projects import bytes_of, call, edit, mlflow_runs, small_project, stages_run
from tests.tracking import faults
from tests.tracking.conftest import free_port
from tests.tracking.faults import FaultyServer, Forward, Handler, serving
from tests.tracking.test_many import forget

pytestmark = pytest.mark.torture

LOST = 10  # seconds that the phases of one run may lose to tracking, in all
TRAIN = ("encoder@breakdown-3-0", "head@breakdown-3-0", "baseline@finetune-3-0")
NAMES = ["breakdown-n3-s0", "finetune-n3-s0"]
OLDER = "bd07f7e963c5"  # a revision of MLflow's tables
FULL = {"error_code": "INTERNAL_ERROR", "message": "(sqlite3.OperationalError) disk is full"}
# writes what the loop of training has waited for tracking
TIMED = """

def _timed(name):
    real = getattr(Live, name)

    def call(self, *arguments, **more):
        start = time.monotonic()
        try:
            return real(self, *arguments, **more)
        finally:
            with open(tracking.project_root() / "lost.txt", "a") as file:
                print(time.monotonic() - start, file=file)

    setattr(Live, name, call)


for _name in ("__enter__", "log", "__exit__"):
    _timed(_name)
"""

Fault = Callable[[Path, str], Iterator[dict[str, str]]]  # the project, a server that works


@pytest.fixture(scope="module")
def never(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that was reproduced with tracking that works."""
    folder = tmp_path_factory.mktemp("never faulty")
    small_project(folder)
    edit(folder, tracking__live_after=0)
    with (folder / "pipeline/tracking/live.py").open("a", encoding="utf-8") as file:
        file.write(TIMED)
    call(folder, "dvc", "repro")
    with (folder / ".gitignore").open("a", encoding="utf-8") as file:
        file.write("/lost.txt\n")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-qm", "start")
    return folder


@pytest.fixture
def project(never: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    store = shutil.ignore_patterns("mlflow.db*", "mlruns", "lost.txt")
    shutil.copytree(never, folder, symlinks=True, ignore=store)
    return folder


@contextmanager
def faulty(working: str, answer: Callable[[Handler], None]) -> Iterator[FaultyServer]:
    """A server that answers so, before one that works."""
    forget(working)
    with serving(answer) as server:
        yield server


@contextmanager
def stopped(project: Path, working: str) -> Iterator[dict[str, str]]:
    forget(working)
    yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}


def answering(answer: Callable[[Handler], None]) -> Fault:
    @contextmanager
    def fault(project: Path, working: str) -> Iterator[dict[str, str]]:
        with faulty(working, answer) as server:
            yield {"MLFLOW_TRACKING_URI": server.uri}

    return fault


def late(seconds: float) -> Fault:
    @contextmanager
    def fault(project: Path, working: str) -> Iterator[dict[str, str]]:
        def wait(handler: Handler, forward: Callable[[], None]) -> None:
            # the report's files, of which there are many, only a little
            time.sleep(0.1 if handler.command == "PUT" else seconds)
            forward()

        with faulty(working, Forward(working, wait)) as server:
            yield {"MLFLOW_TRACKING_URI": server.uri}

    return fault


@contextmanager
def full(project: Path, working: str) -> Iterator[dict[str, str]]:
    """It can be read, but takes nothing more."""

    def read_only(handler: Handler, forward: Callable[[], None]) -> None:
        searching = handler.path.endswith("/search")
        if handler.command == "GET" or searching:
            forward()
        else:
            handler.reply(400, json.dumps(FULL).encode())

    with faulty(working, Forward(working, read_only)) as server:
        yield {"MLFLOW_TRACKING_URI": server.uri}


@contextmanager
def coming_back(project: Path, working: str) -> Iterator[dict[str, str]]:
    """It hangs for the first half of a minute."""
    end = time.monotonic() + 30

    def later(handler: Handler, forward: Callable[[], None]) -> None:
        if time.monotonic() < end:
            time.sleep(end - time.monotonic())
        forward()

    with faulty(working, Forward(working, later)) as server:
        yield {"MLFLOW_TRACKING_URI": server.uri}


@contextmanager
def locked(project: Path, working: str) -> Iterator[dict[str, str]]:
    """Somebody holds the file for half a minute."""
    release, held = threading.Event(), threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(project / "mlflow.db", isolation_level=None)) as database:
            database.execute("BEGIN EXCLUSIVE")
            held.set()
            release.wait(30)
            database.execute("ROLLBACK")

    made(project)
    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    yield {}
    release.set()
    thread.join()


@contextmanager
def older(project: Path, working: str) -> Iterator[dict[str, str]]:
    made(project)
    whole = (project / "mlflow.db").read_bytes()
    with closing(sqlite3.connect(project / "mlflow.db", isolation_level=None)) as database:
        database.execute(f"UPDATE alembic_version SET version_num = '{OLDER}'")
    yield {}
    (project / "mlflow.db").write_bytes(whole)


@contextmanager
def refusing(project: Path, working: str) -> Iterator[dict[str, str]]:
    """A file that can be read and takes no run, as one on a disk that is read-only."""
    made(project)
    no = "CREATE TRIGGER no BEFORE INSERT ON runs BEGIN SELECT RAISE(FAIL, 'read-only'); END"
    with closing(sqlite3.connect(project / "mlflow.db", isolation_level=None)) as database:
        database.execute(no)
    yield {}
    with closing(sqlite3.connect(project / "mlflow.db", isolation_level=None)) as database:
        database.execute("DROP TRIGGER no")


@contextmanager
def deleted(project: Path, working: str) -> Iterator[dict[str, str]]:
    """The file is removed as soon as there is one."""
    over = threading.Event()

    def delete() -> None:
        while not over.wait(0.1):
            if (project / "mlflow.db").exists():
                (project / "mlflow.db").unlink()
                return

    thread = threading.Thread(target=delete)
    thread.start()
    yield {}
    over.set()
    thread.join()


def made(project: Path) -> None:
    """The project's own store, with nothing in it."""
    code = (
        "from pathlib import Path; from pipeline.tracking import client as c;"
        "c.open_client(c.store(Path.cwd()))"
    )
    call(project, "python", "-W", "ignore", "-c", code)


FAULTS: dict[str, Fault] = {
    "stopped": stopped,
    "hung": answering(faults.hung),
    "status 500": answering(faults.failing),
    "login": answering(faults.login),
    "slow": late(2),
    "full": full,
    "coming back": coming_back,
    "locked": locked,
    "refusing": refusing,
    "older": older,
    "deleted": deleted,
}
HARMLESS = ("slow", "coming back", "locked", "deleted")  # publish may find them gone


def warnings(output: str) -> list[str]:
    found = [line for line in output.splitlines() if line.startswith("warning: MLflow: ")]
    assert all(line.endswith(("; training goes on", "tries again")) for line in found), found
    assert "Traceback" not in output
    return found


def check_completed(project: Path, uri: str | None) -> None:
    """Every run is there once, and whole; a second time changes nothing."""
    more = {"MLFLOW_TRACKING_URI": uri} if uri else {}
    for _ in range(2):
        output = call(project, "dvc", "repro", "--single-item", "publish", **more)
        assert warnings(output) == []
    assert "0 runs created, 0 replaced, 2 unchanged" in output
    runs = mlflow_runs(project, uri)
    assert sorted(run["name"] for run in runs) == NAMES
    assert {run["status"] for run in runs} == {"FINISHED"}
    assert len(mlflow_runs(project, uri, kind="summary")) == 1


def lost(project: Path) -> float:
    return sum(map(float, (project / "lost.txt").read_text().split()))


@pytest.mark.parametrize("name", FAULTS)
def test_repro(name: str, project: Path, never: Path, server: str) -> None:
    """A run's two phases, then the other run, then publishing, each in a process of its own."""
    with FAULTS[name](project, server) as more:
        uri = more.get("MLFLOW_TRACKING_URI")
        force = ("dvc", "repro", "--force", "--single-item", "--no-run-cache")
        said = warnings(call(project, *force, *TRAIN, **more))
        assert len(said) <= 1 and lost(project) < LOST
        published = warnings(call(project, *force, "publish", **more))
        assert len(published) <= 1
        assert name in HARMLESS or published
    assert bytes_of(project) == bytes_of(never)
    check_completed(project, server if uri else None)


@pytest.mark.parametrize("name", ["stopped", "hung", "older"])
def test_an_experiment_in_a_temporary_folder(
    name: str, project: Path, never: Path, server: str
) -> None:
    change = "methods.breakdown.head.lr=0.03"
    with FAULTS[name](project, server) as more:
        output = call(project, "dvc", "exp", "run", "--temp", "-n", "faulty", "-S", change, **more)
    assert {"head@breakdown-3-0", "evaluate", "publish"} <= stages_run(output)
    said = Counter(line.rpartition("; ")[2] for line in warnings(output))
    assert said["training goes on"] <= 1 and said.total() >= 1
    assert lost(project) < LOST
    call(project, "dvc", "exp", "apply", "faulty")
    check_completed(project, None)
    assert not list((project / ".dvc/tmp").rglob("mlflow.db"))
