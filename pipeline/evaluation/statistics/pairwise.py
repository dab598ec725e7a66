"""Every method against every other, not just against the reference.

Two methods that do not differ detectably from a third may still differ from each other, so which
method to use is told by these comparisons.
"""

from __future__ import annotations

from itertools import combinations

from pipeline.evaluation.statistics import tables
from pipeline.evaluation.statistics.compare import largest, tested
from pipeline.evaluation.statistics.crossed import Floats
from pipeline.evaluation.statistics.multiple import holm
from pipeline.evaluation.statistics.results import LOWER_IS_BETTER, Comparison, Pair
from pipeline.evaluation.statistics.tables import Contributions, Values
from pipeline.params import Compare


def pairwise(
    values: Values, contributions: Contributions, compare: Compare, metric: str
) -> list[Pair]:
    """All pairs of methods in ``metric``, by shots and then in compare order.

    The model is that of the comparisons with the reference; p-values are adjusted over all pairs
    of one number of shots.

    Raises:
        ValueError: a value is NaN, or runs cannot be paired.
    """
    return [
        pair
        for shots in compare.shots
        for pair in _family(values, contributions, compare, shots, metric)
    ]


def _family(
    values: Values, contributions: Contributions, compare: Compare, shots: int | str, metric: str
) -> list[Pair]:
    """The pairs at some shots, whose p-values are adjusted for one another."""
    runs = {
        method: (
            tables.of_seeds(values, compare, method, shots, metric),
            tables.of_units(contributions, compare, method, shots, metric),
        )
        for method in compare.methods
    }
    found = {
        (method, other): _compared(runs[method], runs[other], metric)
        for method, other in combinations(compare.methods, 2)
    }
    # all share their seeds, so either every pair has a p-value or none has
    p_values = [of.p_value for of in found.values() if of.p_value is not None]
    adjusted: list[float | None] = [*holm(p_values)] if p_values else [None] * len(found)
    return [
        Pair(method, other, shots, of, p)
        for ((method, other), of), p in zip(found.items(), adjusted, strict=True)
    ]


def _compared(
    ours: tuple[Floats, Floats | None], theirs: tuple[Floats, Floats | None], metric: str
) -> Comparison:
    """Of values (S,) and, where both have them, contributions (S, U)."""
    values, table = tables.difference(ours[0], theirs[0]), None
    if ours[1] is not None and theirs[1] is not None:
        table = tables.difference(ours[1], theirs[1])
    table = values[:, None] if table is None else table
    return tested(values, table, metric not in LOWER_IS_BETTER, largest(metric))[0]
