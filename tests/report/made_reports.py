"""Reports of the fake runs in the working directory."""

from __future__ import annotations

import re

from pipeline.evaluation.collect import collect
from pipeline.evaluation.findings import find
from pipeline.params import Params
from pipeline.report.figures import Panel
from pipeline.report.page import Made, Report
from pipeline.tasks import scores

ACCURACY = "test/accuracy"
GROUPS = ("accuracy", "forest", "learning", "epochs", "gradients", "classes", "variance")


def made_report(params: Params, made: Made | None = None) -> Report:
    """The report of all runs, with a panel of a few groups that stands for a drawing."""
    compare, task = params.compare, scores.BY_TASK[params.task]
    evidence = collect(compare, task.read)
    findings = find(evidence, compare, task.intervals(compare))
    panels = [
        Panel(group, group, f"A panel of {group}", f'<svg id="{group}-x">{group}</svg>\n')
        for group in GROUPS
    ]
    return Report(params, evidence, findings, panels, made or Made())


def text_of(page: str) -> str:
    """What a reader sees: without style, figures and tags, spaces as one."""
    page = re.sub(r"<(style|svg)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))


def part_of(page: str, name: str) -> str:
    """One section of the page."""
    return page[page.index(f'<h2 id="{name}"') :].split("</section>")[0]


def rows_of(part: str) -> list[dict[str, str]]:
    """The rows of the tables in a part of the page: the head as '', the cells by their labels."""
    return [
        {
            "": text_of(row.split("</th>")[0]).strip(),
            **{label: text_of(cell) for label, cell in CELL.findall(row)},
        }
        for row in part.split("<tr>")
        if 'scope="row"' in row
    ]


CELL = re.compile(r'<td [^>]*data-label="([^"]+)">(.*?)</td>', re.DOTALL)
