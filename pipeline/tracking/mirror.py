"""Mirror the runs' files into MLflow: whole, once each, and again whenever they are missing.

A run is known by two tags. ``config_key`` is what was asked (of a result run the parameters,
inputs, method, shots and seed); ``result_digest`` is what came of it. The same key with the same
digest is kept, with another digest replaced. Both are a run's last write: a run without a key is
half a run, whose digest says who is making it, and the next ``publish`` deletes it where that one
is dead.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import filelock

from pipeline.params import Params
from pipeline.records import digest, read_json, whole_or_none, write_json
from pipeline.tracking import bulk, summary
from pipeline.tracking import client as tracking
from pipeline.tracking import results as result_runs
from pipeline.tracking.entries import Attachment, Entry, File, Job, versions_of
from pipeline.tracking.live import close_leftovers
from pipeline.tracking.results import Result
from pipeline.tracking.threads import each, within

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LOCK_SECONDS = 60
ANSWER_SECONDS = 5.0  # of a server, to its first question
ABANDONED_SECONDS = 3600
PAGE = 1000
THREADS = 4  # runs that are sent to a server at once


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
            return _unchanged(job) or _write(job)
    except filelock.Timeout:
        problem = f"another publish holds {store.root / '.publish.lock'} for {LOCK_SECONDS} s"
        raise tracking.TrackingError(problem) from None


def _write(job: Job) -> Done:
    """Publish; the project's own store is written to without waiting for its disk each time."""
    database = job.store.database
    if not (database and job.store.embedded):
        return _publish(job)[0]
    tracking.make_ready(job.store)
    with bulk.bulk(database):
        done, running = _publish(job)
    if not running and not bulk.mark(database).exists():
        _remember(job, done)
    return done


def _publish(job: Job) -> tuple[Done, int]:
    """What was done, and how many phases are still followed."""
    results = result_runs.read_results(job)
    entries = [result_runs.entry(job, result) for result in results]
    client = tracking.open_client(job.store)
    if not job.store.database:
        _check_answers(client, job.store)
    opened = _identity(job.store)
    experiment_id = tracking.experiment(client, tracking.RESULTS, job.store)
    existing = _existing(client, experiment_id)
    timed = list(zip(entries, _starts(entries), strict=True))
    # first and newest: MLflow's table begins with the summary
    about_all = summary.entry(job, results)
    first = [(about_all, _now())] if about_all else []
    brought = each(
        lambda one: _bring(client, experiment_id, job, *one, existing),
        [*first, *timed],
        1 if job.store.database else THREADS,  # SQLite takes one writer at a time
    )
    counted = Counter(brought[len(first) :])
    if (counted["created"] or counted["replaced"]) and not job.store.embedded:
        _delete_doubles(client, experiment_id)
    _say_left_out(job, results)
    if _identity(job.store) != opened:
        raise tracking.TrackingError(f"{job.store.database} was deleted or replaced meanwhile")
    done = Done(
        created=counted["created"],
        kept=counted["kept"],
        replaced=counted["replaced"],
        missing=len(job.runs) - len(results),
    )
    return done, close_leftovers(client)


def _check_answers(client: MlflowClient, store: tracking.Store) -> None:
    """Give a server up sooner than MLflow does, which tries each call again and again."""
    answer = within(ANSWER_SECONDS, lambda: [client.get_experiment_by_name(tracking.RESULTS)])
    if answer is None:
        uri = tracking.shown(store.uri)
        raise tracking.TrackingError(f"{uri} gives no answer within {ANSWER_SECONDS:g} s")


