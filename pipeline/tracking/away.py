"""A store that could not be used is left alone for a while, by every process of the project.

Else each phase of a comparison would lose its seconds to it, and say so.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from pipeline.records import digest, write_atomically
from pipeline.tracking.client import Store, shown

SECONDS = 300.0
FILE = ".mlflow.away"  # in the project's folder; since when is its time


def note(place: Store) -> None:
    """Remember that the store could not be used just now."""
    with suppress(OSError):  # then the next phase tries
        write_atomically(_file(place), _name(place))


def left(place: Store) -> float:
    """Seconds until the store is to be tried again; 0: now."""
    try:
        if _file(place).read_text(encoding="utf-8") != _name(place):
            return 0.0
        age = time.time() - _file(place).stat().st_mtime
    except (OSError, ValueError):
        return 0.0
    return SECONDS - age if 0 <= age < SECONDS else 0.0


def forget(place: Store) -> None:
    """The store could be used."""
    if left(place):
        with suppress(OSError):
            _file(place).unlink()


def _file(place: Store) -> Path:
    return place.root / FILE


def _name(place: Store) -> str:
    return digest(shown(place.uri))
