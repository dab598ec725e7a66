"""Closed-form fits against scikit-learn's own models, fitted apart, and against naive choices."""

import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pipeline.errors import InputError
from pipeline.training import solve

SHAPES = [(40, 8, 2), (30, 100, 2), (90, 20, 15), (45, 120, 3)]
FITS = {
    "linear": solve.fit_linear,
    "svm": lambda x, y, n, c, **more: solve.fit_svm(x, y, n, "linear", c, None, **more),
    "rbf": lambda x, y, n, c, **more: solve.fit_svm(x, y, n, "rbf", c, None, **more),
    "knn": lambda x, y, n, k, **more: solve.fit_knn(x, y, n, None if k is None else 3, **more),
}


def draw(shape, apart=0.4, seed=0, constant=True, sizes=None):
    """Rectified latents, a few columns constant, labels in no order."""
    count, dimension, classes = shape
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dimension))
    every = np.arange(count) % classes if sizes is None else np.repeat(np.arange(classes), sizes)
    labels = random.permutation(every)
    latents = np.maximum(0, random.normal(size=(len(labels), dimension)) + apart * centres[labels])
    if constant:
        latents[:, 0], latents[:, 1] = 0, 3.3
    return latents.astype(np.float32), labels


def probabilities(head, latents):
    return head(torch.from_numpy(latents)).softmax(1).numpy()


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_is_scikit_learns(shape, c, balanced):
    latents, labels = draw(shape)
    labels[-3:] = 0  # unbalanced
    fresh, _ = draw(shape, seed=1)
    head, chosen = solve.fit_linear(latents, labels, shape[2], c, balanced)
    weight = "balanced" if balanced else None
    theirs = LogisticRegression(C=c, tol=1e-10, max_iter=50_000, class_weight=weight)
    theirs = make_pipeline(StandardScaler(), theirs).fit(latents.astype(np.float64), labels)
    expected = theirs.predict_proba(fresh.astype(np.float64))
    np.testing.assert_allclose(probabilities(head, fresh), expected, atol=1e-5)
    assert chosen == {"C": c, "cross_validated": 0.0, "converged": 1.0}


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("kernel, gamma", [("linear", 1.0), ("rbf", 0.01)])
@pytest.mark.parametrize("shape", SHAPES)
def test_svm_is_scikit_learns(shape, kernel, gamma, balanced):
    latents, labels = draw(shape)
    fresh, _ = draw(shape, seed=1)
    head, chosen = solve.fit_svm(latents, labels, shape[2], kernel, 1.0, gamma, balanced)
    machine = SVC(
        kernel=kernel, C=1.0, gamma=gamma, tol=1e-8, class_weight="balanced" if balanced else None
    )
    theirs = CalibratedClassifierCV(
        make_pipeline(StandardScaler(), OneVsRestClassifier(machine)),
        ensemble=False,
        cv=StratifiedKFold(min(5, np.bincount(labels).min())),
    )
    expected = theirs.fit(latents.astype(np.float64), labels).predict_proba(
        fresh.astype(np.float64)
    )  # the classes have the same size, so that balanced sigmoids are the plain ones
    np.testing.assert_allclose(probabilities(head, fresh), expected, atol=1e-5)
    assert chosen["C"] == 1 and chosen["converged"] == chosen["cross_validated"] == 1
    assert ("gamma" in chosen) == (kernel == "rbf")


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_knn_is_scikit_learns(shape, k):
    latents, labels = draw(shape)
    fresh, _ = draw(shape, seed=1)
    head, _ = solve.fit_knn(latents, labels, shape[2], k)
    theirs = make_pipeline(StandardScaler(), KNeighborsClassifier(k))
    shares = theirs.fit(latents.astype(np.float64), labels).predict_proba(fresh.astype(np.float64))
    expected = (shares * k + 1 / shape[2]) / (k + 1)
    np.testing.assert_allclose(probabilities(head, fresh), expected, atol=1e-6)


