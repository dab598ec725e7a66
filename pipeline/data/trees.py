"""What a folder or a ``.zip`` holds, path by path, whatever system it comes from."""

from __future__ import annotations

import difflib
import io
import os
import re
import stat
import sys
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.items import Item, printable, remember
from pipeline.errors import InputError

IMAGES = "bmp gif jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"  # what is read, for people
SUFFIXES = frozenset(f".{name}" for name in IMAGES.split())

LONGEST = 1 << 20  # characters of a line
DEEPEST = 100  # folders within each other, in a zip
UNIX = 3  # the system that packed a zip's member, where its links are known
# a file of a DVC cache, to which DVC may link: its name is the hash of its content
CACHED = re.compile(r"[/\\]files[/\\]md5[/\\][0-9a-f]{2}[/\\][0-9a-f]{30}\Z")

Parts = tuple[str, ...]  # a path relative to the target, folder by folder


class Fence:
    """The folder that holds all files of a set, links followed; None: they may lie anywhere.

    What lies outside of it, or behind a link to a folder, DVC does not track; and links in a set
    from elsewhere could bring any file of this machine into results that are shown to others.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._root = os.path.realpath(folder) if folder else ""
        self._real: dict[str, str] = {}  # of folders, by their paths

    def check(self, path: str, place: str) -> None:
        """Refuse a file or folder outside; ``place`` words the error.

        Raises:
            InputError: it lies outside.
        """
        if self.folder is None:
            return
        above, name = os.path.split(path)
        if above not in self._real:
            self._real[above] = os.path.realpath(above)
        real = os.path.join(self._real[above], name)
        if os.path.islink(path):
            real = os.path.realpath(path)
        if (real + os.sep).startswith(self._root + os.sep) or CACHED.search(real):
            return
        raise InputError(
            f"{place}: leads to {real}, outside {self.folder}, the folder that DVC tracks; put it "
            "there, or set data.allow_outside: true"
        )


@dataclass
class Tree:
    """What a folder or a zip holds.

    ``files`` gives a zip's member names, which may be spelt so that the parts do not tell them
    (backslashes, ``./``).
    """

    target: Path
    zipped: bool
    files: dict[Parts, str] = field(default_factory=dict)
    folders: set[Parts] = field(default_factory=set)
    fence: Fence = field(default_factory=Fence)

    def subfolders(self, folder: Parts) -> list[Parts]:
        """The folders right in a folder, sorted."""
        return sorted(path for path in self.folders if path[:-1] == folder)

    def has_images(self, folder: Parts) -> bool:
        """Whether images lie in the folder itself, not only below."""
        return any(path[:-1] == folder and suffix(path) in SUFFIXES for path in self.files)

    def images(self, folder: Parts) -> list[Parts]:
        """The images that lie in the folder itself, in natural order."""
        found = (p for p in self.files if p[:-1] == folder and suffix(p) in SUFFIXES)
        return sorted(found, key=lambda path: natural(path[-1]))

    def place(self, path: Parts) -> str:
        """Where a file or folder lies, to word errors with."""
        return printable("/".join((str(self.target), *path)))

    def lines(self, path: Parts) -> Iterator[str]:
        """A text file's lines with their ends: LF, CR LF, or CR alone.

        Raises:
            InputError: it cannot be read, or not as UTF-8; or a line is longer than ``LONGEST``.
        """
        place, number = self.place(path), 0
        try:
            with (
                self.item(path, "", "").open() as file,
                io.TextIOWrapper(file, "utf-8-sig", newline="") as text,
            ):
                while line := text.readline(LONGEST + 1):
                    number += 1
                    if len(line) > LONGEST:
                        raise InputError(
                            f"{place}:{number}: has more than {LONGEST} characters in a line; is "
                            "it the right file?"
                        )
                    yield line
        except InputError:
            raise
        except UnicodeDecodeError:
            raise InputError(f"{place}: is not UTF-8 text; save it as UTF-8") from None
        except Exception as error:  # whatever a damaged zip makes zipfile raise
            raise InputError(f"{place}: cannot be read: {error}") from None

    def item(self, path: Parts, class_name: str, split: str, group: str = "") -> Item:
        """A file as a labelled image."""
        image = printable("/".join(path))
        member = self.files[path] if self.zipped else None
        return Item(
            image=member if member == image else image,  # one text for both, as a rule
            file=self.target if self.zipped else self.target.joinpath(*path),
            class_name=sys.intern(printable(class_name)),  # one text a class
            split=split,
            group=unicodedata.normalize("NFC", printable(group)),  # accents in their letters
            member=member,
        )


def open_tree(target: Path, table: bool = False, fence: Fence | None = None) -> Tree:
    """What a folder or a ``.zip`` holds, or, where ``table`` is set, a lone ``.csv`` too.

    What systems leave there by themselves (hidden files, ``__MACOSX``) is left out.

    Raises:
        InputError: nothing there, or something else; something outside of the ``fence``; a circle
            of links, or a folder that links show twice; a folder that cannot be read; a zip that
            is damaged, encrypted, points outside itself or holds links.
    """
    fence = fence or Fence()
    if not target.exists():
        raise missing(target)
    fence.check(str(target), str(target))
    if target.is_dir():
        return _walk(target, fence)
    kind = target.suffix.lower()
    if kind == ".csv" and table:
        files: dict[Parts, str] = {(target.name,): str(target)}
        return Tree(target.parent, zipped=False, files=files, fence=fence)
    if kind != ".zip":
        hint = " (for a table set data.layout to csv)" if kind == ".csv" else ""
        also = ", or the .csv itself" if table else ""
        raise InputError(f"{target}: must be a folder or a .zip{also}{hint}")
    return _contents(target)


def missing(target: Path) -> InputError:
    """The error that a target is not there."""
    beside = set(names(target.parent) if target.parent.is_dir() else []) - {target.name}
    close = difflib.get_close_matches(target.name, sorted(beside), n=1)
    what = (
        f"did you mean {target.parent / close[0]}?"
        if close
        else ("fetch it with 'dvc pull data.dvc', or put your images there")
    )
    return InputError(f"{target}: there is no such folder or .zip; {what}")


def names(folder: Path) -> list[str]:
    """What lies in a folder, sorted, but for what systems leave there.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        return sorted(name for name in os.listdir(folder) if not _ignored(name))
    except OSError as error:
        raise _unreadable(folder, error) from None


