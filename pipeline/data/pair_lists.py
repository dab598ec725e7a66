"""Layout ``pairs``: folders of people and lists of pairs, as Labeled Faces in the Wild has them.

The form of the lists: G. B. Huang et al., "Labeled Faces in the Wild: a database for studying
face recognition in unconstrained environments", technical report 07-49, University of
Massachusetts, Amherst, 2007.
"""

from __future__ import annotations

import difflib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.items import Found, Item, Trial, printable
from pipeline.data.trees import SUFFIXES, Fence, Parts, Tree, open_tree, suffix
from pipeline.errors import InputError

# what the name of a split's list has in it; an evaluation is none
NAMED = {"train": "train", "val": "(?<!e)val", "test": "test"}
FORM = "each line is 'name i j' or 'name i other j', with tabs or blanks between"

Photo = tuple[str, int]  # a person's name and the number of an image
Photos = dict[int, list[tuple[Tree, Parts]]]  # a person's images, by number; one file each
Homes = dict[str, tuple[str, str, str]]  # by a name in plain spelling: split, place, the name


@dataclass(frozen=True)
class _Pair:
    """One line of a list, with its place (``file:line``)."""

    where: str
    left: Photo
    right: Photo

    @property
    def same(self) -> bool:
        return self.left[0] == self.right[0]


@dataclass
class _Lists:
    """What all lists have named so far."""

    homes: Homes = field(default_factory=dict)
    items: dict[Photo, Item] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)


def find(target: Path, fence: Fence | None = None) -> Found:
    """The pairs that the lists name, one trial a line, and their images.

    ``target``, a folder or a ``.zip``, holds folders of people, ``<name>/<name>_0001.jpg`` with
    numbers of any width, in other folders to any depth, or in ``.zip`` files beside the lists;
    and a list of training pairs, one of test pairs and, at will, one of validation pairs:
    ``.txt`` files with train, test and val in their names. A line is ``name i j`` (two images of
    one person) or ``name i other j`` (of two), after an optional header of one or two counts,
    which is not relied on. Folders around it all are looked through.

    Raises:
        InputError: no list of a kind, or several; no images; a line of another form; a person or
            an image that is not there, or there twice; a pair of an image with itself, or for
            the second time; a person in two lists; a list with pairs of one kind only; what
            `open_tree` refuses, as something outside of the ``fence``.
    """
    tree = open_tree(target, fence=fence)
    root = _root(tree)
    people = _people(tree, root)
    lists = _Lists()
    for split, path in _files(tree, root).items():
        _read(tree, path, split, people, lists)
    return Found(list(lists.items.values()), lists.trials)


def _root(tree: Tree) -> Parts:
    """The folder of the lists: the target, or a lone folder in it."""
    root: Parts = ()
    while not _candidates(tree, root):
        inside = tree.subfolders(root)
        if len(inside) != 1:
            raise InputError(
                f"{tree.place(())}: has no lists of pairs; add pairs_train.txt and "
                f"pairs_test.txt: {FORM}"
            )
        root = inside[0]
    return root


def _candidates(tree: Tree, folder: Parts) -> dict[Parts, list[str]]:
    """The ``.txt`` files whose names name splits; those with 'pair' in them, if there are any."""
    found = {
        path: [split for split, words in NAMED.items() if re.search(words, path[-1].lower())]
        for path in sorted(tree.files)
        if path[:-1] == folder and suffix(path) == ".txt"
    }
    found = {path: splits for path, splits in found.items() if splits}
    return {path: found[path] for path in found if "pair" in path[-1].lower()} or found


def _files(tree: Tree, root: Parts) -> dict[str, Parts]:
    """The list of each split; train and test at least."""
    files: dict[str, Parts] = {}
    for path, splits in _candidates(tree, root).items():
        if len(splits) > 1:
            raise InputError(
                f"{tree.place(path)}: has {' and '.join(splits)} in its name; name each list of "
                "pairs after one split"
            )
        first = files.setdefault(splits[0], path)
        if first != path:
            raise InputError(
                f"{tree.place(root)}: has two lists of {splits[0]} pairs, "
                f"{printable(first[-1])} and {printable(path[-1])}; keep one"
            )
    for needed in ("train", "test"):
        if needed not in files:
            raise InputError(
                f"{tree.place(root)}: has no list of {needed} pairs; add pairs_{needed}.txt: {FORM}"
            )
    return {split: files[split] for split in NAMED if split in files}


def _people(tree: Tree, root: Parts) -> dict[str, Photos]:
    """Everybody's images, by name and number, in the target and the zips beside its lists."""
    zips = [path for path in sorted(tree.files) if path[:-1] == root and suffix(path) == ".zip"]
    inner = (
        []
        if tree.zipped
        else [open_tree(tree.target.joinpath(*path), fence=tree.fence) for path in zips]
    )
    people: dict[str, Photos] = {}
    for holder in (tree, *inner):
        for path in sorted(holder.files):
            if suffix(path) in SUFFIXES and len(path) > 1:
                photos = people.setdefault(unicodedata.normalize("NFC", path[-2]), {})
                name, _, digits = path[-1][: -len(suffix(path))].rpartition("_")
                if name == path[-2] and re.fullmatch("[0-9]{1,18}", digits):
                    photos.setdefault(int(digits), []).append((holder, path))
    if not people:
        hint = f"unpack {printable(zips[0][-1])}, a zip in a zip, or " if zips and not inner else ""
        raise InputError(
            f"{tree.place(root)}: holds no images of people; {hint}put <name>/<name>_0001.jpg, … "
            "there, or a .zip of them beside the lists"
        )
    return people