def left_out(model, latents, labels):
    """Probabilities or decisions of each image by a model that was not fitted to it, plainly."""
    found = []
    for train, test in StratifiedKFold(min(5, np.bincount(labels).min())).split(latents, labels):
        scaler = StandardScaler().fit(latents[train].astype(np.float64))
        model.fit(scaler.transform(latents[train].astype(np.float64)), labels[train])
        of = scaler.transform(latents[test].astype(np.float64))
        probable = hasattr(model, "predict_proba")
        found.append((test, model.predict_proba(of) if probable else model.predict(of)))
    together = np.concatenate([values for _, values in found])
    return together[np.argsort(np.concatenate([test for test, _ in found]))]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("sizes", [[12, 30], [8, 20, 30]])
def test_linear_chooses_c_by_accuracy_then_log_loss(sizes, balanced):
    shape = (0, 60, len(sizes))
    latents, labels = draw(shape, 0.3, sizes=sizes)
    head, chosen = solve.fit_linear(latents, labels, shape[2], None, balanced)
    weight = "balanced" if balanced else None
    sample = solve._weights(labels, shape[2], balanced)
    ranked = []
    for c in solve.CS:
        model = LogisticRegression(C=c, tol=1e-8, max_iter=10_000, class_weight=weight)
        of = left_out(model, latents, labels)
        score = balanced_accuracy_score if balanced else accuracy_score
        loss = log_loss(labels, of, sample_weight=sample)
        ranked.append((round(score(labels, of.argmax(1)), 9), -loss, c))
    accuracy, _, c = max(ranked)
    assert chosen["C"] == c and chosen["accuracy"] == pytest.approx(accuracy)
    fixed, _ = solve.fit_linear(latents, labels, shape[2], c, balanced)
    assert torch.equal(head.weight, fixed.weight)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_svm_chooses_the_smallest_of_the_best(kernel):
    latents, labels = draw((45, 60, 3), 0.2)
    _, chosen = solve.fit_svm(latents, labels, 3, kernel, None, None)
    gammas = [g / 58 for g in (0.1, 1.0, 10.0)] if kernel == "rbf" else [1.0]
    ranked = []
    for c in solve.CS:
        for gamma in gammas:
            machine = SVC(kernel=kernel, C=c, gamma=gamma, tol=1e-6, max_iter=200_000)
            said = left_out(OneVsRestClassifier(machine), latents, labels)
            ranked.append((round(accuracy_score(labels, said), 9), -c, -gamma))
    accuracy, c, gamma = max(ranked)
    assert chosen["C"] == -c and chosen["accuracy"] == pytest.approx(accuracy)
    assert kernel == "linear" or chosen["gamma"] == pytest.approx(-gamma)


def test_knn_chooses_k_by_accuracy_then_log_loss():
    latents, labels = draw((30, 20, 3), 0.3)
    _, chosen = solve.fit_knn(latents, labels, 3, None)
    ranked = []
    for k in (1, 3, 5, 7, 9, 15):
        of = left_out(KNeighborsClassifier(k), latents, labels)
        loss = log_loss(labels, (of * k + 1 / 3) / (k + 1))
        ranked.append((round(accuracy_score(labels, of.argmax(1)), 9), -loss, k))
    assert (chosen["accuracy"], chosen["k"]) == pytest.approx((max(ranked)[0], max(ranked)[2]))


def test_of_equal_candidates_the_first_is_taken_and_the_loss_comes_second():
    scores = np.eye(2)[[[0, 0], [0, 1], [0, 1], [0, 1]]]  # (K, N, C)
    labels = np.array([0, 1])
    assert solve._best(scores, np.zeros(4), labels, 2, False)[0] == 1
    assert solve._best(scores, np.array([0.0, 3.0, 2.0, 2.0]), labels, 2, False)[0] == 2


def test_knn_has_no_more_neighbours_than_a_fold_has_images():
    latents, labels = draw((6, 10, 2), 5.0)
    _, chosen = solve.fit_knn(latents, labels, 2, None)
    assert chosen["k"] <= 4
    with pytest.raises(InputError, match="k is 7 for 6 training images; give 1 to 6 or null"):
        solve.fit_knn(latents, labels, 2, 7)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("classes", [2, 15])
