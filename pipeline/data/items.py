"""What a layout finds: labelled images, not yet read, and trials, the comparisons it brings."""

from __future__ import annotations

import os
import re
import threading
import unicodedata
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pipeline.records import PAIRS

_handles = threading.local()


@dataclass(frozen=True)
class Item:
    """One labelled image, not yet read.

    ``image`` is its path for people and tables, relative to the target, with '/' separators;
    ``split`` is train, val or test, or nothing where splits are still to be drawn; images of one
    ``group`` (a patient, plant or person; in verification the alphabet of a character) belong in
    one split, and without one each stands alone. The bytes lie in ``file``, or in its ``member``
    where that file is a zip.
    """

    image: str
    file: Path
    class_name: str
    split: str = ""
    group: str = ""
    member: str | None = None

    @property
    def place(self) -> str:
        """Where the image lies, to word errors with."""
        return printable(str(self.file) if self.member is None else f"{self.file}/{self.member}")

    def read(self) -> bytes:
        """The image file's bytes; any number of threads may read at once.

        Raises:
            Exception: what the file system or ``zipfile`` raises where that fails.
        """
        if self.member is None:
            return self.file.read_bytes()
        return _archive(self.file).read(self.member)


@dataclass(frozen=True)
class Trial:
    """One comparison of two images, ``left`` and ``right`` by `Item.image`; ``same`` is the truth.

    ``split`` is train, val or test. In set ``PAIRS`` each trial stands alone; in any other set
    those of one ``episode`` go together: its queries (left), each against all its support images.
    """

    split: str
    left: str
    right: str
    same: bool
    set: str = PAIRS
    episode: str = ""


@dataclass(frozen=True)
class Found:
    """What a layout finds: images, sorted by class, then by path, and trials in their own order."""

    items: list[Item]
    trials: list[Trial]


def lines(text: str) -> list[str]:
    """The lines of a text, as any system ends them: by LF, CR LF, or CR alone."""
    return re.split("\r\n?|\n", text)


def printable(text: str) -> str:
    """The text in one line of valid UTF-8: control characters and stray bytes as escapes."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        else char
        for char in text
    )


def _archive(file: Path) -> zipfile.ZipFile:
    """The calling thread's own handle, opened anew in a forked process and for a changed file.

    A handle that threads share counts its readers without a lock and has them wait for each
    other; one that processes share has one file position for all.
    """
    status = file.stat()
    key = (os.getpid(), status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    if getattr(_handles, "key", None) != key:
        _handles.archive, _handles.key = zipfile.ZipFile(file), key
    return cast(zipfile.ZipFile, _handles.archive)
