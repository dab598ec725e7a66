"""All that the statistics say of the evidence, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluation import claims
from pipeline.evaluation.claims import Claim
from pipeline.evaluation.collect import Evidence, UnitInterval
from pipeline.evaluation.statistics import (
    Contrast,
    Crossover,
    Estimate,
    Pair,
    Variance,
    contrasts,
    crossovers,
    estimates,
    pairwise,
    variances,
)
from pipeline.params import Compare

Estimates = Mapping[str, Mapping[str, Mapping[str, Estimate]]]


@dataclass(frozen=True)
class Findings:
    """What the statistics say of the evidence.

    ``estimates`` are ``{method: {str(shots): {metric: Estimate}}}``; ``pairs`` are those of all
    methods, in the primary metric.
    """

    estimates: Estimates
    contrasts: Sequence[Contrast]
    pairs: Sequence[Pair]
    variances: Sequence[Variance]
    crossovers: Sequence[Crossover]
    claims: Sequence[Claim]
    intervals: Sequence[UnitInterval]


def find(evidence: Evidence, compare: Compare, intervals: Sequence[UnitInterval]) -> Findings:
    """All findings, in compare order.

    Args:
        evidence: all compared runs.
        compare: which they are, and the reference.
        intervals: how far scores hang on what is tested, as the task has it.
    """
    tested = evidence.tested
    values = {run.id: run.values for run in evidence.runs}
    contributions = {run.id: run.contributions for run in evidence.runs}
    compared = contrasts(values, contributions, compare, tested.metrics, tested.primary)
    return Findings(
        estimates=estimates(values, contributions, compare, tested.metrics),
        contrasts=compared,
        pairs=pairwise(values, contributions, compare, tested.primary),
        variances=variances(contributions, compare, tested.headline),
        crossovers=crossovers(contributions, compare, tested.primary),
        claims=claims.rows(evidence, compare, compared),
        intervals=intervals,
    )
