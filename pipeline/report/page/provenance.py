"""Of what a report was made: commit, data, settings unlike the default, versions."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.params_file import plain, read

DEFAULT = Path("configs/digits.yaml")
DATA = Path("data.dvc")
PACKAGES = ("dvc", "matplotlib", "mlflow", "numpy", "pandas", "scikit-learn", "scipy")
GIT_SECONDS = 20
NO_PART = {"tracking"}  # sections of params.yaml that alter no result
WRITTEN = (":!reports", ":!dvc.lock")  # what a run itself writes is no change of its making


@dataclass(frozen=True)
class Made:
    """How a report came about; what could not be found out is empty.

    Attributes:
        commit: that is checked out.
        changed: tracked files that differ from it, by their paths in the project.
        data: the md5 that DVC has of the data.
        default: the parameters of the default comparison.
        versions: of the packages that evaluated, by name.
    """

    commit: str = ""
    changed: tuple[str, ...] = ()
    data: str = ""
    default: Params | None = None
    versions: Mapping[str, str] | None = None

    @property
    def dirty(self) -> bool:
        """Whether the commit alone is not what the report was made of."""
        return bool(self.changed)


def made(root: Path = Path()) -> Made:
    """Look it up in the project's folder; without git, or without data under DVC, that is empty."""
    commit = _git(root, "rev-parse", "HEAD").strip()
    status = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN)
    prefix = _git(root, "rev-parse", "--show-prefix").strip()  # git's paths are the repository's
    return Made(
        commit=commit,
        changed=tuple(line[3:].removeprefix(prefix) for line in status.splitlines()),
        data=_data(root / DATA),
        default=_default(root / DEFAULT),
        versions=dict(_versions()),
    )


def differing(params: Params, default: Params) -> list[tuple[str, Any, Any]]:
    """Keys whose values differ: here, and in the default; None where one has no such key.

    Those of ``NO_PART`` are left out.

    A method that the default has not, or has alone, is one key.
    """
    ours, theirs = (
        of.model_dump(mode="json", by_alias=True, exclude=NO_PART) for of in (params, default)
    )
    return list(_differing(ours, theirs, ""))


def _differing(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], at: str
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*ours, *theirs]):
        one, other, here = ours.get(key), theirs.get(key), f"{at}.{key}" if at else key
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differing(one, other, here)
        elif one != other:
            yield here, one, other


def _git(root: Path, *arguments: str) -> str:
    """What git says; nothing where there is no git, or no repository."""
    command = ["git", "-C", str(root), *arguments]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return found.stdout if found.returncode == 0 else ""


def _data(path: Path) -> str:
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return str(content["outs"][0]["md5"])
    except (OSError, UnicodeDecodeError, YAMLError, KeyError, TypeError, IndexError):
        return ""


def _default(path: Path) -> Params | None:
    try:
        return Params.model_validate(plain(read(path).tree))
    except (InputError, ValidationError):
        return None


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
