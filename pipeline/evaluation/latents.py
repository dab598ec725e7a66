"""What a network's latents are like: how well they part classes, and how much they differ at all.

Latents are (N, D) finite numbers in float32 or float64 and labels (N,) whole numbers, unless a
function says otherwise. Nothing is drawn: where there is too much to look at, a fixed rule chooses
evenly. What lies below the rounding of float32, in which networks compute, counts as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.diagnosis import (
    DISTANCE_AUC,
    DISTANCE_OVERLAP,
    EFFECTIVE_RANK,
    FISHER,
    PROBE_TRAIN,
    PROBE_VAL,
    SEPARABLE,
    SPREAD,
    Histogram,
)

METRICS = (
    *(PROBE_TRAIN, PROBE_VAL, SEPARABLE, FISHER),
    *(DISTANCE_AUC, DISTANCE_OVERLAP, EFFECTIVE_RANK, SPREAD),
)
BINS = 30
PAIRS_OF_A_KIND = 10_000  # of one class, and as many of two
CLASS_PAIRS = 100  # that are tried for a hyperplane between them
PER_CLASS = 200  # images of a class for that
MARGIN = 1e-6  # of a hyperplane, in standard deviations; the solver's tolerance is 1e-7
PROBE_C = 1.0
PROBE_STEPS = 500
COLLAPSED_SPREAD = 1e-3
COLLAPSED_RANK = 1.05
ROUNDED = 1e-6  # share of the largest unit, below which images differ by rounding alone
ROUNDING = float(np.finfo(np.float32).eps)

Array: TypeAlias = NDArray[np.float64]
Real: TypeAlias = NDArray[np.floating[Any]]
Labels: TypeAlias = NDArray[np.integer[Any]]


class Labelled(NamedTuple):
    """Latents (N, D), finite or not, and their labels (N,)."""

    latents: Real
    labels: Labels


class Distances(NamedTuple):
    """Distances of pairs of one class (P,) and of two classes (Q,)."""

    same: Array
    different: Array


class Description(NamedTuple):
    """What a diagnosis says of latents.

    Attributes:
        values: the metrics ``METRICS``; None where one has no meaning.
        same, different: histograms of the distances of validation images' pairs.
        cause: why they are collapsed; empty unless they are.
    """

    values: dict[str, float | None]
    same: Histogram
    different: Histogram
    cause: str


def evenly(labels: Labels, most: int) -> NDArray[np.int64]:
    """Positions of at most ``most`` of N items, in order, each label in proportion.

    They are taken at equal steps from the items sorted by label, so that no step can fall in with
    the order in which classes alternate.
    """
    total = len(labels)
    if total <= most:
        return np.arange(total)
    order = np.argsort(labels, kind="stable")
    return np.sort(order[np.arange(most) * total // most])


def describe(train: Labelled | None, val: Labelled, test: Labelled, known: str = "") -> Description:
    """All that a diagnosis says of latents.

    Args:
        train: on which the probe is fitted; None where the validation classes are others than
            those trained on, so that a probe has nothing to say.
        val: on which all else is measured but the separable pairs.
        test: on which these are, as they take more images than dimensions: validation images are
            often too few.
        known: what likely made a collapse, if there is one; see ``collapse``.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    parts = [val, test] if train is None else [train, val, test]
    if not all(np.isfinite(part.latents).all() for part in parts):
        nothing = Distances(np.zeros(0), np.zeros(0))
        broken = next(part for part in parts if not np.isfinite(part.latents).all())
        return Description(dict.fromkeys(METRICS), *histograms(nothing), collapse(*broken, known))
    with threadpool_limits(1, user_api="blas"):  # quick at these sizes, equal on every machine
        distances = pair_distances(*val)
        same, different = histograms(distances)
        found: tuple[float | None, ...] = (
            *((None, None) if train is None else linear_probe(*train, *val)),
            separable_pairs(*test),
            fisher_ratio(*val),
            distance_auc(distances),
            overlap(same, different),
            effective_rank(val.latents),
            spread(val.latents),
        )
        cause = collapse(*val, known)
    return Description(dict(zip(METRICS, found, strict=True)), same, different, cause)


