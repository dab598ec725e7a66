"""Numbers and findings in words: how the page and the terminal say them.

Shares are given in percent with one decimal, their differences in points.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.evaluation.collect import UnitInterval
    from pipeline.evaluation.statistics.results import Contrast, Estimate, Population

NONE = "–"
FIXED = "\u00a0"  # a space at which no line breaks
THIN = "\u202f"  # between thousands
INTERVAL = f"95{FIXED}% interval"
NO_SPREAD = "no spread"
MOST_SEEDS = 200  # more are not told apart
FEW_SEEDS = 5  # below, intervals are as wide as so few seeds make them
TITLES = {
    "test/accuracy": "Accuracy",
    "test/macro_f1": "Macro-F1",
    "test/nll": "Log loss",
    "test/ece": "Calibration error",
    "test/precision": "Precision",
    "test/recall": "Recall",
    "test/f_beta": "F-beta",
    "test/roc_auc": "ROC AUC",
    "test/eer": "Equal error rate",
    "test/tar_at_far_0.01": f"TAR at FAR{FIXED}1{FIXED}%",
    "test/tar_at_far_0.001": f"TAR at FAR{FIXED}0.1{FIXED}%",
    "test/official_accuracy": "One-shot accuracy on the official runs",
}
COLUMNS = {"test/official_accuracy": "Official runs", "test/eer": "EER"}  # where room is scarce
EPISODES = re.compile(r"(\d+)_way_(\d+)_shot\Z")
SET_ACCURACY = re.compile(r"test/(.+)_accuracy\Z")
UNITS = {"test/nll": "nats"}
# all but line ends and tabs; halves of characters, which no file can hold
HIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
TEST_UNITS = {  # one and several
    "image": ("test image", "test images"),
    "class": ("test class", "test classes"),
    "official run": ("official run", "official runs"),
    "group of classes": ("group of test classes", "groups of test classes"),
}


def title(metric: str) -> str:
    """A metric's name as a heading: ``Equal error rate``, ``5-way 1-shot accuracy``."""
    if metric in TITLES:
        return TITLES[metric]
    name = episodes_of(metric)
    return f"{episodes(name)} accuracy" if name else metric


def column(metric: str) -> str:
    """A metric's name at the head of a column."""
    name = episodes_of(metric)
    return COLUMNS.get(metric) or (episodes(name) if name else title(metric))


def named(metric: str) -> str:
    """A metric's name within a sentence: ``test accuracy``, ``ROC AUC``."""
    if metric == "test/accuracy":
        return "test accuracy"
    return _small(title(metric))


def in_table(metric: str) -> str:
    """The name at the head of its column, within a sentence: ``log loss``, ``EER``."""
    return _small(column(metric))


def capital(text: str) -> str:
    """A sentence with a capital at its start."""
    return f"{text[:1].upper()}{text[1:]}"


def _small(text: str) -> str:
    """Without a capital at its start, unless an abbreviation stands there."""
    return text if text[:2].isupper() else f"{text[:1].lower()}{text[1:]}"


def episodes_of(metric: str) -> str | None:
    """The set of episodes that a metric is the accuracy on, if it is one."""
    found = SET_ACCURACY.match(metric)
    return found[1] if found else None


def episodes(name: str) -> str:
    """A set of episodes: ``5-way 1-shot`` of ``5_way_1_shot``."""
    found = EPISODES.match(name)
    return f"{found[1]}-way {found[2]}-shot" if found else name.replace("_", " ")


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def value(metric: str, number: float | None) -> str:
    """A metric's value without its unit: a share as percent, log loss in nats."""
    if number is None:
        return NONE
    return f"{number:.3f}" if metric in UNITS else f"{100 * number:.1f}"


def with_unit(metric: str, number: float) -> str:
    """``93.4 %``, ``0.123 nats``."""
    return f"{value(metric, number)}{FIXED}{unit(metric)}"


def unit(metric: str) -> str:
    """The unit of a metric's value."""
    return UNITS.get(metric, "%")


def interval(metric: str, estimate: Estimate | UnitInterval) -> str:
    """``91.0 to 95.8``, cut where the metric itself ends (0, and 100 for shares)."""
    if estimate.low is None or estimate.high is None:
        return NONE
    high = estimate.high if metric in UNITS else min(estimate.high, 1.0)
    return _span(value(metric, max(estimate.low, 0.0)), value(metric, high))


def _span(low: str, high: str) -> str:
    return NO_SPREAD if low == high else f"{low} to {high}"


def difference(metric: str, number: float | None) -> str:
    """A signed difference without its unit: ``+0.6``, ``−1.2``, ``0.0``."""
    if number is None:
        return NONE
    return _signed(f"{number:+.3f}" if metric in UNITS else f"{100 * number:+.1f}")


def _signed(text: str) -> str:
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _bound(metric: str, number: float) -> str:
    """As `difference`, with a digit more where rounding would hide on which side of 0 it lies."""
    text = difference(metric, number)
    if number == 0 or float(text.replace("−", "-")) != 0:
        return text
    finer = f"{number:+.4f}" if metric in UNITS else f"{100 * number:+.2f}"
    return _signed(finer) if float(finer) else f"{'−' if number < 0 else '+'}{text}"


def difference_unit(metric: str) -> str:
    """The unit of a difference: points between shares."""
    return UNITS.get(metric, "points")


def difference_interval(metric: str, low: float | None, high: float | None) -> str:
    """``−3.0 to +0.6``."""
    if low is None or high is None:
        return NONE
    return NO_SPREAD if low == high else f"{_bound(metric, low)} to {_bound(metric, high)}"


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


