"""Everything that the compared runs left behind, read and checked: the evidence of a report.

What is read is what ``compare`` names; files of other runs are never looked at.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluation.diagnosis import Arrays, Diagnosis, parse, read_arrays
from pipeline.evaluation.statistics.crossed import Contribution
from pipeline.params import Compare
from pipeline.records import REMAKE, RunId, places_of, read_made, read_record, runs_of

SUMMARY = Path("prepared/summary.json")
NEAR = Path("prepared/near_duplicates.csv")
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
PHASE_FIELDS = {"phase", "epochs", "chosen_epoch", "status"}
COST_FIELDS = ("images_seen", "seconds", "images_per_second", "peak_memory_mb")
COUNTED = {"epoch", "images_seen"}  # columns of whole numbers
TEST_PHASE = "test"  # what predicting is called among the phases that cost something

AnyNumber = TypeVar("AnyNumber", bound=np.generic)


@dataclass(frozen=True)
class Cost:
    """What one phase of one run took, or its test; None where it was not measured."""

    run: RunId
    phase: str
    images_seen: float | None
    seconds: float | None
    images_per_second: float | None
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Answers:
    """One run's answers for N test images: their names, true and predicted classes (N,)."""

    images: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """One compared run.

    ``values`` holds the test metrics, then the record's own, those of the diagnosis, and last
    ``diverged`` (0 or 1); ``contributions`` and ``answers`` are those of its `Scored`. ``history``
    has the columns ``phase``, ``epoch``, ``images_seen`` and metrics, ``gradients`` the columns
    ``phase``, ``epoch``, ``layer`` and ``norm``. ``costs`` are those of training, ``prediction``
    that of answering for the whole test split, ``one_image_seconds`` for one image alone.
    """

    id: RunId
    values: dict[str, float]
    contributions: dict[str, Contribution]
    answers: Answers | None
    record: dict[str, Any]
    history: pd.DataFrame
    gradients: pd.DataFrame
    diagnosis: Diagnosis
    costs: list[Cost]
    prediction: Cost
    one_image_seconds: float

    @property
    def diverged(self) -> bool:
        """Whether training broke off on a loss that was not finite."""
        return bool(self.record["status"] == "diverged")


@dataclass(frozen=True)
class ClassRecall:
    """A class that has a recall of its own, the metric's name, and how many test images it has."""

    name: str
    metric: str
    images: int


@dataclass(frozen=True)
class Tested:
    """What a run was tested on; runs are compared where it is equal.

    Attributes:
        digest: of the test images and questions.
        headline: the metrics by which methods are judged.
        lede: the test set in words, and what a guess is worth.
        notes: sentences that say what metrics are.
        examples: what the pictures of examples show.
        classes: all of them, where all are tested on; else none.
        recalls: the classes that have a recall of their own.
    """

    digest: str
    headline: tuple[str, ...]
    lede: str
    notes: tuple[str, ...] = ()
    examples: str = ""
    classes: tuple[str, ...] = ()
    recalls: tuple[ClassRecall, ...] = ()

    @property
    def primary(self) -> str:
        """The metric that verdicts and figures go by."""
        return self.headline[0]

    @property
    def metrics(self) -> list[str]:
        """All metrics in which methods are compared."""
        return [*self.headline, *(recall.metric for recall in self.recalls)]


@dataclass(frozen=True)
class Scored:
    """One run's test metrics by name, in the order of the headline, and what it was tested on.

    ``contributions`` say what each test unit adds to a metric, for every metric of
    ``tested.metrics`` that can be taken apart; ``answers`` are there in classification.
    """

    values: dict[str, float]
    tested: Tested
    contributions: dict[str, Contribution]
    answers: Answers | None = None


@dataclass(frozen=True)
class UnitInterval:
    """How far a method's mean over its runs hangs on what these were tested on.

    ``low`` and ``high`` bound the mean, ``difference_low`` and ``difference_high`` its difference
    to the reference, if other ``units`` test units of the kind ``unit`` had been drawn. The
    reference has no difference; of one unit nothing is bounded, nor is what so few cannot show:
    ``note`` says which.
    """

    method: str
    shots: int | str
    metric: str
    mean: float
    low: float | None
    high: float | None
    unit: str
    units: int
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class NearPair:
    """Two images that show one picture: names, classes and splits of both.

    ``similarity`` is the correlation of their details, of the mirror image of one if ``mirrored``.
    """

    images: tuple[str, str]
    classes: tuple[str, str]
    splits: tuple[str, str]
    similarity: float
    mirrored: bool


