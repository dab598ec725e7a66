"""Find the labelled images of a set: class folders, lists or a table, in a folder or ``.zip``.

Nothing is decoded here; an `Item` knows where its bytes lie, its class and its split.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
import threading
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import cast

from pipeline.errors import InputError

IMAGES = "bmp gif jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"  # what is read, for people
SUFFIXES = frozenset(f".{name}" for name in IMAGES.split())
SIDECARS = frozenset((".txt", ".csv", ".json", ".xml", ".md", ".db", ".ini"))
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SPLITS |= {"training": "train", "training_set": "train", "train_set": "train"}
SPLITS |= {"validation_set": "val", "val_set": "val"}
SPLITS |= {"testing": "test", "test_set": "test"}
COLUMNS = ("image", "label", "split", "group")  # of a table; the last two at will
TABLES = ("images.csv", "labels.csv")  # which table is meant where several lie there

Parts = tuple[str, ...]  # a path relative to the target, folder by folder

_handles = threading.local()


@dataclass(frozen=True)
class Item:
    """One labelled image, not yet read.

    ``image`` is its path for people and tables, relative to the target, with '/' separators;
    ``split`` is train, val or test, or nothing where splits are still to be drawn; images of one
    ``group`` (a patient, plant or person) belong in one split, and without one each stands alone.
    The bytes lie in ``file``, or in its ``member`` where that file is a zip.
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
        return _printable(str(self.file) if self.member is None else f"{self.file}/{self.member}")

    def read(self) -> bytes:
        """The image file's bytes; any number of threads may read at once.

        Raises:
            Exception: what the file system or ``zipfile`` raises where that fails.
        """
        if self.member is None:
            return self.file.read_bytes()
        return _archive(self.file).read(self.member)


def find_images(target: Path, layout: str) -> list[Item]:
    """The images of a set, sorted by class, then by path, whatever the file system's order.

    ``target`` is a folder or a ``.zip``, or the table of layout ``csv`` itself. Layout ``folders``
    is ``<class>/*`` or ``train|val|test/<class>/*``, with folders nested to any depth; ``lists``
    is ``train.txt`` and, at will, ``val.txt`` and ``test.txt``, each line ``path label``, paths
    relative to the list or absolute (a zip: relative only); ``csv`` is one table with a header
    line and the columns ``image``, ``label`` and, at will, ``split`` and ``group``, paths as in
    lists. One folder around it all is looked through. Where there is only a train part, splits
    are left to be drawn.

    Raises:
        InputError: nothing there; an empty class folder; fewer than two classes; a class with a
            single image to train on; a class that train lacks; a file of unknown kind in a class
            folder; a line of a list or table that has no label or names no file; a table without
            its columns, or with a group in two splits; a circle of links; a zip that is damaged,
            encrypted or points outside itself.
    """
    tree = _tree(target, layout)
    items = {"folders": _from_folders, "lists": _from_lists, "csv": _from_table}[layout](tree)
    _check(target, items)
    return sorted(items, key=lambda item: (_natural(item.class_name), item.image, item.split))


def class_names(items: Sequence[Item]) -> list[str]:
    """The classes, numbers within names by value (2 before 10); a label is an index in this."""
    return sorted({item.class_name for item in items}, key=_natural)


@dataclass
class _Tree:
    """What a folder or a zip holds; ``files`` gives a zip's member names, which may be spelt so
    that the parts do not tell them (backslashes, ``./``)."""

    target: Path
    zipped: bool
    files: dict[Parts, str] = field(default_factory=dict)
    folders: set[Parts] = field(default_factory=set)

    def subfolders(self, folder: Parts) -> list[Parts]:
        return sorted(path for path in self.folders if path[:-1] == folder)

    def has_images(self, folder: Parts) -> bool:
        """Whether images lie in the folder itself, not only below."""
        return any(path[:-1] == folder and _suffix(path) in SUFFIXES for path in self.files)

    def place(self, path: Parts) -> str:
        return _printable("/".join((str(self.target), *path)))

    def read(self, path: Parts) -> bytes:
        return self.item(path, "", "").read()

    def item(self, path: Parts, class_name: str, split: str, group: str = "") -> Item:
        return Item(
            image=_printable("/".join(path)),
            file=self.target if self.zipped else self.target.joinpath(*path),
            class_name=_printable(class_name),
            split=split,
            group=_printable(group),
            member=self.files[path] if self.zipped else None,
        )


