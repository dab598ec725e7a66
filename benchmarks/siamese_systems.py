"""The Siamese systems on faces and characters at full size: figures for a GPU.

    python -m benchmarks.siamese_systems DATA FOLDER [KEY=VALUE ...]

DATA holds ``omniglot/`` and ``lfw/`` as ``configs/omniglot_minimal.yaml`` and
``configs/lfw_koch.yaml`` ask for them. Needs neither DVC nor MLflow. On Omniglot: the config as it
is, the same at twice the resolution, and with the network of Koch et al. at its 105 pixels. On
faces: Koch's network at 105 pixels, whose published test accuracy is 73.2 %. Changes such as
``compare.seeds=[0]`` are for all four.
"""

from __future__ import annotations

import sys

from benchmarks.compare import run_all
from pipeline.errors import command

OMNIGLOT, FACES = "configs/omniglot_minimal.yaml", "configs/lfw_koch.yaml"
COMPARISONS = {
    "omniglot": (OMNIGLOT, []),
    "omniglot_56px": (OMNIGLOT, ["data.image_size=56"]),
    "omniglot_koch": (
        OMNIGLOT,
        [
            "model.architecture=koch",
            "data.image_size=105",
            "methods.breakdown.encoder.latent=embedding",
            "methods.siamese.latent=embedding",
            "methods.untrained.latent=embedding",
            "runtime.precision=fp32",  # two encodings differ by less than bf16 resolves
        ],
    ),
    "lfw_koch": (FACES, []),
}


def main() -> None:
    """Run all, one after the other, each in a folder of its own in ``FOLDER``."""
    run_all("siamese_systems", COMPARISONS, sys.argv[1:])


if __name__ == "__main__":
    command(main)
