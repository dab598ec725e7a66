"""Result runs: one for each (method, shots, seed), as its files have it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.colours import colour
from pipeline.records import RunId, digest, file_digest, read_made, read_record
from pipeline.tracking import client as tracking
from pipeline.tracking.entries import (
    KIND,
    RESULT,
    Attachment,
    Content,
    Entry,
    File,
    Job,
    Point,
    TimedPoint,
    read_rows,
    run_of,
)

TABLE = Path("reports/results.csv")
CLASS_RECALL = "test/recall/"
NOT_METRICS = ("phase", "epoch", "images_seen")
# of a network, in its diagnosis: the name in MLflow, and by what to divide
SIZES = {
    "parameters": ("cost/parameters", 1.0),
    "multiply_adds": ("cost/multiply_adds", 1.0),
    "model_bytes": ("cost/model_mb", 1e6),
}
SYSTEM = ("images_per_second", "peak_memory_mb")  # of a phase, in its timing


@dataclass(frozen=True)
class Result:
    """One run as its files have it.

    Attributes:
        run: which one.
        record: its ``record.json``.
        scores: its ``test/…`` metrics but those of single classes.
        diagnosis: its ``diagnosis.json``; empty where there is none.
        key: digest of what was asked.
        digest: digest of what came of it.
    """

    run: RunId
    record: dict[str, Any]
    scores: dict[str, float]
    diagnosis: dict[str, Any]
    key: str
    digest: str


def read_results(job: Job) -> list[Result]:
    """The compared runs that have a record."""
    scores = test_scores(job.file(TABLE))
    return [
        read_result(job.root, run, scores.get(run, {}))
        for run in job.runs
        if job.file(run.folder / "record.json").exists()
    ]


def read_result(root: Path, run: RunId, scores: dict[str, float]) -> Result:
    """Read a run's record and diagnosis, and digest its files but those of times.

    Raises:
        InputError: the record or the diagnosis is no JSON, or of another form than today's.
    """
    record = read_record(root / run.folder)
    diagnosis = read_made(root / run.diagnosis) if (root / run.diagnosis).exists() else {}
    asked = {name: record[name] for name in ("parameters", "inputs", "method", "shots", "seed")}
    if of_test := diagnosis.get("asked"):
        asked["tested"] = of_test
    trained = (run.folder / "history.csv", run.gradients, run.folder / "model.safetensors")
    tested = (run.predictions, run.diagnosis, run.latents)
    return Result(
        run=run,
        record=record,
        scores=scores,
        diagnosis=diagnosis,
        key=digest(json.dumps(asked, sort_keys=True)),
        digest=digest(
            (root / run.folder / "record.json").read_bytes(),
            json.dumps(scores, sort_keys=True),
            *(
                file_digest(root / file) if (root / file).exists() else ""
                for file in (*trained, *tested)
            ),
        ),
    )


def entry(job: Job, result: Result) -> Entry:
    """A result as a run of the store."""
    place = job.params.compare.methods.index(result.run.method)
    changing = {KIND: RESULT, "mlflow.runColor": colour(place), **job.changing_tags()}
    model = wanted_model(job, result.run)
    fits = model and not too_large(job, model)
    return Entry(
        name=result.run.name,
        key=result.key,
        digest=result.digest,
        status="FAILED" if result.record["status"] == "diverged" else "FINISHED",
        milliseconds=int(1000 * costs(job.root, result.run).get("cost/train_seconds", 0)),
        tags=_tags(job, result),
        changing=changing,
        attachments=[Attachment("model", model.name, [(model, None)])] if model and fits else [],
        content=lambda: _content(job, result),
    )


def test_scores(path: Path) -> dict[RunId, dict[str, float]]:
    """The ``test/…`` metrics of each run in ``results.csv``; none where there is no such file.

    The recall of each class stays out: a chart a class would bury the others.
    """
    scores: dict[RunId, dict[str, float]] = defaultdict(dict)
    for row in read_rows(path):
        metric = row["metric"]
        if metric.startswith("test/") and not metric.startswith(CLASS_RECALL) and row["value"]:
            scores[run_of(row)][metric] = float(row["value"])
    return dict(scores)


def history_points(path: Path) -> list[Point]:
    """(name, value, images seen) of every cell of ``history.csv``, a step once for each metric.

    MLflow appends: a step logged twice would be drawn as two points, so the last row has it.
    """
    points: dict[tuple[str, int], float] = {}
    for row in read_rows(path):
        step = int(row["images_seen"])
        for column, cell in row.items():
            if column not in NOT_METRICS and cell:
                points[tracking.metric_name(row["phase"], column), step] = float(cell)
    return [(name, value, step) for (name, step), value in points.items()]


def system_points(root: Path, run: RunId) -> list[TimedPoint]:
    """Speed and memory of each phase of training, at its end: by time, and by images seen.

    Under ``system/``, which MLflow shows on a page of its own, along time.
    """
    points: list[TimedPoint] = []
    seconds, seen = 0.0, 0
    for phase in _phases(root, run):
        seconds += phase.get("seconds") or 0.0
        seen += phase.get("images_seen") or 0
        points += [
            (f"system/{name}", float(value), int(1000 * seconds), seen)
            for name in SYSTEM
            if (value := phase.get(name)) is not None
        ]
    return points


def costs(root: Path, run: RunId) -> dict[str, float]:
    """Seconds of all phases of training, their largest peak memory, and what testing took."""
    phases = _phases(root, run)
    seconds = [phase["seconds"] for phase in phases if phase.get("seconds") is not None]
    peaks = [phase.get("peak_memory_mb") for phase in phases]
    found = {}
    if seconds:
        found["cost/train_seconds"] = float(sum(seconds))
    if known := [float(peak) for peak in peaks if peak is not None]:
        found["cost/peak_memory_mb"] = max(known)
    if (root / run.test_timing).exists():
        test = read_made(root / run.test_timing)
        found["cost/predict_seconds"] = float(sum(phase["seconds"] for phase in test["phases"]))
        if (one := test.get("one_image_seconds")) is not None:
            found["cost/one_image_ms"] = 1000 * float(one)
    return found


def diagnosis_metrics(diagnosis: Mapping[str, Any]) -> dict[str, float]:
    """What a diagnosis says of the latent and the fit, and the network's size."""
    values = diagnosis.get("values", {})
    found = {name: float(value) for name, value in values.items() if value is not None}
    for name, (metric, divisor) in SIZES.items():
        if name in diagnosis:
            found[metric] = diagnosis[name] / divisor
    return found


