"""What several seeds and many test images say together, and how sure one may be of it."""

from pipeline.evaluation.statistics.compare import contrasts, estimates, variances
from pipeline.evaluation.statistics.crossed import Contribution
from pipeline.evaluation.statistics.crossover import crossovers
from pipeline.evaluation.statistics.multiple import holm
from pipeline.evaluation.statistics.pairwise import pairwise
from pipeline.evaluation.statistics.results import (
    ALPHA,
    LEVEL,
    LOWER_IS_BETTER,
    POWER,
    Comparison,
    Contrast,
    Crossover,
    CurvePoint,
    Estimate,
    Pair,
    Population,
    Variance,
    Verdict,
)

__all__ = [
    "ALPHA",
    "LEVEL",
    "LOWER_IS_BETTER",
    "POWER",
    "Comparison",
    "Contrast",
    "Contribution",
    "Crossover",
    "CurvePoint",
    "Estimate",
    "Pair",
    "Population",
    "Variance",
    "Verdict",
    "contrasts",
    "crossovers",
    "estimates",
    "holm",
    "pairwise",
    "variances",
]
