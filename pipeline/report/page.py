"""The report as one self-contained HTML page: no script, no network, nothing beside it.

Here the findings are put in order and in words; how they look is the template's.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from ruamel.yaml import YAML

from pipeline.colours import colour
from pipeline.evaluation.collect import SUMMARY, Cost, Evidence, Run, SharedInput, shared_inputs
from pipeline.evaluation.statistics import Contrast, Estimate
from pipeline.params import Compare, Params
from pipeline.report import words
from pipeline.report.figures import Panel

ACCURACY = "test/accuracy"
MARKED = ("better", "worse")
GROUPS = {
    "accuracy": (
        "Test accuracy, seed by seed",
        "Every dot is a seed, the line the mean, the bar its 95 % interval.",
    ),
    "learning": (
        "More training images",
        "Every dot is a seed, the line the mean, the band its 95 % interval.",
    ),
    "training": (
        "Training",
        "Accuracy on the validation images while training; thin lines are seeds, the thick one "
        "their mean, as far as all of them run. The phases of a run follow one another: a "
        "breakdown starts where its encoders have ended. A head that is solved for is a point.",
    ),
    "loss": (
        "Phases without a classifier",
        "The loss by which an encoder's epoch is chosen. Losses of methods with other settings "
        "are on other scales.",
    ),
}
ROLES = {
    "start": "start weights",
    "images": "pixels",
    "train": "training images and labels",
    "val": "validation images and labels",
    "pairs": "training pairs",
    "val_pairs": "validation pairs",
}
FRAMES = {
    "learning": "Each method has a frame of its own; the dashed line is {reference}.",
    "training": "Each method has a frame of its own; the dashed line is {reference}.",
    "loss": "Each method has a frame and a scale of its own.",
}
MOST_COLUMNS = 7  # of scores side by side
OPEN_ROWS = 16  # of comparisons; where there are more, only those of accuracy are unfolded
LISTED_ITEMS = 12
LISTED_ROWS = 60

Estimates = Mapping[str, Mapping[str, Mapping[str, Estimate]]]


def render(
    params: Params,
    evidence: Evidence,
    estimates: Estimates,
    contrasts: Sequence[Contrast],
    panels: Sequence[Panel],
) -> str:
    """The page as text. The same evidence gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    compare = params.compare
    colours = {method: colour(index) for index, method in enumerate(compare.methods)}
    return environment.get_template("page.html").render(
        compare=compare,
        colours=colours,
        target=params.data.target,
        classes=evidence.classes,
        test_images=words.count(evidence.test_images),
        chance=words.value(ACCURACY, 1 / len(evidence.classes)),
        seeds=words.seeds(len(compare.seeds)),
        verdicts=[_verdict(compare, shots, estimates, contrasts) for shots in compare.shots],
        positive=evidence.positive if len(evidence.classes) == 2 else None,
        scores=_tables(compare, _headline_columns(evidence), estimates, contrasts, evidence.runs),
        recalls=[
            table
            for columns in _recall_columns(evidence)
            for table in _tables(compare, columns, estimates, contrasts, evidence.runs)
        ],
        figures=list(_figures(panels, compare)),
        contrasts=list(_contrast_tables(evidence, contrasts)),
        costs=_costs(evidence.runs, by_phase=False),
        phase_costs=_costs(evidence.runs, by_phase=True),
        diverged=[run for run in evidence.runs if run.diverged],
        shared=[_shared(item, compare) for item in shared_inputs(evidence.runs)],
        recipes=dict.fromkeys((run.id.method, run.record["recipe"]) for run in evidence.runs),
        prepared=_facts(evidence.prepared),
        machines=_machines(evidence.runs),
        params=_yaml(params),
    )


def supported_best(
    methods: Sequence[str], reference: str, verdicts: Mapping[str, str]
) -> str | None:
    """The method that the verdicts against the reference show to be best, if they show one.

    It is the reference if all others are worse, or the one method that is better while all the
    remaining ones are worse. Two methods that are both better were never compared.
    """
    better = [method for method in methods if verdicts.get(method) == "better"]
    rest = [method for method in methods if method != reference and method not in better]
    if not rest + better or len(better) > 1 or any(verdicts[method] != "worse" for method in rest):
        return None
    return better[0] if better else reference


