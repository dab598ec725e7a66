"""Classify images with a trained run: ``python -m pipeline.predict METHOD IMAGE…``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from pipeline import check, recipes
from pipeline.data import images as pictures
from pipeline.data import splits
from pipeline.errors import InputError, command
from pipeline.models import architectures
from pipeline.params import Params
from pipeline.records import RunId, read_json, runs_of
from pipeline.training import runtime

TABLE = "prepared/images.csv"


def find_run(params: Params, method: str, shots: str | None, seed: int | None) -> RunId:
    """The trained run asked for; without shots the most images, without seed the first.

    Raises:
        InputError: the method is unknown or no such run is trained.
    """
    if method not in params.methods:
        raise InputError(
            f"params.yaml: methods: there is no '{method}'; there are {', '.join(params.methods)}"
        )
    found = [
        run
        for run in runs_of(params.compare)
        if run.method == method
        and (shots is None or str(run.shots) == shots)
        and (seed is None or run.seed == seed)
        and (run.folder / "model.safetensors").exists()
    ]
    if not found:
        raise InputError(
            f"runs/{method}: there is no such trained run; list it under compare and run dvc repro"
        )
    return max(found, key=lambda run: (run.shots == "all", str(run.shots).zfill(9), -run.seed))


@torch.no_grad()
def classify(params: Params, run: RunId, paths: list[Path]) -> list[tuple[Path, list[float]]]:
    """Class probabilities of image files, in the order of :func:`class_names`.

    Raises:
        InputError: a file is missing or no image.
    """
    device = runtime.start(params.runtime)
    record = read_json(run.folder / "record.json")
    asked, data = record["parameters"], params.data
    size, channels = asked["data"]["image_size"], asked["data"]["channels"]
    name = asked["model"]["architecture"]
    network = recipes.trained(record, run.folder / "model.safetensors").to(device)
    results = []
    for path in paths:
        try:
            pixels = pictures.decode(path.read_bytes(), size, data.resize, channels)
        except (OSError, InputError) as error:
            raise InputError(f"{path}: {error}") from None
        inputs = architectures.normalise(torch.from_numpy(np.array(pixels))[None].to(device), name)
        results.append((path, network(inputs).double().softmax(dim=1)[0].cpu().tolist()))
    return results


def class_names() -> list[str]:
    """Class names in the order of their labels."""
    if not Path(TABLE).exists():
        raise InputError(f"{TABLE}: is not there, and it names the classes; run dvc repro")
    images = splits.read_images(TABLE)
    return list(images.drop_duplicates("label").sort_values("label")["class"])


def main() -> None:
    """Print the class and its probability for each image."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.predict", description=__doc__)
    parser.add_argument("method", help="a method of params.yaml")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--shots", help="which of the method's runs: images a class, or all")
    parser.add_argument("--seed", type=int, help="which of the method's runs: the seed")
    given = parser.parse_args()
    params = check.load()
    run = find_run(params, given.method, given.shots, given.seed)
    names = class_names()
    for path, probabilities in classify(params, run, given.images):
        best = int(np.argmax(probabilities))
        print(f"{path}\t{names[best]}\t{probabilities[best]:.4f}")


if __name__ == "__main__":
    command(main)