def _tree(target: Path, layout: str) -> _Tree:
    if target.is_dir():
        return _walk(target)
    if not target.exists():
        raise InputError(
            f"{target}: there is no such folder or .zip; fetch it with 'dvc pull data.dvc', "
            "or put your images there"
        )
    suffix = target.suffix.lower()
    if suffix == ".csv" and layout == "csv":
        return _Tree(target.parent, zipped=False, files={(target.name,): str(target)})
    if suffix != ".zip":
        hint = " (for a table set data.layout to csv)" if suffix == ".csv" else ""
        also = ", or the .csv itself" if layout == "csv" else ""
        raise InputError(f"{target}: must be a folder or a .zip{also}{hint}")
    return _contents(target)


def _walk(target: Path) -> _Tree:
    tree = _Tree(target, zipped=False)
    pending: list[tuple[Parts, Parts]] = [((), (os.path.realpath(target),))]
    try:
        while pending:
            folder, above = pending.pop()
            for entry in sorted(os.scandir(target.joinpath(*folder)), key=lambda e: e.name):
                path = (*folder, entry.name)
                if _ignored(entry.name):
                    continue
                if not entry.is_dir():
                    tree.files[path] = entry.path
                    continue
                real = os.path.realpath(entry.path)
                if real in above:
                    raise InputError(
                        f"{tree.place(path)}: is a link to a folder that it lies in; remove it"
                    )
                tree.folders.add(path)
                pending.append((path, (*above, real)))
    except OSError as error:
        name = _printable(str(error.filename or target))
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    return tree


def _contents(target: Path) -> _Tree:
    tree = _Tree(target, zipped=True)
    try:
        with zipfile.ZipFile(target) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise InputError(f"{target}: cannot be read as a zip: {error}") from None
    for member in members:
        name = member.filename.replace("\\", "/")  # as some Windows programs write it
        path = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or re.match(r"[A-Za-z]:/", name) or ".." in path:
            raise InputError(
                f"{target}: its member '{_printable(name)}' points outside the zip; zip it again "
                "with relative paths"
            )
        if not path or any(_ignored(part) for part in path):
            continue
        if member.flag_bits & 0x1:
            raise InputError(f"{target}: is encrypted; zip it again without a password")
        above = len(path) + 1 if name.endswith("/") else len(path)
        tree.folders.update(path[:depth] for depth in range(1, above))
        if not name.endswith("/"):
            tree.files[path] = member.filename
    return tree


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


def _from_folders(tree: _Tree) -> list[Item]:
    root = _unwrap(tree)
    splits = _split_folders(tree, root)
    # folders that must hold images: classes, and the splits around them
    wanted = tree.subfolders(root)
    if splits:
        wanted += [folder for top in wanted for folder in tree.subfolders(top)]
    depth = len(root) + (2 if splits else 1)
    items: list[Item] = []
    filled: set[Parts] = set()
    for path in sorted(tree.files):
        if _suffix(path) in SUFFIXES:
            if len(path) <= depth:
                raise InputError(
                    f"{tree.place(path)}: lies in no class folder; put it in the folder of its "
                    "class (for list files set data.layout to lists)"
                )
            split = splits[path[len(root)]] if len(splits) > 1 else ""
            items.append(tree.item(path, path[depth - 1], split))
            filled.update((path[: len(root) + 1], path[:depth]))
        elif len(path) > depth and _suffix(path) not in SIDECARS:
            raise InputError(
                f"{tree.place(path)}: is no kind of image that is read here "
                f"({IMAGES.replace(' ', ', ')}); convert it or remove it"
            )
    for folder in wanted if items else []:
        if folder not in filled:
            raise InputError(f"{tree.place(folder)}: holds no image; put some there or remove it")
    return _spelt_as_in_train(items)