def _verdict(
    compare: Compare,
    shots: int | str,
    estimates: Estimates,
    contrasts: Sequence[Contrast],
) -> dict[str, Any]:
    rows = [row for row in contrasts if row.shots == shots and row.metric == ACCURACY]
    means = {method: estimates[method][str(shots)][ACCURACY] for method in compare.methods}
    verdicts = {row.method: row.verdict for row in rows}
    best = supported_best(compare.methods, compare.reference, verdicts)
    top = words.value(ACCURACY, max(estimate.mean for estimate in means.values()))
    leaders = [m for m in compare.methods if words.value(ACCURACY, means[m].mean) == top]
    leaders = [best] if best else leaders
    return {
        "leader": words.leader(shots, leaders, means[leaders[0]], best is not None),
        "findings": [{"row": row, "text": words.finding(row, compare.reference)} for row in rows],
        "resolution": words.resolution(rows),
    }


@dataclass(frozen=True)
class _Column:
    """One metric of a table of scores: its name, title, and what stands small below the title."""

    metric: str
    title: str
    below: str


def _headline_columns(evidence: Evidence) -> list[_Column]:
    return [_Column(m, words.TITLES[m], words.unit(m)) for m in evidence.headline]


def _recall_columns(evidence: Evidence) -> list[list[_Column]]:
    """A column a class, as many side by side as are readable."""
    images = dict(zip(evidence.classes, evidence.by_class, strict=True))
    columns = [
        _Column(metric, name, words.images(images[name]))
        for name, metric in evidence.recalls.items()
    ]
    return [columns[at : at + MOST_COLUMNS] for at in range(0, len(columns), MOST_COLUMNS)]


def _tables(
    compare: Compare,
    columns: Sequence[_Column],
    estimates: Estimates,
    contrasts: Sequence[Contrast],
    runs: Sequence[Run],
) -> list[dict[str, Any]]:
    """A table of scores for each number of shots."""
    return [_scores(compare, shots, columns, estimates, contrasts, runs) for shots in compare.shots]


def _scores(
    compare: Compare,
    shots: int | str,
    columns: Sequence[_Column],
    estimates: Estimates,
    contrasts: Sequence[Contrast],
    runs: Sequence[Run],
) -> dict[str, Any]:
    """One table: a row a method, a cell a metric, marked where a verdict supports it."""
    verdicts: dict[str, dict[str, str]] = {column.metric: {} for column in columns}
    for row in contrasts:
        if row.shots == shots and row.metric in verdicts:
            verdicts[row.metric][row.method] = row.verdict
    best = {m: supported_best(compare.methods, compare.reference, v) for m, v in verdicts.items()}
    return {
        "title": f"With {words.budget(shots)}",
        "columns": columns,
        "best": any(best.values()),
        "marked": any(found in MARKED for by in verdicts.values() for found in by.values()),
        "rows": [
            {
                "method": method,
                "diverged": sum(
                    r.diverged for r in runs if r.id.method == method and r.id.shots == shots
                ),
                "cells": [
                    {
                        "title": column.title,
                        "value": words.value(metric, estimates[method][str(shots)][metric].mean),
                        "interval": words.interval(metric, estimates[method][str(shots)][metric]),
                        "verdict": v if (v := verdicts[metric].get(method)) in MARKED else "",
                        "best": best[metric] == method,
                    }
                    for column in columns
                    for metric in [column.metric]
                ],
            }
            for method in compare.methods
        ],
    }


def _figures(panels: Sequence[Panel], compare: Compare) -> Iterator[dict[str, Any]]:
    for group, (title, caption) in GROUPS.items():
        found = [panel for panel in panels if panel.group == group]
        if found:
            if any(panel.framed for panel in found):
                caption = f"{caption} {FRAMES[group].format(reference=compare.reference)}"
            # drawn by us: matplotlib has escaped every text in it
            shown = [{"title": p.title, "svg": Markup(p.inline)} for p in found]
            yield {"title": title, "caption": caption, "panels": shown}


