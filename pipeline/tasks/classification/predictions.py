"""The class probabilities that a run of classification gives the test images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import recipes, workspace
from pipeline.data import splits
from pipeline.data.batches import load_images, read_list
from pipeline.data.rows import Rows, take
from pipeline.data.sheet import Row, Tile, sheet
from pipeline.models import architectures
from pipeline.params import Params
from pipeline.records import RunId, read_record, write_atomically, write_table
from pipeline.tasks import diagnosis
from pipeline.tasks.classification.diagnosis import look, place_in
from pipeline.tasks.diagnosis import Tested
from pipeline.training.phase import image_batches

EXAMPLES = 8  # right and wrong


@torch.no_grad()
def write(
    params: Params, run: RunId, device: torch.device, test_list: Path, trials: Path
) -> Tested:
    """Write the run's class probabilities of all test images, and its diagnosis."""
    record = read_record(run.folder)
    rows, labels = read_list(test_list)
    images = splits.read_images("prepared/images.csv").set_index("row")
    names = images.drop_duplicates("label").sort_values("label")["class"]
    name = record["parameters"]["model"]["architecture"]
    network = recipes.trained(record, run.folder / "model.safetensors").to(device)
    loaded = load_images(workspace.IMAGES, rows, labels, device, params.data.placement)
    place = place_in(network, record, params.diagnostics.latent)

    def classify(pixels: Rows) -> torch.Tensor:
        parts = (architectures.normalise(part, name) for part in image_batches(pixels))
        logits = torch.cat([network(part) for part in parts])
        return logits.double().softmax(dim=1).cpu()

    classify(next(image_batches(loaded.pixels)))  # the first use of a device takes longer
    probabilities, seconds = diagnosis.timed(lambda: classify(loaded.pixels), device)
    predicted = probabilities.argmax(dim=1)
    header = ["image", "label", "predicted", *(f"p_{of}" for of in names)]
    table = zip(
        images["image"][rows], labels, predicted.tolist(), probabilities.tolist(), strict=True
    )
    write_table(run.predictions, ([image, of, said, *p] for image, of, said, p in table), header)
    pixels = np.load(workspace.IMAGES, mmap_mode="r")
    shown = _examples(pixels, rows, labels, probabilities.numpy(), list(names))
    write_atomically(run.examples, sheet(list(shown), EXAMPLES))
    right = (predicted.numpy() == labels).mean()
    print(f"{run.name}: {len(rows)} test images, accuracy {right:.4f}")
    names_of_images = images["image"][rows].tolist()
    found = look(run, record, network, place, loaded, names_of_images)
    diagnosis.write(run, record, network, found)
    one = take(loaded.pixels, torch.zeros(1, dtype=torch.int64))
    return Tested(len(rows), seconds, diagnosis.one_image_seconds(lambda: classify(one), device))


def _examples(
    pixels: NDArray[np.uint8],
    rows: NDArray[np.int64],
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
                    (pixels[rows[n]],),
                    f"{names[predicted[n]]} {sure[n]:.3f}"
                    + ("" if kind else f"\nis {names[labels[n]]}"),
                )
                for n in places
            ],
        )
