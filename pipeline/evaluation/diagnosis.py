"""What a trained network is like inside, as the test stages leave it and the report reads it.

``predictions/<run>.diagnosis.json`` holds the fields of ``Diagnosis``; the arrays of
``predictions/<run>.latents.npz`` are those of ``Arrays``. Neither has times in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# metrics of a diagnosis, by their names in MLflow and in results.csv
PROBE_TRAIN = "latent/probe_train_accuracy"  # of a linear probe on the training images' latents
PROBE_VAL = "latent/probe_val_accuracy"
SEPARABLE = "latent/separable_pairs"  # share of class pairs that a hyperplane parts, test images
FISHER = "latent/fisher_ratio"  # scatter between classes over scatter within, val images
DISTANCE_AUC = "latent/distance_auc"  # a pair of two classes lies farther apart than one of one
DISTANCE_OVERLAP = "latent/distance_overlap"  # of the two histograms, 0 apart to 1 the same
EFFECTIVE_RANK = "latent/effective_rank"
SPREAD = "latent/spread"  # mean distance of two latents over their mean length
TRAIN_ACCURACY, VAL_ACCURACY = "fit/train_accuracy", "fit/val_accuracy"  # in evaluation mode
TRAIN_LOSS, VAL_LOSS = "fit/train_loss", "fit/val_loss"
THRESHOLD = "best/threshold"  # of a probability; verification, chosen by the validation pairs
ACCURACY_GAP, LOSS_GAP = "fit/accuracy_gap", "fit/loss_gap"  # train - val, val - train


@dataclass(frozen=True)
class Histogram:
    """Counts (K,) between ``edges`` (K + 1,)."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Layer:
    """The weights of one layer in its histogram, before and after training, on shared edges.

    ``before`` is None where the layer is not in the start weights (it began at random).
    """

    name: str
    edges: list[float]
    before: list[int] | None
    after: list[int]


@dataclass(frozen=True)
class Diagnosis:
    """One run's network, and, in verification, what its validation chose.

    Attributes:
        latent: the module whose output was looked at, and the numbers it gives an image.
        dimension: how many.
        values: metrics by name; None where one has no meaning, as a probe on unseen classes.
        collapsed: whether the latent tells images no longer apart.
        cause: what likely made it collapse, in words; empty unless it did.
        same, different: distances of pairs of validation images, over their root mean square.
        layers: of the layers with weights, in the network's order, at most 24.
        parameters, multiply_adds: of the whole network, the latter for one image.
        model_bytes: of ``model.safetensors``.
        asked: what answers go by beside what the run's record says: ``parameters``, and
            ``inputs`` with the MD5 of each; of verification alone.
    """

    latent: str
    dimension: int
    values: dict[str, float | None]
    collapsed: bool
    cause: str
    same: Histogram
    different: Histogram
    layers: list[Layer]
    parameters: int
    multiply_adds: int
    model_bytes: int
    asked: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrays:
    """The arrays of a diagnosis.

    Attributes:
        latents: of at most 500 test images, (N, D), with D at most 50 by principal components.
        labels: their class numbers (N,).
        images: their names (N,).
        filters_before: of the first layer at the start, (K, C, h, w), at most 32 of them; of
            size 0 where the network began at random.
        filters_after: the same, trained; of size 0 where the first layer is no convolution.
    """

    latents: Floats
    labels: NDArray[np.int64]
    images: NDArray[np.str_]
    filters_before: Floats
    filters_after: Floats


def parse(content: dict[str, Any]) -> Diagnosis:
    """A diagnosis from its JSON.

    Raises:
        KeyError, TypeError: it is another form.
    """
    return Diagnosis(
        **content
        | {
            "same": Histogram(**content["same"]),
            "different": Histogram(**content["different"]),
            "layers": [Layer(**layer) for layer in content["layers"]],
        }
    )


def read_arrays(path: Path) -> Arrays:
    """The arrays of a diagnosis.

    Raises:
        OSError, ValueError, KeyError: the file is missing or of another form.
    """
    with np.load(path) as stored:
        return Arrays(**{name: stored[name] for name in Arrays.__dataclass_fields__})
