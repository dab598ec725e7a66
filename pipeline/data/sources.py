"""Find the labelled images of a set: class folders, lists or a table, in a folder or ``.zip``.

Nothing is decoded here; an `Item` knows where its bytes lie, its class and its split.
"""

from __future__ import annotations

import csv
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.data import omniglot, pair_lists
from pipeline.data.items import Found, Item, Trial, printable
from pipeline.data.trees import IMAGES, SUFFIXES, Fence, Parts, Tree, natural, open_tree, suffix
from pipeline.errors import InputError
from pipeline.params import Task

__all__ = ["Found", "Item", "Trial", "class_names", "find", "find_images"]

LABELLED = ("folders", "lists", "csv")  # layouts of both tasks
SIDECARS = frozenset((".txt", ".csv", ".json", ".xml", ".md", ".db", ".ini"))
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SPLITS |= {"training": "train", "training_set": "train", "train_set": "train"}
SPLITS |= {"validation_set": "val", "val_set": "val"}
SPLITS |= {"testing": "test", "test_set": "test"}
COLUMNS = ("image", "label", "split", "group")  # of a table; the last two at will
TABLES = ("images.csv", "labels.csv")  # which table is meant where several lie there


def find(target: Path, layout: str, task: Task, within: Path | None = None) -> Found:
    """The images of a set, and the trials that its layout brings (pairs, episodes).

    For classification see `find_images`. In verification classes are identities (people,
    characters), and each lies in one split alone: the layouts of classification are read as
    there, ``pairs`` is `pair_lists.find`, ``omniglot`` is `omniglot.find`.

    Args:
        target: the folder, ``.zip`` or table.
        layout: how the images lie there.
        task: what they are for.
        within: the folder that must hold all that is read, links followed; None: anywhere.

    Raises:
        InputError: what the layout refuses; a file outside ``within``; a layout of verification
            for classification; in verification an identity in two splits, fewer than two
            identities to train on, or none of them with two images.
    """
    if task == "classification":
        if layout not in LABELLED:
            raise InputError(
                f"params.yaml: data.layout: {layout} is for task: verification; for "
                f"classification set it to {', '.join(LABELLED[:-1])} or {LABELLED[-1]}"
            )
        return Found(find_images(target, layout, within), [])
    if layout in LABELLED:
        found = Found(_labelled(target, layout, within), [])
    else:
        find_trials = {"pairs": pair_lists.find, "omniglot": omniglot.find}[layout]
        found = find_trials(target, Fence(within))
    _check_spelling(target, found.items)
    _check_identities(target, found.items)
    return Found(_sorted(found.items), found.trials)


def find_images(target: Path, layout: str, within: Path | None = None) -> list[Item]:
    """The images of a set to classify, sorted by class, then by path, on every file system.

    ``target`` is a folder or a ``.zip``, or the table of layout ``csv`` itself. Layout ``folders``
    is ``<class>/*`` or ``train|val|test/<class>/*``, with folders nested to any depth; ``lists``
    is ``train.txt`` and, at will, ``val.txt`` and ``test.txt``, each line ``path label``, paths
    relative to the list or absolute (a zip: relative only); ``csv`` is one table with a header
    line and the columns ``image``, ``label`` and, at will, ``split`` and ``group``, paths as in
    lists. One folder around it all is looked through. Where there is only a train part, splits
    are left to be drawn. ``within`` see `find`.

    Raises:
        InputError: nothing there; an empty class folder; fewer than two classes; a class with a
            single image to train on; a class that train lacks, or that is spelled in two ways of
            Unicode; a file of unknown kind in a class folder; a line of a list or table that has
            no label or names no file; a table without its columns, or with a group in two splits;
            a line too long for a text; a file outside ``within``; what `open_tree` refuses.
    """
    items = _labelled(target, layout, within)
    _check_spelling(target, items)
    _check_classes(target, items)
    return _sorted(items)


def class_names(items: Sequence[Item]) -> list[str]:
    """The classes, numbers within names by value (2 before 10); a label is an index in this."""
    return sorted({item.class_name for item in items}, key=natural)


