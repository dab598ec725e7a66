"""Made-up people and characters in the layouts of verification, drawn by a seed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PAPER = 105  # pixels of a side, as Omniglot's published images have


def write_people(folder: Path, train: int, test: int, side: int = 16) -> None:
    """Layout ``pairs``: ``faces.zip``, and the lists ``pairs_train.txt`` and ``pairs_test.txt``.

    So many people are listed for training and for the test, with three images each; every pair of
    one person and, of every two people, one image each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"Person_{number:02}" for number in range(train + test)]
    with zipfile.ZipFile(folder / "faces.zip", "w") as archive:
        for seed, name in enumerate(names):
            for number, face in enumerate(_faces(seed, 3, side), start=1):
                archive.writestr(f"faces/{name}/{name}_{number:04}.png", _png(face))
    for split, people in (("train", names[:train]), ("test", names[train:])):
        (folder / f"pairs_{split}.txt").write_text("\n".join(_pair_lines(people)) + "\n")


def _faces(person: int, each: int, side: int) -> Iterator[Image.Image]:
    """Images of one face: four by four patches of grey, and noise."""
    draw = np.random.default_rng([1, person])
    patches = draw.integers(40, 216, size=(4, 4))
    face = np.kron(patches, np.ones((-(-side // 4),) * 2))[:side, :side]
    for _ in range(each):
        yield Image.fromarray((face + draw.integers(-30, 31, face.shape)).astype(np.uint8))


def _pair_lines(people: list[str]) -> Iterator[str]:
    for name in people:
        yield from (f"{name}\t{one}\t{other}" for one, other in combinations((1, 2, 3), 2))
    for number, (name, other) in enumerate(combinations(people, 2)):
        yield f"{name}\t{1 + number % 3}\t{other}\t{1 + number // 3 % 3}"


def write_omniglot(
    folder: Path, alphabets: int = 3, characters: int = 6, drawers: int = 4, runs: int = 2,
    ways: int = 4,
) -> None:  # fmt: skip
    """Layout ``omniglot``: ``images_background_small1.zip`` and ``all_runs.zip`` as published."""
    folder.mkdir(parents=True, exist_ok=True)
    top = "images_background_small1"
    with zipfile.ZipFile(folder / f"{top}.zip", "w") as archive:
        for alphabet in range(alphabets):
            for character in range(1, characters + 1):
                place = f"{top}/Alphabet_{alphabet}/character{character:02}"
                for drawer, drawn in enumerate(_drawn((0, alphabet, character), drawers), start=1):
                    archive.writestr(f"{place}/{character:04}_{drawer:02}.png", _png(drawn))
    with zipfile.ZipFile(folder / "all_runs.zip", "w") as archive:
        for run in range(1, runs + 1):
            _write_run(archive.writestr, run, ways)


def _write_run(write: Callable[[str, bytes | str], None], run: int, ways: int) -> None:
    """An official run: an image to compare with and a query of each of its characters."""
    place = f"run{run:02}"
    answers = np.random.default_rng([2, run]).permutation(ways)
    lines = []
    for character in range(ways):
        support, query = _drawn((1, run, character), 2)
        item = int(np.flatnonzero(answers == character)[0]) + 1
        write(f"{place}/training/class{character + 1:02}.png", _png(support))
        write(f"{place}/test/item{item:02}.png", _png(query))
    for item, character in enumerate(answers, start=1):
        shown = f"{place}/training/class{character + 1:02}.png"
        lines.append(f"{place}/test/item{item:02}.png {shown}\n")
    write(f"{place}/class_labels.txt", "".join(lines))


def _drawn(key: tuple[int, ...], each: int) -> Iterator[Image.Image]:
    """One character by ``each`` hands: a stroke through five points, black on white."""
    draw = np.random.default_rng([3, *key])
    points = draw.uniform(15, PAPER - 15, size=(5, 2))
    for _ in range(each):
        paper = Image.new("1", (PAPER, PAPER), 1)
        stroke = points + draw.normal(0, 3, points.shape)
        ImageDraw.Draw(paper).line([tuple(point) for point in stroke.tolist()], fill=0, width=3)
        yield paper


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()
