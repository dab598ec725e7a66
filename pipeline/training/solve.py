"""Fits the closed-form heads (``pipeline.models.heads``) on frozen latents by scikit-learn.

All that is chosen is chosen inside the training images, by stratified cross-validation in which
each fold standardises its latents by its own training part: the candidate that classifies most of
the images left out; of equal ones, that with the lowest log loss on them, where it is known
without more fitting; then the smallest C, the smallest gamma, the largest k, in this order the
smoothest. The folds follow the order of the images. Where a class has a single image nothing can
be left out: C and k are then 1 and gamma is one over the number of columns that vary.

A linear model of N latents of D numbers depends on nothing but their inner products, so for D > N
the fits work in the at most N dimensions that the latents span, or on kernel matrices; the result
is the same.

With ``balanced``, every class counts the same whatever its size: in the fits, in the votes, in
Platt's sigmoids and in the choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError
from pipeline.models.heads import (
    COLUMNS,
    LinearHead,
    NeighboursHead,
    SVMHead,
    nearest,
    products,
    square_distances,
    standardise,
    vote,
)

CS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
GAMMAS = (0.1, 1.0, 10.0)  # times one over the number of columns that vary
KS = (15, 9, 7, 5, 3, 1)
FOLDS = 5
CONSTANT = 1e-6  # standard deviation, relative to the largest value, that float32 rounding makes
LINEAR_TOLERANCE = 1e-10  # of the largest gradient
LINEAR_STEPS = 1000
SVM_TOLERANCE = 1e-6  # of the optimality conditions
SVM_WORK = 200_000_000  # images times steps: overlapping classes and a large C never end
SVM_RANKING_WORK = SVM_WORK // 5

Floats: TypeAlias = NDArray[np.floating[Any]]
Integers: TypeAlias = NDArray[np.integer[Any]]
Chosen: TypeAlias = dict[str, float]


def fit_linear(
    latents: Floats, labels: Integers, classes: int, c: float | None, balanced: bool = False
) -> tuple[LinearHead, Chosen]:
    """Softmax regression with ``|W|^2 / (2 C)`` added to the summed cross-entropy.

    Two classes have, as in scikit-learn, one vector of weights: W then holds half of it, twice.

    Args:
        latents: of the training images, (N, D).
        labels: from 0 to ``classes`` - 1, in any order, (N,).
        classes: how many there are.
        c: C; None chooses it.
        balanced: whether every class counts the same.

    Returns:
        The head, and ``C``, ``converged`` (1 or 0), ``cross_validated`` (1 or 0: whether C was
        chosen so) and, if so, the ``accuracy`` on the images left out.

    Raises:
        InputError: a class has no image, a label no class, or a latent is not finite.
    """
    rows, labels = _checked(latents, labels, classes)
    with _threads():
        chosen: Chosen = {"C": 1.0 if c is None else c, "cross_validated": 0.0}
        folds = _folds(labels) if c is None else []
        if folds:
            shares = np.empty((len(CS), len(labels), classes))
            for train, test in folds:
                shares[:, test] = _linear_path(
                    rows[train], labels[train], rows[test], classes, balanced
                )
            losses = _losses(shares, labels, _weights(labels, classes, balanced))
            best, chosen = _best(shares, losses, labels, classes, balanced)
            chosen["C"] = CS[best]
        mean, scale = _standardisation(rows)
        own = standardise(rows, mean, scale)
        span, coordinates = _span(own)
        model, converged = _softmax(coordinates, labels, chosen["C"], balanced)
        weight, bias = _both(model.coef_), _both(model.intercept_)
        head = LinearHead(mean, scale, _lift(weight, own, span), _float(bias))
    return head, {**chosen, "converged": float(converged)}


def fit_svm(
    latents: Floats,
    labels: Integers,
    classes: int,
    kernel: Literal["linear", "rbf"],
    c: float | None,
    gamma: float | None,
    balanced: bool = False,
) -> tuple[SVMHead, Chosen]:
    """One-vs-rest support vector machines, their probabilities by Platt's sigmoids.

    The sigmoids are fitted to the decisions on images left out by the folds; where a class has a
    single image they are ``1 / (1 + exp(-decision))``.

    Args:
        latents: of the training images, (N, D).
        labels: from 0 to ``classes`` - 1, in any order, (N,).
        classes: how many there are.
        kernel: ``linear``, or ``rbf``: ``exp(-gamma |z - v|^2)`` of standardised latents.
        c: C; None chooses it.
        gamma: of the kernel; None chooses it; ``linear`` has none.
        balanced: whether every class counts the same.

    Returns:
        The head, and ``C``, for ``rbf`` ``gamma``, ``converged`` (1 or 0: whether the fit to all
        images did, in bounded time), ``cross_validated`` (1 or 0: whether anything could be left
        out) and, if so, the ``accuracy`` of the decisions there.

    Raises:
        InputError: a class has no image, a label no class, or a latent is not finite.
    """
    rows, labels = _checked(latents, labels, classes)
    with _threads():
        mean, scale = _standardisation(rows)
        own = standardise(rows, mean, scale)
        varying = int((own.square().mean(0) > 0.5).sum())  # the mean is 1, or 0 if constant
        usual = 1 / max(1, varying)
        folds = _folds(labels)
        cs = [c] if c is not None else list(CS) if folds else [1.0]
        gammas: list[float | None] = [None]
        if kernel == "rbf":
            times = GAMMAS if folds else (1.0,)
            gammas = [gamma] if gamma is not None else [usual * factor for factor in times]
        candidates = [(one, other) for one in cs for other in gammas]

        best, chosen, (a, b) = 0, {"cross_validated": 0.0}, _plain_sigmoids(classes)
        if folds:
            decisions = _svm_left_out(rows, labels, classes, candidates, balanced, SVM_RANKING_WORK)
            scores = np.concatenate([-decisions, decisions], 2) if classes == 2 else decisions
            best, chosen = _best(scores, np.zeros(len(candidates)), labels, classes, balanced)
            (final,) = _svm_left_out(rows, labels, classes, [candidates[best]], balanced, SVM_WORK)
            a, b = _platt(final, labels, classes, balanced)

        chosen_c, chosen_gamma = candidates[best]
        similar = _kernel(_closeness(own, own, chosen_gamma), chosen_gamma)
        dual, intercept, converged = _machines_fit(
            similar, labels, classes, chosen_c, balanced, SVM_WORK
        )
        chosen |= {"C": chosen_c, "converged": float(converged)}
        if chosen_gamma is None:  # a machine is its one vector of weights
            vectors, dual = _mix(torch.from_numpy(dual), own), np.eye(len(dual))
        else:
            chosen["gamma"] = chosen_gamma
            support = (dual != 0).any(0)
            vectors, dual = own[torch.from_numpy(support)], dual[:, support]
        head = SVMHead(
            mean,
            scale,
            vectors,
            _float(dual),
            _float(intercept),
            _float(a),
            _float(b),
            None if chosen_gamma is None else torch.tensor(chosen_gamma),
        )
    return head, chosen


def fit_knn(
    latents: Floats, labels: Integers, classes: int, k: int | None, balanced: bool = False
) -> tuple[NeighboursHead, Chosen]:
    """The k nearest training images by the Euclidean distance of standardised latents.

    Args:
        latents: of the training images, (N, D).
        labels: from 0 to ``classes`` - 1, in any order, (N,).
        classes: how many there are.
        k: how many neighbours; None chooses among those of ``KS`` that every fold can have.
        balanced: whether a vote counts the inverse of its class's size.

    Returns:
        The head, and ``k``, ``cross_validated`` (1 or 0: whether k was chosen so) and, if so, the
        ``accuracy`` on the images left out.

    Raises:
        InputError: a class has no image, a label no class, a latent is not finite, or there are
            fewer than k images.
    """
    rows, labels = _checked(latents, labels, classes)
    if k is not None and not 1 <= k <= len(labels):
        raise InputError(
            f"head: k is {k} for {len(labels)} training images; give 1 to {len(labels)} or null"
        )
    with _threads():
        chosen: Chosen = {"k": 1.0 if k is None else k, "cross_validated": 0.0}
        folds = _folds(labels) if k is None else []
        if folds:
            ks = [of for of in KS if of <= min(len(train) for train, _ in folds)]
            shares = np.empty((len(ks), len(labels), classes))
            for train, test in folds:
                mean, scale = _standardisation(rows[train])
                neighbours = standardise(rows[train], mean, scale)
                found = nearest(standardise(rows[test], mean, scale), neighbours, max(ks))
                near = torch.from_numpy(labels[train])[found]  # (test, largest k)
                weights = _float(_class_weights(labels[train], classes, balanced))
                for place, of in enumerate(ks):
                    shares[place, test] = vote(near[:, :of], weights).exp().numpy()
            losses = _losses(shares, labels, _weights(labels, classes, balanced))
            best, chosen = _best(shares, losses, labels, classes, balanced)
            chosen["k"] = float(ks[best])
        mean, scale = _standardisation(rows)
        head = NeighboursHead(
            mean,
            scale,
            standardise(rows, mean, scale),
            torch.from_numpy(labels),
            _float(_class_weights(labels, classes, balanced)),
            torch.tensor(int(chosen["k"])),
        )
    return head, chosen


def _checked(latents: Floats, labels: Integers, classes: int) -> tuple[Tensor, Integers]:
    labels = np.ascontiguousarray(labels, dtype=np.int64)
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"training labels go from {labels.min()} to {labels.max()}; {classes} classes have "
            f"0 to {classes - 1}"
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if len(empty):
        raise InputError(f"class {empty[0]} has no training image; each class needs at least one")
    if not np.isfinite(latents).all():
        raise InputError(
            "latents of the frozen network are not all finite numbers; use other starting weights "
            "or runtime.precision: fp32"
        )
    return torch.from_numpy(np.ascontiguousarray(latents, dtype=np.float32)), labels


def _threads() -> Any:
    """scikit-learn's arithmetic on one thread: quick at these sizes, equal on every machine."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(1, user_api="blas")


