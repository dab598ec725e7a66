"""What several seeds say together: means, paired differences, and how sure one may be of them.

Methods share their seeds' training images, starts and batch orders, so they are compared seed by
seed; the spread between seeds that all methods share cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.evaluation.metrics import HEADLINE
from pipeline.params import Compare
from pipeline.records import RunId

LOWER_IS_BETTER = {"test/nll", "test/ece", "test/eer"}  # all others are to be high
LEVEL = 0.95
ALPHA = 0.05

Verdict = Literal["better", "worse", "no difference detected", "too few seeds to tell"]
Values = Mapping[RunId, Mapping[str, float]]


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds and its interval; one seed has none."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """Method minus reference over n paired seeds; one seed has no interval and no p-value.

    ``wins`` counts the seeds in which the method is strictly better.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    wins: int
    n: int


@dataclass(frozen=True)
class Contrast:
    """One row of ``comparison.csv``: a method against the reference, at some shots, in a metric."""

    method: str
    shots: int | str
    metric: str
    comparison: Comparison
    p_adjusted: float | None
    verdict: Verdict


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean of at least one value and its Student t interval with n - 1 degrees of freedom."""
    mean, error = _mean_and_error(np.asarray(values, dtype=np.float64))
    if error is None:
        return Estimate(mean, None, None, len(values))
    half = _half_width(error, len(values), level)
    return Estimate(mean, mean - half, mean + half, len(values))


def paired(
    values: Sequence[float], reference: Sequence[float], higher_is_better: bool = True
) -> Comparison:
    """Paired t test of a method's values against the reference's, seed by seed.

    Differences that agree up to the rounding of the subtraction count as equal: all zero gives
    difference 0 and p 1; all the same but not zero, an interval of no width and p 0.

    Raises:
        ValueError: the two differ in length or are empty.
    """
    ours, theirs = (np.asarray(v, dtype=np.float64) for v in (values, reference))
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"{len(ours)} values cannot be paired with {len(theirs)}")
    n = len(ours)
    differences = _snapped(ours - theirs, scale=max(np.abs(ours).max(), np.abs(theirs).max()))
    wins = int(np.sum(differences > 0 if higher_is_better else differences < 0))
    mean, error = _mean_and_error(differences)
    if error is None:
        return Comparison(mean, None, None, None, wins, n)
    if error == 0:
        return Comparison(mean, mean, mean, 1.0 if mean == 0 else 0.0, wins, n)
    half = _half_width(error, n, LEVEL)
    p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Comparison(mean, mean - half, mean + half, p_value, wins, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p-values, in the order given.

    The k-th smallest of m (from 0) is multiplied by m - k; none may fall below the one before
    it or rise above 1. Source: Holm 1979, "A simple sequentially rejective multiple test
    procedure".
    """
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def verdict(
    comparison: Comparison,
    p_adjusted: float | None,
    higher_is_better: bool,
    alpha: float = ALPHA,
) -> Verdict:
    """What may be said of the method: a direction only where the adjusted p is below alpha."""
    if comparison.n < 2 or p_adjusted is None:
        return "too few seeds to tell"
    if p_adjusted >= alpha or comparison.difference == 0:
        return "no difference detected"
    return "better" if (comparison.difference > 0) == higher_is_better else "worse"


def estimates(
    values: Values, compare: Compare, metrics: Sequence[str] = HEADLINE
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """``{method: {shots: {metric: Estimate}}}`` of ``metrics``, in compare order."""
    return {
        method: {
            str(shots): {
                metric: mean_interval(_over_seeds(values, compare, method, shots, metric))
                for metric in metrics
            }
            for shots in compare.shots
        }
        for method in compare.methods
    }


def contrasts(
    values: Values, compare: Compare, metrics: Sequence[str] = HEADLINE
) -> list[Contrast]:
    """Every other method against ``compare.reference``, in compare order, in each of ``metrics``.

    p-values are adjusted over the methods, within each number of shots and each metric.
    """
    others = [method for method in compare.methods if method != compare.reference]
    found = {
        (row.method, row.shots, row.metric): row
        for shots in compare.shots
        for metric in metrics
        for row in _family(values, compare, others, shots, metric)
    }
    return [
        found[method, shots, metric]
        for method in others
        for shots in compare.shots
        for metric in metrics
    ]


def _family(
    values: Values, compare: Compare, others: list[str], shots: int | str, metric: str
) -> list[Contrast]:
    higher = metric not in LOWER_IS_BETTER
    reference = _over_seeds(values, compare, compare.reference, shots, metric)
    comparisons = [
        paired(_over_seeds(values, compare, method, shots, metric), reference, higher)
        for method in others
    ]
    # all share their seeds, so either every one has a p-value or none has
    p_values = [c.p_value for c in comparisons if c.p_value is not None]
    adjusted: list[float | None] = [*holm(p_values)] if p_values else [None] * len(others)
    return [
        Contrast(method, shots, metric, c, p, verdict(c, p, higher))
        for method, c, p in zip(others, comparisons, adjusted, strict=True)
    ]


def _over_seeds(
    values: Values, compare: Compare, method: str, shots: int | str, metric: str
) -> list[float]:
    return [values[RunId(method, shots, seed)][metric] for seed in compare.seeds]


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float | None]:
    """Mean and its standard error (ddof 1): None for one value, exactly 0 for equal ones."""
    if np.all(values == values[0]):
        return float(values[0]), None if len(values) == 1 else 0.0
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _half_width(error: float, n: int, level: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, n - 1)) * error


def _snapped(differences: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Differences that are zero, or all the same, but for rounding made exactly so."""
    rounding = 4 * np.finfo(np.float64).eps * scale
    differences = np.where(np.abs(differences) <= rounding, 0.0, differences)
    if np.ptp(differences) <= rounding:
        return np.full_like(differences, differences[0])
    return differences