def linear_probe(
    train: Real, train_labels: Labels, val: Real, val_labels: Labels
) -> tuple[float, float] | tuple[None, None]:
    """How well a linear classifier does on frozen latents: its training and validation accuracy.

    Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (2016). The
    classifier minimises ``sum_i CE(W z_i + b, y_i) + |W|^2 / (2 C)``, C = 1, on latents whose
    columns have mean zero and standard deviation one in training; constant columns are left out.

    Args:
        train: (N, D).
        train_labels: (N,).
        val: (M, D).
        val_labels: (M,); a class that training has not is always wrong.

    Returns:
        both accuracies; None where training has a single class.
    """
    classes, numbers = np.unique(train_labels, return_inverse=True)
    if len(classes) < 2:
        return None, None
    rows, others = _standardised(train, val)
    weights, bias = _softmax_regression(rows, numbers, len(classes))
    said, val_said = (classes[(part @ weights + bias).argmax(axis=1)] for part in (rows, others))
    return float(np.mean(said == train_labels)), float(np.mean(val_said == val_labels))


def separable_pairs(latents: Real, labels: Labels) -> float | None:
    """The share of the pairs of classes that a hyperplane parts without an error.

    At most ``CLASS_PAIRS`` pairs are tried, evenly chosen from all, with at most ``PER_CLASS``
    images of a class. In D dimensions any D + 1 images or fewer can be parted, whatever their
    classes: pairs that have no more, in the dimensions that they span, tell nothing and do not
    count. None where no pair is left: then D is too large for so few images. Up to 2 (D + 1)
    images, classes given at random are parted more often than not (Cover, "Geometrical and
    statistical properties of systems of linear inequalities", 1965), so a share counts beside
    another method's, hardly alone.
    """
    classes = np.unique(labels)
    chosen = {
        of: latents[(found := np.flatnonzero(labels == of))[evenly(labels[found], PER_CLASS)]]
        for of in classes.tolist()
    }
    pairs = list(combinations(chosen, 2))
    places = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), CLASS_PAIRS)).round())
    tried = (separable(*(chosen[of] for of in pairs[int(place)])) for place in places)
    told = [said for said in tried if said is not None]
    return float(np.mean(told)) if told else None


def separable(one: Real, other: Real) -> bool | None:
    """Whether a hyperplane parts two sets of latents (N, D) and (M, D) exactly.

    With ``s_i`` 1 or -1 by the set, the linear programme ``max t`` under
    ``s_i (w x_i + b) >= t``, ``-1 <= w_j <= 1`` and ``t <= 1`` is above zero just where there is
    one. The ``x_i`` are the coordinates in the directions that the latents span, all of standard
    deviation one.

    Returns:
        None where N + M latents span N + M - 1 dimensions, so that any two sets of them could be
        parted, and where the solver gives up.
    """
    from scipy.optimize import linprog

    stacked = np.concatenate([one, other])
    total = len(stacked)
    left, lengths, _ = _directions(stacked)
    dimensions = len(lengths)
    if dimensions >= total - 1:
        return None
    sides = np.repeat([1.0, -1.0], [len(one), len(other)])
    rows = np.column_stack([left * np.sqrt(total), np.ones(total)])
    solved = linprog(
        c=np.append(np.zeros(dimensions + 1), -1.0),
        A_ub=np.column_stack([-sides[:, None] * rows, np.ones(total)]),
        b_ub=np.zeros(total),
        bounds=[(-1, 1)] * dimensions + [(None, None), (None, 1)],
        method="highs",
    )
    return bool(-solved.fun > MARGIN) if solved.status == 0 else None


def fisher_ratio(latents: Real, labels: Labels) -> float | None:
    """Scatter between classes over scatter within them: ``tr(S_b) / tr(S_w)``.

    Fisher, "The use of multiple measurements in taxonomic problems" (1936); with ``m_c`` the mean
    of the ``n_c`` latents of class c and ``m`` that of all, ``tr(S_b) = sum_c n_c |m_c - m|^2`` and
    ``tr(S_w) = sum_i |x_i - m_{y_i}|^2``. None with a single class, or without any scatter within.
    """
    centred = _centred(latents)
    classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.zeros((len(classes), centred.shape[1]))
    np.add.at(means, numbers, centred)
    means /= counts[:, None]
    within = float(np.square(centred - means[numbers]).sum())
    floor = len(latents) * _rounding(latents) ** 2
    if len(classes) < 2 or within <= floor:
        return None
    return float((counts * np.square(means).sum(axis=1)).sum() / within)


