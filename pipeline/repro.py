"""``dvc repro --keep-going``, which one Ctrl-C ends: ``python -m pipeline.repro``.

DVC takes Ctrl-C for the failure of a stage, and with ``--keep-going`` would start the next one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress

import psutil

from pipeline.errors import command, exit_as_told

GRACE = 3.0  # seconds for a stage to end by itself: it has got Ctrl-C, too, or misses DVC


def main() -> None:
    """Reproduce the project; the exit status is DVC's."""
    signal.signal(signal.SIGTERM, exit_as_told)
    dvc = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "--keep-going"])
    try:
        status = dvc.wait()
    except BaseException:
        _end(dvc)
        raise
    sys.exit(status)


def _end(dvc: subprocess.Popen[bytes]) -> None:
    """End DVC before it starts another stage, and wait for the one at work."""
    stages: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(dvc.pid)
        process.suspend()
        stages = process.children(recursive=True)
        process.terminate()
        process.resume()
    dvc.wait()
    for stage in psutil.wait_procs(stages, GRACE)[1]:
        with suppress(psutil.NoSuchProcess):
            stage.terminate()


if __name__ == "__main__":
    command(main)
