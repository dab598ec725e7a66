"""Mirror the runs' files into MLflow: whole, once each, and again whenever they are missing.

A result run is known by two tags. ``config_key`` is what was asked (parameters, inputs, method,
shots, seed); ``result_digest`` is what came of it. The same key with the same digest is kept,
with another digest replaced. ``config_key`` is a run's last write, so that a run without it is
half a run, which the next ``publish`` deletes.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.colours import colour
from pipeline.params import Params
from pipeline.records import RunId, digest, file_digest, read_json, runs_of, write_json
from pipeline.tracking import client as tracking
from pipeline.tracking import views
from pipeline.tracking.live import close_leftovers

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LOCK_SECONDS = 60
RESULTS_TABLE = Path("reports/results.csv")
DATA_FILE = Path("data.dvc")
CLASS_RECALL = "test/recall/"
ABANDONED_SECONDS = 3600
PAGE = 1000


@dataclass(frozen=True)
class Summary:
    """What ``publish`` did, in runs; ``missing`` are those without a record."""

    created: int
    kept: int
    replaced: int
    missing: int = 0


@dataclass(frozen=True)
class Result:
    """One run as its files have it.

    Attributes:
        run: which one.
        record: its ``record.json``.
        scores: its ``test/…`` metrics but those of single classes.
        key: digest of what was asked.
        digest: digest of what came of it.
    """

    run: RunId
    record: dict[str, Any]
    scores: dict[str, float]
    key: str
    digest: str


@dataclass(frozen=True)
class Job:
    """What one publish works on.

    Attributes:
        params: the whole of params.yaml.
        root: the folder whose files are mirrored.
        store: where to.
        versions: tags of code and data, see ``versions_of``.
        experiment: the DVC experiment under way, or nothing.
    """

    params: Params
    root: Path
    store: tracking.Store
    versions: dict[str, str]
    experiment: str

    @property
    def runs(self) -> list[RunId]:
        """The runs to publish, whether or not they are there."""
        return runs_of(self.params.compare)

    def file(self, path: Path) -> Path:
        """Where a file of the project lies."""
        return self.root / path


def publish(params: Params, root: Path, store: tracking.Store) -> Summary:
    """Bring the runs that ``params.compare`` names into the store; a second time changes nothing.

    Args:
        params: the whole of params.yaml.
        root: the folder whose files are mirrored; in a DVC experiment a copy of the project.
        store: where to.

    Raises:
        TrackingError: another process has been publishing for more than a minute.
        Exception: whatever MLflow raises.
    """
    try:
        with filelock.FileLock(store.root / ".publish.lock", timeout=LOCK_SECONDS):
            name = os.environ.get("DVC_EXP_NAME", "")
            job = Job(params, root, store, versions_of(root), name)
            return _unchanged(job) or _publish(job)
    except filelock.Timeout:
        problem = f"another publish holds {store.root / '.publish.lock'} for {LOCK_SECONDS} s"
        raise tracking.TrackingError(problem) from None


def _publish(job: Job) -> Summary:
    results = read_results(job)
    client = tracking.open_client(job.store)
    experiment_id = tracking.experiment(client, tracking.RESULTS, job.store)
    existing = _existing(client, experiment_id)
    created = kept = replaced = 0
    for result, started in zip(results, _starts(job, results), strict=True):
        found = existing.get(result.key, [])
        same = [run for run in found if run.data.tags.get("result_digest") == result.digest]
        if same:
            _update(client, same[0], job, result)
            kept += 1
        else:
            _create(client, experiment_id, job, result, started)
            replaced += bool(found)
            created += not found
        for run in found:
            if run not in same[:1]:
                client.delete_run(run.info.run_id)
    _say_left_out(job, results)
    summary = Summary(created, kept, replaced, len(job.runs) - len(results))
    if not close_leftovers(client):
        _remember(job, summary)
    return summary


def _starts(job: Job, results: Sequence[Result]) -> list[int]:
    """When each run is said to have started, in milliseconds.

    The duration that MLflow shows is then that of training, no run ends after now, and the newest
    first, which is MLflow's order, is the order of the comparison.
    """
    longest = max((_training_time(job, result) for result in results), default=0)
    latest = time.time_ns() // 1_000_000 - longest
    return [latest - place for place in range(len(results))]


def _training_time(job: Job, result: Result) -> int:
    return int(1000 * costs(job.root, result.run).get("cost/train_seconds", 0))


def read_results(job: Job) -> list[Result]:
    """The compared runs that have a record."""
    scores = test_scores(job.file(RESULTS_TABLE))
    return [
        read_result(job.root, run, scores.get(run, {}))
        for run in job.runs
        if job.file(run.folder / "record.json").exists()
    ]


def read_result(root: Path, run: RunId, scores: dict[str, float]) -> Result:
    """Read a run's record and digest its files.

    Raises:
        ValueError: the record is no JSON.
    """
    path = root / run.folder / "record.json"
    try:
        record = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    asked = {name: record[name] for name in ("parameters", "inputs", "method", "shots", "seed")}
    files = (run.folder / "history.csv", run.folder / "model.safetensors", run.predictions)
    return Result(
        run=run,
        record=record,
        scores=scores,
        key=digest(json.dumps(asked, sort_keys=True)),
        digest=digest(
            path.read_bytes(),
            json.dumps(scores, sort_keys=True),
            *(file_digest(root / file) if (root / file).exists() else "" for file in files),
        ),
    )


def test_scores(path: Path) -> dict[RunId, dict[str, float]]:
    """The ``test/…`` metrics of each run in ``results.csv``; none where there is no such file.

    The recall of each class stays out: a chart a class would bury the others.
    """
    scores: dict[RunId, dict[str, float]] = defaultdict(dict)
    for row in _rows(path):
        metric = row["metric"]
        if metric.startswith("test/") and not metric.startswith(CLASS_RECALL) and row["value"]:
            shots = row["shots"] if row["shots"] == "all" else int(row["shots"])
            run = RunId(row["method"], shots, int(row["seed"]))
            scores[run][metric] = float(row["value"])
    return dict(scores)


def history_points(path: Path) -> list[tuple[str, float, int]]:
    """(name, value, images seen) of every cell of ``history.csv``, a step once for each metric.

    MLflow appends: a step logged twice would be drawn as two points, so the last row has it.
    """
    points: dict[tuple[str, int], float] = {}
    for row in _rows(path):
        step = int(row["images_seen"])
        for column, cell in row.items():
            if column not in ("phase", "epoch", "images_seen") and cell:
                points[tracking.metric_name(row["phase"], column), step] = float(cell)
    return [(name, value, step) for (name, step), value in points.items()]


def costs(root: Path, run: RunId) -> dict[str, float]:
    """Seconds of all phases of training, their largest peak memory, and seconds of the test."""
    phases = [phase for path in _timings(root, run) for phase in read_json(path)["phases"]]
    seconds = [phase["seconds"] for phase in phases if phase.get("seconds") is not None]
    peaks = [phase.get("peak_memory_mb") for phase in phases]
    found = {}
    if seconds:
        found["cost/train_seconds"] = float(sum(seconds))
    if known := [float(peak) for peak in peaks if peak is not None]:
        found["cost/peak_memory_mb"] = max(known)
    if (root / run.test_timing).exists():
        tested = [phase["seconds"] for phase in read_json(root / run.test_timing)["phases"]]
        found["cost/predict_seconds"] = float(sum(tested))
    return found


def versions_of(root: Path) -> dict[str, str]:
    """Tags that say which code and data: git commit and the data's MD5, as far as there are any."""
    tags = {}
    if commit := _git_commit(root):
        tags = {"git.commit": commit, "mlflow.source.git.commit": commit}
    if md5 := _data_md5(root / DATA_FILE):
        tags["data.md5"] = md5
    return tags


