"""Programs started as users start them, in a folder of their own, for rows that time them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(folder: Path, code: Path = ROOT) -> dict[str, str]:
    """What a program in ``folder`` sees: this interpreter, the project's code, no other store.

    Args:
        folder: the project's, in which MLflow's store lies.
        code: where ``pipeline`` is imported from.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "DVC_", "GIT_"))
    }
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(code),
        "DVC_ROOT": str(folder),  # as DVC says it to its stages
        "DVC_NO_ANALYTICS": "true",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }


def call(folder: Path, *words: str, code: Path = ROOT) -> str:
    """Run a program to its end and give back what it printed.

    Raises:
        RuntimeError: it failed; with what it said last.
    """
    done = subprocess.run(
        words, cwd=folder, env=environment(folder, code), capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise RuntimeError(f"{' '.join(words)} ended with status {done.returncode}: {said}")
    return done.stdout


def seconds(folder: Path, *words: str, code: Path = ROOT) -> float:
    """How long a program takes from its start to its end."""
    started = time.perf_counter()
    call(folder, *words, code=code)
    return time.perf_counter() - started
