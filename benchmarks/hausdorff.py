"""Omniglot's official one-shot runs by a distance that learns nothing: a check of the harness.

``python -m benchmarks.hausdorff TARGET`` reads TARGET as layout omniglot, scores every trial with
minus the modified Hausdorff distance between the two drawings and prints the error of the answers,
which are picked as they are for networks. It must be 38.75 % (published, rounded: 38.8 %; Lake,
Salakhutdinov and Tenenbaum 2015, "Human-level concept learning through probabilistic program
induction", Science 350).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data import sources
from pipeline.data.items import Item
from pipeline.errors import InputError, command
from pipeline.evaluation.decisions import Answers, Floats, answer_episodes
from pipeline.evaluation.hausdorff import ink, modified_hausdorff
from pipeline.records import OFFICIAL


def answers(target: Path) -> Answers:
    """Pick a class for every query of the official runs.

    Raises:
        InputError: there are no runs, or an image that is damaged or blank.
    """
    found = sources.find(target, "omniglot", "verification")
    trials = [trial for trial in found.trials if trial.set == OFFICIAL]
    if not trials:
        raise InputError(f"{target}: has no official runs; put all_runs.zip there")
    rows = {item.image: row for row, item in enumerate(found.items)}
    classes = {item.image: item.class_name for item in found.items}
    compared = {image for trial in trials for image in (trial.left, trial.right)}
    drawings = {item.image: _drawing(item) for item in found.items if item.image in compared}
    return answer_episodes(
        episode=np.array([trial.episode for trial in trials]),
        query=np.array([rows[trial.left] for trial in trials]),
        support=np.array([rows[trial.right] for trial in trials]),
        support_class=np.array([classes[trial.right] for trial in trials]),
        same=np.array([trial.same for trial in trials]),
        scores=-np.array(
            [modified_hausdorff(drawings[trial.left], drawings[trial.right]) for trial in trials]
        ),
    )


def _drawing(item: Item) -> Floats:
    try:
        return ink(np.asarray(Image.open(io.BytesIO(item.read())).convert("L")))
    except Exception as error:  # whatever Pillow and zipfile raise for damaged files
        raise InputError(f"{item.place}: is no readable drawing: {error}") from None


def main() -> None:
    """Print the share of wrong answers."""
    if len(sys.argv) != 2:
        raise InputError("usage: python -m benchmarks.hausdorff TARGET")
    picked = answers(Path(sys.argv[1]))
    wrong, asked = int((picked.labels != picked.predicted).sum()), len(picked.labels)
    print(f"{wrong / asked:.2%} error ({wrong} of {asked})")


if __name__ == "__main__":
    command(main)
