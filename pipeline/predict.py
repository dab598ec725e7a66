"""Ask a trained run about images: ``python -m pipeline.predict METHOD IMAGE…``."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import check
from pipeline.errors import InputError, command
from pipeline.params import Params
from pipeline.records import RunId, read_record, runs_of
from pipeline.tasks import answers
from pipeline.training.runtime import in_one_line


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


def main() -> None:
    """Print what the run says of the images, a line each or a line for each two."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.predict",
        description="Ask a trained run about images: the class of each or, of a run of task: "
        "verification, whether the first and the second show one class, the third and the fourth, "
        "and so on; or, with a gallery, the class in it that each shows.",
    )
    parser.add_argument("method", help="a method of params.yaml")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--shots", help="which of the method's runs: images a class, or all")
    parser.add_argument("--seed", type=int, help="which of the method's runs: the seed")
    parser.add_argument(
        "--gallery",
        type=Path,
        metavar="FOLDER",
        help="known images to compare each image with, a folder of them for each class or images "
        "named for their classes",
    )
    given = parser.parse_args()
    params = check.load()
    run = find_run(params, given.method, given.shots, given.seed)
    task = read_record(run.folder)["parameters"]["task"]
    with in_one_line(run.name):
        for cells in answers.BY_TASK[task].say(params, run, given.images, given.gallery):
            print("\t".join(cells))


if __name__ == "__main__":
    command(main)