def _read(tree: Tree, path: Parts, split: str, people: dict[str, Photos], lists: _Lists) -> None:
    """Add one list's images and trials to ``lists``."""
    place = tree.place(path)
    named: dict[frozenset[Photo], str] = {}
    for pair in _pairs(tree.lines(path), place):
        for photo in (pair.left, pair.right):
            _check_home(photo[0], split, pair.where, lists.homes)
            if photo not in lists.items:
                holder, file = _file(photo, people, pair.where)
                lists.items[photo] = holder.item(file, photo[0], split)
        first = named.setdefault(frozenset((pair.left, pair.right)), pair.where)
        if first != pair.where:
            raise InputError(f"{pair.where}: names the pair of {first} again; remove one")
        left, right = lists.items[pair.left].image, lists.items[pair.right].image
        lists.trials.append(Trial(split, left, right, pair.same))
    kinds = {trial.same for trial in lists.trials if trial.split == split}
    for same, kind in ((True, "one person"), (False, "two people")):
        if same not in kinds:
            raise InputError(f"{place}: lists no pair of {kind}; {FORM}")


def _pairs(lines: Iterable[str], place: str) -> Iterator[_Pair]:
    """The pairs of a list, each checked by itself."""
    rows = ((number, _cells(line)) for number, line in enumerate(lines, start=1))
    filled = ((number, cells) for number, cells in rows if cells)
    for index, (number, cells) in enumerate(filled):
        if index or not _is_header(cells):
            yield _pair(cells, f"{place}:{number}")


def _cells(line: str) -> list[str]:
    """The columns of a line; tabs alone part them where that gives as many as there must be.

    Accents are in their letters, as in the names of people: file systems keep them either way.
    """
    line = unicodedata.normalize("NFC", line)
    cells = [cell.strip() for cell in line.strip().split("\t")]
    return cells if len(cells) in (3, 4) and all(cells) else line.split()


def _is_header(cells: Sequence[str]) -> bool:
    """Whether a first line gives counts: of pairs of each kind, after that of sets if any."""
    return len(cells) <= 2 and all(re.fullmatch("[0-9]+", cell) for cell in cells)


def _pair(cells: list[str], where: str) -> _Pair:
    if len(cells) not in (3, 4):
        raise InputError(f"{where}: has {len(cells)} column(s); {FORM}")
    for cell in (cells[1], cells[-1]):
        if not re.fullmatch("0*[1-9][0-9]{0,17}", cell):
            raise InputError(
                f"{where}: '{printable(cell)}' is no number of an image, a whole number from 1; "
                f"{FORM}"
            )
    name, other = cells[0], cells[0] if len(cells) == 3 else cells[2]
    pair = _Pair(where, (name, int(cells[1])), (other, int(cells[-1])))
    if len(cells) == 4 and pair.same:
        raise InputError(
            f"{where}: names '{printable(name)}' as two people; write a pair of one person as "
            "'name i j'"
        )
    if pair.left == pair.right:
        raise InputError(
            f"{where}: pairs image {pair.left[1]} of '{printable(name)}' with itself; name two "
            "images or remove the line"
        )
    return pair


def _check_home(name: str, split: str, where: str, homes: Homes) -> None:
    """Refuse a person who stands in the list of another split too, however it is spelt there."""
    spelt = unicodedata.normalize("NFKC", name).casefold()
    home, first, known = homes.setdefault(spelt, (split, where, name))
    if home != split:
        other = f" as '{printable(known)}'" if known != name else ""
        raise InputError(
            f"{where}: '{printable(name)}' stands in {first} too{other}; nobody may be in the "
            "lists of two splits, so remove that person from one"
        )


def _file(photo: Photo, people: dict[str, Photos], where: str) -> tuple[Tree, Parts]:
    """The one file of a person's image, with the tree that holds it."""
    name, number = photo
    if name not in people:
        folded = {known.casefold(): known for known in people}  # capitals are the likeliest slip
        close = difflib.get_close_matches(name.casefold(), folded, n=1)
        meant = printable(folded[close[0]]) if close else ""
        hint = f"did you mean '{meant}'?" if meant else "add it or remove the line"
        raise InputError(f"{where}: there is no folder '{printable(name)}' with images; {hint}")
    files = people[name].get(number, [])
    if not files:
        raise InputError(
            f"{where}: '{printable(name)}' has no image {number}, only {_numbers(people[name])}; "
            f"images are called {printable(name)}_0001.jpg and so on"
        )
    if len(files) > 1:
        (one, first), (two, second) = files[:2]
        raise InputError(
            f"{where}: image {number} of '{printable(name)}' is there twice, as "
            f"{one.place(first)} and as {two.place(second)}; remove one"
        )
    return files[0]


def _numbers(photos: Photos) -> str:
    """Numbers for people, such as ``1 to 4, 7``; the first few stretches of them."""
    stretches = []
    pairs = enumerate(sorted(photos))
    for _, stretch in itertools.groupby(pairs, key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in stretch]
        first, last = numbers[0], numbers[-1]
        stretches.append(str(first) if first == last else f"{first} to {last}")
    shown = stretches[:8] + ["…"] * (len(stretches) > 8)
    return ", ".join(shown) or "images with other names"
