"""Whether image files show one class, or which of a gallery's classes each shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.items import Item
from pipeline.data.trees import SUFFIXES, natural, open_tree, suffix
from pipeline.errors import InputError
from pipeline.models.pairs import Verifier
from pipeline.params import Params
from pipeline.records import RunId
from pipeline.tasks import trained
from pipeline.tasks.trained import Trained
from pipeline.tasks.verification.scoring import Scorer, tested


def say(
    params: Params, run: RunId, images: Sequence[Path], gallery: Path | None
) -> Iterator[tuple[str, ...]]:
    """Left, right, same or different, and the probability of same with the run's threshold.

    With a gallery: image, class and its mean probability, for each image. See
    ``pipeline.tasks.answers.Answers``.
    """
    if gallery is not None:
        known = find_gallery(gallery)
        yield from _name(_load(params, run), images, known)
    elif len(images) % 2:
        raise InputError(
            f"command line: IMAGE: {len(images)} image(s) cannot be compared two by two; name two "
            "for each comparison, or what to compare each with by --gallery FOLDER"
        )
    else:
        yield from _compare(_load(params, run), images[::2], images[1::2])


def find_gallery(folder: Path) -> list[Item]:
    """The images of a gallery with their classes, sorted by class.

    Either one folder a class, with images in it to any depth, or images named for their classes
    right in ``folder``, which may be a ``.zip`` too.

    Raises:
        InputError: nothing there, or no images; folders beside images; an empty folder; fewer
            than two classes.
    """
    if not folder.exists():
        raise InputError(f"{folder}: there is no such gallery; name a folder or a .zip")
    tree = open_tree(folder)
    found = [path for path in tree.files if suffix(path) in SUFFIXES]
    tops, direct = tree.subfolders(()), [path for path in found if len(path) == 1]
    if not found:
        raise InputError(
            f"{folder}: holds no images; put one folder a class there, or images named for their "
            "classes"
        )
    if tops and direct:
        raise InputError(
            f"{tree.place(direct[0])}: lies beside folders of classes; put it in the folder of its "
            "class"
        )
    for top in tops:
        if not any(path[:1] == top for path in found):
            raise InputError(f"{tree.place(top)}: holds no image; put some there or remove it")
    items = [tree.item(path, path[0] if tops else Path(path[0]).stem, "") for path in found]
    if len({item.class_name for item in items}) < 2:
        raise InputError(
            f"{folder}: has the one class '{items[0].class_name}', so there is nothing to choose "
            "from; add another"
        )
    return sorted(items, key=lambda item: (natural(item.class_name), natural(item.image)))


@dataclass(frozen=True)
class _Asked:
    """A run as it was tested, and from which probability on it takes a pair for one class."""

    run: Trained
    scorer: Scorer
    threshold: float

    def encode(self, pixels: Sequence[Tensor]) -> Tensor:
        """Encodings (N, D) of images (C, H, W)."""
        return self.scorer.encode(torch.stack(list(pixels)).to(self.run.device))


def _load(params: Params, run: RunId) -> _Asked:
    views, threshold = tested(run)
    found = trained.load(params, run)
    assert isinstance(found.network, Verifier)
    return _Asked(found, Scorer(found.network, found.architecture, views), threshold)


def _compare(
    asked: _Asked, left: Sequence[Path], right: Sequence[Path]
) -> Iterator[tuple[str, ...]]:
    place = {path: number for number, path in enumerate(dict.fromkeys([*left, *right]))}
    encodings = asked.encode([asked.run.read(path) for path in place])
    ends = (np.array([place[path] for path in side], dtype=np.int64) for side in (left, right))
    scores = asked.scorer.probabilities(encodings, *ends)
    for one, other, score in zip(left, right, scores.tolist(), strict=True):
        said = "same" if score >= asked.threshold else "different"
        how = f"P(same) {score:.4f}, threshold {asked.threshold:.4f}"
        yield str(one), str(other), said, how


def _name(
    asked: _Asked, images: Sequence[Path], known: Sequence[Item]
) -> Iterator[tuple[str, ...]]:
    pixels = [asked.run.read(path) for path in images]
    pixels += [asked.run.pixels(_content(item), item.place) for item in known]
    encodings = asked.encode(pixels)
    left, right = np.indices((len(images), len(known))).reshape(2, -1)
    scores = asked.scorer.probabilities(encodings, left, len(images) + right)
    scores = scores.reshape(len(images), len(known))
    classes = np.array([item.class_name for item in known])
    names = list(dict.fromkeys(classes.tolist()))
    means = np.stack([scores[:, classes == name].mean(axis=1) for name in names], axis=1)
    for path, best, of in zip(images, means.argmax(axis=1).tolist(), means.tolist(), strict=True):
        yield str(path), names[best], f"{of[best]:.4f}"


def _content(item: Item) -> bytes:
    try:
        return item.read()
    except Exception as error:  # the file system's errors, and all that zipfile raises
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{item.place}: cannot be read: {reason}") from None
