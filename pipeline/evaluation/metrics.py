"""What one run's predictions on the test split are worth, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEADLINE = ("test/accuracy", "test/macro_f1", "test/nll", "test/ece")
BINARY = ("test/precision", "test/recall", "test/f_beta")  # of sets of two classes
CLASS_RECALL = "test/recall/"  # and the class
MOST_CLASSES = 20  # with a recall of their own; more would swamp the tables
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
    """Mean of `surprises`: the negative log-likelihood of the true classes, in nats."""
    return float(np.mean(surprises(labels, probabilities)))


def surprises(labels: Ints, probabilities: Floats) -> Floats:
    """Negative natural logarithm of each image's true class's probability, (N,), in nats.

    Probabilities are clipped to [eps, 1 - eps] with eps of float64, as scikit-learn's
    ``log_loss`` does, so that a single certain error costs 36 and not infinity. Rows are taken
    as they are, not renormalised. ``labels`` (N,), ``probabilities`` (N, C).
    """
    eps = np.finfo(np.float64).eps
    true_class = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.clip(true_class, eps, 1 - eps))


def expected_calibration_error(
    labels: Ints, predicted: Ints, probabilities: Floats, bins: int = ECE_BINS
) -> float:
    """Mean gap between confidence and accuracy, over bins of the top probability.

    sum_b |B_b| / N * |accuracy(B_b) - confidence(B_b)| over ``bins`` equal-width bins
    ((b-1)/bins, b/bins]: a top probability exactly on an edge is in the bin below it. Empty
    bins count nothing. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3.
    ``labels`` and ``predicted`` (N,), ``probabilities`` (N, C).
    """
    bin_of, surplus = confidence_surplus(labels, predicted, probabilities, bins)
    # |B| * |accuracy - confidence| is the absolute value of the bin's summed surplus
    return float(np.abs(np.bincount(bin_of, weights=surplus, minlength=bins)).sum() / len(labels))


def confidence_surplus(
    labels: Ints, predicted: Ints, probabilities: Floats, bins: int = ECE_BINS
) -> tuple[Ints, Floats]:
    """Each image's bin, as in `expected_calibration_error`, and confidence minus right; (N,)."""
    confidence = probabilities.max(axis=1)
    inner_edges = np.arange(1, bins) / bins
    bin_of = np.searchsorted(inner_edges, confidence, side="left")
    return bin_of.astype(np.int64), confidence - (labels == predicted)


def precision_recall_f_beta(
    labels: Ints, predicted: Ints, positive: int, beta: float
) -> tuple[float, float, float]:
    """Precision TP / (TP + FP), recall TP / (TP + FN) and F-beta of one class. Both (N,).

    F-beta = (1 + beta²) TP / ((1 + beta²) TP + beta² FN + FP) weighs recall beta times as much
    as precision (van Rijsbergen 1979, "Information Retrieval", chapter 7). What has nothing to be
    divided by is 0, as in scikit-learn with ``zero_division=0``.
    """
    said, true = predicted == positive, labels == positive
    counts = np.array([said & true, said, true]).sum(axis=1, dtype=np.float64)
    precision, recall, f_beta = scores_of_counts(counts, beta).tolist()
    return precision, recall, f_beta


def scores_of_counts(counts: Floats, beta: float) -> Floats:
    """Precision, recall and F-beta, (3, ...), of TP, TP + FP and TP + FN, (3, ...)."""
    hits, answers, occurrences = counts
    # all divided by 1 + beta², so that a huge beta makes no inf / inf
    weight = 1 / (1 + beta * beta)
    return share(
        hits, np.array([answers, occurrences, weight * answers + (1 - weight) * occurrences])
    )


def share(part: Floats, whole: Floats) -> Floats:
    """Part of the whole, element by element; 0 of nothing. ``part`` may be broadcast."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


def class_recalls(labels: Ints, predicted: Ints, classes: int) -> Floats:
    """Share of each class's images that are recognised, (C,); NaN for a class without images."""
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    occurrences = np.bincount(labels, minlength=classes)
    return np.divide(hits, occurrences, out=np.full(classes, np.nan), where=occurrences > 0)


def headline_metrics(predictions: Predictions) -> dict[str, float]:
    """The metrics that every set has, in the order of ``HEADLINE``."""
    labels, predicted = predictions.labels, predictions.predicted
    probabilities = predictions.probabilities
    values = (
        accuracy(labels, predicted),
        macro_f1(labels, predicted),
        nll(labels, probabilities),
        expected_calibration_error(labels, predicted, probabilities),
    )
    return dict(zip(HEADLINE, values, strict=True))


def all_metrics(
    predictions: Predictions, classes: Sequence[str], positive: str, beta: float
) -> dict[str, float]:
    """Every test metric of a run, by name.

    The headline metrics; for sets of two classes those of ``BINARY``, of the class ``positive``;
    and for sets of up to ``MOST_CLASSES`` the recall of each class that has test images.
    """
    labels, predicted = predictions.labels, predictions.predicted
    found = headline_metrics(predictions)
    if len(classes) == 2:
        values = precision_recall_f_beta(labels, predicted, classes.index(positive), beta)
        found |= zip(BINARY, values, strict=True)
    if len(classes) <= MOST_CLASSES:
        recalls = class_recalls(labels, predicted, len(classes)).tolist()
        named = zip(classes, recalls, strict=True)
        found |= {f"{CLASS_RECALL}{name}": value for name, value in named if not np.isnan(value)}
    return found
