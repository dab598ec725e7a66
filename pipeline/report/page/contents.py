"""All sections of the report in their order."""

from __future__ import annotations

from pipeline.report import words
from pipeline.report.page import (
    again,
    claims,
    classes,
    comparisons,
    costs,
    data,
    fairness,
    mistakes,
    scores,
    verdict,
)
from pipeline.report.page.document import Document, Section, Strong
from pipeline.report.page.plates import figures
from pipeline.report.page.report import Report

TITLE = "Which training serves these images best?"
MOST_NAMED = 3  # methods in the report's name


def document(report: Report) -> Document:
    """The report in words: the answer first, then what it rests on, then how to make it again.

    Raises:
        InputError: the prepared images, of which some are shown, are missing or damaged.
    """
    sections = [
        verdict.section(report),
        comparisons.shots_section(report),
        scores.section(report),
        _figures(report, "figures", "In pictures", brief=True),
        comparisons.comparisons(report),
        comparisons.variances(report),
        comparisons.tested(report),
        claims.section(report),
        claims.inside(report),
        _figures(report, "training", "While training"),
        classes.section(report),
        mistakes.missed(report),
        mistakes.examples(report),
        data.section(report),
        costs.section(report),
        fairness.diverged(report),
        fairness.section(report),
        again.section(report),
    ]
    lede = (
        f"{_number(report)} on ",
        Strong(report.params.data.target),
        f", {words.seeds(len(report.compare.seeds))}. {report.evidence.tested.lede}",
    )
    shown = [found for found in sections if found is not None]
    return Document(TITLE, _name(report), lede, shown)


def _name(report: Report) -> str:
    """What is compared, on which images: ``breakdown and finetune on data/target``."""
    methods = report.compare.methods
    who = words.listed(methods) if len(methods) <= MOST_NAMED else _number(report)
    return f"{who} on {report.params.data.target}"


def _number(report: Report) -> str:
    methods = len(report.compare.methods)
    return f"{methods} method{'' if methods == 1 else 's'}"


def _figures(report: Report, name: str, title: str, brief: bool = False) -> Section | None:
    blocks = figures(report, name)
    return Section(name, title, blocks, brief) if blocks else None