def suffix(path: Parts) -> str:
    """A file's suffix in small letters, such as ``.jpg``."""
    return os.path.splitext(path[-1])[1].lower()


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts numbers within names by value; text and digits take turns in it."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _walk(target: Path, fence: Fence) -> Tree:
    tree = Tree(target, zipped=False, fence=fence)
    pending: list[tuple[Parts, Parts]] = [((), (os.path.realpath(target),))]
    seen: dict[str, Parts] = {}  # folders as they really are: two links each to the next of
    # thirty folders would make a thousand million paths
    twice: tuple[Parts, Parts] | None = None
    try:
        while pending:
            folder, above = pending.pop()
            for entry in sorted(os.scandir(target.joinpath(*folder)), key=lambda e: e.name):
                path = (*folder, entry.name)
                if _ignored(entry.name):
                    continue
                if entry.is_symlink():
                    fence.check(entry.path, tree.place(path))
                if not entry.is_dir():
                    tree.files[path] = entry.path
                    continue
                real = os.path.realpath(entry.path)
                if real in above:
                    raise InputError(
                        f"{tree.place(path)}: is a link to a folder that it lies in; remove it"
                    )
                if seen.setdefault(real, path) != path:
                    twice = twice or (path, seen[real])
                    continue
                tree.folders.add(path)
                pending.append((path, (*above, real)))
    except OSError as error:
        raise _unreadable(target, error) from None
    if twice:
        raise InputError(
            f"{tree.place(twice[0])}: is there already, as {tree.place(twice[1])}; one of the two "
            "is a link: remove it"
        )
    return tree


def _contents(target: Path) -> Tree:
    tree = Tree(target, zipped=True)
    try:
        with zipfile.ZipFile(target) as archive:
            members = archive.infolist()
        remember(target, members)
    except Exception as error:  # zipfile raises nearly any for a damaged zip
        raise InputError(f"{target}: cannot be read as a zip: {error}") from None
    for member in members:
        name = member.filename.replace("\\", "/")  # as some Windows programs write it
        # one text for each folder, not one for each file in it
        path = tuple(sys.intern(part) for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or re.match(r"[A-Za-z]:/", name) or ".." in path:
            raise InputError(
                f"{target}: its member '{printable(name)}' points outside the zip; zip it again "
                "with relative paths"
            )
        if len(path) > DEEPEST:
            raise InputError(f"{target}: has a member {len(path)} folders deep; use fewer")
        if not path or any(_ignored(part) for part in path):
            continue
        if member.create_system == UNIX and stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(
                f"{target}: its member '{printable(name)}' is a link; zip the files themselves"
            )
        if member.flag_bits & 0x1:
            raise InputError(f"{target}: is encrypted; zip it again without a password")
        above = len(path) + 1 if name.endswith("/") else len(path)
        if path[: above - 1] not in tree.folders:
            tree.folders.update(path[:depth] for depth in range(1, above))
        if not name.endswith("/"):
            tree.files[path] = member.filename
    return tree


def _unreadable(folder: Path, error: OSError) -> InputError:
    name = printable(str(error.filename or folder))
    return InputError(f"{name}: cannot be read: {error.strerror}")


def _ignored(name: str) -> bool:
    """Whether a file or folder is left there by a system, not by a person."""
    return name.startswith(".") or name == "__MACOSX"
