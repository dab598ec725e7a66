"""The table of scores: a row a method, a column a metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.evaluation.statistics.results import LOWER_IS_BETTER, Population
from pipeline.report import words
from pipeline.report.page.advice import advise, supported_best
from pipeline.report.page.document import (
    Block,
    Cell,
    Column,
    Inline,
    Method,
    Section,
    Small,
    Table,
    bullets,
    note,
)
from pipeline.report.page.report import Report, control

MARKED = ("better", "worse")
MOST_COLUMNS = 7  # side by side


def section(report: Report) -> Section:
    """A table for each number of shots, and what the numbers in it are."""
    tables = [
        _table(report, shots, metrics)
        for shots in report.compare.shots
        for metrics in _side_by_side(report.evidence.tested.headline)
    ]
    blocks = [*tables, note(_explanation(report, tables)), *_notes(report)]
    return Section("scores", "Scores on the test images", blocks, brief=True)


def method_cell(report: Report, method: str, *more: Inline) -> Cell:
    """The head of a method's row: its name, and what it is a control of."""
    role = control(report.params, method)
    return Cell((Method(method), *([Small(role)] if role else []), *more))


def _side_by_side(headline: Sequence[str]) -> Iterator[list[str]]:
    """One table, or where that would be too wide, one of pairs or images and those of episodes."""
    if len(headline) <= MOST_COLUMNS:
        yield list(headline)
        return
    for episodes in (True, False):
        metrics = [m for m in headline if (words.episodes_of(m) is not None) == episodes]
        for at in range(0, len(metrics), MOST_COLUMNS):
            yield metrics[at : at + MOST_COLUMNS]


def _table(report: Report, shots: int | str, metrics: Sequence[str]) -> Table:
    """Marked is what a verdict supports."""
    compare = report.compare
    verdicts: dict[str, dict[str, str]] = {
        metric: {row.method: row.verdict for row in report.contrasts(metric, shots)}
        for metric in metrics
    }
    best = {m: supported_best(compare.methods, compare.reference, v) for m, v in verdicts.items()}
    if report.primary in best:  # as the verdict has it, from all pairs of methods
        advice = advise(report, shots)
        best[report.primary] = advice.use if advice.ground == "best" else None
    rows = []
    for method in compare.methods:
        diverged = sum(run.diverged for run in report.runs(method, shots))
        more: list[Inline] = [Small("reference")] if method == compare.reference else []
        more += [Small(f"{diverged} diverged", bad=True)] if diverged else []
        cells = [method_cell(report, method, *more)]
        for metric in metrics:
            found = report.estimate(method, shots, metric)
            verdict = verdicts[metric].get(method, "")
            cells.append(
                Cell(
                    (words.value(metric, found.mean),),
                    words.interval(metric, found),
                    verdict if verdict in MARKED else "",
                    best[metric] == method,
                )
            )
        rows.append(cells)
    columns = [Column("Method", number=False)]
    columns += [Column(words.column(metric), words.unit(metric)) for metric in metrics]
    return Table(columns, rows, f"With {words.budget(shots)}")


def _explanation(report: Report, tables: Sequence[Table]) -> str:
    headline, reference = report.evidence.tested.headline, report.compare.reference
    cells = [cell for table in tables for row in table.rows for cell in row]
    said = [f"Mean over seeds, below it the {words.INTERVAL}, cut where the metric ends."]
    said += _populations(report)
    lower = [words.in_table(metric) for metric in headline if metric in LOWER_IS_BETTER]
    but = f", except for {words.listed(lower)}" if lower else ""
    said.append(f"Higher is better{but}.")
    if any(cell.verdict for cell in cells):
        said.append(f"Better and worse: than {reference}, where the adjusted p is below 0.05.")
    if any(cell.best for cell in cells):
        said.append("A marked score is best by these verdicts, not just by its mean.")
    else:
        said.append("No score is marked as best: no verdict supports it.")
    return " ".join(said)


def _populations(report: Report) -> Iterator[str]:
    """Of what the intervals of the table speak; metrics of which they speak alike together."""
    by_population: dict[Population, dict[str, None]] = {}
    for of_method in report.findings.estimates.values():
        for of_shots in of_method.values():
            for metric in report.evidence.tested.headline:
                found = of_shots[metric]
                if found.low is not None:
                    by_population.setdefault(found.population, {})[metric] = None
    for population, metrics in by_population.items():
        of = words.population(population, [report.unit(metric) for metric in metrics])
        if len(by_population) == 1:
            yield f"The intervals speak of {of}."
        else:
            named = words.listed([words.in_table(metric) for metric in metrics])
            yield f"Those of {named} speak of {of}."


def _notes(report: Report) -> list[Block]:
    notes = report.evidence.tested.notes
    return [bullets(notes, "note")] if len(notes) > 1 else [note(found) for found in notes]
