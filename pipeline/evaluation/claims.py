"""What the breakdown is said to do, each claim beside what was measured.

The claims are those of optimization objective breakdown: it makes the latent linearly separable,
its gradients neither vanish nor explode, it overfits less, and so it trains better, for less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pipeline.evaluation.collect import Evidence, Run
from pipeline.evaluation.diagnosis import ACCURACY_GAP, LOSS_GAP, PROBE_VAL, SEPARABLE
from pipeline.evaluation.statistics.results import Contrast
from pipeline.params import Compare

LEVEL = 0.95
IMAGES_SEEN = "cost/images_seen"
GRADIENTS = "grad/log10_first_to_last"
MOST_ORDERS = 12.0  # a gradient that is zero is taken for one that is so many orders smaller
HEAD = "head"  # phases of this name train what lies behind the latent

Finding = Literal["held", "did not hold", "undecided", "not measured"]
OF_VERDICT: dict[str, Finding] = {"better": "held", "worse": "did not hold"}


@dataclass(frozen=True)
class Measure:
    """By what a claim is judged: a number of each run, and which way it should lie."""

    claim: str
    name: str
    of: Callable[[Run], float | None]
    lower: bool = False


@dataclass(frozen=True)
class Claim:
    """One row of ``claims.csv``: a claim about a breakdown, and one measure of it.

    ``value`` and ``reference`` are means over seeds, ``difference`` theirs, with its 95 % interval
    over ``n`` paired seeds; None where there is none. The first measure of a claim decides it.
    """

    method: str
    shots: int | str
    claim: str
    measure: str
    value: float | None
    reference: float | None
    difference: float | None
    low: float | None
    high: float | None
    n: int
    verdict: Finding


def rows(evidence: Evidence, compare: Compare, contrasts: Sequence[Contrast]) -> list[Claim]:
    """Every claim about every breakdown but the reference, at all shots, in compare order.

    Args:
        evidence: all compared runs.
        compare: the methods and their reference.
        contrasts: with those of the primary metric, whose verdicts are taken over.
    """
    return [
        claim
        for method in compare.breakdowns
        if method != compare.reference
        for shots in compare.shots
        for claim in _claims(evidence, compare, contrasts, method, shots)
    ]


def gradient_imbalance(gradients: pd.DataFrame) -> float | None:
    """By how many orders of magnitude first and last layer's gradients differ, mean over epochs.

    mean over epochs of |log10(norm of the first layer / norm of the last)|, so 0 where gradients
    neither vanish nor explode on their way; a mean of ratios would let the one make up for the
    other. Of a run's ``phase,epoch,layer,norm``, layers in the network's order, the epochs count
    in which several layers of the encoder, or of the whole network, were trained; heads do not.
    None where there is none.
    """
    trained = gradients[~gradients["phase"].str.startswith(HEAD)]
    first, last = (
        trained.drop_duplicates(["phase", "epoch"], keep=which) for which in ("first", "last")
    )
    several = first.index.to_numpy() != last.index.to_numpy()
    a, b = (of["norm"].to_numpy(np.float64)[several] for of in (first, last))
    told = np.isfinite(a) & np.isfinite(b) & (np.maximum(a, b) > 0)
    if not told.any():
        return None
    with np.errstate(divide="ignore"):  # a norm of zero is capped below
        orders = np.abs(np.log10(a[told]) - np.log10(b[told]))
    return float(np.minimum(orders, MOST_ORDERS).mean())


def _value(name: str) -> Callable[[Run], float | None]:
    return lambda run: run.values.get(name)


MEASURES = (
    Measure("separable", PROBE_VAL, _value(PROBE_VAL)),
    Measure("separable", SEPARABLE, _value(SEPARABLE)),
    Measure("gradients", GRADIENTS, lambda run: gradient_imbalance(run.gradients), lower=True),
    Measure("overfitting", ACCURACY_GAP, _value(ACCURACY_GAP), lower=True),
    Measure("overfitting", LOSS_GAP, _value(LOSS_GAP), lower=True),
)


def _claims(
    evidence: Evidence,
    compare: Compare,
    contrasts: Sequence[Contrast],
    method: str,
    shots: int | str,
) -> Iterator[Claim]:
    runs, references = (
        [r for r in evidence.runs if (r.id.method, r.id.shots) == (name, shots)]
        for name in (method, compare.reference)
    )
    for measure in MEASURES:
        yield _measured(measure, method, shots, runs, references)
    primary = evidence.tested.primary
    for row in contrasts:
        if (row.method, row.shots, row.metric) == (method, shots, primary):
            yield _better(row, runs, references)
    yield _cheaper(method, shots, runs, references, compare.budget == "matched")


def _measured(
    measure: Measure,
    method: str,
    shots: int | str,
    runs: Sequence[Run],
    references: Sequence[Run],
) -> Claim:
    """A claim judged by the interval of the paired differences."""
    ours, theirs = _known(measure.of, runs), _known(measure.of, references)
    here = (method, shots, measure.claim, measure.name)
    if ours is None or theirs is None:
        value, reference = (None if of is None else float(of.mean()) for of in (ours, theirs))
        return Claim(*here, value, reference, None, None, None, len(runs), "not measured")
    difference, low, high = t_interval(ours - theirs)
    found = _finding(low, high, measure.lower)
    return Claim(
        *(*here, float(ours.mean()), float(theirs.mean())),
        *(difference, low, high, len(ours), found),
    )


def t_interval(
    differences: NDArray[np.float64], level: float = LEVEL
) -> tuple[float, float | None, float | None]:
    """Mean of paired differences (n,) and its Student t interval; one alone has no interval."""
    mean, n = float(differences.mean()), len(differences)
    if n < 2:
        return mean, None, None
    error = float(differences.std(ddof=1)) / n**0.5
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return mean, mean - half, mean + half


def _finding(low: float | None, high: float | None, lower: bool) -> Finding:
    """Seeds that agree to the last bit may do so by chance: no spread decides nothing."""
    if low is None or high is None or low == high or low <= 0 <= high:
        return "undecided"
    return "held" if (high < 0) == lower else "did not hold"


def _better(row: Contrast, runs: Sequence[Run], references: Sequence[Run]) -> Claim:
    found = row.comparison
    value, reference = (
        float(np.mean([run.values[row.metric] for run in of])) for of in (runs, references)
    )
    return Claim(
        *(row.method, row.shots, "better", row.metric, value, reference),
        *(found.difference, found.low, found.high, found.n),
        OF_VERDICT.get(row.verdict, "undecided"),
    )


def _cheaper(
    method: str,
    shots: int | str,
    runs: Sequence[Run],
    references: Sequence[Run],
    matched: bool,
) -> Claim:
    """What a run costs in images is set, not sampled; where it was set equal, nothing is shown."""
    ours, theirs = _known(_value(IMAGES_SEEN), runs), _known(_value(IMAGES_SEEN), references)
    here = (method, shots, "cheaper", IMAGES_SEEN)
    if ours is None or theirs is None:
        return Claim(*here, None, None, None, None, None, len(runs), "not measured")
    value, reference = float(ours.mean()), float(theirs.mean())
    found: Finding = "held" if value < reference else "did not hold"
    return Claim(
        *(*here, value, reference, value - reference, None, None, len(ours)),
        "not measured" if matched else found,
    )


def _known(of: Callable[[Run], float | None], runs: Sequence[Run]) -> NDArray[np.float64] | None:
    """The number of each run, if every one has a finite one."""
    found = [value for run in runs if (value := of(run)) is not None and np.isfinite(value)]
    return np.array(found) if found and len(found) == len(runs) else None
