"""Many writes without waiting for the disk: the log is taken away again, and a kill costs nothing.

What a power cut does to a log is SQLite's to test; that there is a log is ours.
"""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.tracking import bulk, mirror
from pipeline.tracking import client as tracking
from pipeline.tracking.mirror import Done
from tests.tracking import faults
from tests.tracking.conftest import Project

NORMAL, FULL = 1, 2
# a publish that stands still in the middle of its runs
STAND_STILL = """
import sys, time
from pathlib import Path
from mlflow.tracking import MlflowClient
real, calls = MlflowClient.log_batch, [int(sys.argv.pop(3))]
def call(*arguments, **more):
    calls[0] -= 1
    if calls[0] < 0:
        Path("standing").touch()
        time.sleep(60)
    return real(*arguments, **more)
MlflowClient.log_batch = call
"""


@pytest.fixture(autouse=True)
def _hasty_disk() -> None:
    """The disk is waited for, as usual."""


@pytest.fixture
def path(project: Project) -> Path:
    return project.root / "mlflow.db"


def publish(project: Project) -> Done:
    return mirror.publish(project.params, project.root, project.store)


def ask(path: Path, question: str) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        return [first for first, *_ in database.execute(question)]


def waits(path: Path) -> tuple[str, int]:
    """The journal mode, and how MLflow's connections wait for the disk."""
    from sqlalchemy import create_engine, text

    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        mode = connection.execute(text("PRAGMA journal_mode")).scalar_one()
        level = connection.execute(text("PRAGMA synchronous")).scalar_one()
    engine.dispose()
    return str(mode), int(level)


def lies_alone(path: Path) -> bool:
    """Whether the file has no journal, log or mark beside it, and asks for none (bytes 18, 19)."""
    beside = [file.name for file in path.parent.glob("mlflow.db*")]
    return sorted(beside) in (["mlflow.db"], ["mlflow.db", "mlflow.db.published"]) and (
        path.read_bytes()[18:20] == b"\x01\x01"
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """How each run was written while ``publish`` worked."""
    found: list[tuple[str, int]] = []
    real = tracking.send

    def send(client: Any, *arguments: Any, **more: Any) -> None:
        with client._tracking_client.store.engine.connect() as connection:
            found.append(
                (
                    connection.exec_driver_sql("PRAGMA journal_mode").scalar_one(),
                    connection.exec_driver_sql("PRAGMA synchronous").scalar_one(),
                )
            )
        real(client, *arguments, **more)

    monkeypatch.setattr(tracking, "send", send)
    yield found


def test_a_log_while_it_is_published_to_and_none_after(
    project: Project, path: Path, seen: list[tuple[str, int]]
) -> None:
    assert publish(project) == Done(created=4, kept=0, replaced=0)
    assert seen == [("wal", NORMAL)] * 4
    assert lies_alone(path)
    assert waits(path) == ("delete", FULL)
    assert (project.root / "mlflow.db.published").exists()
    assert ask(path, "PRAGMA integrity_check") == ["ok"]


def test_no_log_is_left_where_writing_fails(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), bulk.bulk(path):
        assert waits(path) == ("wal", NORMAL)
        raise ZeroDivisionError
    assert lies_alone(path) and waits(path) == ("delete", FULL)


def test_nothing_is_made_in_the_place_of_a_deleted_store(path: Path) -> None:
    with bulk.bulk(path):
        path.unlink()
    assert not path.exists()


@pytest.mark.parametrize("why", ["network", "no room for a mark", "read"])
def test_where_there_can_be_no_log_it_is_written_to_as_ever(
    project: Project,
    path: Path,
    seen: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    reader = sqlite3.connect(path, isolation_level=None)
    monkeypatch.setattr(bulk, "PATIENCE", 0.1)
    if why == "network":
        place = SimpleNamespace(mountpoint=str(project.root), fstype="nfs4")
        monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [place])
    elif why == "read":
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM runs").fetchall()
    else:
        monkeypatch.setattr(bulk, "mark", lambda path: path / "none")
    with bulk.bulk(path):
        assert waits(path) == ("delete", FULL)
    reader.close()
    assert lies_alone(path)
    if why == "network":
        assert publish(project).created == 4
        assert seen == [("delete", FULL)] * 4


def test_the_user_s_own_log_stays(
    project: Project, path: Path, seen: list[tuple[str, int]]
) -> None:
    assert ask(path, "PRAGMA journal_mode = WAL") == ["wal"]
    assert publish(project).created == 4
    assert seen == [("wal", NORMAL)] * 4
    assert ask(path, "PRAGMA journal_mode") == ["wal"]
    assert not bulk.mark(path).exists()
    with closing(sqlite3.connect(path)) as other:  # what it writes stays in the log
        other.execute("DELETE FROM tags WHERE key = 'result_digest'")
        other.commit()
        assert publish(project) == Done(created=0, kept=0, replaced=4)


def test_where_others_have_it_open_the_next_takes_the_log_away(
    project: Project, path: Path
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        with bulk.bulk(path):
            other.execute("SELECT * FROM runs").fetchall()
        assert bulk.mark(path).exists() and waits(path) == ("wal", FULL)
        assert bulk.log_of(path).stat().st_size == 0  # all of it is in the file
        assert publish(project).created == 4
    assert publish(project) == Done(created=0, kept=4, replaced=0)
    assert lies_alone(path)


@pytest.mark.parametrize("content", ["a store", "nothing"])
def test_link_and_mode_stay(project: Project, path: Path, content: str) -> None:
    target = project.root / "elsewhere" / "store.db"
    target.parent.mkdir()
    path.rename(target)
    if content == "nothing":
        target.write_bytes(b"")
    target.chmod(0o600)
    path.symlink_to(target)
    assert publish(project).created == 4
    assert path.is_symlink() and path.resolve() == target
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [file.name for file in target.parent.iterdir()] == ["store.db"]
    assert len(ask(target, "SELECT name FROM runs")) == 4


@pytest.mark.parametrize(
    "calls", [5, *(pytest.param(n, marks=pytest.mark.torture) for n in range(12) if n != 5)]
)
def test_a_publish_that_is_killed_costs_nothing(project: Project, path: Path, calls: int) -> None:
    client = tracking.open_client(project.store)
    mine = client.create_run(tracking.experiment(client, tracking.RESULTS, project.store))
    ours, longest = faults.asked(project)
    process = faults.start(STAND_STILL + faults.PUBLISH, project.root, ours, longest, str(calls))
    end = time.monotonic() + 60
    while not (project.root / "standing").exists() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    if process.poll() is None:
        assert bulk.mark(path).exists() and bulk.log_of(path).stat().st_size > 0
    process.kill()
    process.communicate()

    again = faults.publish(project)
    assert (again.status, again.err) == (0, "")
    assert ask(path, "PRAGMA integrity_check") == ["ok"]
    assert lies_alone(path)
    found = client.search_runs([mine.info.experiment_id])
    keys = [run.data.tags.get("config_key") for run in found]
    assert len(keys) == len(set(keys)) == 5 and None in keys
    assert mine.info.run_id in {run.info.run_id for run in found}
