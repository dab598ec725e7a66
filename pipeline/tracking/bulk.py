"""Many writes to the project's own SQLite file, without a wait for the disk at each.

SQLite waits for the disk several times a transaction, and MLflow makes several transactions a run.
While ``publish`` works, the file therefore has a write-ahead log, with ``synchronous=NORMAL``: a
transaction is appended to the log, and reaches the file only when the log is on the disk. A killed
process loses nothing by it. A power cut may take the last transactions, which the next ``publish``
makes again, but never damages the file:
https://www.sqlite.org/pragma.html#pragma_synchronous and https://www.sqlite.org/wal.html

At the end the file is as before, alone and with nothing left to write. Where others have it open,
or ``publish`` was killed, the next one does so, which knows by a mark beside the file that the log
is not the user's own choice. Where there can be no log, SQLite writes as ever, slowly.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

JOURNALS = ("-journal", "-wal", "-shm")
PATIENCE = 2.0  # seconds, for others who read or write
# all who use a log share memory, which a network's file system cannot give them
LOCAL = {"apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "overlay", "tmpfs", "xfs", "zfs"}


@contextmanager
def bulk(path: Path) -> Iterator[None]:
    """Let MLflow write quickly to an existing SQLite file; for one process at a time.

    Raises:
        sqlite3.Error: the file cannot be opened.
    """
    # while this is open, nobody can take the log away
    with closing(sqlite3.connect(path, PATIENCE, isolation_level=None)) as database:
        if not _begin_log(database, path):
            yield
            return
        try:
            with synchronous("NORMAL"):
                yield
        finally:
            _end_log(database, path)


@contextmanager
def synchronous(level: str) -> Iterator[None]:
    """How SQLAlchemy's connections of meanwhile wait for the disk; they are closed at the end."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    used: set[Engine] = set()

    def made(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA synchronous = {level}")

    def taken(connection: Any) -> None:
        used.add(connection.engine)

    event.listen(Engine, "connect", made)
    event.listen(Engine, "engine_connect", taken)
    try:
        yield
    finally:
        event.remove(Engine, "connect", made)
        event.remove(Engine, "engine_connect", taken)
        for engine in used:
            engine.dispose()


def mark(path: Path) -> Path:
    """The file that says that the log is ``publish``'s, to be taken away again."""
    return path.with_name(f"{path.name}.publishing")


def log_of(path: Path) -> Path:
    """Where SQLite keeps the log of a file: where a link leads."""
    target = path.resolve()
    return target.with_name(f"{target.name}-wal")


def remove_journals(path: Path) -> None:
    """Remove the journals of an SQLite file: SQLite would take them up, also into another file."""
    for kind in JOURNALS:
        path.with_name(f"{path.name}{kind}").unlink(missing_ok=True)


def _begin_log(database: sqlite3.Connection, path: Path) -> bool:
    """Whether the file has a log now."""
    if not _is_local(path):
        return False
    with suppress(sqlite3.Error, OSError):
        if _journal_mode(database) == "wal":
            return True
        mark(path).touch()
        if _journal_mode(database, "WAL") == "wal":
            return True
    with suppress(OSError):
        mark(path).unlink(missing_ok=True)
    return False


def _end_log(database: sqlite3.Connection, path: Path) -> None:
    """Bring all into the file, and take the log away if it is ours and nobody else reads it."""
    with suppress(sqlite3.Error, OSError):  # the log keeps what it has
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if mark(path).exists() and _journal_mode(database, "DELETE") == "delete":
            mark(path).unlink()


def _journal_mode(database: sqlite3.Connection, wanted: str = "") -> str:
    rows = database.execute(f"PRAGMA journal_mode{wanted and f' = {wanted}'}").fetchall()
    return str(rows[0][0])


def _is_local(path: Path) -> bool:
    """Whether a file lies on a disk of this machine, as far as is known."""
    file = path.resolve()
    around = [
        place for place in psutil.disk_partitions(all=True) if file.is_relative_to(place.mountpoint)
    ]
    around.sort(key=lambda place: len(place.mountpoint))
    return bool(around) and around[-1].fstype in LOCAL
