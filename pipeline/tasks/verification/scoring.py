"""How a trained network of verification scores pairs, and what validation chooses for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import workspace
from pipeline.data.batches import load_images, read_list, read_pairs, read_trials
from pipeline.data.rows import Rows
from pipeline.errors import InputError
from pipeline.evaluation.decisions import (
    accuracy_at,
    answer_episodes,
    best_threshold,
    episode_accuracy,
)
from pipeline.evaluation.diagnosis import THRESHOLD
from pipeline.models import architectures
from pipeline.models.pairs import Verifier
from pipeline.params import Placement
from pipeline.records import VAL_TRIALS, RunId, read_json
from pipeline.tasks.trials import VAL_EPISODES
from pipeline.tasks.verification.views import mean_encoding
from pipeline.training.phase import image_batches


@dataclass(frozen=True)
class Scorer:
    """A network in evaluation mode, on its device, and of how many views encodings are the mean."""

    network: Verifier
    architecture: str
    views: int

    @torch.no_grad()
    def encode(self, pixels: Rows) -> torch.Tensor:
        """Encodings (N, D) of images (N, C, H, W), each the mean over its views."""

        def encoding(view: torch.Tensor) -> torch.Tensor:
            return self.network.encode(architectures.normalise(view, self.architecture))

        batches = image_batches(pixels)
        return torch.cat([mean_encoding(encoding, part, self.views) for part in batches])

    def probabilities(
        self, encodings: torch.Tensor, left: NDArray[np.int64], right: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Probability (P,) that each pair of rows of ``encodings`` shows one class."""
        ends = (torch.from_numpy(of).to(encodings.device) for of in (left, right))
        logits = self.network.head.score(encodings, *ends)
        return logits.double().sigmoid().cpu().numpy()


def tested(run: RunId) -> tuple[int, float]:
    """By how many views of an image a run was tested, and the threshold it has since.

    Raises:
        InputError: it was not tested.
    """
    try:
        found = read_json(run.diagnosis)
        views = found["asked"]["parameters"]["model"]["views"]
        return int(views), float(found["values"][THRESHOLD])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{run.diagnosis}: does not say which threshold validation chose for the run; make it "
            "with dvc repro"
        ) from None


def validate(scorer: Scorer, device: torch.device, placement: Placement) -> dict[str, float]:
    """The threshold of the highest accuracy on the validation pairs, and what is reached there.

    Episodes of validation classes are answered too. Nothing of the test split is read.

    Returns:
        ``best/threshold``, ``best/val_accuracy`` and the accuracy on each set of episodes.
    """
    rows, labels = read_list(workspace.VAL_LIST)
    encodings = scorer.encode(load_images(workspace.IMAGES, rows, labels, device, placement).pixels)
    pairs = read_pairs(VAL_TRIALS, rows)
    scores = scorer.probabilities(encodings, pairs.left, pairs.right)
    threshold = best_threshold(scores, pairs.same)
    found = {
        THRESHOLD: threshold,
        "best/val_accuracy": accuracy_at(scores, pairs.same, threshold),
    }
    for name, trials in read_trials(VAL_EPISODES, rows).items():
        answers = answer_episodes(
            trials.episode, trials.left, trials.right, labels[trials.right], trials.same,
            scorer.probabilities(encodings, trials.left, trials.right),
        )  # fmt: skip
        found[f"best/val_{name}_accuracy"] = episode_accuracy(answers)
    return found
