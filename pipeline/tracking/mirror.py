"""Mirror the runs' files into MLflow: whole, once each, and again whenever they are missing.

A run is known by two tags. ``config_key`` is what was asked (of a result run the parameters,
inputs, method, shots and seed); ``result_digest`` is what came of it. The same key with the same
digest is kept, with another digest replaced. ``config_key`` is a run's last write, so that a run
without it is half a run, which the next ``publish`` deletes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from pipeline.params import Params
from pipeline.records import digest, read_json, write_json
from pipeline.tracking import client as tracking
from pipeline.tracking import results as result_runs
from pipeline.tracking import summary
from pipeline.tracking.entries import Attachment, Entry, Job, versions_of
from pipeline.tracking.live import close_leftovers
from pipeline.tracking.results import Result

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LOCK_SECONDS = 60
ABANDONED_SECONDS = 3600
PAGE = 1000


@dataclass(frozen=True)
class Done:
    """What ``publish`` did, in result runs; ``missing`` are those without a record."""

    created: int
    kept: int
    replaced: int
    missing: int = 0


def publish(params: Params, root: Path, store: tracking.Store) -> Done:
    """Bring what ``params.compare`` names into the store; a second time changes nothing.

    That is a run for each result, and one for the summary where there is a report of them all.

    Args:
        params: the whole of params.yaml.
        root: the folder whose files are mirrored; in a DVC experiment a copy of the project.
        store: where to.

    Raises:
        TrackingError: another process has been publishing for more than a minute, or the store's
            file was deleted meanwhile.
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


def _publish(job: Job) -> Done:
    results = result_runs.read_results(job)
    entries = [result_runs.entry(job, result) for result in results]
    client = tracking.open_client(job.store)
    opened = _identity(job.store)
    experiment_id = tracking.experiment(client, tracking.RESULTS, job.store)
    existing = _existing(client, experiment_id)
    # first and newest: MLflow's table begins with the summary
    if about_all := summary.entry(job, results):
        _bring(client, experiment_id, job, about_all, existing, _now())
    counted = {"created": 0, "kept": 0, "replaced": 0}
    for entry, started in zip(entries, _starts(entries), strict=True):
        counted[_bring(client, experiment_id, job, entry, existing, started)] += 1
    if (counted["created"] or counted["replaced"]) and not job.store.embedded:
        _delete_doubles(client, experiment_id)
    _say_left_out(job, results)
    if _identity(job.store) != opened:
        raise tracking.TrackingError(f"{job.store.database} was deleted or replaced meanwhile")
    done = Done(**counted, missing=len(job.runs) - len(results))
    if not close_leftovers(client):
        _remember(job, done)
    return done


def _bring(
    client: MlflowClient,
    experiment_id: str,
    job: Job,
    entry: Entry,
    existing: dict[str, list[Any]],
    started: int,
) -> str:
    """Make, replace or keep one run; which of the three."""
    found = existing.get(entry.key, [])
    same = [run for run in found if run.data.tags.get("result_digest") == entry.digest]
    if same:
        _update(client, same[0], job, entry)
    else:
        _create(client, experiment_id, entry, started)
    for run in found:
        if run not in same[:1]:
            client.delete_run(run.info.run_id)
    return "kept" if same else "replaced" if found else "created"


def _identity(store: tracking.Store) -> tuple[int, int] | None:
    """Of the SQLite file, if the store is one: what is written to a deleted one is lost."""
    if not store.database:
        return None
    try:
        about = store.database.stat()
    except FileNotFoundError:
        return None
    return about.st_dev, about.st_ino


def _delete_doubles(client: MlflowClient, experiment_id: str) -> None:
    """Leave one of the runs that two machines, whom no lock of ours keeps apart, made at once.

    Both keep the oldest, and who is the last to look sees all of them.
    """
    for first, *others in _existing(client, experiment_id).values():
        for run in others:
            if run.data.tags.get("result_digest") == first.data.tags.get("result_digest"):
                client.delete_run(run.info.run_id)


def _starts(entries: Sequence[Entry]) -> list[int]:
    """When each run is said to have started, in milliseconds.

    The duration that MLflow shows is then that of training, no run ends after now, and the newest
    first, which is MLflow's order, is the order of the comparison.
    """
    latest = _now() - max((entry.milliseconds for entry in entries), default=0)
    return [latest - place for place in range(len(entries))]


def _now() -> int:
    return time.time_ns() // 1_000_000


def _existing(client: MlflowClient, experiment_id: str) -> dict[str, list[Any]]:
    """Runs of ours by their key, oldest first; deletes what an interrupted publish left."""
    by_key = defaultdict(list)
    for run in sorted(_all_runs(client, experiment_id), key=_age):
        tags = run.data.tags
        if "config_key" in tags:
            by_key[tags["config_key"]].append(run)
        elif "publishing" in tags and _abandoned(_marks(tags)):
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


