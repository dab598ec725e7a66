from __future__ import annotations

import ast
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.stages.publish import publish
from pipeline.tracking import away, follower, live
from pipeline.tracking import client as tracking
from pipeline.tracking.live import Live
from tests.tracking.conftest import Project, environment, free_port, run_python

TAGS = {"method": "breakdown", "phase": "encoder"}
NAME = "breakdown-n10-s0-encoder"


def phases(project: Project) -> list[Any]:
    client = tracking.open_client(project.store)
    found = client.get_experiment_by_name(tracking.PHASES)
    return list(client.search_runs([found.experiment_id])) if found else []


def trained(run: Any) -> dict[str, float]:
    """A run's metrics but those of the machine."""
    metrics = run.data.metrics.items()
    return {name: value for name, value in metrics if not name.startswith("system/")}


def wait_for_phase(project: Project) -> Any:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if found := phases(project):
            return found[0]
        time.sleep(0.05)
    pytest.fail("no run appeared")


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CLOSE_SECONDS", 60.0)  # a busy machine imports MLflow slowly


def replace_follower(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Start other code in the place of the process that talks to MLflow."""

    def start(root: Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)

    monkeypatch.setattr(live, "_start_follower", start)


def about(**more: Any) -> dict[str, Any]:
    """The first message of a phase."""
    tags = {**TAGS, **tracking.process_tags()}
    return {"name": NAME, "tags": tags, "params": {}, "started": 1, "sample_seconds": 60, **more}


def test_a_phase_is_followed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "BATCH_SECONDS", 0.05)
    client = tracking.open_client(project.store)
    with Live(NAME, TAGS, {"lr": "0.1", "a b.c": "x"}, after=0) as followed:
        followed.log(50, {"train/loss": 1.0, "val/loss": float("nan")})
        run_id = wait_for_phase(project).info.run_id
        end = time.monotonic() + 10
        while not client.get_run(run_id).data.metrics and time.monotonic() < end:
            time.sleep(0.05)
        assert client.get_run(run_id).info.status == "RUNNING"
        assert trained(client.get_run(run_id)) == {"encoder/train/loss": 1.0}
        for step in (100, 150):
            followed.log(step, {"train/loss": 1 / step})
    (run,) = phases(project)
    assert (run.info.run_name, run.info.status) == (NAME, "FINISHED")
    assert run.data.params == {"lr": "0.1", "a b.c": "x"}
    assert TAGS.items() <= run.data.tags.items()
    assert tracking.is_local(run.data.tags) and tracking.is_alive(run.data.tags)
    history = client.get_metric_history(run_id, "encoder/train/loss")
    assert [(item.step, item.value) for item in history] == [
        (50, 1.0),
        (100, 0.01),
        (150, 0.02 / 3),
    ]


def test_training_imports_no_mlflow(project: Project) -> None:
    code = (
        "import sys; from pipeline.tracking import live\n"
        "live.CLOSE_SECONDS = 60\n"
        "with live.Live('x', {}, {}, 0) as followed: followed.log(1, {'train/loss': 1.0})\n"
        "print([name for name in ('mlflow', 'torch', 'pandas') if name in sys.modules])"
    )
    done = run_python(code, project.root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert trained(phases(project)[0]) == {"train/loss": 1.0}


def test_the_machine_is_watched(project: Project) -> None:
    def messages() -> Iterator[dict[str, Any]]:
        yield about(sample_seconds=0.05)
        for status in ({}, {}, {}, {}, {"status": "FINISHED"}):
            time.sleep(0.06)
            yield {"points": [], **status}

    follower.follow(project.store, messages())
    (run,) = phases(project)
    client = tracking.open_client(project.store)
    history = client.get_metric_history(run.info.run_id, "system/system_memory_usage_megabytes")
    assert [point.step for point in history] == list(range(5))
    assert all(0 < point.value < psutil.virtual_memory().total / 1e6 for point in history)
    assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100


def test_the_user_can_have_the_machine_unwatched(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    follower.follow(project.store, [about(), {"points": [["train/loss", 0.5, 1, 10]]}])
    (run,) = phases(project)
    assert run.data.metrics == {"train/loss": 0.5}


@pytest.mark.parametrize(("last", "status"), [({"status": "FINISHED"}, "FINISHED"), ({}, "KILLED")])
def test_messages_that_end_too_soon_are_of_a_killed_process(
    project: Project, last: dict[str, str], status: str
) -> None:
    follower.follow(project.store, [about(), {"points": [], **last}])
    assert phases(project)[0].info.status == status


def test_what_has_come_meanwhile_is_one_message() -> None:
    told: follower.Told = queue.SimpleQueue()
    for message in ({"name": "x"}, {"points": [1]}, {"points": [2, 3]}, {"points": []}):
        told.put(message)
    messages = follower.gathered(told)
    assert next(messages) == {"name": "x"}
    assert next(messages) == {"points": [1, 2, 3]}
    told.put({"points": [4], "status": "FAILED", "patience": 1})
    told.put(None)
    assert list(messages) == [{"points": [4], "status": "FAILED"}]
    told.put(None)
    assert list(follower.gathered(told)) == []


def test_half_a_line_is_of_a_killed_process(project: Project) -> None:
    told = f"{json.dumps(about())}\n" + '{"points": [["train/loss", 0.5, 1, 10]]}\n{"points": [["tr'
    patient = (  # a busy machine imports MLflow slowly
        "from pipeline.tracking import follower; follower.GRACE_SECONDS = 50; follower.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", patient, str(project.root), str(os.getpid())],
        input=told, capture_output=True, text=True, timeout=60, env=environment(),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert phases(project)[0].info.status == "KILLED"
    assert trained(phases(project)[0]) == {"train/loss": 0.5}


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")],
)
def test_how_a_phase_ends(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException] | None,
    status: str,
) -> None:
    replace_follower(monkeypatch, "import sys; open('told', 'w').write(sys.stdin.read())")
    expected = suppress(error) if error else nullcontext()
    with expected, Live(NAME, {"phase": "head"}, {}, after=0) as followed:
        followed.log(10, {"train/loss": 0.5})
        if error:
            raise error
    lines = [json.loads(line) for line in Path("told").read_text().splitlines()]
    assert lines[0]["name"] == NAME
    assert [line.get("status") for line in lines] == [None] * (len(lines) - 1) + [status]
    points = [point for line in lines[1:] for point in line["points"]]
    assert [(name, value, step) for name, value, _, step in points] == [("train/loss", 0.5, 10)]


@pytest.mark.parametrize("after", [None, 60.0])
def test_a_short_phase_costs_and_writes_nothing(project: Project, after: float | None) -> None:
    code = (
        "import sys; from pipeline.tracking.live import Live\n"
        f"with Live('x', {{}}, {{}}, {after}) as followed: followed.log(1, {{'train/loss': 1.0}})\n"
        "print([name for name in ('mlflow', 'torch', 'pandas') if name in sys.modules])"
    )
    done = run_python(code, project.root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert phases(project) == []


def test_a_dead_server_costs_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # to be quick
    start = time.monotonic()
    with Live(NAME, TAGS, {}, after=0) as followed:
        for step in range(1000):
            followed.log(step, {"train/loss": 1.0})
        logged = time.monotonic() - start
    assert logged < 1
    printed = capsys.readouterr().err
    assert printed.startswith("warning: MLflow: ") and printed.endswith("; training goes on\n")
    assert printed.count("\n") == 1 and "secret" not in printed


def test_a_store_that_failed_is_left_alone_by_other_processes_for_a_while(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "import sys; open('told', 'w').write(sys.stdin.read()); print(open('problem').read())"
    replace_follower(monkeypatch, told)

    def follow(problem: str) -> bool:
        """As a process of its own would; whether the store was asked."""
        live.given_up.clear()
        Path("told").unlink(missing_ok=True)
        Path("problem").write_text(problem)
        with Live(NAME, TAGS, {}, after=0):
            pass
        return Path("told").exists()

    assert follow("it is away")
    assert "it is away" in capsys.readouterr().err
    assert not follow("") and capsys.readouterr().err == ""
    assert away.left(project.store) > away.SECONDS - 60
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # another store
    assert follow("")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert not follow("")
    file = project.root / away.FILE
    for age, asked in ((away.SECONDS - 30, False), (away.SECONDS, True), (-3600, True)):
        os.utime(file, times=(time.time() - age,) * 2)
        assert follow("") is asked
    assert follow("it is away again") and not follow("")
    away.forget(tracking.Store("http://127.0.0.1:1", None, False, project.root))
    assert not follow("")
    publish(project.params)
    assert not file.exists() and follow("")


def test_a_long_phase_is_followed_when_the_while_is_over(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_follower(monkeypatch, "import sys; open('told', 'w').write(sys.stdin.read())")
    monkeypatch.setattr(away, "SECONDS", 0.5)
    away.note(project.store)
    with Live(NAME, TAGS, {}, after=0) as followed:
        followed.log(1, {"train/loss": 0.5})
        time.sleep(1)
    assert "train/loss" in Path("told").read_text()


def test_an_answer_that_never_comes_is_given_up(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_follower(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(live, "CLOSE_SECONDS", 0.1)
    with Live(NAME, TAGS, {}, after=0) as followed:
        wait_until(lambda: followed._process is not None)
        process = followed._process
    with Live("the next phase", TAGS, {}, after=0) as followed:
        followed.log(1, {"train/loss": 1.0})
    assert followed._rows.empty() and followed._process is None
    assert process is not None
    process.kill()
    assert capsys.readouterr().err == (
        f"warning: MLflow: no answer within 0.1 s at the end of {NAME}; training goes on\n"
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [("print('no room')", "no room"), ("raise SystemExit(3)", "its process ended with status 3")],
)
def test_what_goes_wrong_in_the_other_process_is_one_line(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
    said: str,
) -> None:
    replace_follower(monkeypatch, code)
    monkeypatch.setattr(live, "BATCH_SECONDS", 0.01)
    with Live(NAME, TAGS, {}, after=0) as followed:
        wait_until(lambda: followed._silent)
        followed.log(1, {"train/loss": 1.0})
    assert capsys.readouterr().err == f"warning: MLflow: {said}; training goes on\n"


def test_a_signal_does_afterwards_what_it_would_have_done(project: Project) -> None:
    received = []
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        own = signal.getsignal(signal.SIGTERM)
        with Live(NAME, TAGS, {}, after=60):
            assert signal.getsignal(signal.SIGTERM) != own
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert received == [signal.SIGTERM]
        with Live(NAME, TAGS, {}, after=60):
            pass
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, earlier)


def test_a_phase_in_another_thread_sets_no_signal(project: Project) -> None:
    seen = []

    def phase() -> None:
        with Live(NAME, TAGS, {}, after=60):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=phase)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_leaves_no_running_phase(project: Project, number: int) -> None:
    code = (
        "import time; from pipeline.tracking.live import Live\n"
        "with Live('x', {}, {}, 0): time.sleep(60)"
    )
    training = subprocess.Popen([sys.executable, "-c", code], cwd=project.root, env=environment())
    try:
        wait_for_phase(project)
        client = tracking.open_client(project.store)
        assert live.close_leftovers(client) == 1
        assert phases(project)[0].info.status == "RUNNING"
        training.send_signal(number)
        assert training.wait(20) == -number
    finally:
        training.kill()
        training.wait()
    wait_until(lambda: phases(project)[0].info.status == "KILLED")
    assert live.close_leftovers(client) == 0
    assert phases(project)[0].info.status == "KILLED"


def test_what_a_lost_follower_leaves_is_closed(project: Project) -> None:
    code = "from pipeline.tracking import client; print(client.process_tags())"
    dead = ast.literal_eval(run_python(code, project.root).stdout)
    client = tracking.open_client(project.store)
    number = tracking.experiment(client, tracking.PHASES, project.store)
    client.create_run(number, None, dead, "x")
    assert live.close_leftovers(client) == 0
    assert phases(project)[0].info.status == "KILLED"


def test_phases_of_other_machines_are_left_alone(project: Project) -> None:
    client = tracking.open_client(project.store)
    assert live.close_leftovers(client) == 0  # no experiment yet
    number = tracking.experiment(client, tracking.PHASES, project.store)
    elsewhere = {**tracking.process_tags(), "process.host": "x", "process.pid": "0"}
    client.create_run(number, None, elsewhere, "x")
    assert live.close_leftovers(client) == 1
    assert phases(project)[0].info.status == "RUNNING"
