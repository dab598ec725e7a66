"""The class that a trained run gives image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pipeline.data import splits
from pipeline.errors import InputError
from pipeline.models import architectures
from pipeline.params import Params
from pipeline.records import RunId
from pipeline.tasks import trained

TABLE = "prepared/images.csv"


def say(
    params: Params, run: RunId, images: Sequence[Path], gallery: Path | None
) -> Iterator[tuple[str, ...]]:
    """Image, class and its probability; see ``pipeline.tasks.answers.Answers``."""
    if gallery is not None:
        raise InputError(
            f"command line: --gallery: runs/{run.method} tells the classes it was trained on; a "
            "gallery is for task: verification"
        )
    names = class_names()
    for path, probabilities in classify(params, run, images):
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        yield str(path), names[best], f"{probabilities[best]:.4f}"


@torch.no_grad()
def classify(params: Params, run: RunId, paths: Sequence[Path]) -> list[tuple[Path, list[float]]]:
    """Class probabilities of image files, in the order of :func:`class_names`.

    Raises:
        InputError: a file is missing or no image.
    """
    asked = trained.load(params, run)
    results = []
    for path in paths:
        pixels = asked.read(path)[None].to(asked.device)
        logits = asked.network(architectures.normalise(pixels, asked.architecture))
        results.append((path, logits.double().softmax(dim=1)[0].cpu().tolist()))
    return results


def class_names() -> list[str]:
    """Class names in the order of their labels."""
    if not Path(TABLE).exists():
        raise InputError(f"{TABLE}: is not there, and it names the classes; run dvc repro")
    images = splits.read_images(TABLE)
    return list(images.drop_duplicates("label").sort_values("label")["class"])
