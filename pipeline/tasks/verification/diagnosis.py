"""What is found in a network that verifies: its encodings, and how it judges pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline import workspace
from pipeline.data.batches import load_images, read_list, read_pairs
from pipeline.evaluation.latents import Labelled, evenly
from pipeline.models.pairs import Verifier
from pipeline.records import VAL_TRIALS, RunId
from pipeline.tasks import anatomy
from pipeline.tasks.diagnosis import IMAGES, TEST_IMAGES, Fit, Look, as_array, cut_of
from pipeline.tasks.verification.scoring import Scorer

PAIRS = IMAGES // 2  # two images each


@torch.no_grad()
def look(
    run: RunId,
    record: dict[str, Any],
    scorer: Scorer,
    threshold: float,
    test: Labelled,
    names: Sequence[str],
    answer: Callable[[], object],
) -> Look:
    """Look into a trained network at its encodings; validation classes are none of training's.

    Args:
        run: which one.
        record: its ``record.json``.
        scorer: its network, on its device.
        threshold: from which probability on it takes a pair for one class.
        test: encodings of the test images.
        names: theirs (N,).
        answer: answers for one image.
    """
    _, train_fit = _split(scorer, threshold, run.train_list, run.trial_list, images=0)
    val, val_fit = _split(scorer, threshold, workspace.VAL_LIST, VAL_TRIALS, images=IMAGES)
    chosen = evenly(test.labels, TEST_IMAGES)
    return Look(
        latent=cut_of(record),
        train=None,
        val=val,
        test=Labelled(test.latents[chosen], test.labels[chosen]),
        images=[names[place] for place in chosen],
        train_fit=train_fit,
        val_fit=val_fit,
        multiply_adds=anatomy.multiply_adds(answer),
    )


def _split(
    scorer: Scorer, threshold: float, listed: Path, trials: Path, images: int
) -> tuple[Labelled, Fit]:
    """Encodings of so many images of a split, and how its listed pairs are judged."""
    rows, labels = read_list(listed)
    pairs = read_pairs(trials, rows)
    chosen, judged = evenly(labels, images), evenly(pairs.same, PAIRS)
    places = chosen, pairs.left[judged], pairs.right[judged]
    wanted = np.unique(np.concatenate(places))  # each is encoded once
    device = next(scorer.network.parameters()).device
    pixels = load_images(workspace.IMAGES, rows[wanted], labels[wanted], device).pixels
    encodings = scorer.encode(pixels)
    at, left, right = (torch.from_numpy(np.searchsorted(wanted, of)).to(device) for of in places)
    fit = _fit(scorer.network, encodings, left, right, pairs.same[judged], threshold)
    return Labelled(as_array(encodings[at]), labels[chosen]), fit


def _fit(
    network: Verifier,
    encodings: Tensor,
    left: Tensor,
    right: Tensor,
    same: NDArray[np.int64],
    threshold: float,
) -> Fit:
    """Accuracy at the run's threshold, and binary cross-entropy."""
    logits = network.head.score(encodings, left, right).double().cpu()
    loss = binary_cross_entropy_with_logits(logits, torch.from_numpy(same).double())
    accepted = logits.sigmoid().numpy() >= threshold
    return Fit(float(np.mean(accepted == (same == 1))), float(loss))
