"""The errors that are the user's to mend, and how a command shows them."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

MENDS = {  # what the file system refuses, and what to do
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within your quota on that disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "make that disk writable",
    errno.EACCES: "give yourself the right to it",
    errno.EPERM: "give yourself the right to it",
    errno.EIO: "check that disk",
}
DISK = ("disk I/O error", "disk is full")  # what SQLite says of a disk
# after the :// of an address: a user with a password, which may hold @ or /; no port, no [::1]
_USER = re.compile(r"[^:/@]+:(?!\d+(?:/|$)).*@|[^/]*@")
_CUT = re.compile(r"[^:/@\[]+:(?!\d+(?:/|$)).*(?:…|\.\.\.)$")  # the same, its @ cut off
_MORE = re.compile(r"[?#]")  # where the query or the fragment begins
_WORDS = re.compile(r"([\s'\"]+)")
LONGEST = 1000  # characters of a line that are shown
LAST = 300  # of these at its end, where it says what would be right


class InputError(Exception):
    """Wrong input: one line that names the file and key or line, what is wrong, what is right.

    Stages and commands print it without a traceback and exit with status 1. Where several files
    are wrong, each has a line of ``more``. Whatever the input holds, a line stays one: its
    control characters are escaped, and what is too long loses its middle.
    """

    def __init__(self, problem: str, *more: str):
        super().__init__(problem, *more)

    def __str__(self) -> str:
        return "\n  ".join(_line(text) for text in self.args)


def command(work: Callable[[], None]) -> None:
    """Run ``work`` as a program; what the user can mend becomes one line and exit status 1.

    That is an InputError, a file that cannot be written or read (``refusal``), and a database on
    a full disk.
    """
    try:
        work()
        sys.stdout.flush()  # it may be a file, on a full disk
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        told = refusal(error)
        if told is None:
            raise
        _fail(told)
    except sqlite3.OperationalError as error:
        if not any(told in str(error) for told in DISK):
            raise
        _fail(
            f"a database of DVC or MLflow: {error}; make room on that disk, or raise the limit of "
            "file sizes (ulimit -f), then run the same command again"
        )
    except KeyboardInterrupt:
        with suppress(OSError):
            print("interrupted; start the same command again to go on", file=sys.stderr)
        sys.exit(130)


def refusal(error: OSError) -> str | None:
    """What the file system refuses and what to do about it, in a line; None: nothing of ``MENDS``.

    What has no name is the output of the program itself; see ``naming``.
    """
    if error.errno not in MENDS:
        return None
    return _line(
        f"{error.filename or 'output'}: {os.strerror(error.errno)}; {MENDS[error.errno]}, then "
        "run the same command again"
    )


@contextmanager
def naming(path: Path | str, beside: Path | str | None = None) -> Iterator[None]:
    """Let errors of the file system name ``path``, where writing names nothing.

    Args:
        path: the file or folder that is meant.
        beside: what is written in its stead until it is whole; its name is replaced, too.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if named is None or (beside is not None and Path(str(named)).is_relative_to(beside)):
            error.filename, error.filename2 = str(path), None
        raise


def _fail(line: str) -> NoReturn:
    with suppress(OSError):  # then the status alone tells
        print(f"error: {line}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        _let_go(stream)
    sys.exit(1)


def _let_go(stream: TextIO) -> None:
    """Drop what a stream cannot take; Python would try once more at its end, with a traceback."""
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def without_passwords(text: str) -> str:
    """Text whose addresses have neither user nor query nor fragment."""
    if "://" not in text:
        return text
    return "".join(address(word) if "://" in word else word for word in _WORDS.split(text))


def user_of(uri: str) -> str:
    """The user and password of an address, as they stand in it; empty where it has none."""
    place = uri.find("://") + 3
    user = _USER.match(uri, place) if place > 2 else None
    return user[0][:-1] if user else ""


def address(word: str) -> str:
    """A word, in which addresses may follow one another, without users; it ends where a query
    or fragment begins.
    """
    kept, start, last = [], 0, word.rfind("@")
    while -1 < (place := word.find("://", start)) < last:
        place += 3
        user = _USER.match(word, place)
        kept.append(word[start:place])
        start = user.end() if user else place
    before, slashes, rest = "".join([*kept, word[start:]]).rpartition("://")
    if _CUT.match(rest):
        rest = "…"
    whole = f"{before}{slashes}{rest}"
    path = _MORE.split(whole, maxsplit=1)[0]
    query = whole[len(path) :]
    return path + query[len(query.rstrip(",;.:)]")) :]


def _line(text: str) -> str:
    text = without_passwords(text)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - LAST]} … {text[-LAST:]}"
    return text if text.isprintable() else without_controls(" ".join(text.splitlines()))


def without_controls(text: str) -> str:
    """Text with all that a terminal does not print escaped, marks of direction among it."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def exit_as_told(number: int, frame: FrameType | None) -> NoReturn:
    """A handler of SIGTERM by which a program ends what it has begun."""
    sys.exit(128 + number)