def pair_distances(latents: Real, labels: Labels) -> Distances:
    """Distances of pairs of images over the root mean square of all pairs' distances.

    Of more than ``PAIRS_OF_A_KIND`` pairs of a kind as many are taken, evenly from their list.
    Where all latents are the same all distances are zero.
    """
    apart = _distances(latents)
    left, right = np.triu_indices(len(latents), 1)
    between = apart[left, right]
    scale = np.sqrt(np.mean(np.square(between))) if len(between) else 0.0
    between = between / (scale or 1.0)
    same = labels[left] == labels[right]
    kinds = (between[same], between[~same])
    return Distances(*(of[evenly(np.zeros(len(of), int), PAIRS_OF_A_KIND)] for of in kinds))


def histograms(distances: Distances) -> tuple[Histogram, Histogram]:
    """Histograms of both kinds on shared edges, from zero to the largest distance."""
    most = max((float(of.max()) for of in distances if len(of)), default=0.0)
    edges = np.linspace(0.0, most or 1.0, BINS + 1)
    same, different = (
        Histogram(edges.tolist(), np.histogram(of, edges)[0].tolist()) for of in distances
    )
    return same, different


def overlap(same: Histogram, different: Histogram) -> float | None:
    """``sum_k min(p_k, q_k)`` of two histograms' shares: 0 apart, 1 the same; None if one is empty.

    It is one minus their total variation distance.
    """
    p, q = (np.asarray(of.counts, float) for of in (same, different))
    if not p.sum() or not q.sum():
        return None
    return float(np.minimum(p / p.sum(), q / q.sum()).sum())


def distance_auc(distances: Distances) -> float | None:
    """How often a pair of two classes lies farther apart than one of one class, ties one half.

    The area under the ROC curve of distance as a test for different classes (Hanley and McNeil
    1982). None where there is no pair of one of the kinds.
    """
    same, different = np.sort(distances.same), distances.different
    if not len(same) or not len(different):
        return None
    below = np.searchsorted(same, different, side="left").sum()
    upto = np.searchsorted(same, different, side="right").sum()
    return float((below + upto) / (2 * len(same) * len(different)))


def effective_rank(latents: Real) -> float:
    """In how many directions the latents differ, weighed by how much: from 1 to min(N - 1, D).

    ``exp(-sum_k p_k log p_k)`` with ``p_k`` the singular values of the centred latents over their
    sum. Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO
    2007). Zero where the latents are all the same.
    """
    _, lengths, _ = _directions(latents)
    shares = lengths / lengths.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(lengths) else 0.0


def spread(latents: Real) -> float | None:
    """Mean distance of two latents over their mean length; None of a single latent."""
    if len(latents) < 2:
        return None
    length = float(np.linalg.norm(latents.astype(np.float64), axis=1).mean())
    between = float(_distances(latents)[np.triu_indices(len(latents), 1)].mean())
    return between / length if length else 0.0


def collapse(latents: Real, labels: Labels, known: str = "") -> str:
    """Why latents tell images no longer apart, as far as can be told; empty where they do.

    They do not where one is not finite, where they hardly differ (``spread`` below 0.001), or
    where they differ in one of several dimensions alone (``effective_rank`` below 1.05) though
    there are more than two classes; two classes need no more than one direction.

    Args:
        latents: (N, D), finite or not.
        labels: (N,).
        known: a likely cause from elsewhere, such as the loss; a clause.
    """
    broken = len(latents) - int(np.isfinite(latents).all(axis=1).sum())
    if broken:
        return (
            f"{broken} of {len(latents)} latents are not finite: "
            f"likely {known or 'a learning rate that is too high'}"
        )
    if not latents.any():
        dead = "rectifiers that died of too high a learning rate"
        return f"every unit gives zero whatever the image: likely {known or dead}"
    apart = spread(latents)
    if apart is not None and apart < COLLAPSED_SPREAD:
        if np.ptp(latents, axis=0).max() <= ROUNDED * np.abs(latents).max():
            dead = "rectifiers that died of too high a learning rate, or too much weight decay"
            return f"every unit gives the same whatever the image: likely {known or dead}"
        small = "weights that are too small, as drawn or by weight decay, or units in saturation"
        return (
            f"two latents differ by {100 * apart:.1g} % of their length, too little for some "
            f"heads: likely {known or small}"
        )
    narrow = latents.shape[1] > 1 and effective_rank(latents) < COLLAPSED_RANK
    if narrow and len(np.unique(labels)) > 2:
        cause = known or "too high a learning rate, or a loss that asks for no more"
        return f"the latents differ in one direction alone: likely {cause}"
    return ""


