"""Every method's metrics and its differences to the reference, with intervals and verdicts.

Methods share their seeds' training images, starts and batch orders, and their test images, so
they are compared seed by seed and unit by unit; what all methods share cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from scipy import special

from pipeline.evaluation.statistics import tables
from pipeline.evaluation.statistics.crossed import Floats, Spread, components, spread
from pipeline.evaluation.statistics.multiple import holm
from pipeline.evaluation.statistics.power import detectable, seeds_needed
from pipeline.evaluation.statistics.results import (
    ALPHA,
    LEVEL,
    LOWER_IS_BETTER,
    UNBOUNDED,
    Comparison,
    Contrast,
    Estimate,
    Population,
    Variance,
    Verdict,
)
from pipeline.evaluation.statistics.sign_flip import sign_flip
from pipeline.evaluation.statistics.tables import Contributions, Values
from pipeline.params import Compare


def estimates(
    values: Values, contributions: Contributions, compare: Compare, metrics: Sequence[str]
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """``{method: {shots: {metric: Estimate}}}`` of ``metrics``, in compare order.

    A metric without contributions gets Student's t interval over seeds. No interval reaches
    beyond what the metric can be.
    """
    return {
        method: {
            str(shots): {
                metric: estimate(
                    tables.of_seeds(values, compare, method, shots, metric),
                    tables.of_units(contributions, compare, method, shots, metric),
                    top=largest(metric),
                )
                for metric in metrics
            }
            for shots in compare.shots
        }
        for method in compare.methods
    }


def largest(metric: str) -> float | None:
    """The largest value, or difference, that a metric can have, if there is one."""
    return None if metric in UNBOUNDED else 1.0


def estimate(values: Floats, table: Floats | None = None, top: float | None = None) -> Estimate:
    """Mean of a metric's values (S,) and its interval.

    Args:
        values: one a seed.
        table: their contributions (S, U), if it has any.
        top: the largest value that there can be, if one is; the smallest is 0.
    """
    table = values[:, None] if table is None else table
    mean, found = float(tables.settled(values).mean()), spread(table, top)
    if found is None:
        return Estimate(mean, None, None, len(values))
    low, high = interval(mean, found)
    low = min(mean, max(0.0, low))
    high = max(mean, high if top is None else min(top, high))
    return Estimate(mean, low, high, len(values), population(table))


def contrasts(
    values: Values,
    contributions: Contributions,
    compare: Compare,
    metrics: Sequence[str],
    primary: str,
) -> list[Contrast]:
    """Every other method against ``compare.reference``, in compare order, in each of ``metrics``.

    p-values are adjusted over the methods, within each number of shots and each metric. Of the
    metric ``primary`` it is said how many seeds would show ``compare.smallest_effect``.
    """
    others = [method for method in compare.methods if method != compare.reference]
    found = {
        (row.method, row.shots, row.metric): row
        for shots in compare.shots
        for metric in metrics
        for row in _family(
            _comparisons(values, contributions, compare, shots, metric, metric == primary),
            shots,
            metric,
        )
    }
    return [
        found[method, shots, metric]
        for method in others
        for shots in compare.shots
        for metric in metrics
    ]


def comparison(
    values: Floats,
    table: Floats | None = None,
    higher_is_better: bool = True,
    compared: int = 1,
    smallest_effect: float | None = None,
    top: float | None = None,
) -> Comparison:
    """The paired difference to the reference, its interval and its test.

    Args:
        values: differences of the metric (S,).
        table: differences of the contributions (S, U), if it has any.
        higher_is_better: which differences count as wins.
        compared: how many methods are compared with the reference; the power is that of the
            strictest step of Holm's adjustment.
        smallest_effect: the difference that ``seeds_needed`` is to be found for.
        top: the largest difference that there can be, if one is.
    """
    table = values[:, None] if table is None else table
    judged, found = tested(values, table, higher_is_better, top)
    if found is None or len(values) == 1:
        return judged
    varies = np.ptp(table) > 0  # what does not vary says nothing of what might have been found
    alpha = ALPHA / compared
    seen = detectable(found, alpha) if varies else None
    needed = _seeds_needed(table, smallest_effect, alpha) if varies else None
    if seen is not None and smallest_effect is not None and seen <= smallest_effect:
        needed = min(needed or judged.n, judged.n)  # these have been enough, whatever is estimated
    return replace(judged, detectable=seen, seeds_needed=needed, sign_flip_p=sign_flip(values))


def tested(
    values: Floats, table: Floats, higher_is_better: bool = True, top: float | None = None
) -> tuple[Comparison, Spread | None]:
    """As `comparison`, without power and sign flips, and the spread that it rests on."""
    mean, n = float(values.mean()), len(values)
    wins = int(np.sum(values > 0 if higher_is_better else values < 0))
    found = spread(table, top)
    if found is None:
        return Comparison(mean, None, None, None, wins, n), None
    p = p_value(mean, found) if n > 1 else None
    low, high = interval(mean, found)
    if top is not None:
        low, high = max(low, -top), min(high, top)
    return Comparison(mean, low, high, p, wins, n, population(table), found.error, found.df), found


def variances(
    contributions: Contributions, compare: Compare, metrics: Sequence[str]
) -> list[Variance]:
    """Where spread comes from, of every method and of its difference to the reference.

    There is a row where the model can tell seeds from units: two of each at least.
    """
    return [
        row
        for method in compare.methods
        for shots in compare.shots
        for metric in metrics
        for row in _variances(contributions, compare, method, shots, metric)
    ]


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


def interval(mean: float, spread: Spread, level: float = LEVEL) -> tuple[float, float]:
    """Student's t interval around a mean."""
    half = float(special.stdtrit(spread.df, (1 + level) / 2)) * spread.error
    return mean - half, mean + half


