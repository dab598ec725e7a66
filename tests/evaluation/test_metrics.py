import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from pipeline.evaluation.metrics import (
    HEADLINE,
    Predictions,
    accuracy,
    all_metrics,
    expected_calibration_error,
    macro_f1,
    nll,
)


def random_predictions(seed: int, images: int = 80, classes: int = 6) -> Predictions:
    """Some classes may be missing among the labels, some among the predictions."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, draw.integers(1, classes + 1), images)
    probabilities = draw.dirichlet(np.full(classes, 0.4), images)
    return Predictions(labels, probabilities.argmax(axis=1), probabilities)


def naive_macro_f1(labels, predicted) -> float:
    scores = []
    for of in set(labels) | set(predicted):
        pairs = list(zip(labels, predicted, strict=True))
        true_positive = sum(a == of and b == of for a, b in pairs)
        false_positive = sum(a != of and b == of for a, b in pairs)
        false_negative = sum(a == of and b != of for a, b in pairs)
        scores.append(2 * true_positive / (2 * true_positive + false_positive + false_negative))
    return sum(scores) / len(scores)


def naive_ece(labels, predicted, probabilities, bins=15) -> float:
    total = 0.0
    for b in range(bins):
        inside = [i for i, p in enumerate(probabilities) if b / bins < max(p) <= (b + 1) / bins]
        if inside:
            confidence = sum(max(probabilities[i]) for i in inside) / len(inside)
            right = sum(labels[i] == predicted[i] for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(right - confidence)
    return total


@pytest.mark.parametrize("seed", range(20))
def test_metrics_agree_with_scikit_learn_and_with_plain_loops(seed):
    found = random_predictions(seed)
    labels, predicted, p = found.labels, found.predicted, found.probabilities
    assert accuracy(labels, predicted) == pytest.approx(accuracy_score(labels, predicted))
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert macro_f1(labels, predicted) == pytest.approx(expected, abs=1e-9)
    assert macro_f1(labels, predicted) == pytest.approx(
        naive_macro_f1(labels.tolist(), predicted.tolist()), abs=1e-12
    )
    assert nll(labels, p) == pytest.approx(log_loss(labels, p, labels=range(6)), abs=1e-12)
    assert expected_calibration_error(labels, predicted, p) == pytest.approx(
        naive_ece(labels, predicted, p.tolist()), abs=1e-12
    )


def test_a_class_that_is_only_predicted_counts_zero_and_an_absent_one_not_at_all():
    labels, predicted = np.array([0, 0, 0, 4]), np.array([0, 0, 2, 4])
    assert macro_f1(labels, predicted) == pytest.approx((4 / 5 + 0 + 1) / 3)


def test_certain_error_costs_what_scikit_learn_charges():
    labels, p = np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]])
    assert nll(labels, p) == pytest.approx(log_loss(labels, p, labels=[0, 1]), abs=1e-12)
    assert nll(labels, p) == pytest.approx(-math.log(np.finfo(float).eps) / 2, abs=1e-9)


@pytest.mark.parametrize("edge", range(8, 16))
def test_a_confidence_on_an_edge_falls_into_the_bin_below(edge):
    # the image on the edge is right, its companion just below is wrong: in one bin they offset
    on, below = edge / 15, (edge - 0.5) / 15
    p = np.array([[on, 1 - on], [below, 1 - below]])
    labels, predicted = np.array([0, 1]), np.array([0, 0])
    together = abs((on - 1) + below) / 2
    assert expected_calibration_error(labels, predicted, p) == pytest.approx(together)


def test_calibration_of_sure_and_right_is_perfect_and_of_sure_and_wrong_is_one():
    p = np.array([[1.0, 0.0], [1.0, 0.0]])
    said = np.array([0, 0])
    assert expected_calibration_error(np.array([0, 0]), said, p) == 0
    assert expected_calibration_error(np.array([1, 1]), said, p) == 1


def test_all_metrics_come_in_headline_order():
    found = random_predictions(0)
    metrics = all_metrics(found)
    assert tuple(metrics) == HEADLINE
    assert metrics["test/accuracy"] == accuracy(found.labels, found.predicted)
    assert metrics["test/nll"] == nll(found.labels, found.probabilities)
    assert all(type(value) is float for value in metrics.values())
