"""Layout ``omniglot``: the published zips of handwritten characters, as they are.

B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum, "Human-level concept learning through probabilistic
program induction", Science 350 (2015): alphabets to learn from (background), alphabets to be
tested on (evaluation), and 20 runs of 20-way one-shot classification within an alphabet.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from pipeline.data.items import Found, Item, Trial, printable
from pipeline.data.trees import (
    SUFFIXES,
    Fence,
    Parts,
    Tree,
    missing,
    names,
    natural,
    open_tree,
    suffix,
)
from pipeline.errors import InputError
from pipeline.records import OFFICIAL

LABELS = "class_labels.txt"
RUNS = 20  # published
# how the published files are called, zipped or unpacked, by what they hold
ROLES = {"background": "images_background", "evaluation": "images_evaluation", "runs": "all_runs"}


def find(target: Path, fence: Fence | None = None) -> Found:
    """The characters as classes, their alphabets as groups, and the runs as trials.

    ``target`` is a folder with one ``images_background*.zip``, or that zip itself, the others
    beside it; at will ``images_evaluation.zip`` and ``all_runs.zip``; each may be unpacked to a
    folder of its name. Classes are ``<alphabet>/character<NN>``, and in the runs, whose alphabets
    are not told, ``run<NN>/class<KK>`` of group ``run<NN>``. The background is for training, the
    rest for the test; where there is no rest, splits are left to be drawn. Each run is an episode
    of set ``official``: every test image (left) against every training image (right).

    Raises:
        InputError: no background or several; an image outside its place; a character without
            images; an alphabet in background and evaluation; a run without its images or
            answers; a line of answers that names no file, or one for the second time; what
            `open_tree` refuses, as something outside of the ``fence``.
    """
    parts = _parts(target)
    lone = parts.keys() == {"background"}
    items = _characters(parts["background"], "" if lone else "train", fence)
    trials: list[Trial] = []
    if "evaluation" in parts:
        evaluation = _characters(parts["evaluation"], "test", fence)
        _check_alphabets(parts, items, evaluation)
        items += evaluation
    if "runs" in parts:
        drawn, trials = _runs(parts["runs"], fence)
        items += drawn
    return Found(items, trials)


def _parts(target: Path) -> dict[str, Path]:
    """The published files, by role, in the target or, if that is one of them, beside it."""
    if not target.exists():
        raise missing(target)
    named = _role(target) == "background"
    if not named and not target.is_dir():
        raise InputError(
            f"{target}: must be a folder with images_background….zip, or such a zip itself"
        )
    folder = target.parent if named else target
    found: dict[str, list[Path]] = {role: [] for role in ROLES}
    for name in names(folder):
        role = _role(folder / name)
        if role:
            found[role].append(folder / name)
    loose = [name for name in names(folder) if re.fullmatch("run[0-9]+", name)]
    if loose and not found["runs"]:
        raise InputError(
            f"{folder / loose[0]}: lies beside the published files; put the runs in a folder "
            "all_runs there"
        )
    if named:
        found["background"] = [target]
    if not found["background"]:
        raise InputError(
            f"{target}: has no images_background….zip; put one of the published zips there"
        )
    for role, paths in found.items():
        if len(paths) > 1:
            mend = "keep one"
            if role == "background":
                mend = f"name one as data.target, such as {paths[0]}"
            listed = " and ".join(printable(path.name) for path in paths)
            raise InputError(f"{folder}: has {listed}; {mend}")
    return {role: paths[0] for role, paths in found.items() if paths}


def _role(path: Path) -> str:
    """What a published file holds, by its name; nothing for any other file."""
    if not path.is_dir() and path.suffix.lower() != ".zip":
        return ""
    starts = (role for role, start in ROLES.items() if path.name.lower().startswith(start))
    return next(starts, "")


def _characters(part: Path, split: str, fence: Fence | None) -> list[Item]:
    """The images of ``<alphabet>/character<NN>/*``, in folders around it or not."""
    tree = open_tree(part, fence=fence)
    paths = [path for path in sorted(tree.files) if suffix(path) in SUFFIXES]
    if not paths:
        raise InputError(f"{part}: holds no images; fetch it again")
    root = paths[0][:-3]
    for path in paths:
        inside = len(path) == len(root) + 3 and path[:-3] == root
        if not inside or not re.fullmatch("character[0-9]+", path[-2]):
            raise InputError(
                f"{tree.place(path)}: lies in no folder <alphabet>/character<NN>, as all images "
                "of the published set do; move or remove it"
            )
    filled = {path[:-1] for path in paths} | {path[:-2] for path in paths}
    for folder in sorted(tree.folders):
        if len(folder) > len(root) and folder not in filled:
            raise InputError(f"{tree.place(folder)}: holds no image; remove it or fetch it again")
    return [
        _item(part, tree, root, path, f"{path[-3]}/{path[-2]}", split, path[-3]) for path in paths
    ]


def _item(
    part: Path, tree: Tree, root: Parts, path: Parts, class_name: str, split: str, group: str
) -> Item:
    """A file as an item that is called the same, whether its part is a zip or unpacked."""
    stem = part.name if part.is_dir() else part.stem
    image = printable("/".join((stem, *path[len(root) :])))
    return replace(tree.item(path, class_name, split, group), image=image)


def _check_alphabets(parts: dict[str, Path], background: list[Item], test: list[Item]) -> None:
    """Refuse an alphabet to learn from and to be tested on."""
    known = {item.group.casefold() for item in background}
    both = sorted({item.group for item in test if item.group.casefold() in known})
    if both:
        raise InputError(
            f"{parts['evaluation']}: has the alphabet '{both[0]}', as {parts['background'].name} "
            "has; the published sets share none: fetch them again"
        )


def _runs(part: Path, fence: Fence | None) -> tuple[list[Item], list[Trial]]:
    """The images and the trials of the runs, run by run and query by query."""
    tree = open_tree(part, fence=fence)
    folders = [path for path in tree.folders if re.fullmatch("run[0-9]+", path[-1])]
    if not folders:
        raise InputError(f"{part}: has no folders run01, run02, …; fetch it again")
    folders = sorted(folders, key=lambda path: (path[:-1], natural(path[-1])))
    items: list[Item] = []
    trials: list[Trial] = []
    for run in folders:
        if run[:-1] != folders[0][:-1]:
            raise InputError(
                f"{tree.place(run)}: lies apart from {tree.place(folders[0])}; keep all runs in "
                "one folder"
            )
        queries, supports = _run(part, tree, run)
        items += [*queries, *supports]
        trials += [
            Trial("test", query.image, support.image, same, OFFICIAL, query.group)
            for query in queries
            for support in supports
            for same in [query.class_name == support.class_name]
        ]
    return items, trials


def _run(part: Path, tree: Tree, run: Parts) -> tuple[list[Item], list[Item]]:
    """A run's test images and its training images, of one class each."""
    images = {kind: tree.images((*run, kind)) for kind in ("test", "training")}
    for kind, paths in images.items():
        if not paths:
            raise InputError(f"{tree.place((*run, kind))}: holds no images; fetch the run again")
    classes = {path: f"{run[-1]}/{os.path.splitext(path[-1])[0]}" for path in images["training"]}
    if len(set(classes.values())) < 2:
        raise InputError(
            f"{tree.place((*run, 'training'))}: has one class; there is nothing to choose from"
        )
    answers = _answers(tree, run, images["test"], images["training"])
    classes |= {query: classes[answers[query]] for query in images["test"]}
    queries, supports = (
        [_item(part, tree, run[:-1], path, classes[path], "test", run[-1]) for path in paths]
        for paths in images.values()
    )
    return queries, supports


def _answers(
    tree: Tree, run: Parts, queries: list[Parts], supports: list[Parts]
) -> dict[Parts, Parts]:
    """The training image that shows the character of each test image, as the run's file says."""
    path = (*run, LABELS)
    place = tree.place(path)
    if path not in tree.files:
        raise InputError(f"{place}: is missing; it tells what the run's test images show")
    answers: dict[Parts, Parts] = {}
    named: dict[Parts, int] = {}
    for number, line in enumerate(tree.lines(path), start=1):
        cells = line.split()
        if not cells:
            continue
        where = f"{place}:{number}"
        if len(cells) != 2:
            raise InputError(
                f"{where}: has {len(cells)} column(s); each line is '{run[-1]}/test/item01.png "
                f"{run[-1]}/training/class01.png'"
            )
        query, answer = ((*run[:-1], *cell.split("/")) for cell in cells)
        for cell, file, kind, among in (
            (cells[0], query, "test", queries),
            (cells[1], answer, "training", supports),
        ):
            if file not in among:
                raise InputError(
                    f"{where}: '{printable(cell)}' is no image in {run[-1]}/{kind}; paths are "
                    "relative to the folder of all runs"
                )
        for cell, file, again in (
            (cells[0], query, "answers '{}' again, as line {} does; remove one"),
            (cells[1], answer, "gives '{}' again, as line {} does; each class is asked for once"),
        ):
            first = named.setdefault(file, number)
            if first != number:
                raise InputError(f"{where}: {again.format(printable(cell), first)}")
        answers[query] = answer
    for query in queries:
        if query not in answers:
            shown = printable("/".join(query[len(run) - 1 :]))
            raise InputError(f"{place}: does not say what {shown} shows; add a line")
    return answers
