"""The verdict: which method to use, how sure that is, and what it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.evaluation.statistics.results import Contrast
from pipeline.report import words
from pipeline.report.page.advice import Advice, advise, level, price
from pipeline.report.page.document import (
    Block,
    Code,
    Fold,
    Item,
    Items,
    Link,
    Paragraph,
    Section,
    Small,
    Strong,
    note,
    warning,
)
from pipeline.report.page.report import UNTRAINED, Report, control

NAMED = 3  # methods in the answer; of more their number
LISTED_FINDINGS = 6  # in all; more are folded


def section(report: Report) -> Section:
    """The answer first; below it the findings that it rests on, shots by shots."""
    advice = [advise(report, shots) for shots in report.compare.shots]
    folded = len(report.contrasts(report.primary)) > LISTED_FINDINGS
    blocks = [
        Paragraph((answer(report, advice),), "lead"),
        note(_grounds(report)),
        *(block for of in advice for block in _of_shots(report, of.shots, folded)),
        *_explanations(report),
        *_warnings(report),
    ]
    return Section("verdict", "The verdict", blocks, brief=True)


def answer(report: Report, advice: Sequence[Advice]) -> str:
    """The one sentence: what to use at which shots, and on what ground."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Advice]] = {}
    for of in advice:
        groups.setdefault((of.ground, of.use, of.among), []).append(of)
    uses = dict.fromkeys(of.use for of in advice)
    always = len(groups) > 1 and len(uses) == 1
    clause = _clause_of_it if always else _clause
    said = "; ".join(
        f"with {words.budgets([of.shots for of in same])}, {clause(report, same)}"
        for same in groups.values()
    )
    return f"Use {next(iter(uses))}: {said}." if always else f"{words.capital(said)}."


def _clause_of_it(report: Report, same: Sequence[Advice]) -> str:
    """The ground alone, where one method is to be used at all shots."""
    first, reference = same[0], report.compare.reference
    sure = "".join(f" ({of})" for of in _sure(report, same))
    if first.ground == "best":
        return f"it is shown to be best{sure}"
    if first.ground == "better":
        return f"it is shown to be better than {reference}{sure}"
    among = words.listed(first.among)
    if first.ground == "several":
        return (
            f"it is {_cheap(report, first)} of {among}, which are better than "
            f"{reference} and were not compared with each other"
        )
    return (
        f"no difference detected between {among}{_unseen(report, same)}, of which it is "
        f"{_cheap(report, first)}"
    )


def _clause(report: Report, same: Sequence[Advice]) -> str:
    """What holds at all shots of some equal advice; numbers where it is of one alone."""
    first, reference = same[0], report.compare.reference
    known = [_score(report, first)] if len(same) == 1 else _sure(report, same)
    scored = f" ({', '.join(known)})" if known else ""
    if first.ground == "best":
        return f"use {first.use}, shown to be best{scored}"
    if first.ground == "better":
        return f"use {first.use}, shown to be better than {reference}{scored}"
    if first.ground == "untold":
        which = "has" if len(same) == 1 else "has each time"
        return (
            f"one seed cannot tell the methods apart; {first.use} {which} the highest mean{scored}"
        )
    if first.ground == "alone":
        return f"{first.use} was compared with no other method{scored}"
    paid = f" ({_paid(report, first)})" if len(same) == 1 else ""
    among = words.listed(first.among)
    if first.ground == "several":
        return (
            f"take {_cheap(report, first)} of {among}, {first.use}{paid}: they are better than "
            f"{reference}, and were not compared with each other"
        )
    worse = [_worse(report, of.shots) for of in same]
    behind = [method for method in worse[0] if all(method in others for others in worse)]
    less = f"; {_behind(behind)} worse" if behind else ""
    return (
        f"no difference detected between {among}{_unseen(report, same)}: take "
        f"{_cheap(report, first)}, {first.use}{paid}{less}"
    )


def _cheap(report: Report, of: Advice) -> str:
    spared = [m for m in of.among if control(report.params, m) == UNTRAINED]
    prices = [price(report, method, of.shots) for method in of.among if method not in spared]
    which = "the fastest" if level(prices) else "the cheapest"
    return f"{which} but for the untrained control" if spared else which


def _unseen(report: Report, same: Sequence[Advice]) -> str:
    """How large a difference may hide among those of which none is shown to be ahead."""
    sizes = [
        row.comparison.detectable
        for of in same
        for row in report.contrasts(report.primary, of.shots)
        if row.method in of.among and row.comparison.detectable is not None
    ]
    if not sizes:
        return ""
    if max(sizes) >= 1 and report.primary not in words.UNITS:
        return " (any may have gone unseen)"
    return f" (one below {words.detectable(report.primary, max(sizes))} may have gone unseen)"


def _worse(report: Report, shots: int | str) -> list[str]:
    rows = report.contrasts(report.primary, shots)
    return [row.method for row in rows if row.verdict == "worse"]


def _behind(methods: Sequence[str]) -> str:
    if len(methods) > NAMED:
        return f"{len(methods)} other methods are"
    return f"{words.listed(methods)} {'is' if len(methods) == 1 else 'are'}"