def runs(n: int) -> str:
    """``1 run``, ``12 runs``."""
    return f"{count(n)} run" if n == 1 else f"{count(n)} runs"


def images(n: int) -> str:
    """``1 image``, ``30 images``."""
    return f"{count(n)} image" if n == 1 else f"{count(n)} images"


def budget(shots: int | str) -> str:
    """``10 images a class``, or ``all training images``."""
    if shots == "all":
        return "all training images"
    return f"{shots} image a class" if shots == 1 else f"{shots} images a class"


def budgets(shots: Sequence[int | str]) -> str:
    """``5 and 20 images a class``, ``20 images a class and all training images``."""
    numbers = [str(n) for n in shots if n != "all"]
    said = [f"{listed(numbers)} image{'' if numbers == ['1'] else 's'} a class"] if numbers else []
    return listed([*said, *([budget("all")] if "all" in shots else [])])


def units(n: int, unit: str) -> str:
    """``150 test images``, ``1 official run``; what a metric's interval draws."""
    one, several = TEST_UNITS.get(unit, (f"test {unit}", f"test {unit}s"))
    return f"{count(n)} {one if n == 1 else several}"


def population(of: Population, units: Sequence[str]) -> str:
    """What an interval speaks of: ``new seeds and new test images``."""
    drawn = [f"new {several(unit)}" for unit in dict.fromkeys(units)]
    return {
        "both": listed(["new seeds", *drawn]),
        "seeds": "new seeds on this test set alone",
        "units": f"{listed(drawn)} for these trained networks alone",
        "none": "nothing beyond these runs",
    }[of]


def several(unit: str) -> str:
    """``test images``: more than one test unit."""
    return TEST_UNITS.get(unit, ("", f"test {unit}s"))[1]


def finding(row: Contrast, reference: str) -> str:
    """One method against the reference: difference, interval, p and wins, without the verdict."""
    found = row.comparison
    known = [f"{found.wins} of {found.n} seeds won" if found.n > 1 else seeds(1)]
    if row.p_adjusted is not None:
        p = p_value(row.p_adjusted)
        known.insert(0, f"adjusted p {p if p.startswith('<') else f'= {p}'}".replace(" ", FIXED))
    if found.low is not None:
        known.insert(0, f"{INTERVAL} {difference_interval(row.metric, found.low, found.high)}")
    return (
        f"{row.method} vs {reference}: {difference(row.metric, found.difference)} "
        f"{difference_unit(row.metric)} ({', '.join(known)})"
    )


def resolution(row: Contrast, smallest_effect: float, unit: str) -> str:
    """What these runs could have detected, and how many seeds the smallest effect would take."""
    found, said = row.comparison, []
    if found.detectable is not None:
        said.append(f"Detectable: {detectable(row.metric, found.detectable)}.")
    settled = row.verdict in ("better", "worse")
    if found.n > 1 and found.detectable is not None and not settled:
        said.append(needed(row.metric, found.seeds_needed, found.n, smallest_effect, unit))
    return " ".join(said)


def detectable(metric: str, size: float) -> str:
    """``3.2 points``; shares lie no more than 100 points apart."""
    beyond = metric not in UNITS and size >= 1
    return f"more than 100{FIXED}points" if beyond else amount(metric, size)


def needed(metric: str, wanted: int | None, n: int, smallest_effect: float, unit: str) -> str:
    """``To detect 2.0 points, as far as 3 seeds can tell, about 50 seeds are needed.``"""
    effect = amount(metric, smallest_effect)
    if wanted is not None and wanted <= n:
        return f"{effect} would have been detected."
    return f"To detect {effect}, as far as {seeds(n)} can tell, {enough(wanted, n, several(unit))}."


def enough(wanted: int | None, n: int, tested: str) -> str:
    """How many seeds would do, no more exactly than so few as ``n`` seeds can tell.

    If none would, more of what is ``tested`` is needed.
    """
    if wanted is None:
        return f"no number of seeds would do: more {tested} are needed"
    if wanted > MOST_SEEDS:
        return f"more than {MOST_SEEDS} seeds are needed"
    there = f" (there are {n})" if wanted <= n else ""
    return f"about {float(f'{wanted:.2g}'):.0f} seeds are needed{there}"


def amount(metric: str, size: float) -> str:
    """``2.0 points``, ``0.020 nats``."""
    return f"{value(metric, size)} {difference_unit(metric)}"


def seconds(number: float | None) -> str:
    """``0.025``, ``3.4``, ``1 250``."""
    if number is not None and 0 < number < 1:
        return f"{number:.2g}"
    return count(number, 1 if number is None or number < 100 else 0)


def epoch_of(chosen: Sequence[int], epochs: Sequence[int]) -> str:
    """``12 of 20``, or as means ``12.3 of 18.7``; nothing for none."""
    if not chosen:
        return NONE
    means = (sum(numbers) / len(numbers) for numbers in (chosen, epochs))
    return " of ".join(f"{round(mean, 1):g}" for mean in means)


def count(number: float | None, decimals: int = 0) -> str:
    """A quantity with thin spaces between thousands."""
    if number is None:
        return NONE
    return f"{number:,.{decimals}f}".replace(",", THIN)


def visible(text: str) -> str:
    """Text in which nothing hides: control characters, and those that turn text around, as escapes.

    A browser would show a name after U+202E, and all that follows it on the line, backwards.
    """
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plotted(name: str) -> str:
    """A name for the tables that ``dvc plots`` draws: ``<`` as ``‹``.

    DVC writes them into a script of its page as they are, which ``</script>`` would end.
    """
    return name.replace("<", "‹")
