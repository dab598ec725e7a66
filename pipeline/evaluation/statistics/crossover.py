"""From how many training images a class on which method is ahead.

Between two compared numbers of shots each contribution's difference is taken to be linear in the
logarithm of shots. The interpolated table of seeds by units then has its own interval by the same
model, and the shots at which that interval holds 0 are the confidence set of the crossover: the
test of no difference inverted, as in Fieller 1954, "Some problems in interval estimation". Who is
ahead is told by wider intervals, Bonferroni's over the methods compared, so that at a compared
number of shots nobody is ahead without a verdict that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from pipeline.evaluation.statistics import tables
from pipeline.evaluation.statistics.compare import interval, largest
from pipeline.evaluation.statistics.crossed import Floats, Spread, spread
from pipeline.evaluation.statistics.results import (
    ALPHA,
    LEVEL,
    LOWER_IS_BETTER,
    Crossover,
    CurvePoint,
)
from pipeline.evaluation.statistics.tables import Contributions
from pipeline.params import Compare

BETWEEN = 8  # points of the curve between two compared numbers of shots


def crossovers(contributions: Contributions, compare: Compare, metric: str) -> list[Crossover]:
    """Every method's curve against ``compare.reference`` over the compared shots, in their order.

    Shots ``all`` are no number and left out; fewer than two numbers give no curve, nor has a
    method one whose ``metric`` has no contributions.
    """
    shots = sorted(number for number in compare.shots if isinstance(number, int))
    if len(shots) < 2:
        return []
    found = []
    for method in compare.methods:
        if method == compare.reference:
            continue
        differences = _differences(contributions, compare, method, shots, metric)
        if differences is None:
            continue
        names = (method, compare.reference)
        high, low = names[::-1] if metric in LOWER_IS_BETTER else names
        drawn = _drawn(shots, differences, largest(metric))
        points = _curve(drawn, LEVEL)
        means = [float(table.mean()) for table in differences]
        crossings = list(_crossings([float(number) for number in shots], means))
        strict = _curve(drawn, 1 - ALPHA / (len(compare.methods) - 1))
        ahead = _ahead(strict, high, low) if len(compare.seeds) > 1 else []
        found.append(Crossover(method, metric, points, crossings, ahead))
    return found


def _differences(
    contributions: Contributions, compare: Compare, method: str, shots: Sequence[int], metric: str
) -> list[Floats] | None:
    """A table (S, U) for each number of shots; None where one has no interval."""
    found = []
    for number in shots:
        ours = tables.of_units(contributions, compare, method, number, metric)
        theirs = tables.of_units(contributions, compare, compare.reference, number, metric)
        if ours is None or theirs is None or ours.size == 1:
            return None
        found.append(tables.difference(ours, theirs))
    return found


def _drawn(
    shots: Sequence[int], differences: Sequence[Floats], top: float | None
) -> list[tuple[float, float, Spread]]:
    """Shots, mean and spread at the compared shots and `BETWEEN` in each gap, evenly in the log."""
    found = [_at(shots[0], differences[0], top)]
    for (low, high), (at_low, at_high) in zip(pairwise(shots), pairwise(differences), strict=True):
        for part in range(1, BETWEEN + 1):
            share = part / (BETWEEN + 1)
            table = (1 - share) * at_low + share * at_high
            found.append(_at(low * (high / low) ** share, table, top))
        found.append(_at(high, at_high, top))
    return found


def _at(shots: float, table: Floats, top: float | None) -> tuple[float, float, Spread]:
    found = spread(table, top)
    assert found is not None  # tables of a single value have been left out
    return float(shots), float(table.mean()), found


def _curve(drawn: Sequence[tuple[float, float, Spread]], level: float) -> list[CurvePoint]:
    return [CurvePoint(shots, mean, *interval(mean, of, level)) for shots, mean, of in drawn]


def _crossings(shots: Sequence[float], means: Sequence[float]) -> Iterator[float]:
    """Shots at which the line through the means changes sign.

    Where the mean stays 0 from one sign to the other, it is the first such shots.
    """
    signed = [index for index, mean in enumerate(means) if mean != 0]
    for before, after in pairwise(signed):
        if (means[before] > 0) == (means[after] > 0):
            continue
        yield shots[before + 1] if after - before > 1 else _zero(shots, means, after)


def _ahead(points: Sequence[CurvePoint], high: str, low: str) -> list[tuple[float, float, str]]:
    """Stretches in which the interval lies above 0 (``high`` is ahead) or below (``low``).

    They end where the lines between the intervals' ends meet 0.
    """
    shots = [point.shots for point in points]
    above = _stretches(shots, [point.low for point in points])
    below = _stretches(shots, [-point.high for point in points])
    found = [(*stretch, high) for stretch in above] + [(*stretch, low) for stretch in below]
    return sorted(found)


def _stretches(shots: Sequence[float], heights: Sequence[float]) -> Iterator[tuple[float, float]]:
    """From which to which shots the line through the heights is above 0."""
    start: float | None = None
    for index, height in enumerate(heights):
        if height > 0 and start is None:
            start = _zero(shots, heights, index) if index else shots[0]
        if height <= 0 and start is not None:
            yield start, _zero(shots, heights, index)
            start = None
    if start is not None:
        yield start, shots[-1]


def _zero(shots: Sequence[float], heights: Sequence[float], index: int) -> float:
    """Where the line from the point before ``index`` to it, over log shots, meets 0."""
    before, after = heights[index - 1], heights[index]
    share = before / (before - after)
    return float(shots[index - 1] * (shots[index] / shots[index - 1]) ** share)