def _spelt_as_in_train(items: list[Item]) -> list[Item]:
    """Classes of other splits that differ from one of train in capitals alone, named as there."""
    training = {item.class_name for item in items if item.split == "train"}
    spelt = {name.casefold(): name for name in training}
    if len(spelt) < len(training):  # capitals tell classes apart
        return items
    return [
        replace(item, class_name=spelt.get(item.class_name.casefold(), item.class_name))
        for item in items
    ]


def _unwrap(tree: _Tree) -> Parts:
    """The folder that holds the class or split folders: the target or a lone folder in it."""
    root: Parts = ()
    while True:
        inside = tree.subfolders(root)
        if len(inside) != 1 or tree.has_images(root) or tree.has_images(inside[0]):
            return root
        below = tree.subfolders(inside[0])
        # a zip often wraps its files; in a folder, only split names tell a wrapper from a class
        if not below or not (tree.zipped or all(_split(path) for path in below)):
            return root
        root = inside[0]


def _split_folders(tree: _Tree, root: Parts) -> dict[str, str]:
    """The split of each folder in ``root``, by name; empty where these folders are classes."""
    tops = tree.subfolders(root)
    found = {path[-1]: _split(path) for path in tops if _split(path)}
    if len(found) == len(tops):
        _check_splits(tree.place(root), found)
        return found
    for path in tops:
        # a class may be called train, but then its images lie in it
        if path[-1] in found and not tree.has_images(path):
            others = [_printable(other[-1]) for other in tops if other[-1] not in found]
            raise InputError(
                f"{tree.place(path)}: looks like a split, but stands beside '{others[0]}'; "
                "keep only train, val and test there, or only class folders"
            )
    return {}


def _check_splits(place: str, found: dict[str, str]) -> None:
    """Refuse a split named twice, and splits that lack train or test."""
    for split, count in Counter(found.values()).items():
        if count > 1:
            names = sorted(name for name in found if found[name] == split)
            raise InputError(f"{place}: {' and '.join(names)} are the same split; keep one")
    splits = set(found.values())
    for needed in ("train", "test"):
        if found and needed not in splits and splits != {"train"}:
            raise InputError(
                f"{place}: has {' and '.join(sorted(found))}, but no {needed}; add it, or bring "
                "no splits at all and have them drawn"
            )


def _from_lists(tree: _Tree) -> list[Item]:
    root: Parts = ()
    while not (lists := _list_files(tree, root)):
        inside = tree.subfolders(root)
        if len(inside) != 1:
            raise InputError(
                f"{tree.place(())}: has no train.txt; add it, each line 'path label' (for class "
                "folders set data.layout to folders)"
            )
        root = inside[0]
    _check_splits(tree.place(root), lists)
    items = []
    for name, split in lists.items():
        items += _read_list(tree, (*root, name), split if len(lists) > 1 else "")
    return items


def _list_files(tree: _Tree, root: Parts) -> dict[str, str]:
    names = sorted(path[-1] for path in tree.files if path[:-1] == root)
    found = {name: _split((name[:-4],)) for name in names if name.lower().endswith(".txt")}
    return {name: split for name, split in found.items() if split}


def _read_list(tree: _Tree, path: Parts, split: str) -> list[Item]:
    place = tree.place(path)
    items: list[Item] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(_text(tree, path).split("\n"), start=1):
        if not line.strip():
            continue
        *before, label = re.split(r"[ \t]+(?=[^ \t]+\Z)", line.strip())
        if not before or _suffix((label,)) in SUFFIXES:
            raise InputError(
                f"{place}:{number}: has no label; each line is 'path label', such as 'a/1.jpg cat'"
            )
        item = _listed(tree, path[:-1], before[0], label, split)
        if item is None:
            raise InputError(
                f"{place}:{number}: there is no file '{_printable(before[0])}'; paths are relative "
                f"to the list{' and stay in the zip' if tree.zipped else ' or absolute'}"
            )
        first = lines.setdefault(item.image, number)
        if first != number:
            raise InputError(
                f"{place}:{number}: names '{item.image}' again, as line {first} does; remove one"
            )
        items.append(item)
    return items


