import math
from itertools import product

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
)

from pipeline.evaluation.metrics import (
    BINARY,
    HEADLINE,
    MOST_CLASSES,
    Predictions,
    accuracy,
    all_metrics,
    class_recalls,
    expected_calibration_error,
    macro_f1,
    nll,
    precision_recall_f_beta,
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
    assert accuracy(labels, predicted) == pytest.approx(
        accuracy_score(labels, predicted), abs=1e-12
    )
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


@pytest.mark.parametrize("beta", [0.001, 0.5, 1.0, 2.0, 1000.0])
@pytest.mark.parametrize("positive", [0, 1])
def test_two_class_metrics_are_those_of_scikit_learn(beta, positive):
    draw = np.random.default_rng(3)
    # all small cases there are, the degenerate ones among them, and two larger ones
    small = [(np.array(a), np.array(b)) for a in product((0, 1), repeat=3)
             for b in product((0, 1), repeat=3)]  # fmt: skip
    large = [draw.integers(0, 2, (2, 200)), (draw.random((2, 200)) < 0.05).astype(np.int64)]
    for labels, predicted in [*small, *large]:
        expected = precision_recall_fscore_support(
            labels, predicted, beta=beta, pos_label=positive, average="binary", zero_division=0
        )[:3]
        found = precision_recall_f_beta(labels, predicted, positive, beta)
        assert found == pytest.approx(expected, abs=1e-9)


def test_f_beta_goes_from_precision_to_recall():
    labels, predicted = np.array([1, 1, 1, 1, 0]), np.array([1, 0, 0, 0, 0])
    assert precision_recall_f_beta(labels, predicted, 1, 1e-200) == pytest.approx((1, 0.25, 1))
    assert precision_recall_f_beta(labels, predicted, 1, 1e200) == pytest.approx((1, 0.25, 0.25))


@pytest.mark.parametrize("seed", range(5))
def test_recalls_are_those_of_scikit_learn_and_nan_without_images(seed):
    found = random_predictions(seed)
    expected = recall_score(
        found.labels, found.predicted, labels=range(6), average=None, zero_division=np.nan
    )
    recalls = class_recalls(found.labels, found.predicted, 6)
    np.testing.assert_allclose(recalls, expected, rtol=0, atol=1e-12)


def test_all_metrics_come_in_headline_order_then_class_by_class():
    found, classes = random_predictions(0), [f"class {c}" for c in range(6)]
    metrics = all_metrics(found, classes, "class 5", 1.0)
    present = sorted(set(found.labels.tolist()))
    assert tuple(metrics) == (*HEADLINE, *(f"test/recall/class {c}" for c in present))
    assert metrics["test/accuracy"] == accuracy(found.labels, found.predicted)
    assert metrics["test/nll"] == nll(found.labels, found.probabilities)
    own = found.labels == present[0]
    expected = np.mean(found.predicted[own] == present[0])
    assert metrics[f"test/recall/class {present[0]}"] == expected
    assert all(type(value) is float for value in metrics.values())


def test_two_classes_have_more_and_many_classes_less():
    two = random_predictions(7, classes=2)
    metrics = all_metrics(two, ["no", "yes"], "no", 2.0)
    assert tuple(metrics)[:7] == (*HEADLINE, *BINARY)
    expected = precision_recall_f_beta(two.labels, two.predicted, 0, 2.0)
    assert tuple(metrics[name] for name in BINARY) == expected
    assert metrics["test/recall"] == metrics["test/recall/no"]
    for classes in (MOST_CLASSES, MOST_CLASSES + 1):
        many = random_predictions(0, images=400, classes=classes)
        names = [str(c) for c in range(classes)]
        found = all_metrics(many, names, names[-1], 1.0)
        assert (tuple(found) == HEADLINE) == (classes > MOST_CLASSES)
