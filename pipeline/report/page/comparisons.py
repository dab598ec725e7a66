"""Every comparison with the reference, and where the spread comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.evaluation.collect import UnitInterval
from pipeline.evaluation.statistics.results import Contrast, Crossover, Variance
from pipeline.evaluation.verification import DRAWS, pairs_needed
from pipeline.report import words
from pipeline.report.figures.comparison import crossover_stretches
from pipeline.report.page.document import (
    Block,
    Cell,
    Code,
    Column,
    Fold,
    Item,
    Items,
    Method,
    Section,
    Small,
    Strong,
    Table,
    cell,
    note,
    paragraph,
)
from pipeline.report.page.plates import figures
from pipeline.report.page.report import Report

DRAWN = {"identity": "class", "run": "official run"}  # what a bootstrap draws, as a test unit


def crossover_sentences(report: Report) -> list[Item]:
    """From how many training images on which method is ahead, a sentence a method."""
    return [
        Item((_crossover(found, report.compare.reference),), method=found.method)
        for found in report.findings.crossovers
    ]


def _crossover(found: Crossover, reference: str) -> str:
    least, most = found.curve[0].shots, found.curve[-1].shots
    span = f"between {_shots(least)} and {_shots(most)} images a class"
    said = f"{found.method} vs {reference}, {span}: "
    if not found.ahead:
        said += "at no number is either shown to be ahead"
    else:
        leads: dict[str, list[str]] = {}
        for low, high, method in found.ahead:
            leads.setdefault(method, []).append(_stretch(low, high))
        said += "; ".join(
            f"{method} is ahead {words.listed(stretches)}" for method, stretches in leads.items()
        )
        undecided = found.ahead[0][0] > least or found.ahead[-1][1] < most or len(found.ahead) > 1
        said += "; all else is undecided" if undecided else ""
    return f"{said}. {_crossings(found)}"


def _crossings(found: Crossover) -> str:
    """Where one overtakes the other; a crossing that no verdict stands beside is no finding."""
    stretches = crossover_stretches(found)
    loose = [c for c in found.crossings if not any(low <= c <= high for low, high in stretches)]
    said = []
    if stretches:
        between = [f"between {_shots(low)} and {_shots(high)}" for low, high in stretches]
        lies = "crossover lies" if len(stretches) == 1 else "crossovers lie"
        said.append(f"The {lies} {words.listed(between)}.")
    if loose:
        at = words.listed([_shots(shots) for shots in loose])
        said.append(f"The means cross at about {at}, which these runs do not pin down.")
    return " ".join(said) or "The means do not cross."


def _stretch(low: float, high: float) -> str:
    first, last = _shots(low), _shots(high)
    return f"at {first}" if first == last else f"from {first} to {last}"


def _shots(number: float) -> str:
    """A compared number is whole; between them two digits are more than is known."""
    return f"{number:g}" if number == round(number) else f"{number:.2g}"


def comparisons(report: Report) -> Section | None:
    """A table a headline metric, all but the primary one folded."""
    if not report.findings.contrasts:
        return None
    blocks: list[Block] = []
    for metric in report.evidence.tested.headline:
        rows = report.contrasts(metric)
        if rows:
            summary = (words.title(metric), Small(words.difference_unit(metric)))
            table = _comparison_table(rows)
            blocks.append(Fold(summary, [table], open=metric == report.primary))
    blocks.append(note(_comparison_note(report)))
    if len(report.compare.methods) > 2 and len(report.compare.seeds) > 1:
        unit = Small(words.difference_unit(report.primary))
        blocks.append(Fold(("Every pair of methods", unit), [_pair_table(report)]))
        blocks.append(
            note(
                f"In {words.named(report.primary)}, the first method minus the other; p is "
                "adjusted after Holm over all pairs at each number of shots. Which method to use "
                f"goes by these, and by the verdicts against {report.compare.reference}."
            )
        )
    title = f"Every comparison with {report.compare.reference}"
    return Section("comparison", title, blocks, brief=True)


def _comparison_table(rows: Sequence[Contrast]) -> Table:
    flips = any(row.comparison.sign_flip_p is not None for row in rows)
    columns = [
        Column("Method", number=False),
        Column("Shots", place="second"),
        Column("Difference", place="wide third"),
        Column("95 % interval", place="wide third"),
        Column("p", place="fourth"),
        Column("p adjusted", place="fourth"),
        *([Column("p by sign flips", place="fourth")] if flips else []),
        Column("Wins", place="second"),
        Column("Detectable", place="fourth"),
        Column("Verdict", number=False, place="wide last"),
    ]
    return Table(columns, [_comparison_row(row, flips) for row in rows], dense=True)


def _comparison_row(row: Contrast, flips: bool) -> list[Cell]:
    found, metric = row.comparison, row.metric
    least = found.detectable
    beyond = least is not None and least >= 1 and metric not in words.UNITS
    detectable = "> 100" if beyond else words.value(metric, least)
    texts = [
        *(str(row.shots), words.difference(metric, found.difference)),
        words.difference_interval(metric, found.low, found.high),
        *(words.p_value(found.p_value), words.p_value(row.p_adjusted)),
        *([words.p_value(found.sign_flip_p)] if flips else []),
        *(f"{found.wins} of {found.n}", detectable, row.verdict),
    ]
    return [Cell((Method(row.method),)), *map(cell, texts)]


def _pair_table(report: Report) -> Table:
    columns = [
        Column("Method", number=False),
        Column("Other", number=False, place="second"),
        Column("Shots", place="second"),
        Column("Difference", place="wide third"),
        Column("95 % interval", place="wide third"),
        Column("p adjusted", place="fourth"),
    ]
    rows = [
        [
            Cell((Method(pair.method),)),
            Cell((Method(pair.other),)),
            cell(str(pair.shots)),
            cell(words.difference(report.primary, found.difference)),
            cell(words.difference_interval(report.primary, found.low, found.high)),
            cell(words.p_value(pair.p_adjusted)),
        ]
        for pair in report.findings.pairs
        for found in [pair.comparison]
    ]
    return Table(columns, rows, dense=True)


def _comparison_note(report: Report) -> str:
    rows = report.findings.contrasts
    said = [
        "Method minus reference, paired by seed and test image: both had the same training images "
        "and the same test. Difference, interval and p come from one model, of crossed random "
        "effects of seeds and of what was tested; where a metric cannot be taken apart by test "
        "images, or there is one seed, from the seeds or from the test images alone. p is "
        "adjusted after Holm over the methods, for each number of shots and each metric, and the "
        "verdict goes by it; the intervals are not adjusted, so that one may leave out zero "
        "without a verdict. Wins count the seeds in which the method was strictly better."
    ]
    if any(row.comparison.sign_flip_p is not None for row in rows):
        said.append("Beside it, the exact sign-flip test over seeds alone, not adjusted.")
    return " ".join(said)


def variances(report: Report) -> Section | None:
    """Of the primary metric: how much seeds and test units contribute."""
    rows = [row for row in report.findings.variances if row.metric == report.primary]
    shown = figures(report, "variance")
    if not rows:
        return None
    metric, unit = report.primary, rows[0].unit
    columns = [
        Column("Method", number=False),
        Column("Shots"),
        Column("Of", number=False, place="wide"),
        Column("Between seeds"),
        Column(f"Between {words.several(unit)}"),
        Column("Rest"),
        Column("More seeds would take away", "%", place="wide"),
    ]
    table = Table(columns, [_variance_row(row, report) for row in rows], dense=True)
    explained = note(
        f"Standard deviations of {words.named(metric)}, in {words.difference_unit(metric)}: "
        "between seeds (which training images are drawn, how the network starts, in which order "
        f"it learns), between {words.several(unit)} (some are hard for every training), and the "
        "rest (which are hard differs from training to training). The last column is the share of "
        "the variance of the mean that ever more seeds would take away; the remainder only more "
        f"{words.several(unit)} would."
    )
    fold = Fold(("The numbers",), [table], open=not shown and len(rows) <= words.FEW_SEEDS)
    return Section("variance", "Where the spread comes from", [*shown, fold, explained])


def _variance_row(row: Variance, report: Report) -> list[Cell]:
    of = "its mean" if row.of == "value" else f"its difference to {report.compare.reference}"
    parts = (row.seeds, row.units, row.rest)
    texts = [
        *(str(row.shots), of),
        *(words.value(row.metric, part) for part in parts),
        f"{100 * row.share_of_seeds:.0f}",
    ]
    return [Cell((Method(row.method),)), *map(cell, texts)]


def tested(report: Report) -> Section | None:
    """How much hangs on which classes or runs were tested, by bootstrap."""
    intervals = report.findings.intervals
    if not intervals:
        return None
    official = any(row.unit == "run" for row in intervals)
    other = ", or in other official runs" if official else ""
    runs = ", for official runs the runs," if official else ""
    drawn = (
        f"Mean over seeds. The test classes{runs} are drawn with replacement, as many as there "
        f"are, {words.count(DRAWS)} times; the interval holds the middle 95 % of the means that "
        "result."
    )
    if report.findings.contrasts:
        drawn += (
            " For a difference, both methods are tested on the same draws, so that what is hard "
            "for both cancels."
        )
    blocks = [
        paragraph(
            "These intervals speak of another ",
            Strong("test"),
            " alone: the same trained networks, tested on other people or characters"
            f"{other}, of the same kind and number.",
        ),
        *_interval_folds(report),
        note(drawn),
    ]
    return Section("tested", "How much hangs on who was tested", blocks)


def _interval_folds(report: Report) -> Iterator[Block]:
    for metric in report.evidence.tested.headline:
        rows = [row for row in report.findings.intervals if row.metric == metric]
        if rows:
            below = f"{words.unit(metric)}, over {_units(rows[0])}"
            why = _no_interval(rows[0])
            blocks: list[Block] = [_interval_table(rows, report.compare.reference)]
            blocks += [note(why)] if why else []
            summary = (words.title(metric), Small(below))
            yield Fold(summary, blocks, open=metric == report.primary)


def _interval_table(rows: Sequence[UnitInterval], reference: str) -> Table:
    compared = any(row.difference is not None for row in rows)
    columns = [
        Column("Method", number=False),
        Column("Shots"),
        Column("Mean"),
        Column("95 % interval", place="wide"),
    ]
    if compared:
        columns += [
            Column(f"Difference to {reference}", place="wide"),
            Column("95 % interval of it", place="wide"),
        ]
    return Table(columns, [_interval_row(row, compared) for row in rows], dense=True)


def _interval_row(row: UnitInterval, compared: bool) -> list[Cell]:
    metric = row.metric
    between = words.difference_interval(metric, row.difference_low, row.difference_high)
    texts = [
        *(str(row.shots), words.value(metric, row.mean), words.interval(metric, row)),
        *([words.difference(metric, row.difference), between] if compared else []),
    ]
    return [Cell((Method(row.method),)), *map(cell, texts)]


def _no_interval(row: UnitInterval) -> str:
    """Why there is none, where there is none."""
    if row.low is not None:
        return ""
    if row.units < 2:
        return f"No interval: {_units(row)} shows no spread."
    return (
        f"No interval: with fewer than {words.count(pairs_needed(row.metric))} test pairs of two "
        "classes, a handful of them decides the score, and drawing them again does not show how "
        "far it may be trusted."
    )


def _units(row: UnitInterval) -> str:
    return words.units(row.units, DRAWN[row.unit])


def shots_section(report: Report) -> Section | None:
    """Which method is ahead with how many training images, where several numbers were compared."""
    sentences = crossover_sentences(report)
    shown = figures(report, "shots")
    if not sentences and not shown:
        return None
    blocks: list[Block] = [*shown]
    if sentences:
        blocks += [
            Items(sentences),
            note(
                "Between the compared numbers the difference of each seed and test image is "
                "interpolated, in the logarithm of the number; ahead is who the interval of the "
                "mean difference, widened for the number of methods compared, leaves no doubt "
                "about at that number. ",
                Code("reports/crossover.csv"),
                " has the curves.",
            ),
        ]
    return Section("shots", "With more training images", blocks, brief=True)
