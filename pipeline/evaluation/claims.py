"""What a breakdown is said to do, each claim beside what was measured.

The claims are those of optimization objective breakdown: it makes the latent linearly separable,
its gradients neither vanish nor explode, it overfits less, and so it trains better, for less. What
can be measured is how it does beside the reference, so each is taken as a comparison with that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.evaluation.collect import Evidence, Run
from pipeline.evaluation.diagnosis import ACCURACY_GAP, LOSS_GAP, PROBE_VAL, SEPARABLE
from pipeline.evaluation.statistics import tables
from pipeline.evaluation.statistics.compare import comparison
from pipeline.evaluation.statistics.results import Contrast
from pipeline.params import Compare

IMAGES_SEEN = "cost/images_seen"
GRADIENTS = "grad/log10_first_to_last"
MOST_ORDERS = 12.0  # a gradient that is zero is taken for one that is so many orders smaller
ENCODER, HEAD = "encoder", "head"  # how phases before and behind the latent are named
PREFIX = re.compile(r"\A(encoder\.)+")  # before the names of the network's layers, in verification
APART = "no two layers that both train together; each from its own first to its own last"
MATCHED = "the budget is matched"

Finding = Literal["held", "did not hold", "equal", "undecided", "not measured"]
OF_VERDICT: dict[str, Finding] = {"better": "held", "worse": "did not hold"}
Number = Callable[[Run], float | None]


@dataclass(frozen=True)
class Claim:
    """One row of ``claims.csv``: a claim about a breakdown, and one measure of it.

    Attributes:
        method, shots: of the breakdown.
        claim: a word for it.
        measure: the metric it is judged by.
        value, reference: means over seeds, of the method and of ``compare.reference``.
        difference, low, high: between them, with its 95 % interval; None where there is none.
        n: paired seeds.
        verdict: by this measure.
        decides: whether the claim goes by this measure, the first of its rows; others stand beside.
        note: what else is to be known: the layers that were compared, or why none were.
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
    decides: bool = True
    note: str = ""


class Stretch(NamedTuple):
    """The first and the last of the layers that two methods both train together."""

    first: str
    last: str


class _Pair(NamedTuple):
    """The runs of a breakdown and of the reference at some shots, seed by seed."""

    method: str
    shots: int | str
    runs: Sequence[Run]
    references: Sequence[Run]


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


def shared_stretch(ours: pd.DataFrame, theirs: pd.DataFrame) -> Stretch | None:
    """The longest stretch of layers that some phase of either method trains together.

    Of runs' ``phase,epoch,layer,norm``, layers in the network's order. Heads do not count, and
    phases of our encoder come before others of ours. None without two layers.
    """
    found = [
        (phase.startswith(ENCODER), shared)
        for (phase, layers), (_, others) in product(_phases(ours), _phases(theirs))
        if len(shared := [layer for layer in layers if layer in others]) > 1
    ]
    if not found:
        return None
    _, longest = max(found, key=lambda of: (of[0], len(of[1])))  # of equals the first
    return Stretch(longest[0], longest[-1])


def gradient_imbalance(gradients: pd.DataFrame, stretch: Stretch | None = None) -> float | None:
    """By how many orders of magnitude two layers' gradients differ, mean over epochs.

    mean over epochs of |log10(norm of the first layer / norm of the last)|, so 0 where gradients
    neither vanish nor explode on their way; a mean of ratios would let the one make up for the
    other.

    Args:
        gradients: a run's ``phase,epoch,layer,norm``, layers in the network's order.
        stretch: the two layers; else an epoch's own first and last. The epochs count in which both
            were trained, those of heads do not.

    Returns:
        None where there is no such epoch.
    """
    trained = _without_heads(gradients)
    if stretch is not None:
        trained = trained[trained["layer"].isin(stretch)]
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
    pair = _Pair(method, shots, runs, references)
    yield from _separable(pair)
    yield _balanced(pair)
    yield _measured(pair, "overfitting", ACCURACY_GAP, lower=True)
    yield replace(_measured(pair, "overfitting", LOSS_GAP, lower=True), decides=False)
    primary = evidence.tested.primary
    for row in contrasts:
        if (row.method, row.shots, row.metric) == (method, shots, primary):
            yield _better(row, pair)
    yield _cheaper(pair, compare.budget == "matched")


