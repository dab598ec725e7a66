"""MLflow's pages on the project's own store: ``python -m pipeline.tracking.ui [PORT]``."""

from __future__ import annotations

import os
import sys

from pipeline.errors import InputError, command
from pipeline.tracking import client


def main() -> None:
    """Say where the experiment is; serve the embedded store, or leave the user's server alone."""
    port = sys.argv[1] if len(sys.argv) > 1 else "5000"
    if not port.isdecimal():
        raise InputError(f"command line: '{port}' must be the number of a port")
    place = client.store(client.project_root())
    if place.uri.startswith(("http://", "https://")):
        print(f"MLFLOW_TRACKING_URI is set: the runs are at {client.shown(place.uri)}")
        return
    opened = client.open_client(place)
    identity = client.experiment(opened, client.RESULTS, place)
    page = f"http://127.0.0.1:{port}/#/experiments/{identity}/runs"
    print(f"the runs are at {page} (end with Ctrl-C)", flush=True)
    serve = ["mlflow", "server", "--backend-store-uri", place.uri, "--port", port]
    if place.artifacts:
        serve += ["--artifacts-destination", place.artifacts]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.execvp(sys.executable, [sys.executable, "-m", *serve])


if __name__ == "__main__":
    command(main)