@dataclass(frozen=True)
class Evidence:
    """All compared runs in compare order, what they were tested on, and how data were prepared.

    ``examples`` has a picture (PNG) of each method's, of the first seed at the last shots, and
    ``arrays`` the latents and filters of the same runs. ``near`` are the near duplicates as
    ``prepare`` lists them, the worst first.
    """

    runs: list[Run]
    tested: Tested
    prepared: dict[str, Any]
    examples: dict[RunId, bytes]
    arrays: dict[RunId, Arrays]
    near: Sequence[NearPair]


@dataclass(frozen=True)
class SharedInput:
    """Whether the methods that read some input read the same bytes, wherever seeds agree.

    ``differs`` names the (shots, seed) at which they did not, as ``10 shots, seed 0``.
    """

    role: str
    methods: list[str]
    differs: list[str]


def collect(compare: Compare, read: Callable[[Path, Compare], Scored]) -> Evidence:
    """Read predictions, records, histories and timings of the runs that ``compare`` names.

    Args:
        compare: which runs.
        read: reads and scores a run's predictions.

    Raises:
        InputError: a file is missing, damaged, or belongs to another test split, or as ``read``.
    """
    prepared = _summary()
    runs, first, tested = [], RunId("", 0, 0), None
    for run in runs_of(compare):
        scored = read(run.predictions, compare)
        if tested is None:
            first, tested = run, scored.tested
        elif scored.tested != tested:
            raise InputError(
                f"{run.predictions}: not of the test images and classes of {first.predictions}; "
                f"both must come from one test split: {REMAKE}"
            )
        runs.append(_run(run, scored, run.method in compare.breakdowns))
    assert tested is not None  # compare has at least one method, shots and seed
    shown = [RunId(method, compare.shots[-1], compare.seeds[0]) for method in compare.methods]
    return Evidence(
        runs,
        tested,
        prepared,
        {run: _picture(run.examples) for run in shown},
        {run: _arrays(run.latents) for run in shown},
        _near(),
    )


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


def read_text_table(path: Path) -> pd.DataFrame:
    """A CSV as text, so that numbers are converted exactly and no name is taken for one.

    Raises:
        InputError: the file is missing or no table, or has two columns of one name.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        with path.open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file))  # pandas would have renamed a second of a name
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {REMAKE}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: no readable table ({_line(error)}): {REMAKE}") from None
    twice = [name for number, name in enumerate(header) if name in header[:number]]
    if twice:
        raise InputError(f"{path}: column '{twice[0]}' stands there twice: {REMAKE}")
    return table


def numbers(path: Path, table: pd.DataFrame, kind: type[AnyNumber]) -> NDArray[AnyNumber]:
    """All cells of a table of text as numbers (rows, columns).

    Raises:
        InputError: one is none.
    """
    try:
        return table.to_numpy(object).astype(kind)
    except (OverflowError, TypeError, ValueError) as error:
        raise InputError(f"{path}: holds what is no number ({_line(error)}): {REMAKE}") from None


def _run(run: RunId, scored: Scored, breakdown: bool) -> Run:
    record, diagnosis = _record(run), _diagnosis(run.diagnosis)
    metrics = {
        **_known(run.folder / "record.json", record["metrics"]),
        **_known(run.diagnosis, diagnosis.values),
    }
    diverged = int(record["status"] == "diverged")
    folders = [run.folder / "encoder", run.folder] if breakdown else [run.folder]
    return Run(
        id=run,
        values={**scored.values, **metrics, "diverged": diverged},
        contributions=scored.contributions,
        answers=scored.answers,
        record=record,
        history=_table(run.folder / "history.csv", ("phase",), ("epoch", "images_seen")),
        gradients=_table(run.gradients, ("phase", "layer"), ("epoch", "norm")),
        diagnosis=diagnosis,
        costs=[cost for folder in folders for cost in _costs(run, folder / "timing.json")],
        prediction=_prediction(run),
        one_image_seconds=_one_image_seconds(run.test_timing),
    )


def _summary() -> dict[str, Any]:
    prepared = read_made(SUMMARY)
    counted = prepared.get("analysis", prepared.get("splits"))  # of verification, or not
    sound = isinstance(counted, dict) and all(
        isinstance(of, dict) and _is_number(of.get("images")) for of in counted.values()
    )
    if not sound or not _is_number(prepared.get("images")):
        raise InputError(f"{SUMMARY}: holds no counts of the images of each split: {REMAKE}")
    return prepared


def _known(path: Path, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that there are, each a finite number."""
    found = {name: value for name, value in metrics.items() if value is not None}
    wrong = [name for name, value in found.items() if not _is_number(value)]
    if wrong:
        raise InputError(f"{path}: '{wrong[0]}' is {found[wrong[0]]!r}, no finite number: {REMAKE}")
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and bool(np.isfinite(value))  # True is no number here


