"""``python -m pipeline.repro`` under real DVC: one signal ends all of it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.projects import call, environment
from tests.test_jobs import until

STAGES = """
stages:
  first:
    cmd: echo first >> began; sleep {seconds}
  second:
    cmd: echo second >> began; sleep {seconds}
"""


@pytest.fixture
def folder(tmp_path):
    call(tmp_path, "git", "init", "-q")
    call(tmp_path, "dvc", "init", "-q")
    return tmp_path


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.repro"], cwd=folder, start_new_session=True, text=True,
        env=environment(folder, PYTHONPATH=os.getcwd()), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_all_and_locks_nothing(folder, number):
    (folder / "dvc.yaml").write_text(STAGES.format(seconds=60))
    began = folder / "began"
    with start(folder) as process:
        until(began.exists, 60)
        sent = time.monotonic()
        if number == signal.SIGINT:  # as a terminal does: to all
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        said = process.communicate(timeout=30)[0]
        assert time.monotonic() - sent < 10
    assert process.returncode == 128 + number
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "interrupted; start the same command again to go on"
    begun = len(began.read_text().split())

    (folder / "dvc.yaml").write_text(STAGES.format(seconds=0))
    with start(folder) as process:
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert len(began.read_text().split()) == begun + 2


@pytest.mark.slow
def test_a_failed_stage_stops_no_other_and_is_the_status(folder):
    (folder / "dvc.yaml").write_text(
        "stages:\n  first:\n    cmd: exit 3\n  second:\n    cmd: touch there\n"
    )
    with start(folder) as process:
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 255 and "failed to reproduce 'first'" in said
    assert (folder / "there").exists()
