"""Where MLflow's store is, and opening it without noise, races or long waits.

MLflow takes a second or more to import, so it is imported where it is used.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import shutil
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes

import filelock
import psutil

from pipeline import records
from pipeline.errors import InputError, address, user_of, without_controls, without_passwords
from pipeline.records import digest
from pipeline.tracking import bulk, views

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RESULTS = "siamese-breakdown"
PHASES = "siamese-breakdown-phases"
KIND = "mlflow.experimentKind"
NOTES = {
    RESULTS: (
        "One run per method, shots and seed, and a summary of them all: a run whose name begins "
        "with *summary*, with the verdict as its description and the report among its artifacts "
        "(to find it, search for `tags.kind = 'summary'`).\n\n"
        "To compare runs in charts, choose *Model training* (top left), then *Views › "
        f"{views.NAME}* (top right).\n\n"
        "- `test/…`: on the test split. `test/accuracy` is of images or, in verification, of "
        "pairs; `test/official_accuracy`, `test/5_way_1_shot_accuracy` and the like of episodes\n"
        "- `best/val_accuracy`: at the chosen epoch; `best/val_5_way_1_shot_accuracy` and the like "
        "of episodes of validation classes\n"
        "- `train/loss`, `val/loss`, `val/accuracy`: phases trained with cross-entropy, on images "
        "or pairs; the step is images seen, so those of a breakdown begin after its encoder "
        "phase\n"
        "- `encoder/…`: the encoder phase of a breakdown, whose pairwise loss is another quantity; "
        "with several latents `encoder_1/…`, `encoder_2/…`, each a loss of its own\n"
        "- `latent/…`: what the trained network makes of images at one layer, the same for all "
        "methods: linear probes, distances, rank; `fit/…`: how far training images fit better than "
        "validation images\n"
        "- `grad/…`: norms of the gradient in the first and last layer that a phase trains\n"
        "- `cost/…`: images seen, seconds and peak memory of training; the network's size; the "
        "seconds that predicting the test split takes, and the milliseconds for one image\n"
        "- `system/…`: speed and memory, phase by phase\n"
        "- artifacts: `predictions/` holds what the run says of the test split, a picture of "
        "what it is most sure of, rightly and wrongly, and its latents\n\n"
        "*Group by* the tags `method` and `shots` shows means over seeds. The runs mirror the "
        "files that DVC tracks; `dvc repro` brings back whatever is missing here."
    ),
    PHASES: (
        "Phases followed while they train: one run per phase, best effort. "
        f"The results to compare are in the experiment `{RESULTS}`."
    ),
}
# Given only where the user has not set them. MLflow's own retries block for four minutes when a
# server goes away, and its telemetry calls out to a server that nobody here asked for.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a busy server may ask for an hour
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
LOCK_SECONDS = 60
SAME_START_SECONDS = 5
LONGEST_PARAM = 6000
LONGEST_REASON = 300
LONGEST_READ = 4096  # of an error: a server's answer may have any length, and take long to search
_UNANSWERED = re.compile(r"Max retries exceeded with url(?:.*too many (?P<status>\d+) error)?")
_MISREAD = re.compile(r"\?|%[0-9A-Fa-f]{2}")  # in the path of a URI
_HEADER = re.compile(r"\b(Basic|Bearer)\s+[^\s'\"]+", re.IGNORECASE)
_SECRET_NAME = re.compile(r"PASSW|TOKEN|SECRET|CREDENTIAL|_KEY$|^MLFLOW_TRACKING_USERNAME$")
SHORTEST_SECRET = 4  # what is shorter is in any text by chance
_OTHER_VERSION = (
    "{} is of another version of MLflow; delete it and publish again, and every run comes back, or "
    "see mlflow db upgrade"
)


class TrackingError(Exception):
    """MLflow cannot be used now; one line says why. It never stops the pipeline."""


@dataclass(frozen=True)
class Store:
    """A tracking store.

    Attributes:
        uri: as MLflow takes it.
        artifacts: URI of the folder for artifacts; None leaves it to the server.
        embedded: the SQLite file of the project, not a store of the user's.
        root: the project's folder, where locks lie.
    """

    uri: str
    artifacts: str | None
    embedded: bool
    root: Path

    @property
    def database(self) -> Path | None:
        """The SQLite file, if the store is one."""
        if not self.uri.startswith("sqlite:///"):
            return None
        path = self.uri.removeprefix("sqlite:///").partition("?")[0]
        path = os.fsdecode(unquote_to_bytes(os.fsencode(path)))
        return Path(path) if path and path != ":memory:" else None


def project_root() -> Path:
    """The project's folder, as ``pipeline.records.project_root`` finds it.

    Raises:
        InputError: there is none.
    """
    found = records.project_root()
    if found is None:
        raise InputError(f"{Path.cwd()}: no dvc.yaml here or above; run in the project's folder")
    return found.resolve()


def store(root: Path) -> Store:
    """The store of ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` and ``mlruns`` in ``root``."""
    root = root.resolve()
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return Store(uri, None, False, root)
    return Store(_sqlite_uri(root / "mlflow.db"), (root / "mlruns").as_uri(), True, root)


def _sqlite_uri(path: Path) -> str:
    text = str(path)
    if _MISREAD.search(text) or not text.isprintable():
        # SQLAlchemy decodes it, from 2.1 on; MLflow does not, and makes the folder that it reads
        # there: with its slashes encoded there is none
        text = quote(os.fsencode(path), safe="")
    return f"sqlite:///{text}"


def shown(uri: str) -> str:
    """A URI fit for printing: in one line, without credentials and query."""
    return without_controls(address(uri))


def reason(error: BaseException, uri: str = "") -> str:
    """Why tracking failed, as one line without credentials."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:LONGEST_READ] if lines else type(error).__name__
    if isinstance(error, (LookupError, TypeError, AttributeError)):
        text = f"{type(error).__name__}: {text}"  # these name a key or value and nothing else
    if unanswered := _UNANSWERED.search(text):
        status = unanswered["status"]
        text = f"{shown(uri)} " + (f"answers with status {status}" if status else "gives no answer")
    text = without_controls(_without_secrets(text, uri))
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def _without_secrets(text: str, uri: str) -> str:
    """Text without the credentials of a URI, of a header, and of the environment.

    A server's answer, which an error repeats, may hold anything that was sent to it.
    """
    text = without_passwords(text.replace(uri, shown(uri)) if uri else text)
    text = _HEADER.sub(r"\1 ***", text)
    secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    secrets.update(user_of(uri).split(":", 1))
    secrets.update(value for _, value in parse_qsl(uri.partition("?")[2]))
    secrets |= {quote(secret, safe="") for secret in secrets} | {*map(unquote, secrets)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


def open_client(place: Store) -> MlflowClient:
    """Open the store, creating the embedded one where there is none.

    Raises:
        TrackingError: its SQLite file cannot be used, is of another version of MLflow, or is
            locked for too long.
    """
    make_ready(place)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    with _creation_lock(place):
        try:
            return MlflowClient(tracking_uri=place.uri)
        except MlflowException as error:
            if place.database and "database schema" in str(error):
                raise TrackingError(_OTHER_VERSION.format(place.database)) from None
            raise


def make_ready(place: Store) -> None:
    """Set MLflow up, make the embedded store where there is none, and try to write to it.

    Raises:
        TrackingError: its SQLite file cannot be used, or is locked for too long.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("urllib3.connectionpool", "mlflow.store.db.utils"):
        # they announce each retry, and what is raised anyway, with its traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not place.database:
        return
    if place.embedded and not _is_text(place.database):
        raise TrackingError(f"{place.root}: MLflow needs a folder whose name is UTF-8; rename it")
    with _creation_lock(place):
        if place.embedded and not _holds_anything(place.database):
            _make_database(place.database, place)
        _try_database(place.database)


def _creation_lock(place: Store) -> AbstractContextManager[Any]:
    # of two processes that create the tables at once, one dies
    if not place.database:
        return nullcontext()
    try:
        return filelock.FileLock(place.root / ".mlflow.lock").acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        raise TrackingError(f"{shown(place.uri)}: locked for {LOCK_SECONDS} s") from None


def _holds_anything(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _is_text(path: Path) -> bool:
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def _make_database(path: Path, place: Store) -> None:
    """Make the SQLite file beside its place, then put it there whole; a link stays one.

    A process that ends meanwhile, such as one that follows a phase, would leave half of the tables,
    which MLflow can neither use nor complete.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path = path.resolve()
    beside = path.with_name(f"{path.name}.new")
    for left in path.parent.glob(f"{beside.name}*"):
        left.unlink(missing_ok=True)
    bulk.remove_journals(path)
    with bulk.synchronous("OFF"):
        SqlAlchemyStore(_sqlite_uri(beside), place.artifacts)
    with beside.open("rb") as made:
        os.fsync(made.fileno())
    if path.exists():
        shutil.copymode(path, beside)
    os.replace(beside, path)


def _try_database(path: Path) -> None:
    # MLflow tries a file that it cannot open for 103 s, with a traceback each time
    if not path.parent.is_dir():
        return  # MLflow makes it
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise TrackingError(f"{path}: {error}") from None


def experiment(client: MlflowClient, name: str, place: Store) -> str:
    """The id of an experiment of ours, made or restored where need be.

    Raises:
        TrackingError: it keeps its artifacts outside this project, which was moved or copied.
    """
    location = f"{place.artifacts}/{name}" if place.artifacts else None
    found = client.get_experiment_by_name(name) or _create(client, name, location)
    if location and found.artifact_location != location:
        raise TrackingError(
            f"{place.database} was made elsewhere (its artifacts are at "
            f"{found.artifact_location}); delete it and publish again: every run comes back"
        )
    number = str(found.experiment_id)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(number)
    for key, value in _experiment_tags(name).items():
        # a note or view that the user has edited stays
        if found.tags.get(key) != value and (key == KIND or key not in found.tags):
            client.set_experiment_tag(number, key, value)
    if name == RESULTS and views.TAG not in found.tags:
        _add_view(client, number)
    return number


def _add_view(client: MlflowClient, number: str) -> None:
    """Save the view of results, if the store takes it: a server before 3.16 has shorter tags."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_experiment_tag(number, views.TAG, views.saved_view())
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise


def _experiment_tags(name: str) -> dict[str, str]:
    # versions that go by the kind open in the mode for language models without it; 3.17 goes by
    # the address, see views.page
    return {KIND: "custom_model_development", "mlflow.note.content": NOTES[name]}


def _create(client: MlflowClient, name: str, location: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        client.create_experiment(name, location, _experiment_tags(name))
    except MlflowException:
        # somebody else may have made it since we looked
        if found := client.get_experiment_by_name(name):
            return found
        raise
    return client.get_experiment_by_name(name)


def metric_name(phase: str, name: str) -> str:
    """The name of a phase's metric in MLflow.

    ``train/loss``, ``val/loss`` and ``val/accuracy`` are those of cross-entropy phases, on images
    or pairs, for every method: such phases follow one another along the images seen. The pairwise
    loss of an encoder phase is another quantity, and at each latent another one:
    ``encoder/train/loss``, ``encoder_2/train/loss``.
    """
    return f"{phase}/{name}" if phase.startswith("encoder") else name


def safe_key(key: str) -> str:
    """A key with only the characters that MLflow allows."""
    return re.sub(r"[^/\w.\- :]", "_", key)[:250]


def flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as MLflow takes them: dotted keys; strings stay, all else is JSON."""
    found: dict[str, str] = {}
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found[safe_key(name)] = text[:LONGEST_PARAM]
    return found


def send(
    client: MlflowClient,
    run_id: str,
    points: Iterable[tuple[str, float, int, int]] = (),
    params: Mapping[str, str] | None = None,
) -> None:
    """Log parameters, and values as (name, value, milliseconds, step), in as few calls as may be.

    Values that are not finite are left out: no chart can show them.
    """
    from mlflow.entities import Metric, Param

    client.log_batch(
        run_id,
        metrics=[
            Metric(safe_key(name), float(value), when, step)
            for name, value, when, step in points
            if math.isfinite(value)
        ],
        params=[Param(safe_key(key), value) for key, value in (params or {}).items()],
    )


def process_tags() -> dict[str, str]:
    """Tags that tell later whether the process that made a run still lives."""
    started = psutil.Process().create_time()
    return {
        "process.host": _host(),
        "process.pid": str(os.getpid()),
        "process.started": f"{started:.2f}",
    }


def is_local(tags: Mapping[str, str]) -> bool:
    """Whether a run was made on this machine."""
    return tags.get("process.host") == _host()


def is_alive(tags: Mapping[str, str]) -> bool:
    """Whether the local process that made a run still lives; a later one of its number does not."""
    try:
        process = psutil.Process(int(tags["process.pid"]))
        apart = abs(process.create_time() - float(tags["process.started"]))
        return apart < SAME_START_SECONDS and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError):
        return False


def _host() -> str:
    # hashed: the name of a machine is nobody else's business
    machine = Path("/etc/machine-id")
    return digest(platform.node(), machine.read_text() if machine.is_file() else "")[:12]
