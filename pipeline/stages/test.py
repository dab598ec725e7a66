"""Stages ``test_breakdown`` and ``test_baseline``: the only readers of the test split."""

from __future__ import annotations

import torch

from pipeline import recipes, workspace
from pipeline.data import splits
from pipeline.data.batches import load_images, read_list
from pipeline.models import architectures
from pipeline.params import Params
from pipeline.records import RunId, read_json, write_table
from pipeline.stages import common
from pipeline.training import runtime
from pipeline.training.phase import EVALUATION_BATCH

TEST_LIST = "prepared/splits/test.csv"


@torch.no_grad()
def test(params: Params, run: RunId) -> None:
    """Write the run's class probabilities of all test images."""
    device = runtime.start(params.runtime)
    record = read_json(run.folder / "record.json")
    rows, labels = read_list(TEST_LIST)
    images = splits.read_images("prepared/images.csv").set_index("row")
    names = images.drop_duplicates("label").sort_values("label")["class"]
    name = record["parameters"]["model"]["architecture"]
    network = recipes.trained(record, run.folder / "model.safetensors").to(device)
    loaded = load_images(workspace.IMAGES, rows, labels, device)
    probabilities = torch.cat(
        [
            network(architectures.normalise(pixels, name)).double().softmax(dim=1).cpu()
            for pixels in loaded.pixels.split(EVALUATION_BATCH)
        ]
    )
    predicted = probabilities.argmax(dim=1)
    header = ["image", "label", "predicted", *(f"p_{of}" for of in names)]
    table = zip(
        images["image"][rows], labels, predicted.tolist(), probabilities.tolist(), strict=True
    )
    write_table(run.predictions, ([image, of, said, *p] for image, of, said, p in table), header)
    right = (predicted.numpy() == labels).mean()
    print(f"{run.name}: {len(rows)} test images, accuracy {right:.4f}")


if __name__ == "__main__":
    common.main_run(test)