def note(record: Mapping[str, Any], diagnosis: Mapping[str, Any]) -> str:
    """A run's description in Markdown: what it is, its phases, and what went wrong if it did."""
    lines = [
        f"`{record['method']}` (recipe `{record['recipe']}`), {record['shots']} images a class, "
        f"seed {record['seed']}.",
        "",
    ]
    if record["status"] == "diverged":
        lines += [f"**Diverged:** {record['reason']}", ""]
    if diagnosis.get("collapsed"):
        lines += [f"**Collapsed latent:** {diagnosis['cause']}", ""]
    # a list: MLflow draws tables without space between the columns
    lines += map(_phase_line, record["phases"])
    if diagnosis:
        size = f"{diagnosis['dimension']:,} number{'s' * (diagnosis['dimension'] != 1)}"
        lines.append(f"- `latent/…` looks at `{diagnosis['latent']}`, {size} an image")
    return "\n".join(lines)


def wanted_model(job: Job, run: RunId) -> Path | None:
    """The model to attach, if one is wanted and there."""
    which, path = job.params.tracking.models, job.file(run.folder / "model.safetensors")
    wanted = which == "all" or (which == "reference" and run.method == job.params.compare.reference)
    return path if wanted and path.exists() else None


def too_large(job: Job, model: Path) -> bool:
    """Whether a model is larger than what may be attached."""
    return model.stat().st_size > job.params.tracking.max_model_mb * 1e6


def files(run: RunId) -> list[File]:
    """What a run is mirrored from, each with its folder among the run's artifacts."""
    return [
        (run.folder / "history.csv", None),
        (run.gradients, None),
        (run.folder / "record.json", None),
        (run.predictions, "predictions"),
        (run.examples, "predictions"),
        (run.diagnosis, "predictions"),
        (run.latents, "predictions"),
        (run.test_timing, "predictions"),
        (run.folder / "timing.json", None),
        (run.folder / "encoder/timing.json", "encoder"),
    ]


def _content(job: Job, result: Result) -> Content:
    record, run = result.record, result.run
    curves = history_points(job.file(run.folder / "history.csv"))
    named = {name for name, _, _ in curves}
    finals = {
        **result.scores,
        **record["metrics"],
        **diagnosis_metrics(result.diagnosis),
        **costs(job.root, run),
    }
    about = {name: record[name] for name in ("method", "shots", "seed", "recipe")}
    of_test = result.diagnosis.get("asked", {}).get("parameters", {})
    asked = (record["parameters"], of_test, about)
    return Content(
        params={name: text for of in asked for name, text in tracking.flat(of).items()},
        finals={name: value for name, value in finals.items() if name not in named},
        curves=curves,
        timed=system_points(job.root, run),
        files=list(job.existing(files(run))),
    )


def _tags(job: Job, result: Result) -> dict[str, str]:
    names = ("method", "shots", "seed", "recipe", "status", "device")
    tags = {name: str(result.record[name]) for name in names}
    if "collapsed" in result.diagnosis:
        tags["collapsed"] = json.dumps(result.diagnosis["collapsed"])
    return tags | {"mlflow.note.content": note(result.record, result.diagnosis), **job.first_tags()}


def _phase_line(phase: Mapping[str, Any]) -> str:
    chosen, epochs = phase["chosen_epoch"], phase["epochs"]
    kept = f"epoch {chosen} kept, by `{phase['rule']}`" if chosen else "no epoch kept"
    done = f"{epochs} epoch{'s' * (epochs != 1)}, {phase['images_seen']:,} images seen"
    found = "".join(f"; `{name}` {value:g}" for name, value in phase.get("found", {}).items())
    return f"- phase `{phase['phase']}`: {done}; {kept}{found}"


def _phases(root: Path, run: RunId) -> list[dict[str, Any]]:
    """What the timings say of each phase of training, in their order."""
    folder = root / run.folder
    return [phase for path in _timings(folder) for phase in read_made(path)["phases"]]


def _timings(folder: Path) -> Iterator[Path]:
    timings = (folder / "encoder/timing.json", folder / "timing.json")
    return (path for path in timings if path.exists())
