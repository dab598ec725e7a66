"""AlexNet from scratch beside a pretrained SqueezeNet on dogs and cats: a figure for a GPU.

    python -m benchmarks.dogs_cats DATA FOLDER [KEY=VALUE ...]

DATA is the ``data/`` that ``configs/alexnet_dogs_cats.yaml`` asks for; torchvision's weights of
SqueezeNet lie at ``pretrained/squeezenet1_1_imagenet.safetensors``. Both comparisons read that
config, neither needs DVC or MLflow. Published, for AlexNet from scratch: about 84.5 %. Changes such
as ``compare.shots=[10]`` are for both.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import InputError, command

CONFIG = "configs/alexnet_dogs_cats.yaml"
WEIGHTS = "pretrained/squeezenet1_1_imagenet.safetensors"
COMPARISONS = {
    "alexnet": [
        "compare.breakdowns=[]",
        "compare.baselines=[scratch]",
        "compare.reference=scratch",
        "weights.from=none",
    ],
    "squeezenet1_1": [
        "model.architecture=squeezenet1_1",
        "weights.from=file",
        f"weights.file={WEIGHTS}",
        "methods.breakdown.encoder.latent=features.12",
    ],
}


def run_all(
    program: str, comparisons: Mapping[str, tuple[str, list[str]]], given: list[str]
) -> None:
    """Run comparisons one after the other, each in ``FOLDER/<name>``.

    Args:
        program: its name among the benchmarks.
        comparisons: by name, the config and its changes.
        given: DATA, FOLDER and changes for all.

    Raises:
        InputError: arguments are missing, or a comparison failed.
    """
    if len(given) < 2:
        raise InputError(f"usage: python -m benchmarks.{program} DATA FOLDER [KEY=VALUE ...]")
    data, folder, *changes = given
    for name, (config, own) in comparisons.items():
        print(f"== {name}", flush=True)
        words = [config, data, str(Path(folder, name)), *own, *changes]
        done = subprocess.run([sys.executable, "-m", "benchmarks.compare", *words])
        if done.returncode:
            raise InputError(f"{name}: ended with status {done.returncode}; see above")


def main() -> None:
    """AlexNet from scratch, then the pretrained network by every method."""
    run_all("dogs_cats", {name: (CONFIG, own) for name, own in COMPARISONS.items()}, sys.argv[1:])


if __name__ == "__main__":
    command(main)