def test_a_class_with_one_image_leaves_nothing_to_choose_by(name, classes):
    latents, labels = draw((0, 40, classes), sizes=[1, *[2] * (classes - 1)])
    head, chosen = FITS[name](latents, labels, classes, None)
    assert chosen["cross_validated"] == 0 and "accuracy" not in chosen
    assert chosen.get("C", chosen.get("k")) == 1
    if name == "rbf":
        assert chosen["gamma"] == pytest.approx(1 / (latents.std(0) > 1e-3).sum())
    if name in {"svm", "rbf"}:
        assert set(head.platt_a.tolist()) == {-1} and set(head.platt_b.tolist()) == {0}
    found = probabilities(head, latents)
    assert found.shape == (len(labels), classes)
    assert (found > 0).all()
    assert (found.argmax(1) == labels).all() or name in {"svm", "rbf"}


@pytest.mark.parametrize("name", FITS)
def test_the_same_images_give_the_same_bytes_and_the_global_state_plays_no_part(name):
    latents, labels = draw((30, 50, 3))
    np.random.seed(1)
    one, chosen = FITS[name](latents, labels, 3, None)
    np.random.seed(2)
    two, again = FITS[name](latents.copy(), labels.astype(np.int32), 3, None)
    assert chosen == again
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[key]), key


@pytest.mark.parametrize("name", FITS)
def test_constant_columns_count_for_nothing(name):
    latents, labels = draw((30, 12, 3), constant=False)
    fresh, _ = draw((30, 12, 3), seed=1, constant=False)
    constant = np.tile(np.float32([0.0, 3.3, 1e9]), (30, 1))
    constant[::2, 1] = np.nextafter(np.float32(3.3), np.float32(4.0))  # as rounding leaves it
    with_, chosen = FITS[name](np.hstack([latents, constant]), labels, 3, None)
    without, expected = FITS[name](latents, labels, 3, None)
    assert chosen == pytest.approx(expected)
    found = probabilities(with_, np.hstack([fresh, constant]))
    np.testing.assert_allclose(found, probabilities(without, fresh), atol=1e-4)


@pytest.mark.parametrize("name", FITS)
def test_equal_latents_of_all_images_give_finite_probabilities(name):
    latents, labels = np.ones((12, 5), np.float32), np.arange(12) % 3
    found = probabilities(FITS[name](latents, labels, 3, None)[0], latents)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", FITS)
def test_real_classes_are_learned_and_shuffled_ones_are_not(name):
    latents, labels = draw((120, 60, 2), 0.6)
    fresh, of = draw((400, 60, 2), 0.6, seed=1)
    head, _ = FITS[name](latents, labels, 2, None)
    assert (probabilities(head, fresh).argmax(1) == of).mean() > 0.75
    shuffled = np.random.default_rng(0).permutation(labels)
    _, chosen = FITS[name](latents, shuffled, 2, None)
    assert 0.3 < chosen["accuracy"] < 0.7


@pytest.mark.parametrize("name", FITS)
def test_balanced_finds_more_of_the_small_class(name):
    latents, labels = draw((0, 8, 2), 0.25, sizes=[80, 20])
    fresh, of = draw((300, 8, 2), 0.25, seed=1)
    plain, balanced = (
        probabilities(FITS[name](latents, labels, 2, 1.0, balanced=way)[0], fresh)[of == 1, 1]
        for way in (False, True)
    )
    assert (balanced > 0.5).mean() > (plain > 0.5).mean() or name == "knn"
    assert balanced.mean() > plain.mean() + 0.05


@pytest.mark.parametrize("name", FITS)
def test_wrong_input_is_one_line(name):
    latents, labels = draw((12, 5, 3))
    with pytest.raises(InputError, match="class 3 has no training image"):
        FITS[name](latents, labels, 4, None)
    with pytest.raises(InputError, match="go from 0 to 2; 2 classes have 0 to 1"):
        FITS[name](latents, labels, 2, None)
    latents[3, 3] = np.nan
    with pytest.raises(InputError, match="not all finite"):
        FITS[name](latents, labels, 3, None)
