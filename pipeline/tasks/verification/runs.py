"""A run of verification: its classes, turned or not, and the threshold that it decides by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import workspace
from pipeline.data.batches import ImageSet, Trials, read_list, read_trials
from pipeline.data.pairs import PairList
from pipeline.data.rows import Rows
from pipeline.data.turns import with_turns
from pipeline.evaluation.decisions import (
    accuracy_at,
    answer_episodes,
    best_threshold,
    episode_accuracy,
)
from pipeline.models import architectures
from pipeline.models.pairs import Verifier
from pipeline.models.views import mean_encoding
from pipeline.params import Params
from pipeline.records import PAIRS, VAL_TRIALS, RunId, file_digest
from pipeline.training.phase import image_batches
from pipeline.training.run import Run

if TYPE_CHECKING:
    from pipeline.recipes import Recipe


def load(params: Params, run: RunId, recipe: Recipe, pairs: bool) -> tuple[Run, dict[str, str]]:
    """See ``pipeline.tasks.runs.Runs``; every recipe gets pairs."""
    made, inputs = workspace.load_run(params, run, recipe, pairs=False, classes=2)
    rows, _ = read_list(run.train_list)
    val_rows, _ = read_list(workspace.VAL_LIST)
    listed = pair_list(read_trials(run.trial_list, rows))
    made.val_pairs = pair_list(read_trials(VAL_TRIALS, val_rows))
    turns = params.training.augmentation.turns_as_classes
    made.train, made.pairs = with_turns(_numbered(made.train), listed, turns)
    made.val = _numbered(made.val)
    made.classes = 1 + int(torch.cat([made.train.labels, made.val.labels]).max())
    trials = {"trials": file_digest(run.trial_list), "val_trials": file_digest(VAL_TRIALS)}
    return made, inputs | trials


def _numbered(images: ImageSet) -> ImageSet:
    """The same images with their own classes numbered from 0, whatever other splits have."""
    return ImageSet(images.pixels, images.labels.unique(return_inverse=True)[1])


def pair_list(trials: dict[str, Trials]) -> PairList:
    """The pairs among trials, without the episodes."""
    found = trials[PAIRS]
    return PairList(found.left, found.right, found.same)


def outcome(params: Params, made: Run, chosen: dict[str, Any]) -> dict[str, Any]:
    """The threshold of the highest accuracy on the validation pairs, and what is reached there.

    Episodes of validation classes are answered too. All goes by the mean over ``model.views``.
    """
    network, pairs = made.network.eval(), made.val_pairs
    assert isinstance(network, Verifier) and pairs is not None
    encodings = encode(network, made.architecture, made.val.pixels, params.model.views)
    scores = probabilities(network, encodings, pairs.left, pairs.right)
    threshold = best_threshold(scores, pairs.same)
    metrics = {"best/val_accuracy": accuracy_at(scores, pairs.same, threshold)}
    rows, labels = read_list(workspace.VAL_LIST)
    for name, trials in read_trials(VAL_TRIALS, rows).items():
        if name == PAIRS:
            continue
        answers = answer_episodes(
            trials.episode, trials.left, trials.right, labels[trials.right], trials.same,
            probabilities(network, encodings, trials.left, trials.right),
        )  # fmt: skip
        metrics[f"best/val_{name}_accuracy"] = episode_accuracy(answers)
    return {"threshold": threshold, "metrics": metrics}


@torch.no_grad()
def encode(network: Verifier, architecture: str, pixels: Rows, views: int) -> torch.Tensor:
    """Encodings (N, D) of images (N, C, H, W), each the mean over its views."""

    def encoding(view: torch.Tensor) -> torch.Tensor:
        return network.encode(architectures.normalise(view, architecture))

    return torch.cat([mean_encoding(encoding, part, views) for part in image_batches(pixels)])


def probabilities(
    network: Verifier,
    encodings: torch.Tensor,
    left: NDArray[np.int64],
    right: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Probability (P,) that each pair of rows of ``encodings`` shows one class."""
    ends = (torch.from_numpy(of).to(encodings.device) for of in (left, right))
    logits = network.head.score(encodings, *ends)
    return logits.double().sigmoid().cpu().numpy()
