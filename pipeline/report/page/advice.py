"""Which method to use, by what the verdicts show and, where they show nothing, by the cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report.page.report import UNTRAINED, Report, control

DIGITS = 2  # significant ones of a number of images; what agrees in them costs the same

Ground = Literal["best", "better", "several", "open", "untold", "alone"]


@dataclass(frozen=True)
class Advice:
    """What to use at some shots, and on what ground.

    Attributes:
        shots: images a class.
        use: the method.
        ground: ``best``: shown to be; ``better``: than the reference, as no other method is;
            ``several`` are, of which it is the cheapest; ``open``: no difference was detected, and
            it is the cheapest but for an untrained network; ``untold``: one seed tells nothing, it
            has the highest mean; ``alone``: nothing was compared.
        among: the methods between which nothing decides but the cost, in compare order.
    """

    shots: int | str
    use: str
    ground: Ground
    among: tuple[str, ...]


@dataclass(frozen=True)
class Price:
    """What training a method took, means over seeds; None where it was not measured."""

    images: float | None
    seconds: float | None


def advise(report: Report, shots: int | str) -> Advice:
    """What the verdicts in the primary metric support at some shots."""
    compare, metric = report.compare, report.primary
    verdicts = {row.method: row.verdict for row in report.contrasts(metric, shots)}
    means = {m: report.estimate(m, shots, metric).mean for m in compare.methods}
    if not verdicts:
        return Advice(shots, compare.reference, "alone", (compare.reference,))
    if "too few seeds to tell" in verdicts.values():
        return Advice(shots, max(means, key=means.__getitem__), "untold", ())
    ground, among = contenders(compare.methods, compare.reference, verdicts)
    trained = [method for method in among if control(report.params, method) != UNTRAINED]
    prices = {method: price(report, method, shots) for method in trained or among}
    return Advice(shots, cheapest(prices), ground, among)


def contenders(
    methods: Sequence[str], reference: str, verdicts: Mapping[str, str]
) -> tuple[Ground, tuple[str, ...]]:
    """The methods of which none is shown to be behind, and on what ground.

    Those that are better than the reference, else the reference and what does not differ from it.
    Methods are compared with the reference alone, never with each other.
    """
    better = [method for method in methods if verdicts.get(method) == "better"]
    unlike = [method for method in methods if verdicts.get(method) in ("better", "worse")]
    level = [method for method in methods if method != reference and method not in unlike]
    if len(better) > 1:
        return "several", tuple(better)
    if better:
        return ("better" if level else "best"), tuple(better)
    if level:
        return "open", tuple(m for m in methods if m == reference or m in level)
    return "best", (reference,)


def supported_best(
    methods: Sequence[str], reference: str, verdicts: Mapping[str, str]
) -> str | None:
    """The method that the verdicts against the reference show to be best, if they show one.

    It is the reference if all others are worse, or the one method that is better while all the
    remaining ones are worse. Two methods that are both better were never compared.
    """
    ground, among = contenders(methods, reference, verdicts)
    return among[0] if ground == "best" and len(methods) > 1 else None


def price(report: Report, method: str, shots: int | str) -> Price:
    """What training took."""
    runs = report.runs(method, shots)
    return Price(
        mean([total([cost.images_seen for cost in run.costs]) for run in runs]),
        mean([total([cost.seconds for cost in run.costs]) for run in runs]),
    )


def cheapest(prices: Mapping[str, Price]) -> str:
    """The method of the fewest images through the network; of those about level, the fastest."""

    def rank(method: str) -> tuple[float, float]:
        found = prices[method]
        return _images(found), float("inf") if found.seconds is None else found.seconds

    return min(prices, key=rank)


def level(prices: Iterable[Price]) -> bool:
    """Whether all took about as many images through the network."""
    return len({_images(price) for price in prices}) == 1


def _images(of: Price) -> float:
    return float("inf") if of.images is None else float(f"{of.images:.{DIGITS}g}")


def total(values: Sequence[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