def _contrast_tables(evidence: Evidence, contrasts: Sequence[Contrast]) -> Iterator[dict[str, Any]]:
    """A table a headline metric, folded where all together would be long."""
    shown = [row for row in contrasts if row.metric in evidence.headline]
    for metric in evidence.headline:
        rows = [_contrast(row) for row in shown if row.metric == metric]
        if rows:
            yield {
                "title": words.TITLES[metric],
                "unit": words.difference_unit(metric),
                "open": metric == ACCURACY or len(shown) <= OPEN_ROWS,
                "rows": rows,
            }


def _contrast(row: Contrast) -> dict[str, Any]:
    found, metric = row.comparison, row.metric
    return {
        "method": row.method,
        "shots": row.shots,
        "difference": words.difference(metric, found.difference),
        "interval": words.difference_interval(metric, found),
        "p": words.p_value(found.p_value),
        "p_adjusted": words.p_value(row.p_adjusted),
        "wins": f"{found.wins} of {found.n}",
        "verdict": row.verdict,
    }


def _costs(runs: Sequence[Run], by_phase: bool) -> list[dict[str, Any]]:
    """A row a method and shots, or one of their phases: means over seeds, the largest memory."""
    grouped: dict[tuple[str, int | str, str], dict[int, list[Cost]]] = {}
    for run in runs:
        for cost in run.costs:
            key = (run.id.method, run.id.shots, cost.phase if by_phase else "")
            grouped.setdefault(key, {}).setdefault(run.id.seed, []).append(cost)
    return [_cost_row(*key, list(by_seed.values())) for key, by_seed in grouped.items()]


def _cost_row(
    method: str, shots: int | str, phase: str, seeds: Sequence[Sequence[Cost]]
) -> dict[str, Any]:
    memory = [c.peak_memory_mb for costs in seeds for c in costs if c.peak_memory_mb is not None]
    images = _mean([_sum([c.images_seen for c in costs]) for costs in seeds])
    seconds = _mean([_sum([c.seconds for c in costs]) for costs in seeds])
    return {
        "method": method,
        "shots": shots,
        "phase": words.phase(phase),
        "images_seen": words.count(images),
        "seconds": words.count(seconds, 1 if seconds is None or seconds < 100 else 0),
        "images_per_second": words.count(images / seconds if images and seconds else None),
        "memory": words.count(max(memory, default=None)),
    }


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _shared(item: SharedInput, compare: Compare) -> dict[str, Any]:
    """One input in words: who reads it, and whether they all read the same."""
    readers = [method for method in compare.methods if method in item.methods]
    alone = len(readers) == 1
    return {
        "role": ROLES.get(item.role, item.role),
        "methods": "all methods" if len(readers) == len(compare.methods) else ", ".join(readers),
        "state": "differs" if item.differs else "read by one method" if alone else "the same",
        "differs": _listed(item.differs),
    }


def _machines(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Device, threads and versions, with the number of runs that had each; one row is best."""
    counted: dict[tuple[str, int, str], int] = {}
    for run in runs:
        record = run.record
        versions = ", ".join(f"{name} {v}" for name, v in sorted(record["versions"].items()))
        key = (record["device"], record["threads"], versions)
        counted[key] = counted.get(key, 0) + 1
    return [
        {"runs": str(n), "device": device, "threads": str(threads), "versions": versions}
        for (device, threads, versions), n in counted.items()
    ]


def _facts(prepared: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = list(_flat(prepared))
    more = len(rows) - LISTED_ROWS
    return rows if more <= 0 else [*rows[:LISTED_ROWS], ("…", f"{more} more lines in {SUMMARY}")]


def _flat(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as (path, text): a row a leaf, or a row a mapping of numbers."""
    if path and all(isinstance(value, int) for value in node.values()):
        yield path, _listed([f"{key} {_leaf(value)}" for key, value in node.items()])
        return
    for key, value in node.items():
        below = f"{path}, {key}" if path else key.replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, below)
        else:
            yield below, _listed(value) if isinstance(value, list) else _leaf(value)


def _listed(items: Sequence[Any]) -> str:
    shown = ", ".join(_leaf(item) for item in items[:LISTED_ITEMS])
    more = len(items) - LISTED_ITEMS
    return f"{shown} and {more} more" if more > 0 else shown or "none"


def _leaf(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return words.count(value)
    return (
        words.NONE if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    )


def _yaml(params: Params) -> str:
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    writer.dump(params.model_dump(mode="json", by_alias=True), text)
    return text.getvalue()
