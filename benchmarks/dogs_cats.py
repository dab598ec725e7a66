"""AlexNet from scratch beside a pretrained SqueezeNet on dogs and cats: a figure for a GPU.

    python -m benchmarks.dogs_cats DATA FOLDER [KEY=VALUE ...]

DATA is the ``data/`` that ``configs/alexnet_dogs_cats.yaml`` asks for; torchvision's weights of
SqueezeNet lie at ``pretrained/squeezenet1_1_imagenet.safetensors``. Both comparisons read that
config, neither needs DVC or MLflow. Published, for AlexNet from scratch: about 84.5 %. Changes such
as ``compare.shots=[10]`` are for both.
"""

from __future__ import annotations

import sys

from benchmarks.compare import run_all
from pipeline.errors import command

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
        "diagnostics.latent=features.12",
    ],
}


def main() -> None:
    """AlexNet from scratch, then the pretrained network by every method."""
    run_all("dogs_cats", {name: (CONFIG, own) for name, own in COMPARISONS.items()}, sys.argv[1:])


if __name__ == "__main__":
    command(main)
