"""What one run's predictions on the test split are worth: four numbers, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEADLINE = ("test/accuracy", "test/macro_f1", "test/nll", "test/ece")
ECE_BINS = 15

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """One run's answers for N test images of C classes.

    ``labels`` and ``predicted`` (N,) hold class numbers below C; ``probabilities`` (N, C) rows
    that sum to one.
    """

    labels: Ints
    predicted: Ints
    probabilities: Floats


def accuracy(labels: Ints, predicted: Ints) -> float:
    """Share of images whose class is predicted. Both (N,), N ≥ 1."""
    return float(np.mean(labels == predicted))


def macro_f1(labels: Ints, predicted: Ints) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN). Both (N,), N ≥ 1.

    The classes are those that occur among labels or predictions, as in scikit-learn's
    ``f1_score(average="macro", zero_division=0)``; a class that is never hit counts 0.
    """
    size = int(max(labels.max(), predicted.max())) + 1
    hits = np.bincount(labels[labels == predicted], minlength=size)
    occurrences = np.bincount(labels, minlength=size) + np.bincount(predicted, minlength=size)
    present = occurrences > 0
    return float(np.mean(2 * hits[present] / occurrences[present]))


def nll(labels: Ints, probabilities: Floats) -> float:
    """Mean negative natural logarithm of the true class's probability, in nats.

    Probabilities are clipped to [eps, 1 - eps] with eps of float64, as scikit-learn's
    ``log_loss`` does, so that a single certain error costs 36 and not infinity. Rows are taken
    as they are, not renormalised. ``labels`` (N,), ``probabilities`` (N, C).
    """
    eps = np.finfo(np.float64).eps
    true_class = probabilities[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.clip(true_class, eps, 1 - eps))))


def expected_calibration_error(
    labels: Ints, predicted: Ints, probabilities: Floats, bins: int = ECE_BINS
) -> float:
    """Mean gap between confidence and accuracy, over bins of the top probability.

    sum_b |B_b| / N * |accuracy(B_b) - confidence(B_b)| over ``bins`` equal-width bins
    ((b-1)/bins, b/bins]: a top probability exactly on an edge is in the bin below it. Empty
    bins count nothing. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3.
    ``labels`` and ``predicted`` (N,), ``probabilities`` (N, C).
    """
    confidence = probabilities.max(axis=1)
    inner_edges = np.arange(1, bins) / bins
    bin_of = np.searchsorted(inner_edges, confidence, side="left")
    surplus = confidence - (labels == predicted)
    # |B| * |accuracy - confidence| is the absolute value of the bin's summed surplus
    return float(np.abs(np.bincount(bin_of, weights=surplus, minlength=bins)).sum() / len(labels))


def all_metrics(predictions: Predictions) -> dict[str, float]:
    """Every headline metric of a run, in the order of ``HEADLINE``."""
    labels, predicted = predictions.labels, predictions.predicted
    probabilities = predictions.probabilities
    values = (
        accuracy(labels, predicted),
        macro_f1(labels, predicted),
        nll(labels, probabilities),
        expected_calibration_error(labels, predicted, probabilities),
    )
    return dict(zip(HEADLINE, values, strict=True))
