"""The tables of seeds by test units that the crossed model is fitted to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.evaluation.statistics.crossed import Contribution, Floats
from pipeline.params import Compare
from pipeline.records import RunId

Values = Mapping[RunId, Mapping[str, float]]
Contributions = Mapping[RunId, Mapping[str, Contribution]]


def of_units(
    contributions: Contributions, compare: Compare, method: str, shots: int | str, metric: str
) -> Floats | None:
    """Contributions (S, U) of a method at some shots; None where a seed has none.

    Raises:
        ValueError: seeds differ in their number of units or in what a unit is, or one is NaN.
    """
    runs = [RunId(method, shots, seed) for seed in compare.seeds]
    found = [contributions.get(run, {}).get(metric) for run in runs]
    present = [one for one in found if one is not None]
    if len(present) < len(runs):
        return None
    kinds = {(one.unit, len(one.values)) for one in present}
    if len(kinds) > 1:
        raise ValueError(f"{metric} of {method} at {shots} shots: units differ: {sorted(kinds)}")
    return settled(_known(np.stack([one.values for one in present]), method, shots, metric))


def unit_of(
    contributions: Contributions, compare: Compare, method: str, shots: int | str, metric: str
) -> str:
    """What a unit is, where `of_units` has found some."""
    return contributions[RunId(method, shots, compare.seeds[0])][metric].unit


def of_seeds(
    values: Values, compare: Compare, method: str, shots: int | str, metric: str
) -> Floats:
    """A metric's values (S,) of a method at some shots.

    Raises:
        ValueError: one is NaN.
    """
    found = np.array([values[RunId(method, shots, seed)][metric] for seed in compare.seeds])
    return _known(found, method, shots, metric)


def difference(ours: Floats, theirs: Floats) -> Floats:
    """Method minus reference; differences that are zero but for rounding are made exactly so.

    Raises:
        ValueError: the two cannot be paired.
    """
    if ours.shape != theirs.shape or not ours.size:
        raise ValueError(f"values of shape {ours.shape} cannot be paired with {theirs.shape}")
    rounding = _rounding(max(np.abs(ours).max(), np.abs(theirs).max()), ours)
    found = ours - theirs
    return settled(np.where(np.abs(found) <= rounding, 0.0, found), rounding)


def settled(table: Floats, rounding: float | None = None) -> Floats:
    """Values that are all the same but for rounding made exactly so."""
    if rounding is None:
        rounding = _rounding(np.abs(table).max(), table)
    return np.full_like(table, table.flat[0]) if np.ptp(table) <= rounding else table


def _known(table: Floats, method: str, shots: int | str, metric: str) -> Floats:
    """The table, since a NaN would silently turn every p-value that it meets into 1."""
    if np.isnan(table).any():
        raise ValueError(f"{metric} of {method} at {shots} shots: NaN among the values")
    return table


def _rounding(scale: float, table: Floats) -> float:
    """What a jackknife's pseudo-values, U times a metric less U - 1 times one, may be off by."""
    units = table.shape[1] if table.ndim > 1 else 1
    return float(4 * np.finfo(np.float64).eps * units * scale)
