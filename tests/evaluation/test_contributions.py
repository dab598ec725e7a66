"""What each test image adds to a metric, against deleting each image in fact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.evaluation.contributions import contributions, pseudo_values
from pipeline.evaluation.metrics import BINARY, HEADLINE, MOST_CLASSES, Predictions, all_metrics


@st.composite
def small_predictions(draw):
    """Predictions of 2 to 12 images: few levels of confidence, classes that may be missing."""
    classes, images = draw(st.integers(2, 4)), draw(st.integers(2, 12))
    one_class = st.integers(0, classes - 1)
    column = st.lists(one_class, min_size=images, max_size=images)
    # a class that none of the probabilities favours may be predicted, too: nothing forbids it
    weights = st.lists(
        st.lists(st.integers(0, 3), min_size=classes, max_size=classes).filter(any),
        min_size=images,
        max_size=images,
    )
    probabilities = np.array(draw(weights), np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Predictions(np.array(draw(column)), np.array(draw(column)), probabilities)


def names_of(predictions):
    return [f"class {of}" for of in range(predictions.probabilities.shape[1])]


def without(predictions, image):
    return Predictions(
        np.delete(predictions.labels, image),
        np.delete(predictions.predicted, image),
        np.delete(predictions.probabilities, image, axis=0),
    )


def slow_pseudo_values(predictions, classes, metric, beta):
    """Each image deleted, and the metric computed anew."""
    images = len(predictions.labels)
    whole = all_metrics(predictions, classes, classes[0], beta)[metric]
    found = []
    for image in range(images):
        left = all_metrics(without(predictions, image), classes, classes[0], beta)[metric]
        found.append(images * whole - (images - 1) * left)
    return [value - sum(found) / images + whole for value in found]


@given(small_predictions(), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=150, deadline=None)
def test_contributions_are_those_of_deleting_each_image(predictions, beta):
    classes = names_of(predictions)
    found = contributions(predictions, classes, classes[0], beta)
    metrics = [*HEADLINE, *(name for name in BINARY if len(classes) == 2)]
    for metric in metrics:
        if metric != "test/recall":
            expected = slow_pseudo_values(predictions, classes, metric, beta)
            np.testing.assert_allclose(found[metric].values, expected, atol=1e-9, err_msg=metric)


@given(small_predictions())
@settings(max_examples=150, deadline=None)
def test_their_mean_is_the_metric(predictions):
    classes = names_of(predictions)
    found = contributions(predictions, classes, classes[0], 1.0)
    values = all_metrics(predictions, classes, classes[0], 1.0)
    for metric, contribution in found.items():
        assert contribution.values.mean() == pytest.approx(values[metric], abs=1e-12)
        assert contribution.unit == "image"
    few = {metric for metric in values if metric not in found}
    for metric in few:  # recalls alone, of classes with no image or one
        of = metric.removeprefix("test/recall").removeprefix("/") or classes[0]
        assert metric.startswith("test/recall")
        assert np.sum(predictions.labels == classes.index(of)) < 2


def test_a_mean_over_images_is_taken_apart_as_it_is():
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    predictions = Predictions(np.array([0, 0, 1]), np.array([0, 1, 1]), probabilities)
    found = contributions(predictions, ["a", "b"], "b", 1.0)
    assert found["test/accuracy"].values.tolist() == [1, 0, 1]
    eps = np.finfo(float).eps
    np.testing.assert_allclose(found["test/nll"].values, -np.log([0.5, 0.25, eps]))


def test_a_recall_has_the_images_of_its_class_as_units():
    labels, predicted = np.array([0, 1, 1, 0, 1, 2]), np.array([0, 0, 1, 2, 1, 2])
    three = contributions(Predictions(labels, predicted, np.eye(3)[predicted]), "abc", "c", 1.0)
    assert three["test/recall/a"].values.tolist() == [1, 0]
    assert three["test/recall/b"].values.tolist() == [0, 1, 1]
    assert "test/recall/c" not in three  # one image says nothing of others
    assert "test/recall" not in three
    binary = Predictions(labels[:5], predicted[:5] % 2, np.eye(2)[predicted[:5] % 2])
    two = contributions(binary, "ab", "b", 1.0)
    assert two["test/recall"].values.tolist() == two["test/recall/b"].values.tolist() == [0, 1, 1]


def test_one_image_adds_nothing_that_tells_of_others():
    one = Predictions(np.array([1]), np.array([1]), np.array([[0.2, 0.8]]))
    assert contributions(one, "ab", "b", 1.0) == {}


@pytest.mark.parametrize("classes", [MOST_CLASSES, MOST_CLASSES + 1])
def test_many_classes_have_no_recalls_of_their_own(classes):
    labels = np.arange(2 * classes) % classes
    predictions = Predictions(labels, labels, np.eye(classes)[labels])
    names = [str(of) for of in range(classes)]
    found = contributions(predictions, names, names[0], 1.0)
    assert (tuple(found) == HEADLINE) == (classes > MOST_CLASSES)


def test_pseudo_values_of_a_mean_are_its_values():
    values = np.array([3.0, -1.0, 4.0, 1.0])
    left = (values.sum() - values) / 3
    np.testing.assert_allclose(pseudo_values(values.mean(), left), values)


# --- the jackknife gives intervals that cover

SKILLS = np.array([1.0, 0.2, -0.3])  # by class; the rarest is the hardest
FREQUENCIES = np.array([0.5, 0.35, 0.15])
SEED_SPREAD = 0.25


def macro_f1_of_skill(seed_effects):
    """Macro-F1 on endless test images at each seed effect: errors fall on both others alike."""
    hit = stats.norm.cdf((SKILLS + seed_effects[:, None]) / np.sqrt(2))
    hits, errors = FREQUENCIES * hit, FREQUENCIES * (1 - hit)
    answers = hits + (errors.sum(axis=1, keepdims=True) - errors) / 2
    return np.mean(2 * hits / (FREQUENCIES + answers), axis=1)


def crossed_interval(values):
    """95 % interval of the mean of (seeds, images) with random effects of both."""
    seeds, images = values.shape
    by_seed, by_image, whole = values.mean(axis=1), values.mean(axis=0), values.mean()
    rest = values - by_seed[:, None] - by_image + whole
    dfs = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    sums = (images * np.sum((by_seed - whole) ** 2), seeds * np.sum((by_image - whole) ** 2),
            np.sum(rest**2))  # fmt: skip
    squares = np.array(sums) / dfs
    total = squares[0] + squares[1] - squares[2]
    df = total**2 / np.sum(squares**2 / dfs)
    half = stats.t.ppf(0.975, df) * np.sqrt(total / values.size)
    return whole - half, whole + half


def test_crossed_intervals_of_macro_f1_cover():
    draw = np.random.default_rng(0)
    truth = macro_f1_of_skill(draw.normal(0, SEED_SPREAD, 100_000)).mean()
    seeds, images, rounds, covered = 6, 300, 400, 0
    probabilities = np.full((images, 3), 1 / 3)
    for _ in range(rounds):
        labels = draw.choice(3, images, p=FREQUENCIES)
        ease = SKILLS[labels] + draw.normal(size=images)
        effects = draw.normal(0, SEED_SPREAD, seeds)
        rows = []
        for effect in effects:
            right = ease + effect + draw.normal(size=images) > 0
            predicted = np.where(right, labels, (labels + draw.integers(1, 3, images)) % 3)
            answers = Predictions(labels, predicted, probabilities)
            rows.append(contributions(answers, "abc", "a", 1.0)["test/macro_f1"].values)
        low, high = crossed_interval(np.array(rows))
        covered += low <= truth <= high
    assert 0.92 <= covered / rounds <= 0.98  # standard error of the share 0.011
