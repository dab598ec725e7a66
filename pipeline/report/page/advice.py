"""Which method to use: what the comparisons of all pairs show, and where they leave it open."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.evaluation.statistics.results import ALPHA, LOWER_IS_BETTER, Pair
from pipeline.report.page.report import UNTRAINED, Report, control

DIGITS = 2  # significant ones of a number of images; what agrees in them costs the same

Ground = Literal["best", "cheapest", "open", "untold", "alone"]


@dataclass(frozen=True)
class Advice:
    """What to use at some shots, and on what ground.

    Attributes:
        shots: images a class.
        use: the method.
        ground: ``best``: shown to be better than every other; else no method is, and ``cheapest``:
            it is the contender that sees the fewest images, shown to lose at most
            ``compare.smallest_effect`` to any; ``open``: it is the contender of the highest mean;
            ``untold``: one seed tells nothing, it has the highest mean; ``alone``: nothing was
            compared.
        leaders: the methods of the highest mean, mostly one; the first is what others are held
            against.
        contenders: the first leader and all that are not shown to be behind it, in compare order.
        behind: all others, in compare order.
        p: the largest adjusted p that ``best`` rests on.
        level: of ``cheapest`` and ``open`` the methods with the mean and the cost of ``use``, which
            stands there for all of them by the order of compare alone.
    """

    shots: int | str
    use: str
    ground: Ground
    leaders: tuple[str, ...] = ()
    contenders: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    p: float | None = None
    level: tuple[str, ...] = ()

    @property
    def uses(self) -> str:
        """What to use, in words: where nothing tells methods apart, all of them."""
        return " or ".join(self.level or (self.use,))


@dataclass(frozen=True)
class Price:
    """What training a method took, means over seeds; None where it was not measured."""

    images: float | None
    seconds: float | None


@dataclass(frozen=True)
class Gap:
    """How far one method is ahead of another in what is better: difference and interval."""

    difference: float
    low: float | None
    high: float | None
    p_adjusted: float | None

    def turned(self) -> Gap:
        """How far the other is ahead of the one."""
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return Gap(-self.difference, low, high, self.p_adjusted)


def advise(report: Report, shots: int | str) -> Advice:
    """What the pairs of methods support at some shots, in the primary metric."""
    compare, metric = report.compare, report.primary
    lower = metric in LOWER_IS_BETTER
    return choose(
        shots,
        {method: report.estimate(method, shots, metric).mean for method in compare.methods},
        {method: price(report, method, shots).images for method in compare.methods},
        judged(
            gaps([pair for pair in report.findings.pairs if pair.shots == shots], lower),
            compare.reference,
            {row.method: row.p_adjusted for row in report.contrasts(metric, shots)},
        ),
        compare.smallest_effect,
        lower,
        [method for method in compare.methods if control(report.params, method) == UNTRAINED],
    )


def choose(
    shots: int | str,
    means: Mapping[str, float],
    images: Mapping[str, float | None],
    gaps: Mapping[tuple[str, str], Gap],
    smallest_effect: float,
    lower_is_better: bool = False,
    untrained: Collection[str] = (),
) -> Advice:
    """As `advise`, from plain values.

    The seconds that training took have no say: they differ from one time to the next.

    Args:
        shots: images a class.
        means: of every method, in compare order.
        images: that each saw in training, as far as known.
        gaps: of each method to each other, as `gaps` makes them.
        smallest_effect: the smallest difference that would matter.
        lower_is_better: whether the lowest mean is the best.
        untrained: methods that are there as a control and not to be used.
    """
    cost = {method: _level(number) for method, number in images.items()}
    sign = -1 if lower_is_better else 1
    ranked = sorted(means, key=lambda method: (-sign * means[method], cost[method]))
    leader, *others = ranked
    leaders = tuple(method for method in ranked if means[method] == means[leader])
    if not others:
        return Advice(shots, leader, "alone", leaders)
    p_of = {method: gaps[leader, method].p_adjusted for method in others}
    known = [p for p in p_of.values() if p is not None]
    if len(known) < len(others):
        return Advice(shots, leader, "untold", leaders)
    behind = tuple(m for m in means if m in p_of and _shown(gaps[leader, m]))
    if len(behind) == len(others):
        return Advice(shots, leader, "best", leaders, (leader,), behind, max(known))
    contenders = tuple(method for method in means if method not in behind)
    trained = [m for m in ranked if m in contenders and m not in untrained] or [leader]
    cheap = min(trained, key=cost.__getitem__)  # of equal ones the one of the highest mean
    lost = [gaps[other, cheap].high for other in contenders if other != cheap]
    near = (
        len(trained) > 1
        and images[cheap] is not None
        and all(most is not None and most <= smallest_effect for most in lost)
    )
    use = cheap if near else trained[0]
    level = tuple(m for m in trained if (means[m], cost[m]) == (means[use], cost[use]))
    ground: Ground = "cheapest" if near else "open"
    return Advice(shots, use, ground, leaders, contenders, behind, level=level)


def gaps(pairs: Sequence[Pair], lower_is_better: bool = False) -> dict[tuple[str, str], Gap]:
    """How far the first is ahead of the second, both ways round, from pairs at some shots."""
    found = {}
    for pair in pairs:
        of = pair.comparison
        gap = Gap(of.difference, of.low, of.high, pair.p_adjusted)
        ahead = gap.turned() if lower_is_better else gap
        found[pair.method, pair.other] = ahead
        found[pair.other, pair.method] = ahead.turned()
    return found


def judged(
    found: Mapping[tuple[str, str], Gap], reference: str, p_values: Mapping[str, float | None]
) -> dict[tuple[str, str], Gap]:
    """Gaps to the reference with the p of their verdict, where that is the smaller one.

    The comparisons with the reference are a family of their own, asked for beforehand, so that
    advice never takes a verdict back.
    """
    return {
        (one, other): replace(gap, p_adjusted=_smaller(gap.p_adjusted, p_values.get(method)))
        for (one, other), gap in found.items()
        for method in [other if one == reference else one if other == reference else ""]
    }


def _smaller(p: float | None, of_verdict: float | None) -> float | None:
    return p if p is None or of_verdict is None else min(p, of_verdict)


def _shown(gap: Gap) -> bool:
    """Whether the one is shown to be ahead of the other."""
    return gap.difference > 0 and gap.p_adjusted is not None and gap.p_adjusted < ALPHA


def _level(images: float | None) -> float:
    """A number of images in the digits that count."""
    return float("inf") if images is None else float(f"{images:.{DIGITS}g}")


def supported_best(
    methods: Sequence[str], reference: str, verdicts: Mapping[str, str]
) -> str | None:
    """The method that the verdicts against the reference show to be best, if they show one.

    It is the reference if all others are worse, or the one method that is better while all the
    remaining ones are worse. Of two methods that are both better, or of one that is better and
    one that does not differ detectably, these verdicts say nothing.
    """
    better = [method for method in methods if verdicts.get(method) == "better"]
    worse = [method for method in methods if verdicts.get(method) == "worse"]
    if len(methods) == 1 or len(better) > 1 or len(better) + len(worse) < len(methods) - 1:
        return None
    return better[0] if better else reference


def price(report: Report, method: str, shots: int | str) -> Price:
    """What training took."""
    runs = report.runs(method, shots)
    return Price(
        mean([total([cost.images_seen for cost in run.costs]) for run in runs]),
        mean([total([cost.seconds for cost in run.costs]) for run in runs]),
    )


def total(values: Sequence[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
