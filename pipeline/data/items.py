"""What a layout finds: labelled images, not yet read, and trials, the comparisons it brings."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import unicodedata
import zipfile
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.records import PAIRS

_handles = threading.local()
_directories: dict[Path, Directory] = {}
_opening = threading.Lock()

LOCAL = struct.Struct("<4s22xHH")  # of a member's local header: its start, lengths of name, extra
# flags of what is left to zipfile: encrypted, patched, strongly encrypted
ODD = 0x1 | 0x20 | 0x40
UTF8 = 0x800  # flag: the member's name is UTF-8, else code page 437
LARGEST = 1 << 28  # bytes of a file or member that are read; larger ones are attacks or mistakes
STEP = 4096  # bytes of a member that zipfile is asked for at once, and packed ones that it takes
ROOM = 64  # bytes of extra fields in a local header that are read at once with the data


@dataclass(frozen=True, slots=True)
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
            ValueError: it is no regular file, or has more than ``LARGEST`` bytes.
            Exception: what the file system or ``zipfile`` raises where that fails.
        """
        if self.member is None:
            _check_regular(self.file)
            return self.file.read_bytes()
        content = _directory(self.file).read(self.member)
        return _unpacked(_archive(self.file), self.member) if content is None else content

    def open(self) -> BinaryIO:
        """The file to read bit by bit; raises what ``read`` raises."""
        if self.member is not None:
            return io.BytesIO(self.read())
        _check_regular(self.file)
        return self.file.open("rb")


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Found:
    """What a layout finds: images, sorted by class, then by path, and trials in their own order."""

    items: list[Item]
    trials: list[Trial]


def printable(text: str) -> str:
    """The text in one line of valid UTF-8: control characters and stray bytes as escapes."""
    if text.isprintable():  # has none of these, and is by far the most usual
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        else char
        for char in text
    )


def _check_regular(file: Path) -> None:
    """Refuse what would block or never end, such as a pipe or a device, and what is too large."""
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is no regular file")
    _check_size(status.st_size)


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"holds {size >> 20} MiB, but at most {LARGEST >> 20} are read of a file")


def _unpacked(archive: zipfile.ZipFile, member: str) -> bytes:
    """A member's content by ``zipfile``, in steps: else it would unpack more than is promised."""
    _check_size(archive.getinfo(member).file_size)
    with archive.open(member) as file:
        return b"".join(iter(lambda: file.read(STEP), b""))


def _archive(file: Path) -> zipfile.ZipFile:
    """The calling thread's own handle, opened anew in a forked process and for a changed file.

    A handle that threads share counts its readers without a lock and has them wait for each
    other; one that processes share has one file position for all.
    """
    key = (os.getpid(), *_state(file))
    if getattr(_handles, "key", None) != key:
        _handles.archive, _handles.key = zipfile.ZipFile(file), key
    return cast(zipfile.ZipFile, _handles.archive)


class Directory:
    """Where the members of a zip lie, in about 150 bytes a member, for all threads together.

    ``zipfile`` keeps half a kilobyte of each member, and a handle of its own is what a thread
    needs; both count with a million members. It still reads the list of members, and every
    member that is not plainly stored or deflated, or whose content is not as promised.
    """

    def __init__(self, file: Path, members: Iterable[zipfile.ZipInfo]):
        self.state = _state(file)
        self._places: dict[str, int] = {}
        self._offsets, self._packed, self._sizes = array("Q"), array("Q"), array("Q")
        self._sums, self._ways = array("I"), array("B")
        end = 0
        self._apart = True
        for number, member in enumerate(members):
            # out of order or overlapping: zipfile knows which of these are attacks
            self._apart &= member.header_offset >= end
            end = member.header_offset + LOCAL.size + len(member.filename) + member.compress_size
            self._places[member.filename] = number  # of several with one name the last, as there
            self._offsets.append(member.header_offset)
            self._packed.append(member.compress_size)
            self._sizes.append(member.file_size)
            self._sums.append(member.CRC)
            self._ways.append(_way(member))
        self._handle = os.open(file, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(self, name: str) -> bytes | None:
        """A member's content; None where ``zipfile`` must say what it is, or what is wrong."""
        place = self._places.get(name)
        if place is None or not self._apart or self._ways[place] == ODD_WAY:
            return None
        packed, size = self._packed[place], self._sizes[place]
        _check_size(max(packed, size))
        spelt = name.encode()
        # at a place of its own, with no position that threads or processes would share
        data = os.pread(self._handle, LOCAL.size + len(spelt) + ROOM + packed, self._offsets[place])
        if len(data) < LOCAL.size:
            return None
        start, length, extra = LOCAL.unpack_from(data)
        begin = LOCAL.size + length
        if start != b"PK\3\4" or data[LOCAL.size : begin] != spelt:
            return None
        begin += extra
        if begin + packed > len(data):
            data = os.pread(self._handle, begin + packed, self._offsets[place])
        content = data[begin : begin + packed]
        if self._ways[place] == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
            except zlib.error:
                return None
        right = len(content) == size and zlib.crc32(content) == self._sums[place]
        return content if right else None


ODD_WAY = 255  # of a member that is left to zipfile


def _way(member: zipfile.ZipInfo) -> int:
    """How a member is packed: stored, deflated or odd."""
    name = member.orig_filename
    plain = name.isascii() or member.flag_bits & UTF8
    same = plain and name == member.filename and not member.flag_bits & ODD
    known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return member.compress_type if same and known else ODD_WAY


def remember(file: Path, members: Iterable[zipfile.ZipInfo]) -> None:
    """Keep where a zip's members lie, as whoever lists them knows it already."""
    _directories[file] = Directory(file, members)


def _directory(file: Path) -> Directory:
    """Where a zip's members lie, listed anew for a changed file."""
    state = _state(file)
    found = _directories.get(file)
    if found is None or found.state != state:
        with _opening:  # of many threads one lists it
            found = _directories.get(file)
            if found is None or found.state != state:
                with zipfile.ZipFile(file) as archive:
                    found = _directories[file] = Directory(file, archive.infolist())
    return found


def _state(file: Path) -> tuple[int, ...]:
    """What changes where a file is another or has been written."""
    status = os.stat(file)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