def _git_commit(root: Path) -> str | None:
    try:
        asked = ["git", "rev-parse", "HEAD"]
        answer = subprocess.run(asked, cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _data_md5(path: Path) -> str | None:
    try:
        return str(YAML(typ="safe", pure=True).load(path)["outs"][0]["md5"])
    except (OSError, YAMLError, KeyError, IndexError, TypeError):
        return None


def _existing(client: MlflowClient, experiment_id: str) -> dict[str, list[Any]]:
    """Result runs by their key, oldest first; deletes what an interrupted publish left."""
    by_key = defaultdict(list)
    for run in sorted(_all_runs(client, experiment_id), key=_age):
        tags = run.data.tags
        if "config_key" in tags:
            by_key[tags["config_key"]].append(run)
        elif "publishing" in tags and _abandoned(run):
            client.delete_run(run.info.run_id)
    return by_key


def _age(run: Any) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _all_runs(client: MlflowClient, experiment_id: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=PAGE, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _abandoned(run: Any) -> bool:
    # we hold the lock: a publish of this process that is still under way is none
    tags = run.data.tags
    if tracking.is_local(tags):
        return tags.get("process.pid") == str(os.getpid()) or not tracking.is_alive(tags)
    # not by the run's own start, which lies its training time back
    return time.time() - float(tags.get("publishing.since", 0)) > ABANDONED_SECONDS


def _changing_tags(job: Job, result: Result) -> dict[str, str]:
    """Tags that may change while the results stay.

    Commit and data are those at which the results stood last. An experiment that shares a run
    with others only adds its name, and leaves the project's own commit.
    """
    place = job.params.compare.methods.index(result.run.method)
    tags = {"mlflow.runColor": colour(place)}
    if job.experiment:
        return {**tags, tracking.safe_key(f"dvc.experiment.{job.experiment}"): "true"}
    return {**tags, **job.versions}


def _update(client: MlflowClient, run: Any, job: Job, result: Result) -> None:
    from mlflow.entities import RunTag

    tags = _changing_tags(job, result)
    if job.experiment and "dvc.experiment" not in run.data.tags:
        tags["dvc.experiment"] = job.experiment
    if "model" not in run.data.tags and (model := _model(job, result.run)):
        client.log_artifact(run.info.run_id, str(model))
        tags["model"] = model.name
    changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
    if changed:
        client.log_batch(run.info.run_id, tags=changed)


def _create(
    client: MlflowClient, experiment_id: str, job: Job, result: Result, started: int
) -> None:
    """Make one run whole: everything first, what it is known by last."""
    from mlflow.entities import RunTag

    record, run = result.record, result.run
    ended = started + _training_time(job, result)
    since = {"publishing.since": f"{time.time():.0f}"}
    marks = {"publishing": result.key, **since, **tracking.process_tags()}
    tags = {**_lasting_tags(job, result), **_changing_tags(job, result), **marks}
    run_id = client.create_run(experiment_id, started, tags, run.name).info.run_id

    tracking.send_params(client, run_id, _parameters(record))
    points = history_points(job.file(run.folder / "history.csv"))
    named = {name for name, _, _ in points}
    finals = {**result.scores, **record["metrics"], **costs(job.root, run)}
    # MLflow draws bars of what has no step but 0, lines of the rest, and lists what comes first
    timed = [(name, value, ended, 0) for name, value in finals.items() if name not in named]
    timed += [(name, value, started + row, step) for row, (name, value, step) in enumerate(points)]
    tracking.send_points(client, run_id, timed)
    for path, folder in _artifacts(job, run):
        client.log_artifact(run_id, str(path), folder)

    client.set_terminated(run_id, "FAILED" if record["status"] == "diverged" else "FINISHED", ended)
    known_by = [RunTag("result_digest", result.digest), RunTag("config_key", result.key)]
    client.log_batch(run_id, tags=known_by)
    for mark in marks:
        client.delete_tag(run_id, mark)


def _parameters(record: Mapping[str, Any]) -> dict[str, str]:
    about = {name: record[name] for name in ("method", "shots", "seed", "recipe")}
    return {**tracking.flat(record["parameters"]), **tracking.flat(about)}


def _lasting_tags(job: Job, result: Result) -> dict[str, str]:
    names = ("method", "shots", "seed", "recipe", "status", "device")
    tags = {name: str(result.record[name]) for name in names}
    tags |= {"mlflow.note.content": note(result.record), **job.versions}
    if job.experiment:
        tags["dvc.experiment"] = job.experiment
    if model := _model(job, result.run):
        tags["model"] = model.name
    return tags


def note(record: Mapping[str, Any]) -> str:
    """A run's description in Markdown: what it is, its phases, and why it diverged if it did."""
    lines = [
        f"`{record['method']}` (recipe `{record['recipe']}`), {record['shots']} images a class, "
        f"seed {record['seed']}.",
        "",
    ]
    if record["status"] == "diverged":
        lines += [f"**Diverged:** {record['reason']}", ""]
    # a list: MLflow draws tables without space between the columns
    return "\n".join([*lines, *map(_phase_line, record["phases"])])


def _phase_line(phase: Mapping[str, Any]) -> str:
    chosen, epochs = phase["chosen_epoch"], phase["epochs"]
    kept = f"epoch {chosen} kept, by `{phase['rule']}`" if chosen else "no epoch kept"
    done = f"{epochs} epoch{'s' * (epochs != 1)}, {phase['images_seen']:,} images seen"
    found = "".join(f"; `{name}` {value:g}" for name, value in phase.get("found", {}).items())
    return f"- phase `{phase['phase']}`: {done}; {kept}{found}"


def _model(job: Job, run: RunId) -> Path | None:
    """The model to attach, if one is wanted and not too large."""
    path = job.file(run.folder / "model.safetensors")
    return path if _wants_model(job, run) and not _too_large(job, path) else None


def _wants_model(job: Job, run: RunId) -> bool:
    which = job.params.tracking.models
    wanted = which == "all" or (which == "reference" and run.method == job.params.compare.reference)
    return wanted and job.file(run.folder / "model.safetensors").exists()


def _too_large(job: Job, path: Path) -> bool:
    return path.stat().st_size > job.params.tracking.max_model_mb * 1e6


def _say_left_out(job: Job, results: Sequence[Result]) -> None:
    wanted = [result.run for result in results if _wants_model(job, result.run)]
    names = [run.name for run in wanted if not _model(job, run)]
    if names:
        limit = f"tracking.max_model_mb ({job.params.tracking.max_model_mb:g} MB)"
        print(f"MLflow: models larger than {limit} left out: {', '.join(names)}", file=sys.stderr)


def _artifacts(job: Job, run: RunId) -> Iterator[tuple[Path, str | None]]:
    """Files to attach, each with its folder among the run's artifacts."""
    files = [
        (run.folder / "history.csv", None),
        (run.folder / "record.json", None),
        (run.predictions, "predictions"),
        (run.examples, "predictions"),
        (run.test_timing, "predictions"),
        (run.folder / "timing.json", None),
        (run.folder / "encoder/timing.json", "encoder"),
    ]
    for path, folder in files:
        if job.file(path).exists():
            yield job.file(path), folder
    if model := _model(job, run):
        yield model, None


def _timings(root: Path, run: RunId) -> Iterator[Path]:
    folder = root / run.folder
    return (
        path for path in (folder / "encoder/timing.json", folder / "timing.json") if path.exists()
    )


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Opening the store takes over two seconds. So a finished publish notes the sizes and times of all
# files it depends on, the database among them: while those stay, there is nothing to do.


def _unchanged(job: Job) -> Summary | None:
    try:
        noted = read_json(_stamp(job))
        if noted["state"] == _state(job):
            return Summary(0, int(noted["kept"]), 0, int(noted["missing"]))
    except (OSError, ValueError, KeyError):
        pass
    return None


def _remember(job: Job, summary: Summary) -> None:
    if job.store.embedded:
        kept = summary.created + summary.replaced + summary.kept
        noted = {"state": _state(job), "kept": kept, "missing": summary.missing}
        write_json(_stamp(job), noted)


def _stamp(job: Job) -> Path:
    return job.store.root / "mlflow.db.published"


def _state(job: Job) -> str:
    files = [Path(__file__), Path(tracking.__file__), Path(views.__file__), job.file(RESULTS_TABLE)]
    if job.store.database:
        files.append(job.store.database)
    for run in job.runs:
        names = ("record.json", "history.csv", "model.safetensors", "timing.json")
        own = [run.folder / name for name in (*names, "encoder/timing.json")]
        tested = (run.predictions, run.examples, run.test_timing)
        files += [job.file(path) for path in (*own, *tested)]
    known = [
        job.store.uri,
        job.params.compare.model_dump(),
        job.params.tracking.model_dump(),
        job.versions,
        job.experiment,
        list(_stats(files)),
    ]
    return digest(json.dumps(known, sort_keys=True))


def _stats(files: Iterable[Path]) -> Iterator[list[Any]]:
    for file in files:
        try:
            about = file.stat()
            yield [str(file), about.st_size, about.st_mtime_ns, about.st_ino]
        except OSError:
            yield [str(file)]
