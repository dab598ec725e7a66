"""Many writes without waiting for the disk: what a power cut damages is put back and completed."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.tracking import bulk, mirror
from pipeline.tracking.mirror import Done
from tests.tracking.conftest import Project

MINE = "what somebody wrote"


@pytest.fixture(autouse=True)
def _hasty_disk() -> None:
    """The disk is waited for, as usual."""


def synchronous(path: Path) -> int:
    """How MLflow's connections wait for the disk; 0: not at all."""
    from sqlalchemy import create_engine, text

    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        (value,) = connection.execute(text("PRAGMA synchronous")).one()
    engine.dispose()
    return int(value)


def test_a_copy_lies_beside_while_the_disk_is_not_waited_for(project: Project) -> None:
    path = project.root / "mlflow.db"
    before, usual = path.read_bytes(), synchronous(path)
    with bulk.bulk(path):
        assert synchronous(path) == 0 < usual
        assert (project.root / "mlflow.db.before").read_bytes() == before
    assert synchronous(path) == usual
    assert sorted(file.name for file in project.root.glob("mlflow*")) == ["mlflow.db"]


def test_nothing_is_left_where_writing_fails(project: Project) -> None:
    path = project.root / "mlflow.db"
    usual = synchronous(path)
    with pytest.raises(ZeroDivisionError), bulk.bulk(path):
        path.unlink()
        raise ZeroDivisionError
    assert list(project.root.glob("mlflow*")) == []
    shutil.copy(project.root / "dvc.yaml", path)
    path.write_bytes(b"")
    assert synchronous(path) == usual


def note(path: Path) -> None:
    """Something of somebody else's, written past MLflow, whose connections stay open."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE mine (text)")
        database.execute("INSERT INTO mine VALUES (?)", (MINE,))
        database.commit()


def notes(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [text for (text,) in database.execute("SELECT text FROM mine")]


@pytest.mark.parametrize("damage", ["half", "zeros", "nothing"])
def test_what_a_power_cut_damaged_is_put_back_and_completed(project: Project, damage: str) -> None:
    path = project.root / "mlflow.db"
    note(path)
    shutil.copy(path, project.root / "mlflow.db.before")
    whole = path.read_bytes()
    damaged = {"half": whole[: len(whole) // 2], "zeros": bytes(len(whole)), "nothing": b""}
    path.write_bytes(damaged[damage])
    (project.root / "mlflow.db-journal").write_bytes(b"of a transaction that was cut")
    assert publish(project) == Done(created=4, kept=0, replaced=0)
    assert notes(path) == [MINE]
    assert not (project.root / "mlflow.db.before").exists()


def test_what_a_killed_publish_left_is_kept(project: Project) -> None:
    """Its file is whole, and has more than the copy."""
    shutil.copy(project.root / "mlflow.db", project.root / "mlflow.db.before")
    note(project.root / "mlflow.db")
    assert publish(project).created == 4
    assert notes(project.root / "mlflow.db") == [MINE]
    assert not (project.root / "mlflow.db.before").exists()


def test_a_copy_of_a_deleted_store_is_not_put_back(project: Project) -> None:
    path = project.root / "mlflow.db"
    note(path)
    path.rename(project.root / "mlflow.db.before")
    assert publish(project).created == 4
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        notes(path)


def test_a_store_that_is_locked_is_not_taken_for_a_damaged_one(project: Project) -> None:
    path = project.root / "mlflow.db"
    (project.root / "mlflow.db.before").write_bytes(b"older")
    whole = path.read_bytes()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    bulk.recover(path)
    other.close()
    assert path.read_bytes() == whole


def publish(project: Project) -> Done:
    return mirror.publish(project.params, project.root, project.store)