def _separable(pair: _Pair) -> Iterator[Claim]:
    """Separable pairs are what the claim says, but they often cannot tell methods apart."""
    separable, probe = (_measured(pair, "separable", name) for name in (SEPARABLE, PROBE_VAL))
    differ = any((separable.difference, separable.low, separable.high))
    first, beside = (separable, probe) if differ else (probe, separable)
    yield first
    yield replace(beside, decides=False)


def _balanced(pair: _Pair) -> Claim:
    """Over the same layers of both, since more layers have more room to vanish in."""
    ours, theirs = (
        pd.concat([r.gradients[["phase", "layer"]] for r in of])
        for of in (pair.runs, pair.references)
    )
    stretch = shared_stretch(ours, theirs)

    def imbalance(run: Run) -> float | None:
        gradients = run.gradients.assign(layer=run.gradients["layer"].map(_plain))
        return gradient_imbalance(gradients, stretch)

    found = _measured(pair, "gradients", GRADIENTS, imbalance, lower=True)
    if stretch is not None:
        return replace(found, note=f"{stretch.first} and {stretch.last}")
    return replace(found, difference=None, low=None, high=None, verdict="not measured", note=APART)


def _measured(
    pair: _Pair, claim: str, measure: str, of: Number | None = None, lower: bool = False
) -> Claim:
    """A claim judged by the paired differences of a number of each run, ``measure`` if not ``of``.

    Args:
        pair: the runs.
        claim: a word for it.
        measure: what the number is called.
        of: the number.
        lower: whether it holds where the method's are lower.
    """
    number = of or _value(measure)
    ours, theirs = _known(number, pair.runs), _known(number, pair.references)
    here = (pair.method, pair.shots, claim, measure)
    value, reference = (None if known is None else float(known.mean()) for known in (ours, theirs))
    if ours is None or theirs is None:
        return Claim(*here, value, reference, None, None, None, len(pair.runs), "not measured")
    found = comparison(tables.difference(ours, theirs))
    verdict = _finding(found.low, found.high, lower)
    return Claim(
        *(*here, value, reference),
        *(found.difference, found.low, found.high, found.n, verdict),
    )


def _finding(low: float | None, high: float | None, lower: bool) -> Finding:
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    return "held" if (high < 0) == lower else "did not hold"


def _better(row: Contrast, pair: _Pair) -> Claim:
    """By the verdict of the comparison, which is adjusted for the number of methods."""
    found = row.comparison
    value, reference = (
        float(np.mean([run.values[row.metric] for run in of]))
        for of in (pair.runs, pair.references)
    )
    return Claim(
        *(row.method, row.shots, "better", row.metric, value, reference),
        *(found.difference, found.low, found.high, found.n),
        OF_VERDICT.get(row.verdict, "undecided"),
    )


def _cheaper(pair: _Pair, matched: bool) -> Claim:
    """What a run costs in images is set, not sampled; where it was set equal, nothing is shown."""
    number = _value(IMAGES_SEEN)
    ours, theirs = _known(number, pair.runs), _known(number, pair.references)
    here = (pair.method, pair.shots, "cheaper", IMAGES_SEEN)
    if ours is None or theirs is None:
        return Claim(*here, None, None, None, None, None, len(pair.runs), "not measured")
    value, reference = float(ours.mean()), float(theirs.mean())
    found: Finding = "equal"
    if value != reference:
        found = "held" if value < reference else "did not hold"
    return Claim(
        *(*here, value, reference, value - reference, None, None, len(ours)),
        verdict="not measured" if matched else found,
        note=MATCHED if matched else "",
    )


def _value(name: str) -> Number:
    return lambda run: run.values.get(name)


def _known(of: Number, runs: Sequence[Run]) -> NDArray[np.float64] | None:
    """The number of each run, if every one has a finite one."""
    found = [value for run in runs if (value := of(run)) is not None and np.isfinite(value)]
    return np.array(found) if found and len(found) == len(runs) else None


def _without_heads(gradients: pd.DataFrame) -> pd.DataFrame:
    return gradients[~gradients["phase"].str.startswith(HEAD)]


def _phases(gradients: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """The phases but heads, and the layers that each trains, in the network's order."""
    groups = _without_heads(gradients).groupby("phase", sort=False)["layer"]
    return [(str(phase), [*dict.fromkeys(map(_plain, layers))]) for phase, layers in groups]


def _plain(layer: str) -> str:
    """A layer's name in the network as it is built, wherever that stands."""
    return PREFIX.sub("", layer)