def _labelled(target: Path, layout: str, within: Path | None) -> list[Item]:
    """The images of the layouts that both tasks have; at least one."""
    tree = open_tree(target, table=layout == "csv", fence=Fence(within))
    items = {"folders": _from_folders, "lists": _from_lists, "csv": _from_table}[layout](tree)
    if not items:
        raise InputError(
            f"{target}: holds no images; put them there, one folder a class, or set data.target "
            "and data.source to the folders or .zip files that hold them"
        )
    return items


def _sorted(items: list[Item]) -> list[Item]:
    """By class, path and split; three stable sorts need no key that holds all of these."""
    place = {name: number for number, name in enumerate(class_names(items))}
    items = sorted(items, key=lambda item: item.split)
    items.sort(key=lambda item: item.image)
    items.sort(key=lambda item: place[item.class_name])
    return items


def _from_folders(tree: Tree) -> list[Item]:
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
        if suffix(path) in SUFFIXES:
            if len(path) <= depth:
                raise InputError(
                    f"{tree.place(path)}: lies in no class folder; put it in the folder of its "
                    "class (for list files set data.layout to lists)"
                )
            split = splits[path[len(root)]] if len(splits) > 1 else ""
            items.append(tree.item(path, path[depth - 1], split))
            filled.update((path[: len(root) + 1], path[:depth]))
        elif len(path) > depth and suffix(path) not in SIDECARS:
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
    other = {name: spelt.get(name.casefold(), name) for name in {i.class_name for i in items}}
    return [
        item if other[item.class_name] == item.class_name
        else replace(item, class_name=other[item.class_name])
        for item in items
    ]  # fmt: skip


def _unwrap(tree: Tree) -> Parts:
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


def _split_folders(tree: Tree, root: Parts) -> dict[str, str]:
    """The split of each folder in ``root``, by name; empty where these folders are classes."""
    tops = tree.subfolders(root)
    found = {path[-1]: _split(path) for path in tops if _split(path)}
    if len(found) == len(tops):
        _check_splits(tree.place(root), found)
        return found
    for path in tops:
        # a class may be called train, but then its images lie in it
        if path[-1] in found and not tree.has_images(path):
            others = [printable(other[-1]) for other in tops if other[-1] not in found]
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


def _from_lists(tree: Tree) -> list[Item]:
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


def _list_files(tree: Tree, root: Parts) -> dict[str, str]:
    names = sorted(path[-1] for path in tree.files if path[:-1] == root)
    found = {name: _split((name[:-4],)) for name in names if name.lower().endswith(".txt")}
    return {name: split for name, split in found.items() if split}


def _read_list(tree: Tree, path: Parts, split: str) -> list[Item]:
    place = tree.place(path)
    items: list[Item] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(tree.lines(path), start=1):
        line = line.strip()
        if not line:
            continue
        cut = max(line.rfind(" "), line.rfind("\t"))
        name, label = line[: max(cut, 0)].rstrip(" \t"), line[cut + 1 :]
        if not name or suffix((label,)) in SUFFIXES:
            raise InputError(
                f"{place}:{number}: has no label; each line is 'path label', such as 'a/1.jpg cat'"
            )
        item = _listed(tree, path[:-1], name, label, split, f"{place}:{number}")
        if item is None:
            raise InputError(
                f"{place}:{number}: there is no file '{printable(name)}'; paths are relative "
                f"to the list{' and stay in the zip' if tree.zipped else ' or absolute'}"
            )
        first = lines.setdefault(_key(item), number)
        if first != number:
            raise InputError(
                f"{place}:{number}: names '{item.image}' again, as line {first} does; remove one"
            )
        items.append(item)
    return items


def _listed(
    tree: Tree, folder: Parts, name: str, label: str, split: str, where: str, group: str = ""
) -> Item | None:
    """The item of a line in a list or table, or None where there is no such file."""
    relative = posixpath.normpath(posixpath.join(*folder, name))
    if tree.zipped:
        parts = tuple(relative.split("/"))
        return tree.item(parts, label, split, group) if parts in tree.files else None
    file = tree.target.joinpath(*folder, name)  # an absolute name replaces what stands before it
    if not os.path.isfile(file):  # False also for a name that no file can have
        return None
    tree.fence.check(str(file), where)
    image = name if os.path.isabs(name) else relative
    return Item(printable(image), file, printable(label), split, printable(group))


