"""The report as one self-contained HTML page: no script, no network, nothing beside it.

Here the findings are put in order and in words; how they look is the template's.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from ruamel.yaml import YAML

from pipeline.colours import colour
from pipeline.evaluation.collect import (
    SUMMARY,
    Cost,
    Evidence,
    Run,
    SharedInput,
    Tested,
    UnitInterval,
    shared_inputs,
)
from pipeline.evaluation.statistics import LOWER_IS_BETTER, Contrast, Estimate
from pipeline.evaluation.verification import DRAWS, pairs_needed
from pipeline.params import Compare, Params
from pipeline.records import OFFICIAL
from pipeline.report import words
from pipeline.report.figures import Panel

MARKED = ("better", "worse")
CLOSED_FORM = "solve"  # the phase of what is no optimisation
GROUPS = {
    "accuracy": (
        "{metric}, seed by seed",
        "Every dot is a seed, the line the mean, the bar its 95 % interval.",
    ),
    "learning": (
        "More training images",
        "Every dot is a seed, the line the mean, the band its 95 % interval.",
    ),
    "training": (
        "Training",
        "Validation accuracy while training; thin lines are seeds, the thick one "
        "their mean, as far as all of them run. The phases of a run follow one another: a "
        "breakdown starts where its encoders have ended. A head that is solved for is a point.",
    ),
    "loss": (
        "Phases judged by their loss",
        "The loss by which an encoder's epoch is chosen. Losses of methods with other settings "
        "are on other scales.",
    ),
    "epochs": (
        "Loss by epoch",
        "Mean over seeds, as far as all of them run. Each phase has scales of its own; what is "
        "done in one epoch has no course to show.",
    ),
}
FOLDED = ("epochs",)
ROLES = {
    "start": "start weights",
    "images": "pixels",
    "train": "training images and labels",
    "val": "validation images and labels",
    "pairs": "training pairs",
    "val_pairs": "validation pairs",
    "trials": "training pairs",
    "val_trials": "validation pairs and episodes",
}
FRAMES = {
    "learning": "Each method has a frame of its own; the dashed line is {reference}.",
    "training": "Each method has a frame of its own; the dashed line is {reference}.",
    "loss": "Each method has a frame and a scale of its own.",
}
UNITS = {"identity": "test classes", "run": "official runs"}  # what a bootstrap draws
SPLITS = {"train": "training", "val": "validation", "test": "test"}
TABLED = ("analysis", "trials", "val_trials")  # of prepared, shown in tables of their own
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
    intervals: Sequence[UnitInterval],
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
    compare, tested = params.compare, evidence.tested
    colours = {method: colour(index) for index, method in enumerate(compare.methods)}
    return environment.get_template("page.html").render(
        compare=compare,
        colours=colours,
        target=params.data.target,
        tested=tested,
        seeds=words.seeds(len(compare.seeds)),
        verdicts=[
            _verdict(tested.primary, compare, shots, estimates, contrasts)
            for shots in compare.shots
        ],
        scores=[
            _scores(compare, shots, columns, estimates, contrasts, evidence.runs)
            for shots in compare.shots
            for columns in _headline_columns(tested)
        ],
        directions=_directions(tested.headline),
        recalls=[
            _scores(compare, shots, columns, estimates, contrasts, evidence.runs)
            for columns in _recall_columns(tested)
            for shots in compare.shots
        ],
        figures=list(_figures(panels, compare, tested.primary)),
        examples=[
            {"run": run, "picture": base64.b64encode(picture).decode()}
            for run, picture in evidence.examples.items()
        ],
        contrasts=list(_contrast_tables(tested, contrasts)),
        intervals=list(_interval_tables(tested, intervals)),
        official=any(row.unit == "run" for row in intervals),
        draws=words.count(DRAWS),
        costs=list(_costs(evidence.runs)),
        phase_costs=list(_phase_costs(evidence.runs)),
        diverged=[run for run in evidence.runs if run.diverged],
        shared=[_shared(item, compare) for item in shared_inputs(evidence.runs)],
        recipes=dict.fromkeys((run.id.method, run.record["recipe"]) for run in evidence.runs),
        prepared=_facts(evidence.prepared),
        analysis=_analysis(evidence.prepared),
        episodes=_episodes(evidence.prepared),
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
    metric: str,
    compare: Compare,
    shots: int | str,
    estimates: Estimates,
    contrasts: Sequence[Contrast],
) -> dict[str, Any]:
    rows = [row for row in contrasts if row.shots == shots and row.metric == metric]
    means = {method: estimates[method][str(shots)][metric] for method in compare.methods}
    verdicts = {row.method: row.verdict for row in rows}
    best = supported_best(compare.methods, compare.reference, verdicts)
    top = words.value(metric, max(estimate.mean for estimate in means.values()))
    leaders = [m for m in compare.methods if words.value(metric, means[m].mean) == top]
    leaders = [best] if best else leaders
    return {
        "leader": words.leader(metric, shots, leaders, means[leaders[0]], best is not None),
        "findings": [{"row": row, "text": words.finding(row, compare.reference)} for row in rows],
        "resolution": words.resolution(rows),
    }


@dataclass(frozen=True)
class _Column:
    """One metric of a table of scores: its name, title, and what stands small below the title."""

    metric: str
    title: str
    below: str


def _headline_columns(tested: Tested) -> list[list[_Column]]:
    """One table, or where that would be too wide, one of pairs or images and those of episodes."""
    columns = [_Column(m, words.column(m), words.unit(m)) for m in tested.headline]
    if len(columns) <= MOST_COLUMNS:
        return [columns]
    groups = [
        [c for c in columns if (words.episodes_of(c.metric) is not None) == of]
        for of in (True, False)
    ]
    return [part for group in groups for part in _side_by_side(group)]


def _recall_columns(tested: Tested) -> list[list[_Column]]:
    """A column a class."""
    return _side_by_side(
        [_Column(of.metric, of.name, words.images(of.images)) for of in tested.recalls]
    )


def _side_by_side(columns: list[_Column]) -> list[list[_Column]]:
    """As many columns in a table as are readable."""
    return [columns[at : at + MOST_COLUMNS] for at in range(0, len(columns), MOST_COLUMNS)]


def _directions(metrics: Sequence[str]) -> str:
    """``Higher is better, except for log loss and calibration error.``"""
    lower = [words.in_table(metric) for metric in metrics if metric in LOWER_IS_BETTER]
    return f"Higher is better, except for {words.listed(lower)}." if lower else "Higher is better."


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


def _figures(panels: Sequence[Panel], compare: Compare, metric: str) -> Iterator[dict[str, Any]]:
    for group, (title, caption) in GROUPS.items():
        found = [panel for panel in panels if panel.group == group]
        if found:
            if group in FRAMES and any(panel.framed for panel in found):
                caption = f"{caption} {FRAMES[group].format(reference=compare.reference)}"
            # drawn by us: matplotlib has escaped every text in it
            shown = [{"title": p.title, "svg": Markup(p.inline)} for p in found]
            title = title.format(metric=words.capital(words.named(metric)))
            folded = group in FOLDED
            yield {"title": title, "caption": caption, "panels": shown, "folded": folded}


def _contrast_tables(tested: Tested, contrasts: Sequence[Contrast]) -> Iterator[dict[str, Any]]:
    """A table a headline metric, folded where all together would be long."""
    shown = [row for row in contrasts if row.metric in tested.headline]
    for metric in tested.headline:
        rows = [_contrast(row) for row in shown if row.metric == metric]
        if rows:
            yield {
                "title": words.title(metric),
                "unit": words.difference_unit(metric),
                "open": metric == tested.primary or len(shown) <= OPEN_ROWS,
                "rows": rows,
            }


def _interval_tables(tested: Tested, intervals: Sequence[UnitInterval]) -> Iterator[dict[str, Any]]:
    """A table a headline metric, all but the primary one folded."""
    for metric in tested.headline:
        rows = [row for row in intervals if row.metric == metric]
        if rows:
            yield {
                "title": words.title(metric),
                "below": f"{words.unit(metric)}, over {_units(rows[0])}",
                "open": metric == tested.primary,
                "compared": any(row.difference is not None for row in rows),
                "note": _no_interval(rows[0]),
                "rows": [_interval(row) for row in rows],
            }


def _no_interval(row: UnitInterval) -> str:
    """Why there is none, where there is none."""
    if row.low is not None:
        return ""
    if row.units < 2:
        return f"No interval: {_units(row)[:-1]} shows no spread."
    return (
        f"No interval: with fewer than {words.count(pairs_needed(row.metric))} test pairs of two "
        "classes, a handful of them decides the score, and drawing them again does not show how "
        "far it may be trusted."
    )


def _units(row: UnitInterval) -> str:
    return f"{words.count(row.units)} {UNITS[row.unit]}"


def _interval(row: UnitInterval) -> dict[str, Any]:
    metric = row.metric
    return {
        "method": row.method,
        "shots": row.shots,
        "mean": words.value(metric, row.mean),
        "interval": words.interval(metric, row),
        "difference": words.difference(metric, row.difference),
        "difference_interval": words.difference_interval(
            metric, row.difference_low, row.difference_high
        ),
    }


def _contrast(row: Contrast) -> dict[str, Any]:
    found, metric = row.comparison, row.metric
    return {
        "method": row.method,
        "shots": row.shots,
        "difference": words.difference(metric, found.difference),
        "interval": words.difference_interval(metric, found.low, found.high),
        "p": words.p_value(found.p_value),
        "p_adjusted": words.p_value(row.p_adjusted),
        "wins": f"{found.wins} of {found.n}",
        "verdict": row.verdict,
    }


def _costs(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """A row a method and shots: what training took, and predicting; means over seeds."""
    for (method, shots), of in _by_shots(runs).items():
        row = _cost_row(method, shots, [run.costs for run in of])
        tested = _cost_row(method, shots, [[run.prediction] for run in of])
        yield row | {
            "predict_seconds": tested["seconds"],
            "predict_images_per_second": tested["images_per_second"],
        }


def _phase_costs(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """A row a method, shots and phase of training, with what was spent until the kept epoch."""
    for (method, shots), of in _by_shots(runs).items():
        for phase in dict.fromkeys(cost.phase for run in of for cost in run.costs):
            costs = [[cost for cost in run.costs if cost.phase == phase] for run in of]
            reached = [
                _convergence(run, cost) for run, own in zip(of, costs, strict=True) for cost in own
            ]
            known = [found for found in reached if found is not None]
            row = _cost_row(method, shots, [own for own in costs if own])
            yield row | {
                "phase": words.phase(phase),
                "epoch": words.epoch_of(
                    [chosen for chosen, _, _ in known], [n for _, n, _ in known]
                ),
                "seconds_until": words.seconds(_mean([seconds for _, _, seconds in known])),
            }


def _by_shots(runs: Sequence[Run]) -> dict[tuple[str, int | str], list[Run]]:
    grouped: dict[tuple[str, int | str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.id.method, run.id.shots), []).append(run)
    return grouped


def _convergence(run: Run, cost: Cost) -> tuple[int, int, float | None] | None:
    """The kept epoch of a phase, how many there were, and the seconds until it.

    What is solved in closed form has no epochs, and what diverged did not converge.
    """
    for phase in run.record["phases"]:
        if phase["phase"] == cost.phase != CLOSED_FORM and phase["status"] == "finished":
            chosen, epochs = phase["chosen_epoch"], phase["epochs"]
            seconds = None if cost.seconds is None else cost.seconds * chosen / epochs
            return chosen, epochs, seconds
    return None


def _cost_row(method: str, shots: int | str, seeds: Sequence[Sequence[Cost]]) -> dict[str, Any]:
    """Sums over the costs of each seed, as means over seeds; of memory the largest peak."""
    memory = [c.peak_memory_mb for costs in seeds for c in costs if c.peak_memory_mb is not None]
    images = _mean([_sum([c.images_seen for c in costs]) for costs in seeds])
    seconds = _mean([_sum([c.seconds for c in costs]) for costs in seeds])
    return {
        "method": method,
        "shots": shots,
        "images_seen": words.count(images),
        "seconds": words.seconds(seconds),
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


def _analysis(prepared: Mapping[str, Any]) -> list[dict[str, str]]:
    """Images, classes and pairs of each split, where they were counted."""
    return [
        {
            "split": SPLITS[split],
            "images": words.count(of["images"]),
            "classes": words.count(of["classes"]),
            "range": " to ".join(words.count(sizes[end]) for end in ("min", "max")),
            "median": f"{sizes['median']:g}",
            "mean": f"{sizes['mean']:.1f}",
            **{kind: words.count(number) for kind, number in of["pairs"].items()},
        }
        for split in SPLITS
        if split in prepared.get("analysis", {})
        for of in [prepared["analysis"][split]]
        for sizes in [of["images_a_class"]]
    ]


def _episodes(prepared: Mapping[str, Any]) -> list[dict[str, str]]:
    """The sets of episodes of validation and test, and how much is asked in each."""
    return [
        {
            "name": "official runs" if name == OFFICIAL else words.episodes(name),
            "split": SPLITS[split],
            **{what: words.count(of[what]) for what in ("episodes", "queries", "trials")},
        }
        for split, key in (("val", "val_trials"), ("test", "trials"))
        for name, of in prepared.get(key, {}).items()
        if of["episodes"]
    ]


def _facts(prepared: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = list(_flat({key: of for key, of in prepared.items() if key not in TABLED}))
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