def pull_alone(loss: Mapping[str, Any]) -> str:
    """What lets a Siamese loss, as a block of a method, draw all latents together; else empty."""
    if loss.get("name") == "contrastive":
        for key in ("weight_different", "margin_different"):
            if loss.get(key) == 0:
                return f"{key} of 0, by which the loss drives no two classes apart"
    return ""


def principal_components(latents: Real, most: int) -> NDArray[np.float32]:
    """Coordinates of centred latents along their first principal components.

    The sign of each is that in which its loading of largest size is positive, so that the same
    latents give the same picture. A latent that is not finite counts as zero.

    Args:
        latents: (N, D).
        most: components at most.

    Returns:
        (N, min(most, N, D)); zero along what the latents do not span.
    """
    finite = np.where(np.isfinite(latents).all(axis=1, keepdims=True), latents, 0)
    left, lengths, right = _directions(finite)
    largest = np.abs(right).argmax(axis=1)
    left = left * np.sign(right[np.arange(len(right)), largest])
    found = np.zeros((len(latents), min(most, *latents.shape)), np.float32)
    kept = min(found.shape[1], len(lengths))
    found[:, :kept] = (left * lengths)[:, :kept]
    return found


def _standardised(train: Real, val: Real) -> tuple[Array, Array]:
    """Both by the training columns' mean and deviation, in the dimensions that training spans.

    A linear model with a penalty on the length of its weights has none across that span, so that
    leaving it out changes nothing, and N - 1 dimensions are few.
    """
    mean, deviation = (of(train.astype(np.float64), axis=0) for of in (np.mean, np.std))
    varies = deviation > ROUNDING * np.abs(train).max(axis=0, initial=0.0)
    rows, others = (
        (part[:, varies].astype(np.float64) - mean[varies]) / deviation[varies]
        for part in (train, val)
    )
    if rows.shape[1] < len(rows):
        return rows, others
    span = _directions(rows)[2].T
    return rows @ span, others @ span


def _softmax_regression(rows: Array, numbers: Labels, classes: int) -> tuple[Array, Array]:
    """Weights (D, classes) and bias (classes,) by L-BFGS from zero; see ``linear_probe``."""
    from scipy.optimize import minimize

    total, dimensions = rows.shape
    truth = np.eye(classes)[numbers]

    def loss(flat: Array) -> tuple[float, Array]:
        table = flat.reshape(dimensions + 1, classes)
        weights, bias = table[:-1], table[-1]
        logits = rows @ weights + bias
        logits -= logits.max(axis=1, keepdims=True)
        exponents = np.exp(logits)
        sums = exponents.sum(axis=1, keepdims=True)
        entropy = np.log(sums).sum() - (truth * logits).sum()
        error = exponents / sums - truth
        slope = np.vstack([rows.T @ error + weights / PROBE_C, error.sum(axis=0)])
        return (entropy + np.square(weights).sum() / (2 * PROBE_C)) / total, slope.ravel() / total

    start = np.zeros((dimensions + 1) * classes)
    options = {"maxiter": PROBE_STEPS, "ftol": 1e-12, "gtol": 1e-7}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    table = found.x.reshape(dimensions + 1, classes)
    return table[:-1], table[-1]


def _centred(latents: Real) -> Array:
    exact = latents.astype(np.float64)
    return exact - exact.mean(axis=0)


def _rounding(latents: Real) -> float:
    """Length below which a difference of two latents is float32's rounding."""
    largest = np.abs(latents).max(axis=0, initial=0.0).astype(np.float64)
    return ROUNDING * float(np.linalg.norm(largest))


def _directions(latents: Real) -> tuple[Array, Array, Array]:
    """Singular vectors and values of centred latents, (N, r), (r,) and (r, D), beyond rounding."""
    left, lengths, right = np.linalg.svd(_centred(latents), full_matrices=False)
    kept = lengths > _rounding(latents) * np.sqrt(len(latents))
    return left[:, kept], lengths[kept], right[kept]


def _distances(latents: Real) -> Array:
    """Euclidean distances of all latents, (N, N), by ``|a - b|^2 = |a|^2 + |b|^2 - 2 a b``."""
    centred = _centred(latents)
    squares = np.square(centred).sum(axis=1)
    apart = squares[:, None] + squares - 2 * centred @ centred.T
    return np.sqrt(np.where(apart > _rounding(latents) ** 2, apart, 0.0))
