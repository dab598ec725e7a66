"""What training and predicting cost, and how large the networks are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.evaluation.collect import Cost, Run
from pipeline.report import words
from pipeline.report.page.advice import mean, total
from pipeline.report.page.document import (
    Block,
    Cell,
    Column,
    Fold,
    Method,
    Section,
    Table,
    cell,
    note,
)
from pipeline.report.page.report import Report

CLOSED_FORM = "solve"  # the phase of what is no optimisation
COUNTED = ("Images seen in training", "Seconds", "Images / s")
COUNTING = (
    "An image is seen once for each training batch that it is in. The latents of a frozen part "
    "are computed once, and count in every epoch that trains on them."
)
MEMORY = Column("Peak memory", "MB")
LEAD = (Column("Method", number=False), Column("Shots"))


def section(report: Report) -> Section:
    """A row a method and shots; folded, one a phase of them."""
    by_phase = Fold(
        ("Training, phase by phase, and how soon it converged",), [_phase_table(report)]
    )
    explained = note(
        f"Means over seeds; the largest peak of memory. {COUNTING} Predicting is timed from all "
        "test images in memory to all answers, one image alone as the median of several. The epoch "
        "kept is the one whose weights did best on the validation images, of all that were run; "
        "what is solved for, and what diverged, has none. Seconds and memory are of the machine "
        "that made the run, and differ from one time to the next."
    )
    blocks: list[Block] = [_training_table(report), _network_table(report), by_phase, explained]
    return Section("costs", "What it cost", blocks, brief=True)


def _groups(report: Report) -> Iterator[tuple[str, int | str, list[Run]]]:
    for method in report.compare.methods:
        for shots in report.compare.shots:
            yield method, shots, report.runs(method, shots)


def _training_table(report: Report) -> Table:
    columns = [*LEAD, *(Column(title) for title in COUNTED), MEMORY]
    rows = [
        [Cell((Method(method),)), cell(str(shots)), *_costs([run.costs for run in runs])]
        for method, shots, runs in _groups(report)
    ]
    return Table(columns, rows, "Training", dense=True)


def _network_table(report: Report) -> Table:
    columns = [
        *LEAD,
        Column("One image", "ms"),
        Column("Images / s"),
        Column("Parameters"),
        Column("Multiply-adds", "an image"),
        Column("Model", "MB"),
    ]
    rows = []
    for method, shots, runs in _groups(report):
        one = mean([run.one_image_seconds for run in runs])
        speed = _costs([[run.prediction] for run in runs])[2]
        found = runs[0].diagnosis
        sizes = (quantity(found.parameters), quantity(found.multiply_adds))
        rows.append(
            [
                Cell((Method(method),)),
                *map(cell, (str(shots), words.seconds(None if one is None else 1000 * one))),
                speed,
                *map(cell, (*sizes, f"{found.model_bytes / 1e6:.3g}")),
            ]
        )
    return Table(columns, rows, "Predicting", dense=True)


def quantity(number: float) -> str:
    """A large number with three digits: ``12 345``, ``1.24 million``, ``4.09 billion``."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{words.FIXED}{name}"
    return words.count(number)


def _phase_table(report: Report) -> Table:
    """What was spent in each phase of training, and until the kept epoch."""
    columns = [
        *(*LEAD, Column("Phase", number=False)),
        *(*(Column(title) for title in COUNTED), MEMORY),
        *(Column("Epoch kept"), Column("Seconds until then")),
    ]
    rows = []
    for method, shots, runs in _groups(report):
        for phase in dict.fromkeys(cost.phase for run in runs for cost in run.costs):
            costs = [[cost for cost in run.costs if cost.phase == phase] for run in runs]
            reached = [
                _convergence(run, cost)
                for run, own in zip(runs, costs, strict=True)
                for cost in own
            ]
            known = [found for found in reached if found is not None]
            epochs = words.epoch_of([kept for kept, _, _ in known], [n for _, n, _ in known])
            seconds = words.seconds(mean([seconds for _, _, seconds in known]))
            rows.append(
                [
                    *(Cell((Method(method),)), cell(str(shots)), cell(words.phase(phase))),
                    *_costs([own for own in costs if own]),
                    *(cell(epochs), cell(seconds)),
                ]
            )
    return Table(columns, rows, dense=True)


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


def _costs(seeds: Sequence[Sequence[Cost]]) -> list[Cell]:
    """Images, seconds and speed summed over the costs of each seed, mean over seeds; memory."""
    memory = [c.peak_memory_mb for costs in seeds for c in costs if c.peak_memory_mb is not None]
    images = mean([total([c.images_seen for c in costs]) for costs in seeds])
    seconds = mean([total([c.seconds for c in costs]) for costs in seeds])
    speed = images / seconds if images and seconds else None
    texts = (words.count(images), words.seconds(seconds), words.count(speed))
    return [*map(cell, texts), cell(words.count(max(memory, default=None)))]
