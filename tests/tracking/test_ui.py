"""``make ui``: it serves the project's store, and says at once what it cannot do."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.tracking import client as tracking
from pipeline.tracking import ui
from tests.tracking.conftest import Project, environment, free_port, stop, wait_for


@pytest.mark.parametrize("text", ["0", "65536", "-1", "http", ""])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"'{text}' must be the number of a port"):
        ui.free_port(text)


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} is in use"):
            ui.free_port(str(port))
    assert ui.free_port(str(port)) == port


def test_a_server_of_the_user_is_only_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], project: Project
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@example.test:5000")
    monkeypatch.setattr(os, "execvp", lambda *_: pytest.fail("a server was started"))
    ui.main()
    assert capsys.readouterr().out.endswith("the runs are at http://example.test:5000\n")


@pytest.mark.slow
def test_the_store_is_served_with_its_artifacts(project: Project) -> None:
    client = tracking.open_client(project.store)
    number = tracking.experiment(client, tracking.RESULTS, project.store)
    run = client.create_run(number, run_name="a run")
    client.log_text(run.info.run_id, "phase,epoch\n", "history.csv")
    port = free_port()
    process: subprocess.Popen[Any] = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking.ui", str(port)],
        cwd=project.root,
        env={k: v for k, v in environment().items() if not k.startswith("MLFLOW_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    try:
        assert process.stdout
        said = process.stdout.readline()
        wait_for(f"http://127.0.0.1:{port}", process)
        artifact = f"get-artifact?path=history.csv&run_uuid={run.info.run_id}"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{artifact}", timeout=20) as answer:
            assert answer.read() == b"phase,epoch\n"
    finally:
        stop(process)
        process.communicate()
    assert re.search(rf"http://127\.0\.0\.1:{port}/#/experiments/{number}/runs\?\S+ \(end", said)
