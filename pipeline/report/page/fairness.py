"""Was it a fair comparison: what the methods shared, and what each was given."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.collect import SharedInput, shared_inputs
from pipeline.params import Augmentation, Training
from pipeline.report import words
from pipeline.report.page.advice import price
from pipeline.report.page.costs import CLOSED_FORM, COUNTING
from pipeline.report.page.data import listed
from pipeline.report.page.document import (
    Block,
    Cell,
    Code,
    Column,
    Inline,
    Item,
    Items,
    Method,
    Section,
    Small,
    Table,
    cell,
    note,
    paragraph,
    warning,
)
from pipeline.report.page.report import Report, control

ROLES = {
    "start": "start weights",
    "images": "pixels",
    "train": "training images and labels",
    "val": "validation images and labels",
    "pairs": "training pairs",
    "val_pairs": "validation pairs",
    "trials": "training pairs",
    "val_trials": "validation pairs",
}
RULES = {
    "val_loss": "the lowest validation loss",
    "val_accuracy": "the highest validation accuracy",
}


def section(report: Report) -> Section:
    """Inputs by their digests, the shared settings, the budgets, the controls."""
    shared = shared_inputs(report.evidence.runs)
    differ = any(item.differs for item in shared)
    blocks: list[Block] = [
        warning(
            "Some methods were given other inputs at the same shots and seed. Their difference is "
            "then not one of the training alone."
        )
        if differ
        else paragraph(
            "At the same shots and seed, methods that read an input read the same bytes."
        ),
        _input_table(report, shared),
        Items(list(_shared_settings(report))),
        _budget_table(report),
        note(*_budget_note(report), f" {COUNTING}"),
    ]
    return Section("fair", "Was it a fair comparison?", blocks, brief=True)


def diverged(report: Report) -> Section:
    """Runs whose loss did not stay finite, with the reason."""
    runs = [run for run in report.evidence.runs if run.diverged]
    if not runs:
        return Section(
            "diverged", "Diverged runs", [paragraph("No run diverged: every loss stayed finite.")]
        )
    items = []
    for run in runs:
        reason = run.record.get("reason")
        where = f", {run.id.shots} shots, seed {run.id.seed}{f': {reason}' if reason else ''}"
        items.append(Item((Method(run.id.method), where)))
    return Section("diverged", "Diverged runs", [Items(items)])


def _input_table(report: Report, shared: list[SharedInput]) -> Table:
    columns = [Column(title, number=False) for title in ("Input", "Read by", "Between methods")]
    return Table(columns, [_input_row(report, item) for item in shared])


def _input_row(report: Report, item: SharedInput) -> list[Cell]:
    """One input in words: who reads it, and whether they all read the same."""
    methods = report.compare.methods
    readers = [method for method in methods if method in item.methods]
    everyone = len(readers) == len(methods) > 1
    alone = "read by one method" if len(readers) == 1 else "the same"
    state = f"differs at {listed(item.differs)}" if item.differs else alone
    return [
        cell(ROLES.get(item.role, item.role)),
        cell("all methods" if everyone else ", ".join(readers)),
        Cell((state,), bad=bool(item.differs)),
    ]


def _shared_settings(report: Report) -> Iterator[Item]:
    training = report.params.training
    yield Item((f"Augmentation, for all methods: {augmentation(training.augmentation)}.",))
    yield Item(
        (
            f"Which epoch is kept, for all methods: {_rule(training)}, on the validation images. "
            "The test images are read once training is over.",
        )
    )
    controls = [m for m in report.compare.methods if control(report.params, m)]
    for method in controls:
        yield Item((Method(method), f": {control(report.params, method)}"), method=method)
    yield Item(
        ("Learning rates and other settings are each method's own, as ", Code("params.yaml"),
         " says; whether the same effort went into each, no run can tell.")
    )  # fmt: skip


def _rule(training: Training) -> str:
    return RULES[training.rule]


def augmentation(of: Augmentation) -> str:
    """What is switched on, in words: ``flip, rotation 10, zoom 0.1``."""
    default = Augmentation()
    on = [
        name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value:g}"
        for name, value in of
        if value != getattr(default, name)
    ]
    return ", ".join(on) or "none"


def _budget_table(report: Report) -> Table:
    """Images seen in training and seconds side by side, and as multiples of the reference."""
    reference = report.compare.reference
    columns = [
        Column("Method", number=False),
        Column("Shots"),
        Column("Images seen in training"),
        Column(f"times {reference}"),
        Column("Seconds of training"),
        Column(f"times {reference}"),
    ]
    rows = []
    for method in report.compare.methods:
        for shots in report.compare.shots:
            ours, theirs = (price(report, name, shots) for name in (method, reference))
            more: list[Inline] = [Small("solved for")] if _solved(report, method, shots) else []
            texts = (
                *(str(shots), words.count(ours.images), _times(ours.images, theirs.images)),
                *(words.seconds(ours.seconds), _times(ours.seconds, theirs.seconds)),
            )
            rows.append([Cell((Method(method), *more)), *map(cell, texts)])
    return Table(columns, rows, "Budgets", dense=True)


def _times(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}" if ours is not None and theirs else words.NONE


def _solved(report: Report, method: str, shots: int | str) -> bool:
    phases = {cost.phase for run in report.runs(method, shots) for cost in run.costs}
    return phases == {CLOSED_FORM}


def _budget_note(report: Report) -> Iterator[Inline]:
    if report.compare.budget == "own":
        yield "Budgets are each method's own ("
        yield Code("compare.budget: own")
        yield "): where they differ, so may what a method reaches. To give every method the same, "
        yield "set "
        yield Code("compare.budget: matched")
        yield " and "
        yield Code("training.passes")
        yield "."
        return
    passes = report.params.training.passes
    yield "Budgets are matched ("
    yield Code("compare.budget: matched")
    yield f"): every method sees {words.count(passes)} images for each of its training images, "
    yield "as nearly as whole epochs allow; early stopping may use less, and what is solved for "
    yield "sees each image once."
