"""The summary run: what all runs of one comparison say together, with its report."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from pipeline.records import digest, file_digest
from pipeline.tracking import client as tracking
from pipeline.tracking.entries import (
    KIND,
    SUMMARY,
    Attachment,
    Content,
    Entry,
    File,
    Job,
    Point,
    read_rows,
    run_of,
)
from pipeline.tracking.results import TABLE, Result

REPORTS = Path("reports")
FIGURES = REPORTS / "figures"
PAGE, TEXT = REPORTS / "index.html", REPORTS / "report.md"
COMPARISON = REPORTS / "comparison.csv"
TABLES = (  # the same whenever they are made anew
    TABLE,
    COMPARISON,
    *(REPORTS / name for name in ("pairwise.csv", "variance.csv", "crossover.csv", "claims.csv")),
)
LONGEST_NOTE = 4500  # characters; older stores take 5,000
POINTERS = (
    "Artifacts: `index.html` is the whole report, `report.md` the same as text, `comparison.csv` "
    "every difference with its interval. `summary/…`: means over seeds and differences to the "
    "reference; the step is the training images a class."
)
_PICTURE = re.compile(r"!\[")


def entry(job: Job, results: Sequence[Result]) -> Entry | None:
    """The summary of all compared runs; None unless the report is there and is of these runs."""
    rows = read_rows(job.file(TABLE))
    if not job.file(COMPARISON).exists() or {run_of(row) for row in rows} != set(job.runs):
        return None
    if len(results) < len(job.runs):
        return None
    compare = job.params.compare
    asked = [compare.model_dump(), sorted(result.key for result in results)]
    report = list(job.existing(files(job)))
    names = [str(path.relative_to(job.root)) for path, _ in report]
    tables = [path for path, _ in job.existing((table, None) for table in TABLES)]
    return Entry(
        name=f"summary of {len(compare.methods)} methods",
        key=digest("summary", json.dumps(asked, sort_keys=True)),
        digest=digest(json.dumps(names), *map(file_digest, tables)),
        status="FINISHED",
        milliseconds=0,
        tags=job.first_tags(),
        changing={KIND: SUMMARY, **job.changing_tags()},
        attachments=[_report(job, report)],
        content=lambda: _content(job, rows),
    )


def files(job: Job) -> list[File]:
    """The report's files, each with its folder among the artifacts, as they lie in the report."""
    figures = sorted(path.name for path in job.file(FIGURES).glob("*") if path.is_file())
    return [
        *((path, None) for path in (PAGE, TEXT, *TABLES)),
        *((FIGURES / name, FIGURES.name) for name in figures),
    ]


def points(
    rows: Sequence[Mapping[str, str]], differences: Sequence[Mapping[str, str]]
) -> list[Point]:
    """The primary metric's mean of each method, and its difference to the reference, by shots.

    Args:
        rows: of ``results.csv``, whose first metric is the primary one.
        differences: of ``comparison.csv``.
    """
    if not rows:
        return []
    primary = rows[0]["metric"]
    steps = _steps(dict.fromkeys(run_of(dict(row)).shots for row in rows))
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["metric"] == primary and row["value"]:
            values[row["method"], row["shots"]].append(float(row["value"]))
    name = primary.removeprefix("test/")
    found = [
        (f"summary/{name}/{method}", fmean(of), steps[shots])
        for (method, shots), of in values.items()
    ]
    return found + [
        (f"summary/difference/{row['method']}", float(row["difference"]), steps[row["shots"]])
        for row in differences
        if row["metric"] == primary and row["difference"]
    ]


def verdict(text: str) -> str:
    """The first section of a report in Markdown, without its heading and pictures."""
    section = re.split(r"^## .*$", text, flags=re.MULTILINE)[1:2]
    lines = [line for line in "".join(section).splitlines() if not _PICTURE.match(line.strip())]
    return "\n".join(lines).strip()


def note(text: str) -> str:
    """The summary's description: the verdict, as much of it as a tag takes, and where to look."""
    said = verdict(text)
    room = LONGEST_NOTE - len(POINTERS)
    if len(said) > room:
        said = said[:room].rpartition("\n")[0] + "\n\n…"
    return f"{said}\n\n{POINTERS}".strip()


def _report(job: Job, report: Sequence[File]) -> Attachment:
    # the page has times and a commit in it: it is renewed, not a new run
    found = job.file(TEXT)
    text = found.read_text(encoding="utf-8") if found.exists() else ""
    value = digest(*(file_digest(path) for path, _ in report))
    return Attachment("report_digest", value, report, {"mlflow.note.content": note(text)})


def _content(job: Job, rows: Sequence[Mapping[str, str]]) -> Content:
    asked = {"task": job.params.task, "compare": job.params.compare.model_dump()}
    return Content(
        params=tracking.flat(asked),
        finals={},
        curves=points(rows, read_rows(job.file(COMPARISON))),
    )


def _steps(shots: Iterable[int | str]) -> dict[str, int]:
    """The step of each number of shots; ``all`` stands beyond the largest, alone at 0."""
    numbers = [number for number in shots if number != "all"]
    beyond = 2 * max((int(number) for number in numbers), default=0)
    return {"all": beyond} | {str(number): int(number) for number in numbers}
