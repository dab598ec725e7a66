"""The sign-flip test over seeds: it supposes no distribution, only symmetry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FEWEST_SEEDS = 6  # five cannot come below p = 2 / 2**5 = 0.06
MOST_EXACT = 16  # seeds; beyond, random signs stand for all
DRAWS = 1 << 16


def sign_flip(differences: NDArray[np.float64]) -> float | None:
    """Two-sided p-value of paired differences (S,); None below `FEWEST_SEEDS`.

    Without a true difference each sign is as likely as its opposite: p is the share of all 2^S
    assignments of signs whose sum is at least as far from 0 as the one seen. Beyond `MOST_EXACT`
    seeds the share is that of `DRAWS` assignments from a fixed generator and the one seen.
    Source: Fisher 1935, "The design of experiments", section 21.
    """
    if len(differences) < FEWEST_SEEDS:
        return None
    exact = len(differences) <= MOST_EXACT
    sums = _all_sums(differences) if exact else _some_sums(differences)
    rounding = 1e-12 * np.abs(differences).sum()  # sums that tie do so but for rounding
    return float(np.mean(np.abs(sums) >= abs(differences.sum()) - rounding))


def _all_sums(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    return sums


def _some_sums(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (DRAWS, len(differences)))
    return np.append(signs @ differences, differences.sum())
