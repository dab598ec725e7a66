"""Runs that were never made: their values and contributions, and what compares them."""

import numpy as np

from pipeline.evaluation.statistics import Contribution
from pipeline.params import Compare
from pipeline.records import RunId

ACCURACY = "test/accuracy"


def compare_of(methods, shots=(5,), seeds=3, smallest_effect=0.02):
    """The last of ``methods`` is the reference."""
    return Compare(
        breakdowns=list(methods[:-1]),
        baselines=[methods[-1]],
        reference=methods[-1],
        shots=list(shots),
        seeds=list(range(seeds)),
        smallest_effect=smallest_effect,
    )


def runs_from(tables, metric=ACCURACY, unit="image"):
    """Values and contributions from ``{(method, shots): table (S, U)}``."""
    contributions = {
        RunId(method, shots, seed): {metric: Contribution(np.asarray(row, float), unit)}
        for (method, shots), table in tables.items()
        for seed, row in enumerate(table)
    }
    values = {
        run: {name: float(found.values.mean()) for name, found in metrics.items()}
        for run, metrics in contributions.items()
    }
    return values, contributions
