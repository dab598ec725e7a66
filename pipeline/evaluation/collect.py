"""Everything that the compared runs left behind, read and checked: the evidence of a report.

What is read is what ``compare`` names; files of other runs are never looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluation.metrics import (
    BINARY,
    CLASS_RECALL,
    HEADLINE,
    Predictions,
    all_metrics,
)
from pipeline.params import PARAMS_FILE, Compare
from pipeline.records import RECORD_VERSION, RunId, digest, read_json, runs_of

SUMMARY = Path("prepared/summary.json")
REMAKE = "make it anew with 'dvc repro'"
RECORD_FIELDS: dict[str, type] = {
    "recipe": str,
    "status": str,
    "parameters": dict,
    "phases": list,
    "metrics": dict,
    "inputs": dict,
    "versions": dict,
    "device": str,
    "threads": int,
}
LISTED_CLASSES = 20
COST_FIELDS = ("images_seen", "seconds", "images_per_second", "peak_memory_mb")

AnyNumber = TypeVar("AnyNumber", bound=np.generic)


@dataclass(frozen=True)
class Cost:
    """What one phase of one run took; None where it was not measured."""

    run: RunId
    phase: str
    images_seen: float | None
    seconds: float | None
    images_per_second: float | None
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Run:
    """One compared run.

    ``values`` holds the test metrics, then the record's own, then ``diverged`` (0 or 1);
    ``history`` has the columns ``phase``, ``epoch``, ``images_seen`` and metrics.
    """

    id: RunId
    values: dict[str, float]
    record: dict[str, Any]
    history: pd.DataFrame
    costs: list[Cost]

    @property
    def diverged(self) -> bool:
        """Whether training broke off on a loss that was not finite."""
        return bool(self.record["status"] == "diverged")


@dataclass(frozen=True)
class Evidence:
    """All compared runs in compare order, and what they were tested on.

    ``positive`` is the class of precision, recall and F-beta, which sets of two classes have;
    ``by_class`` the number of each class's test images.
    """

    runs: list[Run]
    classes: tuple[str, ...]
    positive: str
    test_images: int
    by_class: tuple[int, ...]
    prepared: dict[str, Any]

    @property
    def headline(self) -> tuple[str, ...]:
        """The metrics by which methods are judged: those of two classes where there are two."""
        return (*HEADLINE, *BINARY) if len(self.classes) == 2 else HEADLINE

    @property
    def recalls(self) -> dict[str, str]:
        """The classes that have a recall of their own, and the metric's name."""
        named = {name: f"{CLASS_RECALL}{name}" for name in self.classes}
        return {name: metric for name, metric in named.items() if metric in self.runs[0].values}


@dataclass(frozen=True)
class SharedInput:
    """Whether the methods that read some input read the same bytes, wherever seeds agree.

    ``differs`` names the (shots, seed) at which they did not, as ``10 shots, seed 0``.
    """

    role: str
    methods: list[str]
    differs: list[str]


def collect(compare: Compare) -> Evidence:
    """Read predictions, records, histories and timings of the runs that ``compare`` names.

    Raises:
        InputError: a file is missing, damaged, or belongs to another test split, or
            ``compare.positive`` is no class.
    """
    prepared = _json(SUMMARY)
    runs, first, tested, positive = [], RunId("", 0, 0), None, ""
    for run in runs_of(compare):
        predictions, test = _predictions(run.predictions)
        if tested is None:
            first, tested = run, test
            positive = _positive(compare, test.classes)
        elif test != tested:
            raise InputError(
                f"{run.predictions}: not the classes and test images of {first.predictions}; "
                f"both must come from one test split: {REMAKE}"
            )
        metrics = all_metrics(predictions, test.classes, positive, compare.beta)
        runs.append(_run(run, metrics, run.method in compare.breakdowns))
    assert tested is not None  # compare has at least one method, shots and seed
    return Evidence(runs, tested.classes, positive, tested.images, tested.by_class, prepared)


def shared_inputs(runs: Sequence[Run]) -> list[SharedInput]:
    """For every input role in the records, whether the methods' digests agree.

    Runs are compared where shots and seed agree.
    """
    digests: dict[str, dict[tuple[int | str, int], set[str]]] = {}
    methods: dict[str, dict[str, None]] = {}
    for run in runs:
        for role, value in run.record["inputs"].items():
            digests.setdefault(role, {}).setdefault((run.id.shots, run.id.seed), set()).add(value)
            methods.setdefault(role, {})[run.id.method] = None
    return [
        SharedInput(
            role,
            list(methods[role]),
            [
                f"{shots} shots, seed {seed}"
                for (shots, seed), values in digests[role].items()
                if len(values) > 1
            ],
        )
        for role in sorted(digests)
    ]


@dataclass(frozen=True)
class _Test:
    """What makes two prediction files comparable: classes, numbers and digest of the images."""

    classes: tuple[str, ...]
    images: int
    by_class: tuple[int, ...]
    digest: str


