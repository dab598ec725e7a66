"""The class probabilities that a run of classification gives the test images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import recipes, workspace
from pipeline.data import splits
from pipeline.data.batches import load_images, read_list
from pipeline.data.sheet import Row, Tile, sheet
from pipeline.models import architectures
from pipeline.params import Params
from pipeline.records import RunId, read_json, write_atomically, write_table
from pipeline.training.phase import EVALUATION_BATCH

EXAMPLES = 8  # right and wrong


@torch.no_grad()
def write(
    params: Params, run: RunId, device: torch.device, test_list: Path, trials: Path
) -> tuple[int, float]:
    """Write the run's class probabilities of all test images."""
    record = read_json(run.folder / "record.json")
    rows, labels = read_list(test_list)
    images = splits.read_images("prepared/images.csv").set_index("row")
    names = images.drop_duplicates("label").sort_values("label")["class"]
    name = record["parameters"]["model"]["architecture"]
    network = recipes.trained(record, run.folder / "model.safetensors").to(device)
    loaded = load_images(workspace.IMAGES, rows, labels, device)
    started = time.perf_counter()
    probabilities = torch.cat(
        [
            network(architectures.normalise(pixels, name)).double().softmax(dim=1).cpu()
            for pixels in loaded.pixels.split(EVALUATION_BATCH)
        ]
    )
    seconds = time.perf_counter() - started
    predicted = probabilities.argmax(dim=1)
    header = ["image", "label", "predicted", *(f"p_{of}" for of in names)]
    table = zip(
        images["image"][rows], labels, predicted.tolist(), probabilities.tolist(), strict=True
    )
    write_table(run.predictions, ([image, of, said, *p] for image, of, said, p in table), header)
    shown = _examples(loaded.pixels.cpu().numpy(), labels, probabilities.numpy(), list(names))
    write_atomically(run.examples, sheet(list(shown), EXAMPLES))
    right = (predicted.numpy() == labels).mean()
    print(f"{run.name}: {len(rows)} test images, accuracy {right:.4f}")
    return len(rows), seconds


def _examples(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    names: list[str],
) -> Iterator[Row]:
    """The images of which the run is most sure, rightly and wrongly; of equals the first."""
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    for title, kind in (("Most sure and right", True), ("Most sure and wrong", False)):
        places = np.flatnonzero((predicted == labels) == kind)
        places = places[np.argsort(-sure[places], kind="stable")][:EXAMPLES]
        yield Row(
            title,
            [
                Tile(
                    (pixels[n],),
                    f"{names[predicted[n]]} {sure[n]:.3f}"
                    + ("" if kind else f"\nis {names[labels[n]]}"),
                )
                for n in places
            ],
        )
