"""What the statistics find, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Population = Literal["both", "seeds", "units", "none"]
"""What an interval speaks of: new seeds and new test units, one of the two, or there is none."""

Verdict = Literal["better", "worse", "no difference detected", "too few seeds to tell"]

LOWER_IS_BETTER = {"test/nll", "test/ece", "test/eer"}  # all others are to be high
UNBOUNDED = {"test/nll"}  # all others are shares, from 0 to 1
LEVEL = 0.95  # of intervals
ALPHA = 0.05  # a wrong verdict's probability, over all methods compared
POWER = 0.8  # with which what is called detectable is found


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds and its interval for ``population``; None where there is none."""

    mean: float
    low: float | None
    high: float | None
    n: int
    population: Population = "none"


@dataclass(frozen=True)
class Comparison:
    """Method minus reference over n paired seeds; interval and p-value from one model.

    Attributes:
        difference: mean over seeds.
        low, high: its 95 % interval, for ``population``.
        p_value: two-sided, not adjusted; None with one seed.
        wins: seeds in which the method is strictly better.
        n: seeds.
        population: what the interval speaks of.
        error: standard error of the difference; 0 only where no unit of any seed differs.
        df: degrees of freedom of its t distribution.
        detectable: the smallest true difference that these runs would have shown with a power of
            80 %, at the level that Holm's adjustment leaves the smallest p; None with one seed
            and where nothing varies.
        seeds_needed: how many seeds would show ``compare.smallest_effect`` so, 2 to 1,000; None
            where that many would not, since the test set is too small, and where ``detectable``
            is None. Of the primary metric alone. As estimates of variance from few seeds are
            rough, so is it.
        sign_flip_p: p-value of the exact sign-flip test over seeds, from six seeds on.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    wins: int
    n: int
    population: Population = "none"
    error: float | None = None
    df: float | None = None
    detectable: float | None = None
    seeds_needed: int | None = None
    sign_flip_p: float | None = None


@dataclass(frozen=True)
class Contrast:
    """One row of ``comparison.csv``: a method against the reference, at some shots, in a metric."""

    method: str
    shots: int | str
    metric: str
    comparison: Comparison
    p_adjusted: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Pair:
    """One row of ``pairwise.csv``: two methods, at some shots, in the primary metric.

    ``comparison`` is of method minus other, without power; ``p_adjusted`` is for all pairs of
    methods at these shots.
    """

    method: str
    other: str
    shots: int | str
    comparison: Comparison
    p_adjusted: float | None


@dataclass(frozen=True)
class Variance:
    """One row of ``variance.csv``: where the spread of a metric comes from.

    Attributes:
        of: ``value`` of the method, or its ``difference`` to the reference.
        seeds: standard deviation between seeds (training images, initialisation, order).
        units: between test units.
        rest: of both together: which units are hard depends on the seed.
        unit: what a unit is, such as ``image``.
        share_of_seeds: of the variance of the mean, what more seeds would take away, 0 to 1.
    """

    method: str
    shots: int | str
    metric: str
    of: Literal["value", "difference"]
    seeds: float
    units: float
    rest: float
    unit: str
    share_of_seeds: float


@dataclass(frozen=True)
class CurvePoint:
    """The difference to the reference at some shots, between compared ones interpolated."""

    shots: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Crossover:
    """From how many training images a class on another method is ahead.

    Attributes:
        method: compared with the reference.
        metric: the primary one.
        curve: the difference over shots, on a grid that holds the compared shots.
        crossings: shots at which the interpolated mean difference changes its sign.
        ahead: stretches (low shots, high shots, method's name) in which the interval of the
            difference, widened for the number of methods compared, leaves out zero; all else is
            undecided, and with one seed everything. Intervals hold at each point, not
            for the whole curve at once.
    """

    method: str
    metric: str
    curve: list[CurvePoint]
    crossings: list[float]
    ahead: list[tuple[float, float, str]]