def _score(report: Report, of: Advice) -> str:
    metric = report.primary
    found = report.estimate(of.use, of.shots, metric)
    said = [f"{words.named(metric)} {words.value(metric, found.mean)}{words.FIXED}%"]
    if found.low is not None:
        said.append(f"{words.INTERVAL} {words.interval(metric, found)}")
    return ", ".join([*said, *_sure(report, [of])])


def _sure(report: Report, same: Sequence[Advice]) -> list[str]:
    """The largest adjusted p that the ground rests on, where it rests on any."""
    use, metric = same[0].use, report.primary
    if same[0].ground not in ("best", "better"):
        return []
    p = [
        row.p_adjusted
        for of in same
        for row in report.contrasts(metric, of.shots)
        if row.p_adjusted is not None and use in (row.method, report.compare.reference)
    ]
    shown = words.p_value(max(p))
    if shown.startswith("<"):
        return [f"adjusted p {shown}"]
    return [f"adjusted p {'at most' if len(p) > 1 else '='} {shown}"]


def _paid(report: Report, of: Advice) -> str:
    found = price(report, of.use, of.shots)
    return (
        f"{words.count(found.images)} images through the network, {words.seconds(found.seconds)} s"
    )


def _grounds(report: Report) -> str:
    """What all of it rests on, and whether that is little."""
    compare, metric = report.compare, report.primary
    n, units = len(compare.seeds), report.units(metric)
    tested = f" and {words.units(units, report.unit(metric))}" if units else ""
    said = [f"This rests on {words.seeds(n)} of every method{tested}."]
    if 1 < n < words.FEW_SEEDS:
        said.append(
            f"{words.seeds(n)} are few: the intervals are as wide as that makes them, and only "
            "large differences can be detected."
        )
    if n == 1:
        said.append("One seed shows no spread between trainings, so that no verdict is given.")
    return " ".join(said)


def _of_shots(report: Report, shots: int | str, folded: bool) -> Iterator[Block]:
    """Who is ahead, and every finding; where all together are many, under a summary of them."""
    rows = report.contrasts(report.primary, shots)
    if not rows:
        return
    items = Items([_item(report, row) for row in rows])
    head = words.capital(f"with {words.budget(shots)}")
    said = f": {_leader(report, shots)}"
    if folded:
        counted = Counter(row.verdict for row in rows)
        shown = ", ".join(f"{n} {verdict}" for verdict, n in counted.items())
        remark = f"{said[2:]} Against {report.compare.reference}: {shown}."
        yield Fold((head, Small(remark)), [items])
    else:
        yield Paragraph((Strong(head), said))
        yield items


def _leader(report: Report, shots: int | str) -> str:
    """Who has the highest mean, as it is printed, without calling it best."""
    metric = report.primary
    means = {
        method: words.value(metric, report.estimate(method, shots, metric).mean)
        for method in report.compare.methods
    }
    top = max(means.values(), key=float)
    leaders = [method for method, value in means.items() if value == top]
    have = "has" if len(leaders) == 1 else "share"
    return (
        f"{words.listed(leaders)} {have} the highest mean {words.named(metric)}, "
        f"{top}{words.FIXED}%."
    )


def _item(report: Report, row: Contrast) -> Item:
    compare = report.compare
    said = words.finding(row, compare.reference)
    below = words.resolution(row, compare.smallest_effect, report.unit(row.metric))
    return Item((f"{said}: ", Strong(row.verdict)), below, row.method)


def _explanations(report: Report) -> Iterator[Block]:
    """Of what the intervals speak, and what is called detectable."""
    rows = report.contrasts(report.primary)
    spoken = dict.fromkeys(
        row.comparison.population for row in rows if row.comparison.low is not None
    )
    unit = report.unit(report.primary)
    said = []
    if spoken:
        of = words.listed([words.population(population, [unit]) for population in spoken])
        said.append(f"The intervals speak of {of}.")
    if any(row.comparison.detectable is not None for row in rows):
        said.append(
            "Detectable is the smallest true difference that such runs show four times out of "
            "five. No difference detected is not the same as no difference: a smaller one may "
            "hide. What would matter is set by "
        )
    if said:
        effect = Code("compare.smallest_effect")
        yield note(" ".join(said), *((effect, ".") if said[-1].endswith(" ") else ()))
    if len(report.compare.seeds) == 1 and rows:
        yield note("Add seeds to ", Code("compare.seeds"), ".")


def _warnings(report: Report) -> Iterator[Block]:
    runs = report.evidence.runs
    diverged = sum(run.diverged for run in runs)
    if diverged:
        yield warning(
            f"{words.runs(diverged)} diverged, and "
            f"{'counts' if diverged == 1 else 'count'} against the method: the score is what the "
            "last finite weights reached. ",
            Link("Which, and why", "diverged"),
            ".",
        )
    collapsed = sum(run.diagnosis.collapsed for run in runs)
    if collapsed:
        yield warning(
            f"The latents of {words.runs(collapsed)} collapsed: they hardly tell images apart. ",
            Link("Which, and the likely cause", "claims"),
            ".",
        )
    if report.evidence.prepared.get("labels_shuffled"):
        yield warning(
            "The labels that trained and chose the epochs were shuffled (",
            Code("data.shuffle_labels"),
            "): there was nothing to learn, and every method should be at chance.",
        )