def _bring(
    client: MlflowClient,
    experiment_id: str,
    job: Job,
    entry: Entry,
    started: int,
    existing: Mapping[str, list[Any]],
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
        elif _abandoned(_marks(tags)):
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
    """Who is making a run, and since when; a run that is none of ours does not say that.

    It stands in the place of the digest; earlier versions had tags for it.
    """
    try:
        marks = json.loads(tags.get("result_digest") or tags["publishing"])
    except KeyError:
        return {}
    except ValueError:
        return tags
    return marks if isinstance(marks, dict) else tags


def _abandoned(marks: Mapping[str, str]) -> bool:
    try:
        since = float(marks["publishing.since"])
    except (KeyError, TypeError, ValueError):
        return False  # not ours
    # we hold the lock: a publish of this process that is still under way is none
    if tracking.is_local(marks):
        return marks.get("process.pid") == str(os.getpid()) or not tracking.is_alive(marks)
    # not by the run's own start, which lies its training time back
    return time.time() - since > ABANDONED_SECONDS


def _update(client: MlflowClient, run: Any, job: Job, entry: Entry) -> None:
    from mlflow.entities import RunTag

    tags = dict(entry.changing)
    if job.experiment and "dvc.experiment" not in run.data.tags:
        tags["dvc.experiment"] = job.experiment
    for attachment in entry.attachments:
        if run.data.tags.get(attachment.tag) != attachment.value:
            tags |= _attach(client, run.info, attachment)
    _send_files(client, run.info, _lost(run.info, entry))
    changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
    if changed:
        client.log_batch(run.info.run_id, tags=changed)


def _attach(client: MlflowClient, about: Any, attachment: Attachment) -> dict[str, str]:
    """Send the files; the tags that are then true."""
    _send_files(client, about, attachment.files)
    return {**attachment.tags, attachment.tag: attachment.value}


def _lost(about: Any, entry: Entry) -> list[File]:
    """Files of a whole run whose artifacts are gone, where it can be seen without asking."""
    if (folder := _folder(about)) is None:
        return []
    files = [*entry.content().files, *(file for of in entry.attachments for file in of.files)]
    return [(path, under) for path, under in files if not _artifact(folder, path, under).exists()]


def _send_files(client: MlflowClient, about: Any, files: Iterable[File]) -> None:
    """Send artifacts; to a folder of this machine they are copied, as MLflow does more slowly."""
    folder = _folder(about)
    for path, under in files:
        if folder is None:
            client.log_artifact(about.run_id, str(path), under)
            continue
        with whole_or_none(_artifact(folder, path, under)) as beside:
            shutil.copyfile(path, beside)


def _artifact(folder: Path, path: Path, under: str | None) -> Path:
    return folder / (under or "") / path.name


def _folder(about: Any) -> Path | None:
    """Where a run's artifacts lie, if that is on this machine."""
    return _path(about.artifact_uri) if about.artifact_uri.startswith("file:///") else None


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def _create(client: MlflowClient, experiment_id: str, entry: Entry, started: int) -> None:
    """Make one run whole: everything first, what it is known by last."""
    from mlflow.entities import RunTag

    ended = started + entry.milliseconds
    marks = {"publishing.since": f"{time.time():.0f}", **tracking.process_tags()}
    tags = {**entry.tags, **entry.changing, "result_digest": json.dumps(marks)}
    about = client.create_run(experiment_id, started, tags, entry.name).info

    content = entry.content()
    # MLflow draws bars of what has no step but 0, lines of the rest, and lists what comes first
    points = [(name, value, ended, 0) for name, value in content.finals.items()]
    points += [
        (name, value, started + row, step) for row, (name, value, step) in enumerate(content.curves)
    ]
    points += [(name, value, started + after, step) for name, value, after, step in content.timed]
    tracking.send(client, about.run_id, points, content.params)
    _send_files(client, about, content.files)
    known_by = {"result_digest": entry.digest, "config_key": entry.key}
    for attachment in reversed(entry.attachments):
        known_by = _attach(client, about, attachment) | known_by

    client.set_terminated(about.run_id, entry.status, ended)
    client.log_batch(about.run_id, tags=[RunTag(key, value) for key, value in known_by.items()])


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
    kept = done.created + done.replaced + done.kept
    write_json(_stamp(job), {"state": _state(job), "kept": kept, "missing": done.missing})


def _stamp(job: Job) -> Path:
    return job.store.root / "mlflow.db.published"


def _state(job: Job) -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    files += [job.file(path) for path, _ in summary.files(job)]
    if job.store.database:
        files += [job.store.database, bulk.log_of(job.store.database)]
    if job.store.artifacts:  # a folder for each run lies in it
        files.append(_path(job.store.artifacts) / tracking.RESULTS)
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