def _text(tree: _Tree, path: Parts) -> str:
    place = tree.place(path)
    try:
        return tree.read(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{place}: is not UTF-8 text; save it as UTF-8") from None
    except Exception as error:  # whatever a damaged zip makes zipfile raise
        raise InputError(f"{place}: cannot be read: {error}") from None


def _listed(
    tree: _Tree, folder: Parts, name: str, label: str, split: str, group: str = ""
) -> Item | None:
    """The item of a line in a list or table, or None where there is no such file."""
    relative = posixpath.normpath(posixpath.join(*folder, name))
    if tree.zipped:
        parts = PurePosixPath(relative).parts
        return tree.item(parts, label, split, group) if parts in tree.files else None
    file = tree.target.joinpath(*folder, name)  # an absolute name replaces what stands before it
    if not os.path.isfile(file):  # False also for a name that no file can have
        return None
    image = name if os.path.isabs(name) else relative
    return Item(_printable(image), file, _printable(label), split, _printable(group))


def _from_table(tree: _Tree) -> list[Item]:
    path = _find_table(tree)
    place = tree.place(path)
    rows = _rows(_text(tree, path), place)
    number, header = next(rows, (1, []))
    columns = _columns(header, f"{place}:{number}")
    items: dict[int, Item] = {}  # by line
    lines: dict[str, int] = {}
    for number, cells in rows:
        where = f"{place}:{number}"
        if len(cells) != len(header):
            raise InputError(
                f"{where}: has {len(cells)} cell(s), but the header has {len(header)}; a cell with "
                'a comma in it needs double quotes, such as "a, b"'
            )
        cell = {name: cells[columns[name]] if name in columns else "" for name in COLUMNS}
        item = _table_item(tree, path[:-1], cell, where)
        first = lines.setdefault(os.path.abspath(item.place), number)
        if first != number:
            raise InputError(
                f"{where}: names '{item.image}' again, as line {first} does; remove one"
            )
        items[number] = item
    if not items:
        raise InputError(f"{place}: lists no images; add a line of each, below its header")
    splits = _check_table(place, items)
    return [item if len(splits) > 1 else replace(item, split="") for item in items.values()]


def _find_table(tree: _Tree) -> Parts:
    """The table of a set: the lone one, or the one that its name or its header tells."""
    root: Parts = ()
    while not (tables := _csv_files(tree, root)):
        inside = tree.subfolders(root)
        if len(inside) != 1:
            raise InputError(
                f"{tree.place(())}: has no .csv at its top; add one with the columns image and "
                "label (for class folders set data.layout to folders)"
            )
        root = inside[0]
    tables = [path for path in tables if path[-1].casefold() in TABLES] or tables
    if len(tables) > 1:
        names = ", ".join(_printable(path[-1]) for path in tables)
        tables = [path for path in tables if _has_columns(tree, path)]
        if len(tables) != 1:
            raise InputError(
                f"{tree.place(root)}: has several tables, {names}, and "
                f"{'more than one' if tables else 'none'} of them with the columns image and "
                "label; keep one, or name it as data.target"
            )
    return tables[0]


def _csv_files(tree: _Tree, folder: Parts) -> list[Parts]:
    return sorted(p for p in tree.files if p[:-1] == folder and _suffix(p) == ".csv")


def _has_columns(tree: _Tree, path: Parts) -> bool:
    try:
        _columns(next(_rows(_text(tree, path), ""), (1, []))[1], "")
    except InputError:
        return False
    return True


def _rows(text: str, place: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not empty, each with the line at which it starts."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{place}:{number}: is no row of a CSV table ({error}); close double quotes, and "
            "double those inside a quoted cell"
        ) from None


def _columns(header: Sequence[str], where: str) -> dict[str, int]:
    """Where in a row each of the known columns stands."""
    names = [name.casefold() for name in header]
    for name in COLUMNS:
        if names.count(name) > 1:
            raise InputError(f"{where}: has the column {name} twice; keep one")
        if name in COLUMNS[:2] and name not in names:
            found = _printable(", ".join(header)) or "none"
            hint = ", and separate them by commas" if re.search(r"[;\t|]", found) else ""
            raise InputError(
                f"{where}: has no column {name}, only {found}; the first line must name the "
                f"columns image and label{hint}"
            )
    return {name: names.index(name) for name in COLUMNS if name in names}


def _table_item(tree: _Tree, folder: Parts, cell: dict[str, str], where: str) -> Item:
    """The item of a table's row, by its cells."""
    for name in ("image", "label"):
        if not cell[name]:
            raise InputError(f"{where}: has no {name}; fill it in or remove the line")
    split = SPLITS.get(cell["split"].casefold(), "")
    if cell["split"] and not split:
        raise InputError(
            f"{where}: '{_printable(cell['split'])}' is no split; write train, val or test"
        )
    item = _listed(tree, folder, cell["image"], cell["label"], split, cell["group"])
    if item is None:
        raise InputError(
            f"{where}: there is no file '{_printable(cell['image'])}'; paths are relative to the "
            f"table{' and stay in the zip' if tree.zipped else ' or absolute'}"
        )
    return item


def _check_table(place: str, items: dict[int, Item]) -> set[str]:
    """The splits that a table brings, of every image or of none, each group in one of them."""
    splits = {item.split for item in items.values()}
    homes: dict[str, Item] = {}
    for number, item in items.items():
        if not item.split and len(splits) > 1:
            raise InputError(
                f"{place}:{number}: has no split, but other lines have one; write train, val or "
                "test in each line, or in none and have splits drawn"
            )
        home = homes.setdefault(item.group, item) if item.group else item
        if home.split != item.split:
            raise InputError(
                f"{place}:{number}: group '{item.group}' stands in {home.split} ({home.image}) "
                f"and in {item.split} ({item.image}); put all its images in one split"
            )
    _check_splits(place, {split: split for split in splits if split})
    return splits


def _check(target: Path, items: Sequence[Item]) -> None:
    """Refuse sets that no classifier can be trained on."""
    if not items:
        raise InputError(
            f"{target}: holds no images; put them there, one folder a class, or set data.target "
            "and data.source to the folders or .zip files that hold them"
        )
    brought = any(item.split for item in items)
    training = Counter(item.class_name for item in items if item.split in ("", "train"))
    for item in items:
        if item.class_name not in training:
            raise InputError(
                f"{target}: class '{item.class_name}' of {item.split} ({item.image}) is not in "
                "train; add training images of it or remove it"
            )
    if len(training) < 2:
        raise InputError(
            f"{target}: has the one class '{items[0].class_name}'; put the images of each class, "
            "two classes at least, in a folder or under a label of their own"
        )
    for name in class_names(items):
        if training[name] < 2:
            kind, least = ("training image", "two") if brought else ("image", "three")
            raise InputError(
                f"{target}: class '{name}' has a single {kind}; add more, {least} at the very "
                "least, or remove the class"
            )


def _split(path: Parts) -> str:
    return SPLITS.get(path[-1].casefold(), "")


def _suffix(path: Parts) -> str:
    return os.path.splitext(path[-1])[1].lower()


def _ignored(name: str) -> bool:
    """Whether a file or folder is left there by a system, not by a person."""
    return name.startswith(".") or name == "__MACOSX"


def _natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts numbers within names by value; text and digits take turns in it."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _printable(text: str) -> str:
    """The text in one line of valid UTF-8: control characters and stray bytes as escapes."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        else char
        for char in text
    )
