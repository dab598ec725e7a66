"""The verdict: which method to use, how sure that is, and what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.evaluation.collect import Answers
from pipeline.evaluation.statistics.results import Contrast
from pipeline.report import words
from pipeline.report.page.advice import Advice, advise
from pipeline.report.page.classes import ACCURACY
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
UNDECIDED = ("open", "cheapest")


def section(report: Report) -> Section:
    """The answer first; below it the findings that it rests on, shots by shots."""
    advice = [advise(report, shots) for shots in report.compare.shots]
    folded = len(report.contrasts(report.primary)) > LISTED_FINDINGS
    blocks = [
        Paragraph((answer(report, advice),), "lead"),
        note(_grounds(report)),
        *(block for of in advice for block in _of_shots(report, of, folded)),
        *_explanations(report),
        *_warnings(report),
    ]
    return Section("verdict", "The verdict", blocks, brief=True)


def answer(report: Report, advice: Sequence[Advice]) -> str:
    """The lead: what to use at which shots, and on what ground; a sentence for what is alike."""
    guessing = [of for of in advice if _guesses(report, of)]
    told = [of for of in advice if of not in guessing]
    doubts = {_kind(of) for of in told if of.ground in UNDECIDED}
    groups: dict[tuple[object, ...], list[Advice]] = {}
    for of in told:
        together = len(doubts) > 1 and of.ground in UNDECIDED
        groups.setdefault(UNDECIDED if together else _kind(of), []).append(of)
    said = [
        f"With {words.budgets([of.shots for of in same])}, "
        f"{_in_short(report, same) if kind == UNDECIDED else _clause(report, same)}."
        for kind, same in groups.items()
    ]
    return " ".join([*said, *_nothing_learnt(report, guessing)])


def _guesses(report: Report, of: Advice) -> bool:
    """Whether what would be advised answers no better than one class for all images would."""
    answered = [run.answers for run in report.runs(of.use, of.shots) if run.answers]
    if not answered or report.primary != ACCURACY:
        return False
    labels = answered[0].labels
    right = sum(np.count_nonzero(run.predicted == labels) for run in answered)
    return bool(right <= len(answered) * np.bincount(labels).max())


def _nothing_learnt(report: Report, guessing: Sequence[Advice]) -> Iterator[str]:
    """A sentence in the place of advice to use what only guesses."""
    by_use: dict[str, list[Advice]] = {}
    for of in guessing:
        by_use.setdefault(of.use, []).append(of)
    for use, same in by_use.items():
        yield (
            f"With {words.budgets([of.shots for of in same])}, nothing is shown to be learnt: "
            f"{_name(report, use, same)} is not shown to be behind any method, and answers no "
            "better than one class for every image would. Find a learning rate first."
        )


def _kind(of: Advice) -> tuple[object, ...]:
    """What is alike in advice that one sentence gives."""
    led = of.ground == "open" and of.use in of.leaders  # whoever leads is to be used
    return of.ground, None if led else of.use, of.contenders, of.behind


def _in_short(report: Report, same: Sequence[Advice]) -> str:
    """What to do at several shots of unlike doubts, which the findings below tell of."""
    used, taken = (
        _by_use(report, [of for of in same if of.ground == ground]) for ground in UNDECIDED
    )
    open_ones = [of for of in same if of.ground == "open"]
    know = _to_know(report, open_ones)
    said = [f"use {words.listed(used)}, by the mean alone, or {know}"] if used else []
    if taken:
        they = "it loses" if len(taken) == 1 else "they lose"
        said.append(f"take {words.listed(taken)}: {_spares(report, they)}")
    return f"no method is shown to be best: {'; '.join(said)}"


def _by_use(report: Report, advice: Sequence[Advice]) -> list[str]:
    """``scratch with 5 and 10``, for every method that is to be used."""
    shots_of: dict[tuple[str, ...], list[Advice]] = {}
    for of in advice:
        shots_of.setdefault(of.level or (of.use,), []).append(of)
    return [
        f"{' or '.join(_name(report, method, same) for method in uses)} with "
        f"{words.listed([str(of.shots) for of in same])}"
        for uses, same in shots_of.items()
    ]


def _clause(report: Report, same: Sequence[Advice]) -> str:
    """What holds at all shots of some equal advice; numbers where it is of one alone."""
    first = same[0]
    name = _name(report, first.use, same)
    known = _score(report, first) if len(same) == 1 else []
    scored = f" ({', '.join(known)})" if known else ""
    if first.ground == "best":
        others = "every other method" if len(first.behind) > 1 else first.behind[0]
        known.append(_sure([of.p for of in same if of.p is not None]))
        return f"use {name}, shown to be better than {others} ({', '.join(known)})"
    if first.ground == "untold":
        has = "has" if len(same) == 1 else "has each time"
        return f"one seed cannot tell the methods apart; {name} {has} the highest mean{scored}"
    if first.ground == "alone":
        return f"{name} was compared with no other method{scored}"
    doubt = f"no method is shown to be best: {_standing(report, same)}"
    if first.ground == "cheapest":
        return f"{doubt}; take {first.uses}: {_spares(report, 'it loses')}"
    uses = {of.uses for of in same}
    use = first.uses if len(uses) == 1 else "the one of the highest mean"
    return f"{doubt}; use {use}, or {_to_know(report, same)}"


def _spares(report: Report, they_lose: str) -> str:
    effect = words.amount(report.primary, report.compare.smallest_effect)
    return f"{they_lose} less than {effect} to any method, and none sees fewer images in training"


def _to_know(report: Report, same: Sequence[Advice]) -> str:
    """What to add; where, as far as these seeds can tell, more of them would not do, says so."""
    tested = "test images" if report.unit(report.primary) == "image" else "test data"
    undecided = [
        row.comparison
        for of in same
        for row in report.contrasts(report.primary, of.shots)
        if row.verdict == "no difference detected" and row.comparison.detectable is not None
    ]
    if undecided and all(found.seeds_needed is None for found in undecided):
        return f"add {tested}, and seeds, to know"
    return f"add seeds or {tested} to know"


def _standing(report: Report, same: Sequence[Advice]) -> str:
    """Who has the highest mean, who is not shown to be behind, and who is."""
    first = same[0]
    alike = len({of.leaders for of in same}) == 1
    led = _one_leader(report, same) if alike else _several_leaders(report, same)
    behind = _are(report, first.behind, same) if first.behind else ""
    return f"{led}; {behind} behind" if behind else led


def _one_leader(report: Report, same: Sequence[Advice]) -> str:
    first, metric = same[0], report.primary
    leaders = words.listed([_name(report, method, same) for method in first.leaders])
    have, them = ("has", "it") if len(first.leaders) == 1 else ("share", "them")
    mean = report.estimate(first.leaders[0], first.shots, metric).mean
    score = f" ({words.with_unit(metric, mean)})" if len(same) == 1 else " each time"
    level = [method for method in first.contenders if method not in first.leaders]
    rest = f", and {_are(report, level, same)} not shown to be behind {them}" if level else ""
    return f"{leaders} {have} the highest mean {words.named(metric)}{score}{rest}"


def _several_leaders(report: Report, same: Sequence[Advice]) -> str:
    contenders = same[0].contenders
    shots_of: dict[tuple[str, ...], list[str]] = {}
    for of in same:
        shots_of.setdefault(of.leaders, []).append(str(of.shots))
    led = [f"{words.listed(who)} with {words.listed(n)}" for who, n in shots_of.items()]
    level = f"{len(contenders)} methods"
    if len(contenders) <= NAMED:
        level = words.listed([_name(report, method, same) for method in contenders])
    return (
        f"{words.listed(led)} have the highest mean {words.named(report.primary)}, and none of "
        f"{level} is shown to be behind"
    )


def _are(report: Report, methods: Sequence[str], same: Sequence[Advice]) -> str:
    """``a is``, ``a and b are``; of many their number."""
    if len(methods) > NAMED:
        return f"{len(methods)} other methods are"
    named = words.listed([_name(report, method, same) for method in methods])
    return f"{named} {'is' if len(methods) == 1 else 'are'}"


def _name(report: Report, method: str, same: Sequence[Advice]) -> str:
    """A method, with what must be known of it wherever it is named."""
    runs = [run for of in same for run in report.runs(method, of.shots)]
    lost = sum(run.diverged for run in runs)
    known = ["the untrained control"] if control(report.params, method) == UNTRAINED else []
    known += [f"{lost} of its {words.runs(len(runs))} diverged"] if lost else []
    return f"{method} ({', '.join(known)})" if known else method


def _score(report: Report, of: Advice) -> list[str]:
    metric = report.primary
    found = report.estimate(of.use, of.shots, metric)
    said = [f"{words.named(metric)} {words.with_unit(metric, found.mean)}"]
    if found.low is not None:
        said.append(f"{words.INTERVAL} {words.interval(metric, found)}")
    return said


def _sure(p: Sequence[float]) -> str:
    """The largest of some adjusted p."""
    shown = words.p_value(max(p))
    return f"adjusted p {shown}" if shown.startswith("<") else f"adjusted p at most {shown}"


def _grounds(report: Report) -> str:
    """What all of it rests on, and whether that is little."""
    compare, metric = report.compare, report.primary
    n, units = len(compare.seeds), report.units(metric)
    tested = f" and {words.units(units, report.unit(metric))}" if units else ""
    said = [
        f"This rests on {words.seeds(n)} of every method{tested}, and holds for the settings that "
        "each method has here."
    ]
    if validation := _validation(report):
        said.append(
            f"Besides the training images, {words.count(validation)} validation images choose the "
            "epochs."
        )
    if 1 < n < words.FEW_SEEDS:
        said.append(
            f"{words.seeds(n)} are few: the intervals are as wide as that makes them, and only "
            "large differences can be detected."
        )
    if n == 2:
        said.append("Intervals from two seeds bound next to nothing.")
    if n == 1:
        said.append("One seed shows no spread between trainings, so that no verdict is given.")
    elif report.findings.pairs:
        said.append(_risk(report))
    return " ".join(said)


def _validation(report: Report) -> int:
    """How many images choose the epochs, where that was counted."""
    prepared = report.evidence.prepared
    counted = prepared.get("splits", prepared.get("analysis", {})).get("val", {})
    return int(counted.get("images", 0))


def _risk(report: Report) -> str:
    """What the level of the tests is the risk of."""
    said = f"The risk of a wrong verdict is 5{words.FIXED}%"
    if len(report.compare.shots) > 1:
        said += " for each number of shots, and larger for all of them together"
    if len(report.compare.methods) == 2:
        return f"{said}."
    return (
        f"{said}, for the comparisons with {report.compare.reference}, which stand below, and "
        "again for all pairs of methods; p is adjusted for each of the two."
    )


def _of_shots(report: Report, of: Advice, folded: bool) -> Iterator[Block]:
    """How the methods stand, and every finding; where all are many, under a summary of them."""
    rows = report.contrasts(report.primary, of.shots)
    if not rows:
        return
    items = Items([_item(report, row) for row in rows])
    head = words.capital(f"with {words.budget(of.shots)}")
    against = f"against {report.compare.reference}"
    stand = ""
    if len(report.compare.shots) > 1:  # of one alone the lead has told it
        stand, against = f"{_standing(report, [of])}. ", words.capital(against)
    if folded:
        methods: dict[str, list[str]] = {}
        for row in rows:
            methods.setdefault(row.verdict, []).append(row.method)
        shown = "; ".join(f"{_number_of(named)} {verdict}" for verdict, named in methods.items())
        yield Fold((head, Small(f"{words.capital(stand + against)}: {shown}.")), [items])
    else:
        yield Paragraph((Strong(head), f"{': ' if stand else ', '}{stand}{against}:"))
        yield items


def _number_of(methods: Sequence[str]) -> str:
    return words.listed(methods) if len(methods) <= NAMED else f"{len(methods)} methods"


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
            f"The latents of {words.runs(collapsed)} collapsed: images hardly differ in them. ",
            Link("Which, and the likely cause", "claims"),
            ".",
        )
    constant = [run.id.method for run in runs if run.answers and _is_constant(run.answers)]
    if constant:
        yield warning(
            f"{words.runs(len(constant))} (of {words.listed([*dict.fromkeys(constant)])}) "
            f"{'gives' if len(constant) == 1 else 'give'} every test image one class, whatever it "
            "shows: nothing was learnt, most often for a learning rate that is too high or too low."
        )
    if report.evidence.prepared.get("labels_shuffled"):
        yield warning(
            "The labels that trained and chose the epochs were shuffled (",
            Code("data.shuffle_labels"),
            "): there was nothing to learn, and every method should be at chance.",
        )


def _is_constant(answers: Answers) -> bool:
    """Whether one class is all that is answered, though there are others."""
    return bool(np.ptp(answers.predicted) == 0 and np.ptp(answers.labels) > 0)
