"""Numbers and findings in words: how the page and the terminal say them.

Shares are given in percent with one decimal, their differences in points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.evaluation.statistics import Comparison, Contrast, Estimate

NONE = "–"
FIXED = "\u00a0"  # a space at which no line breaks
THIN = "\u202f"  # between thousands
INTERVAL = f"95{FIXED}% interval"
TITLES = {
    "test/accuracy": "Accuracy",
    "test/macro_f1": "Macro-F1",
    "test/nll": "Log loss",
    "test/ece": "Calibration error",
    "test/precision": "Precision",
    "test/recall": "Recall",
    "test/f_beta": "F-beta",
}
UNITS = {"test/nll": "nats"}


def value(metric: str, number: float | None) -> str:
    """A metric's value without its unit: a share as percent, log loss in nats."""
    if number is None:
        return NONE
    return f"{number:.3f}" if metric in UNITS else f"{100 * number:.1f}"


def unit(metric: str) -> str:
    """The unit of a metric's value."""
    return UNITS.get(metric, "%")


def interval(metric: str, estimate: Estimate) -> str:
    """``91.0 to 95.8``, cut where the metric itself ends (0, and 100 for shares)."""
    if estimate.low is None or estimate.high is None:
        return NONE
    high = estimate.high if metric in UNITS else min(estimate.high, 1.0)
    return f"{value(metric, max(estimate.low, 0.0))} to {value(metric, high)}"


def difference(metric: str, number: float | None) -> str:
    """A signed difference without its unit: ``+0.6``, ``−1.2``, ``0.0``."""
    if number is None:
        return NONE
    text = f"{number:+.3f}" if metric in UNITS else f"{100 * number:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def difference_unit(metric: str) -> str:
    """The unit of a difference: points between shares."""
    return UNITS.get(metric, "points")


def difference_interval(metric: str, comparison: Comparison) -> str:
    """``−3.0 to +0.6``."""
    if comparison.low is None:
        return NONE
    return f"{difference(metric, comparison.low)} to {difference(metric, comparison.high)}"


def p_value(p: float | None) -> str:
    """``0.12``, ``0.034``, or ``< 0.001``."""
    if p is None:
        return NONE
    if p < 0.001:
        return "< 0.001"
    if p >= 0.995:
        return "1"
    return f"{p:.2f}" if p >= 0.095 else f"{p:.3f}"


def phase(name: str) -> str:
    """A phase's name as people say it: ``end to end``, ``round 3``."""
    return name.replace("_", " ")


def seeds(n: int) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{n} seed" if n == 1 else f"{n} seeds"


def images(n: int) -> str:
    """``1 image``, ``30 images``."""
    return f"{count(n)} image" if n == 1 else f"{count(n)} images"


def budget(shots: int | str) -> str:
    """``10 images a class``, or ``all training images``."""
    if shots == "all":
        return "all training images"
    return f"{shots} image a class" if shots == 1 else f"{shots} images a class"


def leader(shots: int | str, methods: Sequence[str], estimate: Estimate, shown: bool) -> str:
    """Who has the highest mean accuracy, how well it is known, and whether that makes it best.

    Args:
        shots: images a class.
        methods: those that share the highest mean, as it is printed.
        estimate: of the first of them.
        shown: whether the verdicts show it to be best.
    """
    known = seeds(estimate.n)
    if estimate.low is not None:
        known = f"{INTERVAL} {interval('test/accuracy', estimate)}, {known}"
    mean = f"{value('test/accuracy', estimate.mean)}{FIXED}%"
    if shown:
        return f"With {budget(shots)}, {methods[0]} is best: test accuracy {mean} ({known})."
    if len(methods) > 1:
        named = f"{', '.join(methods[:-1])} and {methods[-1]} share the highest mean"
        return f"With {budget(shots)}, no method is shown to be best: {named}, {mean}."
    return (
        f"With {budget(shots)}, no method is shown to be best: {methods[0]} has the highest mean "
        f"test accuracy, {mean} ({known})."
    )


def finding(row: Contrast, reference: str) -> str:
    """One method against the reference: difference, interval and p; the verdict is not in it."""
    known = [seeds(row.comparison.n)]
    if row.p_adjusted is not None:
        p = p_value(row.p_adjusted)
        known.insert(0, f"adjusted p {p if p.startswith('<') else f'= {p}'}".replace(" ", FIXED))
        known.insert(0, f"{INTERVAL} {difference_interval(row.metric, row.comparison)}")
    return (
        f"{row.method} vs {reference}: {difference(row.metric, row.comparison.difference)} "
        f"{difference_unit(row.metric)} ({', '.join(known)})"
    )


def resolution(rows: Sequence[Contrast]) -> str:
    """How large a difference can hide: the widest half interval of an open verdict."""
    halves = [
        (row.comparison.high - row.comparison.low) / 2
        for row in rows
        if row.verdict == "no difference detected"
        and row.comparison.low is not None
        and row.comparison.high is not None
    ]
    if not halves or max(halves) == 0:
        return ""
    row = rows[0]
    return (
        f"{seeds(row.comparison.n)}: a difference of up to about "
        f"{value(row.metric, max(halves))} {difference_unit(row.metric)} could have gone unseen."
    )


def count(number: float | None, decimals: int = 0) -> str:
    """A quantity with thin spaces between thousands."""
    if number is None:
        return NONE
    return f"{number:,.{decimals}f}".replace(",", THIN)
