"""MLflow's pages on the project's own store: ``python -m pipeline.tracking.ui [PORT]``."""

from __future__ import annotations

import os
import socket
import sys

from pipeline.errors import InputError, command
from pipeline.tracking import client, views

HOST = "127.0.0.1"
# Two processes instead of fourteen, of a quarter of a gigabyte each: more workers are for many
# users, jobs for MLflow's tools for language models.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}
QUIET = ["--workers", "1", "--uvicorn-opts", "--log-level=warning"]


def main() -> None:
    """Say where the experiment is; serve the embedded store, or leave the user's server alone."""
    place = client.store(client.project_root())
    if place.uri.startswith(("http://", "https://")):
        print(f"MLFLOW_TRACKING_URI is set: the runs are at {client.shown(place.uri)}")
        return
    port = free_port(sys.argv[1] if len(sys.argv) > 1 else "5000")
    identity = experiment(place)
    page = views.page(f"http://{HOST}:{port}", identity)
    print(f"in a few seconds the runs are at {page} (end with Ctrl-C)", flush=True)
    serve = ["mlflow", "server"]
    serve += ["--host", HOST, "--port", str(port), *QUIET]
    if place.artifacts:
        serve += ["--artifacts-destination", place.artifacts]
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_BACKEND_STORE_URI"] = place.uri  # arguments are for all to see
    os.execvp(sys.executable, [sys.executable, "-m", *serve])


def experiment(place: client.Store) -> str:
    """The id of the experiment of results, which is made where there is none.

    Raises:
        InputError: the store cannot be used.
    """
    try:
        return client.experiment(client.open_client(place), client.RESULTS, place)
    except Exception as error:  # whatever MLflow and its databases raise
        raise InputError(f"MLflow: {client.reason(error, place.uri)}") from None


def free_port(text: str) -> int:
    """The port that ``text`` names.

    Raises:
        InputError: it names none, or one at which another program listens.
    """
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise InputError(f"command line: '{text}' must be the number of a port, from 1 to 65535")
    with socket.socket() as probe:
        if probe.connect_ex((HOST, int(text))) == 0:
            raise InputError(f"port {text} is in use; name another, such as make ui PORT=5001")
    return int(text)


if __name__ == "__main__":
    command(main)