def _key(item: Item) -> str:
    """What two lines share that name one file; in a zip a member has one name."""
    return item.member if item.member is not None else os.path.abspath(item.file)


def _from_table(tree: Tree) -> list[Item]:
    path = _find_table(tree)
    place = tree.place(path)
    rows = _rows(tree.lines(path), place)
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
        first = lines.setdefault(_key(item), number)
        if first != number:
            raise InputError(
                f"{where}: names '{item.image}' again, as line {first} does; remove one"
            )
        items[number] = item
    if not items:
        raise InputError(f"{place}: lists no images; add a line of each, below its header")
    splits = _check_table(place, items)
    given = len(splits) > 1
    return [item if given or not item.split else replace(item, split="") for item in items.values()]


def _find_table(tree: Tree) -> Parts:
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
        names = ", ".join(printable(path[-1]) for path in tables)
        tables = [path for path in tables if _has_columns(tree, path)]
        if len(tables) != 1:
            raise InputError(
                f"{tree.place(root)}: has several tables, {names}, and "
                f"{'more than one' if tables else 'none'} of them with the columns image and "
                "label; keep one, or name it as data.target"
            )
    return tables[0]


def _csv_files(tree: Tree, folder: Parts) -> list[Parts]:
    return sorted(p for p in tree.files if p[:-1] == folder and suffix(p) == ".csv")


def _has_columns(tree: Tree, path: Parts) -> bool:
    try:
        _columns(next(_rows(tree.lines(path), ""), (1, []))[1], "")
    except InputError:
        return False
    return True


def _rows(lines: Iterable[str], place: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not empty, each with the line at which it starts."""
    reader = csv.reader(lines, strict=True)
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
            found = printable(", ".join(header)) or "none"
            hint = ", and separate them by commas" if re.search(r"[;\t|]", found) else ""
            raise InputError(
                f"{where}: has no column {name}, only {found}; the first line must name the "
                f"columns image and label{hint}"
            )
    return {name: names.index(name) for name in COLUMNS if name in names}


def _table_item(tree: Tree, folder: Parts, cell: dict[str, str], where: str) -> Item:
    """The item of a table's row, by its cells."""
    for name in ("image", "label"):
        if not cell[name]:
            raise InputError(f"{where}: has no {name}; fill it in or remove the line")
    split = SPLITS.get(cell["split"].casefold(), "")
    if cell["split"] and not split:
        raise InputError(
            f"{where}: '{printable(cell['split'])}' is no split; write train, val or test"
        )
    item = _listed(tree, folder, cell["image"], cell["label"], split, where, cell["group"])
    if item is None:
        raise InputError(
            f"{where}: there is no file '{printable(cell['image'])}'; paths are relative to the "
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


def _check_spelling(target: Path, items: Sequence[Item]) -> None:
    """Refuse one name in two spellings of Unicode, as from systems that write accents apart."""
    named = {item.class_name: item for item in items}
    homes: dict[str, Item] = {}
    for name, item in named.items():
        home = homes.setdefault(unicodedata.normalize("NFC", name), item)
        if home is not item:
            raise InputError(
                f"{target}: class '{name}' is spelled in two ways that look the same "
                f"({home.image} and {item.image}), its accents in their letters or apart; spell "
                "it in one way"
            )


def _check_classes(target: Path, items: Sequence[Item]) -> None:
    """Refuse sets that no classifier can be trained on."""
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


def _check_identities(target: Path, items: Sequence[Item]) -> None:
    """Refuse sets on which nobody can learn and test whether two images show one class."""
    homes: dict[str, Item] = {}
    for item in items:
        home = homes.setdefault(item.class_name, item)
        if home.split != item.split:
            raise InputError(
                f"{target}: '{item.class_name}' stands in {home.split} ({home.image}) and in "
                f"{item.split} ({item.image}); in verification a class lies in one split alone: "
                "put all its images in one"
            )
    training = Counter(item.class_name for item in items if item.split in ("", "train"))
    if len(training) < 2:
        raise InputError(
            f"{target}: has {len(training)} class(es) to train on; verification needs two at least"
        )
    if max(training.values()) < 2:
        raise InputError(
            f"{target}: has a single image of each class to train on, so no pair of one class; "
            "add a second image of some"
        )


def _split(path: Parts) -> str:
    return SPLITS.get(path[-1].casefold(), "")
