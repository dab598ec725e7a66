"""What a publish works on, and the form in which runs are handed to the store."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.params import Params
from pipeline.records import RunId, runs_of
from pipeline.tracking import client as tracking

DATA_FILE = Path("data.dvc")
KIND = "kind"  # a tag: a result of one run, or the summary of all
RESULT, SUMMARY = "result", "summary"

File = tuple[Path, str | None]  # a file, and its folder among the artifacts
Point = tuple[str, float, int]  # name, value, step
TimedPoint = tuple[str, float, int, int]  # name, value, milliseconds from the start, step


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

    def existing(self, files: Iterable[File]) -> Iterator[File]:
        """Those of the project's files that are there, and where they lie."""
        for path, folder in files:
            if self.file(path).is_file():
                yield self.file(path), folder

    def first_tags(self) -> dict[str, str]:
        """Tags that say of what a run was first published."""
        return self.versions | ({"dvc.experiment": self.experiment} if self.experiment else {})

    def changing_tags(self) -> dict[str, str]:
        """Tags that may change while results stay.

        Commit and data are those at which the results stood last. An experiment that shares a run
        with others only adds its name, and leaves the project's own commit.
        """
        if self.experiment:
            return {tracking.safe_key(f"dvc.experiment.{self.experiment}"): "true"}
        return self.versions


@dataclass(frozen=True)
class Content:
    """What a run holds.

    Attributes:
        params: flat.
        finals: values by name, without a step.
        curves: values along their steps.
        files: artifacts.
        timed: values along time.
    """

    params: dict[str, str]
    finals: dict[str, float]
    curves: Sequence[Point]
    files: Sequence[File] = ()
    timed: Sequence[TimedPoint] = ()


@dataclass(frozen=True)
class Attachment:
    """Files that a run may get or renew later, while all else of it stays.

    They are sent where the run's tag ``tag`` is not ``value``; ``tags`` are set with it.
    """

    tag: str
    value: str
    files: Sequence[File]
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One run as the store should have it.

    Attributes:
        name: for people.
        key: digest of what was asked; it finds the run.
        digest: of what came of it; where it differs, the run is made anew.
        status: in MLflow's word.
        milliseconds: the duration to show.
        tags: that stay as they are.
        changing: tags that are brought up to date.
        attachments: files that may come later.
        content: reads all else; called only where the run is made.
    """

    name: str
    key: str
    digest: str
    status: str
    milliseconds: int
    tags: dict[str, str]
    changing: dict[str, str]
    attachments: Sequence[Attachment]
    content: Callable[[], Content]


def versions_of(root: Path) -> dict[str, str]:
    """Tags that say which code and data: git commit and the data's MD5, as far as there are any."""
    tags = {}
    if commit := _git_commit(root):
        tags = {"git.commit": commit, "mlflow.source.git.commit": commit}
    if md5 := _data_md5(root / DATA_FILE):
        tags["data.md5"] = md5
    return tags


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV as text; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_of(row: dict[str, Any]) -> RunId:
    """The run that a row of a report's table is of."""
    shots = row["shots"] if row["shots"] == "all" else int(row["shots"])
    return RunId(row["method"], shots, int(row["seed"]))


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