def _positive(compare: Compare, classes: Sequence[str]) -> str:
    positive = compare.positive
    if positive is None:
        return classes[-1]
    if positive not in classes:
        more = f" and {len(classes) - LISTED_CLASSES} more" if len(classes) > LISTED_CLASSES else ""
        raise InputError(
            f"{PARAMS_FILE}: compare.positive: '{positive}' is no class; the classes are "
            f"{', '.join(classes[:LISTED_CLASSES])}{more}"
        )
    return positive


def _run(run: RunId, tested: dict[str, float], breakdown: bool) -> Run:
    record = _record(run)
    metrics = {name: value for name, value in record["metrics"].items() if value is not None}
    diverged = int(record["status"] == "diverged")
    values = {**tested, **metrics, "diverged": diverged}
    folders = [run.folder / "encoder", run.folder] if breakdown else [run.folder]
    costs = [cost for folder in folders for cost in _costs(run, folder / "timing.json")]
    return Run(run, values, record, _history(run.folder / "history.csv"), costs)


def _record(run: RunId) -> dict[str, Any]:
    path = run.folder / "record.json"
    record = _json(path)
    if record.get("version") != RECORD_VERSION:
        raise InputError(
            f"{path}: version is {record.get('version')}, not {RECORD_VERSION}: {REMAKE}"
        )
    for field, kind in RECORD_FIELDS.items():
        if not isinstance(record.get(field), kind):
            raise InputError(f"{path}: '{field}' is missing or no {kind.__name__}: {REMAKE}")
    named = (record.get("method"), record.get("shots"), record.get("seed"))
    if named != (run.method, run.shots, run.seed):
        raise InputError(f"{path}: is the record of another run, {named}: {REMAKE}")
    return record


def _costs(run: RunId, path: Path) -> list[Cost]:
    phases = _json(path).get("phases")
    if not isinstance(phases, list) or not all(
        isinstance(p, dict) and "phase" in p for p in phases
    ):
        raise InputError(f"{path}: 'phases' is missing or no list of phases: {REMAKE}")
    return [
        Cost(run, str(phase["phase"]), *(phase.get(field) for field in COST_FIELDS))
        for phase in phases
    ]


def _history(path: Path) -> pd.DataFrame:
    table = _table(path)
    missing = {"phase", "epoch", "images_seen"} - set(table.columns)
    if missing:
        raise InputError(f"{path}: column '{min(missing)}' is missing: {REMAKE}")
    cells = table.drop(columns="phase").replace("", "nan")
    numbers = pd.DataFrame(_numbers(path, cells, np.float64), columns=cells.columns)
    return numbers.assign(phase=table["phase"])


def _predictions(path: Path) -> tuple[Predictions, _Test]:
    table = _table(path)
    columns = [str(column) for column in table.columns]
    classes = tuple(column.removeprefix("p_") for column in columns[3:])
    if columns[:3] != ["image", "label", "predicted"] or len(classes) < 2:
        raise InputError(f"{path}: columns must be image,label,predicted,p_<class>…: {REMAKE}")
    if table.empty:
        raise InputError(f"{path}: holds no image: {REMAKE}")
    labels, predicted = _numbers(path, table[["label", "predicted"]], np.int64).T
    probabilities = _numbers(path, table[columns[3:]], np.float64)
    for numbers in (labels, predicted):
        if numbers.min() < 0 or numbers.max() >= len(classes):
            raise InputError(f"{path}: labels must be class numbers below {len(classes)}: {REMAKE}")
    _check_probabilities(path, probabilities)
    by_class = tuple(np.bincount(labels, minlength=len(classes)).tolist())
    images = digest("\n".join(table["image"]), labels.tobytes())
    tested = _Test(classes, len(table), by_class, images)
    return Predictions(labels, predicted, probabilities), tested


def _check_probabilities(path: Path, probabilities: NDArray[np.float64]) -> None:
    inside = np.isfinite(probabilities) & (probabilities >= 0) & (probabilities <= 1)
    wrong = ~inside.all(axis=1) | (np.abs(probabilities.sum(axis=1) - 1) > 1e-3)
    if wrong.any():
        line = int(np.argmax(wrong)) + 2  # after the header, from 1
        raise InputError(f"{path}:{line}: probabilities must sum to 1: {REMAKE}")


def _table(path: Path) -> pd.DataFrame:
    """A CSV as text, so that numbers are converted exactly and no name is taken for one."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {REMAKE}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no readable table ({_line(error)}): {REMAKE}") from None


def _numbers(path: Path, table: pd.DataFrame, kind: type[AnyNumber]) -> NDArray[AnyNumber]:
    """All cells as numbers (rows, columns).

    Raises:
        InputError: one is none.
    """
    try:
        return table.to_numpy(object).astype(kind)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: holds what is no number ({_line(error)}): {REMAKE}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {REMAKE}") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no readable JSON ({_line(error)}): {REMAKE}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: no JSON object: {REMAKE}")
    return content


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
