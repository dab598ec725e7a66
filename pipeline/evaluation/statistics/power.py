"""What so many seeds and test units could have shown, and how many seeds would show enough.

A test at level alpha finds a true difference of nc standard errors with the probability that a
noncentral t variable with noncentrality nc exceeds the critical value (Johnson, Kotz and
Balakrishnan 1995, "Continuous univariate distributions 2", chapter 31).
"""

from __future__ import annotations

from scipy import special

from pipeline.evaluation.statistics.crossed import Components, Spread
from pipeline.evaluation.statistics.results import POWER

MOST_SEEDS = 1000  # more are not asked for


def power(effect: float, spread: Spread, alpha: float) -> float:
    """Probability that a two-sided test at ``alpha`` finds a true difference of size ``effect``.

    What is found with the wrong sign does not count. ``spread.error`` must be above 0.
    """
    critical = special.stdtrit(spread.df, 1 - alpha / 2)
    return float(1 - special.nctdtr(spread.df_of_error, effect / spread.error, critical))


def detectable(spread: Spread, alpha: float) -> float:
    """The smallest true difference that a two-sided test at ``alpha`` finds with `POWER`."""
    critical = special.stdtrit(spread.df, 1 - alpha / 2)
    return float(spread.error * special.nctdtrinc(spread.df_of_error, 1 - POWER, critical))


def seeds_needed(components: Components, units: int, effect: float, alpha: float) -> int | None:
    """The fewest seeds (2 to `MOST_SEEDS`) whose test at ``alpha`` finds ``effect`` with `POWER`.

    None where `MOST_SEEDS` would not do: the ``units`` of the test set are too few.
    """
    for seeds in range(2, MOST_SEEDS + 1):
        if power(effect, components.spread(seeds, units), alpha) >= POWER:
            return seeds
    return None