def _marks(tags: Mapping[str, str]) -> Mapping[str, str]:
    """Who is making a run, and since when; earlier versions had a tag for each."""
    try:
        marks = json.loads(tags["publishing"])
    except ValueError:
        return tags
    return marks if isinstance(marks, dict) else tags


def _abandoned(marks: Mapping[str, str]) -> bool:
    # we hold the lock: a publish of this process that is still under way is none
    if tracking.is_local(marks):
        return marks.get("process.pid") == str(os.getpid()) or not tracking.is_alive(marks)
    # not by the run's own start, which lies its training time back
    return time.time() - float(marks.get("publishing.since", 0)) > ABANDONED_SECONDS


def _update(client: MlflowClient, run: Any, job: Job, entry: Entry) -> None:
    from mlflow.entities import RunTag

    tags = dict(entry.changing)
    if job.experiment and "dvc.experiment" not in run.data.tags:
        tags["dvc.experiment"] = job.experiment
    for attachment in entry.attachments:
        if run.data.tags.get(attachment.tag) != attachment.value:
            tags |= _attach(client, run.info.run_id, attachment)
    changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
    if changed:
        client.log_batch(run.info.run_id, tags=changed)
    if "publishing" in run.data.tags:  # whole, but who made it ended just then
        _finish(client, run.info.run_id)


def _attach(client: MlflowClient, run_id: str, attachment: Attachment) -> dict[str, str]:
    """Send the files; the tags that are then true."""
    for path, folder in attachment.files:
        client.log_artifact(run_id, str(path), folder)
    return {**attachment.tags, attachment.tag: attachment.value}


def _create(client: MlflowClient, experiment_id: str, entry: Entry, started: int) -> None:
    """Make one run whole: everything first, what it is known by last."""
    from mlflow.entities import RunTag

    ended = started + entry.milliseconds
    since = {"publishing.since": f"{time.time():.0f}"}
    # one tag, since each takes a call to delete
    mark = {"publishing": json.dumps({**since, **tracking.process_tags()})}
    tags = {**entry.tags, **entry.changing, **mark}
    run_id = client.create_run(experiment_id, started, tags, entry.name).info.run_id

    content = entry.content()
    tracking.send_params(client, run_id, content.params)
    # MLflow draws bars of what has no step but 0, lines of the rest, and lists what comes first
    points = [(name, value, ended, 0) for name, value in content.finals.items()]
    points += [
        (name, value, started + row, step) for row, (name, value, step) in enumerate(content.curves)
    ]
    points += [(name, value, started + after, step) for name, value, after, step in content.timed]
    tracking.send_points(client, run_id, points)
    for path, folder in content.files:
        client.log_artifact(run_id, str(path), folder)
    known_by = {"result_digest": entry.digest, "config_key": entry.key}
    for attachment in reversed(entry.attachments):
        known_by = _attach(client, run_id, attachment) | known_by

    client.set_terminated(run_id, entry.status, ended)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in known_by.items()])
    _finish(client, run_id)


def _finish(client: MlflowClient, run_id: str) -> None:
    """Take away the mark of a run that is being made; asked twice, a server finds none."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_tag(run_id, "publishing")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _say_left_out(job: Job, results: Sequence[Result]) -> None:
    models = [(result.run, result_runs.wanted_model(job, result.run)) for result in results]
    names = [run.name for run, model in models if model and result_runs.too_large(job, model)]
    if names:
        limit = f"tracking.max_model_mb ({job.params.tracking.max_model_mb:g} MB)"
        print(f"MLflow: models larger than {limit} left out: {', '.join(names)}", file=sys.stderr)


# Opening the store takes over two seconds. So a finished publish notes the sizes and times of all
# files it depends on, the database among them: while those stay, there is nothing to do.


def _unchanged(job: Job) -> Done | None:
    if not (job.store.database and job.store.database.is_file()):
        return None
    try:
        noted = read_json(_stamp(job))
        if noted["state"] == _state(job):
            return Done(0, int(noted["kept"]), 0, int(noted["missing"]))
    except (OSError, ValueError, KeyError):
        pass
    return None


def _remember(job: Job, done: Done) -> None:
    if job.store.embedded:
        kept = done.created + done.replaced + done.kept
        write_json(_stamp(job), {"state": _state(job), "kept": kept, "missing": done.missing})


def _stamp(job: Job) -> Path:
    return job.store.root / "mlflow.db.published"


def _state(job: Job) -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    files += [job.file(path) for path, _ in summary.files(job)]
    if job.store.database:
        files.append(job.store.database)
    for run in job.runs:
        files += [job.file(path) for path, _ in result_runs.files(run)]
        files.append(job.file(run.folder / "model.safetensors"))
    known = [
        job.store.uri,
        job.params.task,
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