def _near() -> list[NearPair]:
    table = read_text_table(NEAR)
    try:
        both = {
            name: list(zip(table[f"left_{name}"], table[f"right_{name}"], strict=True))
            for name in ("image", "class", "split")
        }
        measured = [table["similarity"].astype(float), table["mirrored"].astype(int).astype(bool)]
    except (KeyError, ValueError) as error:
        raise InputError(f"{NEAR}: no near duplicates ({_line(error)}): {REMAKE}") from None
    return [NearPair(*row) for row in zip(*both.values(), *measured, strict=True)]


def _diagnosis(path: Path) -> Diagnosis:
    try:
        return parse(read_made(path))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no diagnosis of a run ({_line(error)}): {REMAKE}") from None


def _arrays(path: Path) -> Arrays:
    try:
        return read_arrays(path)
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise InputError(f"{path}: no latents of a run ({_line(error)}): {REMAKE}") from None


def _one_image_seconds(path: Path) -> float:
    seconds: Any = read_made(path).get("one_image_seconds")
    if not _is_number(seconds):
        raise InputError(f"{path}: 'one_image_seconds' is missing or no number: {REMAKE}")
    return float(seconds)


def _record(run: RunId) -> dict[str, Any]:
    path = run.folder / "record.json"
    record = read_record(run.folder)
    for field, kind in RECORD_FIELDS.items():
        if not isinstance(record.get(field), kind):
            raise InputError(f"{path}: '{field}' is missing or no {kind.__name__}: {REMAKE}")
    for phase in record["phases"]:
        if not isinstance(phase, dict) or PHASE_FIELDS - set(phase):
            fields = ", ".join(sorted(PHASE_FIELDS))
            raise InputError(f"{path}: each of 'phases' must have {fields}: {REMAKE}")
    named = (record.get("method"), record.get("shots"), record.get("seed"))
    if named != (run.method, run.shots, run.seed):
        raise InputError(f"{path}: is the record of another run, {named}: {REMAKE}")
    return record


def _costs(run: RunId, path: Path) -> list[Cost]:
    phases = read_made(path).get("phases")
    if not isinstance(phases, list) or not all(
        isinstance(p, dict) and "phase" in p for p in phases
    ):
        raise InputError(f"{path}: 'phases' is missing or no list of phases: {REMAKE}")
    found = [[phase.get(field) for field in COST_FIELDS] for phase in phases]
    if not all(value is None or _is_number(value) for row in found for value in row):
        raise InputError(f"{path}: {', '.join(COST_FIELDS)} must be finite numbers: {REMAKE}")
    return [Cost(run, str(p["phase"]), *row) for p, row in zip(phases, found, strict=True)]


def _prediction(run: RunId) -> Cost:
    costs = _costs(run, run.test_timing)
    if [cost.phase for cost in costs] != [TEST_PHASE]:
        raise InputError(f"{run.test_timing}: 'phases' must be one phase '{TEST_PHASE}': {REMAKE}")
    return costs[0]


def _table(path: Path, words: Sequence[str], wanted: Sequence[str]) -> pd.DataFrame:
    """A table whose columns are numbers, an empty cell NaN, but for the columns ``words``."""
    table = read_text_table(path)
    places_of(path, list(table.columns), [*words, *wanted])
    cells = table.drop(columns=list(words)).replace("", "nan")
    values = pd.DataFrame(numbers(path, cells, np.float64), columns=cells.columns)
    for column in COUNTED & set(wanted):
        if not (np.isfinite(values[column]) & (values[column] % 1 == 0)).all():
            raise InputError(f"{path}: column '{column}' must hold whole numbers: {REMAKE}")
    return values.assign(**{word: table[word] for word in words})


def _picture(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {REMAKE}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
