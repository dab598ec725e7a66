"""What each test image adds to the metrics of a run of classification.

A metric that is a mean over images is taken apart as it is. Any other is taken apart by the
jackknife: an image adds what the metric loses without it (Tukey 1958, "Bias and confidence in
not-quite large samples", Annals of Mathematical Statistics 29, 614; Efron and Stein 1981, "The
jackknife estimate of variance", Annals of Statistics 9(3), 586-596). No image is deleted in fact:
all that counts is by which confusion, or from which bin, it is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.metrics import (
    BINARY,
    CLASS_RECALL,
    ECE_BINS,
    HEADLINE,
    MOST_CLASSES,
    Floats,
    Ints,
    Predictions,
    confidence_surplus,
    scores_of_counts,
    share,
    surprises,
)
from pipeline.evaluation.statistics.crossed import Contribution

FEWEST_UNITS = 2  # one alone says nothing of others
IMAGE = "image"


def contributions(
    predictions: Predictions, classes: Sequence[str], positive: str, beta: float
) -> dict[str, Contribution]:
    """What each test image adds to every metric of ``metrics.all_metrics``, by its name.

    The recall of a class is a mean over that class's images, and these are its units, with which
    its degrees of freedom go: pseudo-values over all images would give a class of three images
    those of thousands. All other metrics have all images as units. What has fewer than two units
    is left out.

    Arguments are those of ``metrics.all_metrics``.
    """
    labels, predicted = predictions.labels, predictions.predicted
    if len(labels) < FEWEST_UNITS:
        return {}
    right = (labels == predicted).astype(np.float64)
    values = (
        right,
        pseudo_values(*_macro_f1(labels, predicted)),
        surprises(labels, predictions.probabilities),
        pseudo_values(*_calibration_error(predictions)),
    )
    found = dict(zip(HEADLINE, values, strict=True))
    if len(classes) == 2:
        found |= _binary(labels, predicted, classes.index(positive), beta)
    if len(classes) <= MOST_CLASSES:
        found |= {f"{CLASS_RECALL}{name}": right[labels == of] for of, name in enumerate(classes)}
    return {name: Contribution(of, IMAGE) for name, of in found.items() if len(of) >= FEWEST_UNITS}


def pseudo_values(whole: float, without: Floats) -> Floats:
    """The jackknife's pseudo-values of U units, (U,), shifted so that their mean is ``whole``.

    U ``whole`` - (U - 1) ``without``, whose mean is less biased than the metric itself: what is
    reported is the metric, so the correction of the bias is left out.

    Args:
        whole: the metric of all units.
        without: the metric without each unit, (U,).
    """
    return whole + (len(without) - 1) * (without.mean() - without)


def _macro_f1(labels: Ints, predicted: Ints) -> tuple[float, Floats]:
    """Macro-F1 of all N images, and without each (N,)."""
    size = int(max(labels.max(), predicted.max())) + 1
    hits = np.bincount(labels[labels == predicted], minlength=size)
    occurrences = np.bincount(labels, minlength=size) + np.bincount(predicted, minlength=size)
    each, present = _f1(hits, occurrences), occurrences > 0
    # all images of one confusion are alike
    confusions, confusion_of = np.unique(labels * size + predicted, return_inverse=True)
    true, said = np.divmod(confusions, size)
    hit = true == said
    left_true, left_said = occurrences[true] - 1 - hit, occurrences[said] - 1
    change = _f1(hits[true] - hit, left_true) - each[true]
    change += np.where(hit, 0, _f1(hits[said], left_said) - each[said])
    gone = (left_true == 0) + (~hit & (left_said == 0)).astype(np.int64)
    without = (each.sum() + change) / (present.sum() - gone)
    return float(np.mean(each[present])), without[confusion_of]


def _f1(hits: Ints, occurrences: Ints) -> Floats:
    return share((2 * hits).astype(np.float64), occurrences.astype(np.float64))


def _calibration_error(predictions: Predictions) -> tuple[float, Floats]:
    """The expected calibration error of all N images, and without each (N,)."""
    bin_of, surplus = confidence_surplus(
        predictions.labels, predictions.predicted, predictions.probabilities
    )
    sums = np.bincount(bin_of, weights=surplus, minlength=ECE_BINS)
    total, images = np.abs(sums).sum(), len(surplus)
    own = sums[bin_of]
    without = (total - np.abs(own) + np.abs(own - surplus)) / (images - 1)
    return float(total / images), without


def _binary(labels: Ints, predicted: Ints, positive: int, beta: float) -> dict[str, Floats]:
    said, true = predicted == positive, labels == positive
    each = np.array([said & true, said, true], np.float64)
    counts = each.sum(axis=1, keepdims=True)
    whole = scores_of_counts(counts, beta)[:, 0].tolist()
    without = scores_of_counts(counts - each, beta)
    precision, _, f_beta = map(pseudo_values, whole, without)
    return dict(zip(BINARY, (precision, said[true].astype(np.float64), f_beta), strict=True))
