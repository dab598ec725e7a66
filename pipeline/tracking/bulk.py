"""Many writes to an SQLite file: the disk is waited for once, at the end, and nothing is risked.

SQLite waits for the disk several times a transaction, MLflow makes several transactions a run. Not
to wait is safe when a process is killed, but a power cut meanwhile may leave the file damaged. So a
copy lies beside it until all is on the disk.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pipeline.records import whole_or_none

JOURNALS = ("-journal", "-wal", "-shm")


@contextmanager
def bulk(path: Path) -> Iterator[None]:
    """Let MLflow write quickly to an SQLite file; for one process at a time.

    Raises:
        sqlite3.Error: the file cannot be used.
    """
    before = _before(path)
    with _alone(path), whole_or_none(before) as beside:
        shutil.copyfile(path, beside)
        sync(beside)
    try:
        with unsynced():
            yield
    finally:
        sync(path)
        before.unlink(missing_ok=True)


def recover(path: Path) -> None:
    """Put the copy back where a power cut left the file damaged, else take it away."""
    before = _before(path)
    if not before.exists():
        return
    if path.exists() and not _is_whole(path):
        remove_journals(path)
        os.replace(before, path)
    before.unlink(missing_ok=True)


@contextmanager
def unsynced() -> Iterator[None]:
    """Connections that SQLAlchemy makes meanwhile do not wait for the disk."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def made(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", made)
    try:
        yield
    finally:
        event.remove(Engine, "connect", made)


def sync(path: Path) -> None:
    """Wait until a file is on the disk; one that is gone needs none."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def remove_journals(path: Path) -> None:
    """Remove the journals of an SQLite file: SQLite would take them up, also into another file."""
    for kind in JOURNALS:
        path.with_name(f"{path.name}{kind}").unlink(missing_ok=True)


def _before(path: Path) -> Path:
    return path.with_name(f"{path.name}.before")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else writes meanwhile."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


def _is_whole(path: Path) -> bool:
    if not path.stat().st_size:
        return False  # SQLite takes it for a new one
    try:
        with closing(sqlite3.connect(path, timeout=1)) as database:
            return bool(database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.OperationalError:  # locked, say, which tells nothing
        return True
    except sqlite3.DatabaseError:
        return False