def _standardisation(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column; a constant one's scale is its value, or 1."""
    latents = rows.numpy()
    spread, largest = latents.std(0, dtype=np.float64), np.abs(latents).max(0)
    constant = spread <= CONSTANT * largest
    scale = np.where(constant, np.where(largest > 0, largest, 1.0), spread)
    return _float(latents.mean(0, dtype=np.float64)), _float(scale)


def _folds(labels: Integers) -> list[tuple[Integers, Integers]]:
    """Positions to train on and left out; none where a class has a single image."""
    from sklearn.model_selection import StratifiedKFold

    count = min(FOLDS, int(np.bincount(labels).min()))
    if count < 2:
        return []
    return list(StratifiedKFold(count).split(labels, labels))


def _class_weights(labels: Integers, classes: int, balanced: bool) -> Floats:
    if not balanced:
        return np.ones(classes)
    return len(labels) / (classes * np.bincount(labels, minlength=classes))


def _weights(labels: Integers, classes: int, balanced: bool) -> Floats:
    return _class_weights(labels, classes, balanced)[labels]


def _losses(shares: Floats, labels: Integers, weights: Floats) -> Floats:
    """Mean log loss of each candidate's probabilities; (K, N, C) to (K,)."""
    own = shares[:, np.arange(len(labels)), labels]
    return np.average(-np.log(np.maximum(own, np.finfo(np.float64).tiny)), 1, weights)


def _best(
    scores: Floats, losses: Floats, labels: Integers, classes: int, balanced: bool
) -> tuple[int, Chosen]:
    """The first candidate of the best accuracy and then the lowest loss; scores (K, N, C)."""
    right = scores.argmax(2) == labels
    weights = _weights(labels, classes, balanced)
    accuracies = np.average(right, 1, weights).round(12)  # weights must not break ties
    best = int(np.lexsort((losses, -accuracies))[0])  # stable: the first of equals
    return best, {"cross_validated": 1.0, "accuracy": float(accuracies[best])}


def _span(latents: Tensor) -> tuple[Tensor | None, Floats]:
    """A basis of the rows' span, and the rows' coordinates in it, (N, R).

    The basis is given by A (N, R): the columns of ``latents.T @ A`` are orthonormal. From the
    eigenvectors of the inner products ``Z Z^T = Q L Q^T``, ``A = Q L^(-1/2)``, and the coordinates
    are ``Q L^(1/2)``. None, and the rows themselves, for D <= N, where nothing is saved.
    """
    if latents.shape[1] <= len(latents):
        return None, latents.double().numpy()
    values, vectors = np.linalg.eigh(products(latents, latents).numpy())
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return torch.from_numpy(vectors / roots), vectors * roots


def _project(some: Tensor, latents: Tensor, span: Tensor | None) -> Floats:
    """Coordinates of rows in the span of ``latents``; (B, D) to (B, R)."""
    return some.double().numpy() if span is None else (products(some, latents) @ span).numpy()


def _lift(weight: Floats, latents: Tensor, span: Tensor | None) -> Tensor:
    """Weights on the coordinates as weights on the latents; (C, R) to (C, D)."""
    weights = torch.from_numpy(weight)
    return weights.float() if span is None else _mix(weights @ span.T, latents)


def _mix(shares: Tensor, latents: Tensor) -> Tensor:
    """Sums of latents by shares; (C, N) in double precision and (N, D) to (C, D) in float32."""
    blocks = latents.split(COLUMNS, 1)  # so that no whole copy in double precision is made
    return torch.cat([(shares @ some.double()).float() for some in blocks], 1)


def _linear_path(
    train: Tensor, labels: Integers, test: Tensor, classes: int, balanced: bool
) -> Floats:
    """Probabilities of the images left out for each C of the grid, (K, B, C)."""
    mean, scale = _standardisation(train)
    train, test = standardise(train, mean, scale), standardise(test, mean, scale)
    span, known = _span(train)
    unknown = _project(test, train, span)
    return np.stack([_softmax(known, labels, c, balanced)[0].predict_proba(unknown) for c in CS])


def _softmax(inputs: Floats, labels: Integers, c: float, balanced: bool) -> tuple[Any, bool]:
    """scikit-learn's model, and whether it converged."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=c,
        class_weight="balanced" if balanced else None,
        solver="newton-cg",  # from 2 to 10 times as quick as lbfgs on as many columns as images
        tol=LINEAR_TOLERANCE,
        max_iter=LINEAR_STEPS,
    )
    return model, _converges(model, inputs, labels)


def _converges(model: Any, inputs: Floats, labels: NDArray[Any]) -> bool:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as told:
        # others tell of few images, and of a line search that ends at the last digit
        warnings.simplefilter("always")
        model.fit(inputs, labels)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in told)


def _both(values: Floats) -> Floats:
    """One row for the second of two classes as a row for each; the softmax is the same."""
    return np.concatenate([-values / 2, values / 2]) if len(values) == 1 else values


def _machines(classes: int) -> int:
    return 1 if classes == 2 else classes


def _positives(labels: Integers, classes: int) -> list[NDArray[np.bool_]]:
    """For each machine, which images are of its class."""
    return [labels == of for of in ([1] if classes == 2 else range(classes))]


def _plain_sigmoids(classes: int) -> tuple[Floats, Floats]:
    return np.full(_machines(classes), -1.0), np.zeros(_machines(classes))


def _closeness(left: Tensor, right: Tensor, gamma: float | None) -> Floats:
    """What the kernel is a function of: inner products or squared distances, (B, N)."""
    return (products(left, right) if gamma is None else square_distances(left, right)).numpy()


def _kernel(closeness: Floats, gamma: float | None) -> Floats:
    return closeness if gamma is None else np.exp(-gamma * closeness)


def _svm_left_out(
    rows: Tensor,
    labels: Integers,
    classes: int,
    candidates: Sequence[tuple[float, float | None]],
    balanced: bool,
    work: int,
) -> Floats:
    """Each candidate's decisions on the images that its fold leaves out, (K, N, M)."""
    decisions = np.empty((len(candidates), len(labels), _machines(classes)))
    for train, test in _folds(labels):
        mean, scale = _standardisation(rows[train])
        known = standardise(rows[train], mean, scale)
        unknown = standardise(rows[test], mean, scale)
        among = _closeness(known, known, candidates[0][1])
        across = _closeness(unknown, known, candidates[0][1])
        for place, (c, gamma) in enumerate(candidates):
            kernel = _kernel(among, gamma)
            dual, intercept, _ = _machines_fit(kernel, labels[train], classes, c, balanced, work)
            decisions[place, test] = _kernel(across, gamma) @ dual.T + intercept
    return decisions


def _machines_fit(
    kernel: Floats, labels: Integers, classes: int, c: float, balanced: bool, work: int
) -> tuple[Floats, Floats, bool]:
    """Dual coefficients (M, N), intercepts (M,), and whether all machines converged."""
    from sklearn.svm import SVC

    positives = _positives(labels, classes)
    dual, intercept = np.zeros((len(positives), len(labels))), np.empty(len(positives))
    converged = True
    for machine, positive in enumerate(positives):
        model = SVC(
            kernel="precomputed",
            C=c,
            class_weight="balanced" if balanced else None,
            tol=SVM_TOLERANCE,
            max_iter=work // len(labels),
        )
        converged &= _converges(model, kernel, positive)
        dual[machine, model.support_] = model.dual_coef_[0]
        intercept[machine] = model.intercept_[0]
    return dual, intercept, converged


def _platt(
    decisions: Floats, labels: Integers, classes: int, balanced: bool
) -> tuple[Floats, Floats]:
    """Platt's a and b of each machine, (M,), from its decisions (N, M) on images left out."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression

    identity = LogisticRegression()  # scikit-learn calibrates a model: one that hands on its input
    identity.classes_ = np.arange(classes)
    identity.coef_ = np.eye(decisions.shape[1])
    identity.intercept_ = np.zeros(decisions.shape[1])
    calibrated = CalibratedClassifierCV(
        FrozenEstimator(identity), method="sigmoid", ensemble=False, cv=_folds(labels)
    )
    with warnings.catch_warnings():  # that the weights are for the sigmoids alone, as they should
        warnings.filterwarnings("ignore", "Since FrozenEstimator", UserWarning)
        calibrated.fit(decisions, labels, _weights(labels, classes, balanced))
    sigmoids = calibrated.calibrated_classifiers_[0].calibrators
    return np.array([of.a_ for of in sigmoids]), np.array([of.b_ for of in sigmoids])


def _float(values: Floats | Tensor) -> Tensor:
    return torch.as_tensor(values).float()