def p_value(mean: float, spread: Spread) -> float:
    """Two-sided p-value of a mean that would be 0 without a difference."""
    if mean == 0 or spread.error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.stdtr(spread.df, -abs(mean) / spread.error))


def population(table: Floats) -> Population:
    """What an interval from a table (S, U) speaks of."""
    seeds, units = (number > 1 for number in table.shape)
    if seeds and units:
        return "both"
    return "seeds" if seeds else "units" if units else "none"


def _comparisons(
    values: Values,
    contributions: Contributions,
    compare: Compare,
    shots: int | str,
    metric: str,
    is_primary: bool,
) -> Mapping[str, Comparison]:
    """Of every other method, at some shots and in a metric."""
    others = [method for method in compare.methods if method != compare.reference]
    reference = tables.of_seeds(values, compare, compare.reference, shots, metric)
    reference_table = tables.of_units(contributions, compare, compare.reference, shots, metric)
    found = {}
    for method in others:
        ours = tables.of_seeds(values, compare, method, shots, metric)
        table = tables.of_units(contributions, compare, method, shots, metric)
        paired = None
        if table is not None and reference_table is not None:
            paired = tables.difference(table, reference_table)
        found[method] = comparison(
            tables.difference(ours, reference),
            paired,
            metric not in LOWER_IS_BETTER,
            len(others),
            compare.smallest_effect if is_primary else None,
            largest(metric),
        )
    return found


def _family(
    comparisons: Mapping[str, Comparison], shots: int | str, metric: str
) -> Iterator[Contrast]:
    """Rows of methods whose p-values are adjusted for one another."""
    # all share their seeds, so either every one has a p-value or none has
    p_values = [c.p_value for c in comparisons.values() if c.p_value is not None]
    adjusted: list[float | None] = [*holm(p_values)] if p_values else [None] * len(comparisons)
    for (method, found), p in zip(comparisons.items(), adjusted, strict=True):
        judged = verdict(found, p, metric not in LOWER_IS_BETTER)
        yield Contrast(method, shots, metric, found, p, judged)


def _seeds_needed(table: Floats, effect: float | None, alpha: float) -> int | None:
    found = components(table)
    if effect is None or found is None:
        return None
    return seeds_needed(found, table.shape[1], effect, alpha)


def _variances(
    contributions: Contributions, compare: Compare, method: str, shots: int | str, metric: str
) -> Iterator[Variance]:
    table = tables.of_units(contributions, compare, method, shots, metric)
    if table is None or population(table) != "both":
        return
    unit = tables.unit_of(contributions, compare, method, shots, metric)
    row = (method, shots, metric)
    yield _variance(*row, "value", table, unit)
    theirs = tables.of_units(contributions, compare, compare.reference, shots, metric)
    if method != compare.reference and theirs is not None:
        yield _variance(*row, "difference", tables.difference(table, theirs), unit)


def _variance(
    method: str,
    shots: int | str,
    metric: str,
    of: Literal["value", "difference"],
    table: Floats,
    unit: str,
) -> Variance:
    """One row from a table (S, U) of two seeds and two units at least."""
    found = components(table)
    assert found is not None  # there are two seeds
    seeds, units = table.shape
    by_seeds = found.seeds / seeds + found.rest / (seeds * units)
    of_mean = by_seeds + found.units / units
    return Variance(
        *(method, shots, metric, of),
        seeds=found.seeds**0.5,
        units=found.units**0.5,
        rest=found.rest**0.5,
        unit=unit,
        share_of_seeds=by_seeds / of_mean if of_mean else 0.0,
    )
