"""Tracking never costs a result: what goes wrong in a store or server, and what that may cost."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages import publish as stage
from pipeline.tracking import client as tracking
from pipeline.tracking import mirror, ui
from tests.tracking import faults
from tests.tracking.conftest import Project, free_port, make_compare
from tests.tracking.faults import Ended, serving

LOST = 10  # seconds that training may lose to tracking, in all
OUTLIVED = 6  # seconds that a follower may live on
TORTURE = pytest.mark.torture
ANSWERS = [
    pytest.param(faults.hung, id="hung"),
    *(
        pytest.param(answer, id=answer.__name__, marks=TORTURE)
        for answer in (faults.failing, faults.login, faults.busy, faults.trickling)
    ),
]


@pytest.fixture
def small(project: Project) -> Project:
    """One run to publish."""
    project.compare = make_compare([], ["finetune"], [0])
    project.write()
    return project


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second instead of five before a call is tried again: the path is the same."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def check_training(project: Project, done: Ended) -> None:
    """It ended, soon, with one clear warning, and left no process behind."""
    left = faults.no_follower_within(project.root, OUTLIVED)
    assert done.status == 0, done.err
    assert float(done.out) < LOST
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("warning: MLflow: ") and lines[0].endswith("; training goes on")
    assert left


def check_warning(done: Ended, within: float) -> None:
    assert (done.status, done.out) == (0, ""), done.err
    assert done.seconds < within
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("warning: MLflow: not all runs are in ")
    assert lines[0].endswith("tries again")


def results(project: Project) -> Counter[str]:
    """How often each run is in the experiment of results, whole."""
    client = tracking.open_client(project.store)
    found = client.get_experiment_by_name(tracking.RESULTS)
    runs = list(mirror._all_runs(client, found.experiment_id))
    for run in runs:
        assert "config_key" in run.data.tags and "publishing" not in run.data.tags
        assert run.info.status == "FINISHED", run.info
    return Counter(run.info.run_name for run in runs)


def statuses(project: Project) -> list[str]:
    client = tracking.open_client(project.store)
    found = client.get_experiment_by_name(tracking.PHASES)
    return [run.info.status for run in client.search_runs([found.experiment_id])]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a SQLite file for oneself."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def alter(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(statement)


@pytest.mark.parametrize("answer", ANSWERS)
def test_training_beside_a_server(
    project: Project, answer: faults.Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two phases in one process: what is lost, and said, is of both together."""
    with serving(answer) as server:
        done = faults.train(project, phases=2, MLFLOW_TRACKING_URI=server.uri)
    check_training(project, done)


@pytest.mark.parametrize("answer", ANSWERS)
def test_publishing_to_a_server(
    small: Project, answer: faults.Answer, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(answer) as server:
        done = faults.publish(small, longest=8, MLFLOW_TRACKING_URI=server.uri)
    check_warning(done, within=15)


@TORTURE
def test_a_server_that_is_stopped(project: Project) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    check_training(project, faults.train(project, MLFLOW_TRACKING_URI=uri))


LOCKED, REFUSED, OLDER, NEWER, BROKEN = "locked", "refused", "older", "newer", "broken"


@contextmanager
def spoiled(path: Path, how: str) -> Iterator[None]:
    """An SQLite file that cannot be used, and can again."""
    if how == LOCKED:
        with locked(path):
            yield
        return
    whole = path.read_bytes()
    versions = {OLDER: "bd07f7e963c5", NEWER: "ffffffffffff"}
    if how in versions:
        alter(path, f"UPDATE alembic_version SET version_num = '{versions[how]}'")
    elif how == REFUSED:
        alter(
            path,
            "CREATE TRIGGER no BEFORE INSERT ON runs BEGIN SELECT RAISE(FAIL, 'no'); END",
        )
    else:
        path.write_bytes(whole[: len(whole) // 2])
    yield
    path.write_bytes(whole)


@TORTURE
@pytest.mark.parametrize("how", [LOCKED, REFUSED, OLDER, NEWER, BROKEN])
def test_a_store_that_cannot_be_used(small: Project, how: str) -> None:
    with spoiled(small.root / "mlflow.db", how):
        training = faults.train(small)
        published = faults.publish(small)
    check_training(small, training)
    check_warning(published, within=30)
    if how in (OLDER, NEWER):
        problem = f"{small.root}/mlflow.db is of another version of MLflow; delete it"
        assert problem in training.err and problem in published.err
    again = faults.publish(small)
    assert (again.status, again.err) == (0, "")
    assert results(small) == {"finetune-n10-s0": 1}


@TORTURE
def test_a_store_that_is_deleted_while_a_phase_is_followed(small: Project) -> None:
    training = faults.start(faults.TRAIN, small.root, "1", "8")
    end = time.monotonic() + 30
    while not phases_in(small.root / "mlflow.db"):
        assert time.monotonic() < end
        time.sleep(0.05)
    (small.root / "mlflow.db").unlink()
    done = faults.finish(training)
    assert done.status == 0 and float(done.out) < LOST
    assert len(done.err.splitlines()) <= 1, done.err
    assert faults.no_follower_within(small.root, OUTLIVED)
    assert faults.publish(small).err == ""
    assert results(small) == {"finetune-n10-s0": 1}


def phases_in(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM runs").fetchone()[0])


@TORTURE
@pytest.mark.parametrize("step", ["create_run", "log_batch", "set_terminated"])
def test_a_store_that_is_deleted_while_it_is_published_to(small: Project, step: str) -> None:
    delete_then_go_on = f"""
from pathlib import Path
from mlflow.tracking import MlflowClient
real = MlflowClient.{step}
def call(*arguments, **more):
    Path("mlflow.db").unlink(missing_ok=True)
    return real(*arguments, **more)
MlflowClient.{step} = call
"""
    code = delete_then_go_on + faults.PUBLISH
    check_warning(faults.finish(faults.start(code, small.root, *faults.asked(small))), within=60)
    again = faults.publish(small)
    assert again.err == "" and "1 runs created" in again.out
    assert results(small) == {"finetune-n10-s0": 1}


def test_a_publish_that_fails_at_any_call_is_completed_by_the_next(
    small: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full at the first, second, … call that writes; every other call is lost after."""
    from mlflow.tracking import MlflowClient

    writing = ("create_run", "log_batch", "set_terminated")
    calls = [0, 0]  # made, and the one to fail at

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] >= calls[1]:
                raise OSError(28, "No space left on device")
            return real(*arguments, **more)

        return call

    fresh = (small.root / "mlflow.db").read_bytes()
    for fail_at in range(1, 100):
        (small.root / "mlflow.db").write_bytes(fresh)
        calls[:] = [0, fail_at]
        with monkeypatch.context() as patch:
            for name in writing:
                patch.setattr(MlflowClient, name, wrapped(getattr(MlflowClient, name)))
            patch.setattr(shutil, "copyfile", wrapped(shutil.copyfile))
            stage.publish(small.params)
        printed = capsys.readouterr()
        if not printed.err:
            break
        assert printed.err.count("\n") == 1 and "No space left on device" in printed.err
        stage.publish(small.params)
        assert capsys.readouterr().err == ""
        assert results(small) == {"finetune-n10-s0": 1}
    assert 8 < fail_at < 99


TRAIN_PUBLISH_MEND_PUBLISH = f"""
import os, shutil, subprocess, sys
from pathlib import Path
spoil, mend, *asked = sys.argv[1:]
root, place = Path.cwd(), Path.cwd().parent / "mounted"
place.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
shutil.copytree(root, place, dirs_exist_ok=True)
os.chdir(place)
def run(code, *arguments):
    for stream in sys.stdout, sys.stderr:
        print("--", file=stream, flush=True)
    print(subprocess.run([sys.executable, "-c", code, *arguments]).returncode, flush=True)
subprocess.run(spoil, shell=True)
run({faults.TRAIN!r}, "1", "0.5")
run({faults.PUBLISH!r}, *asked)
subprocess.run(mend, shell=True, check=True)
run({faults.PUBLISH!r}, *asked)
"""


@TORTURE
@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        ("dd if=/dev/zero of=fill bs=4096 2>/dev/null", "rm fill"),
        ("mount -o remount,ro .", "mount -o remount,rw ."),
    ],
    ids=["full", "read-only"],
)
def test_a_disk(small: Project, spoil: str, mend: str) -> None:
    """The project on a file system of its own, which is full or cannot be written to."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs unshare -rm, to mount a small tmpfs")
    command = ["unshare", "-rm", sys.executable, "-c", TRAIN_PUBLISH_MEND_PUBLISH, spoil, mend]
    done = subprocess.run(
        [*command, *faults.asked(small)], cwd=small.root, env=faults.environment(),
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outs, errs = done.stdout.split("--\n")[1:], done.stderr.split("--\n")[1:]
    lost, status = outs[0].split()
    assert status == "0" and float(lost) < LOST
    for err in errs[:2]:
        assert err.startswith("warning: MLflow: ") and err.count("\n") == 1, err
    assert outs[1] == "0\n"
    assert outs[2].startswith("MLflow: 1 runs created") and outs[2].endswith(")\n0\n")
    assert errs[2] == ""


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGKILL, marks=TORTURE),
        pytest.param(signal.SIGINT, marks=TORTURE),
    ],
)
def test_a_process_that_is_ended_beside_a_hung_server(project: Project, number: int) -> None:
    with serving(faults.hung) as server:
        training = faults.start(
            faults.TRAIN, project.root, "1", "60", MLFLOW_TRACKING_URI=server.uri
        )
        end = time.monotonic() + 30
        while not server.asked:
            assert time.monotonic() < end
            time.sleep(0.05)
        training.send_signal(number)
        begun = time.monotonic()
        training.wait(30)
        took = time.monotonic() - begun
        training.communicate()
        assert faults.no_follower_within(project.root, OUTLIVED)
    assert took < 2


@TORTURE
def test_a_forked_child_does_not_keep_the_follower_alive(project: Project) -> None:
    """It has a copy of the pipe's end, so that the input of the follower never ends."""
    code = """
import os, signal, sys, time
from pipeline.tracking import live
with live.Live("x", {}, {}, 0) as followed:
    while followed._process is None: time.sleep(0.01)
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    print("forked", flush=True)
    time.sleep(60)
"""
    training = faults.start(code, project.root)
    assert training.stdout and training.stderr
    assert training.stdout.readline() == "forked\n"
    training.kill()
    training.wait()
    left = faults.no_follower_within(project.root, OUTLIVED)
    training.stdout.close()
    training.stderr.close()
    assert left


@TORTURE
def test_a_follower_that_cannot_keep_up_is_not_waited_for(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far more is told than a pipe holds, to a server that never answers."""
    code = faults.TRAIN.replace('{"train/loss": 1.0 / step}', '{f"m{i}": 1.0 for i in range(900)}')
    with serving(faults.hung) as server:
        done = faults.finish(
            faults.start(code, project.root, "1", "6", MLFLOW_TRACKING_URI=server.uri)
        )
    check_training(project, done)


# what must be found nowhere
SECRETS = {
    "in the address": "pa55-in-uri",
    "in the query": "t0ken-in-query",
    "MLFLOW_TRACKING_PASSWORD": "pa55-of-env",
    "MLFLOW_TRACKING_TOKEN": "t0ken-of-env",
    "AWS_SECRET_ACCESS_KEY": "aws-s3cret",
    "DVC remote": "pa55-of-dvc",
}


def forms(secret: str) -> list[bytes]:
    """A secret as it stands, and as a header carries it."""
    plain = [secret, *(f"{user}:{secret}" for user in ("me", "user-of-env"))]
    return [secret.encode(), *(base64.b64encode(text.encode()) for text in plain)]


def leaks(root: Path, *said: str) -> list[str]:
    found = []
    texts = {"output": "\n".join(said).encode()}
    texts |= {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path != root / ".dvc/config"
    }
    for name, secret in SECRETS.items():
        found += [
            f"{name}: {where}"
            for where, text in texts.items()
            for form in forms(secret)
            if form in text
        ]
    return found


def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in SECRETS.items():
        if name.isupper() or "_" in name:
            monkeypatch.setenv(name, secret)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user-of-env")
    (project.root / ".dvc").mkdir()
    remote = f"['remote \"mine\"']\n    url = https://me:{SECRETS['DVC remote']}@dvc.test/store\n"
    (project.root / ".dvc/config").write_text(remote)


@pytest.mark.parametrize("answer", [faults.echoing, faults.login, faults.failing, None])
@pytest.mark.parametrize("address", ["user", "query", "environment"])
def test_no_credential_is_shown_where_a_server_fails(
    small: Project,
    answer: faults.Answer | None,
    address: str,
    hasty: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plant(small, monkeypatch)
    if address == "user":
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    with serving(answer or faults.failing) as server:
        port = server.server_address[1] if answer else free_port()
        uri = {
            "user": f"http://me:{SECRETS['in the address']}@127.0.0.1:{port}",
            "query": f"http://127.0.0.1:{port}/x?token={SECRETS['in the query']}",
            "environment": f"http://127.0.0.1:{port}",
        }[address]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        stage.publish(small.params)
        place = small.store
        from pipeline.tracking import follower

        try:
            follower.follow(place, [{"name": "x", "tags": {}, "params": {}, "started": 1}])
            said = ""
        except Exception as error:
            said = tracking.reason(error, place.uri)
    printed = capfd.readouterr()
    assert printed.err.startswith("warning: MLflow: ") and said
    assert leaks(small.root, printed.out, printed.err, said) == []


@TORTURE
def test_no_credential_is_stored(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(project, monkeypatch)
    patient = "from pipeline.tracking import live; live.CLOSE_SECONDS = 60\n" + faults.TRAIN
    training = faults.finish(faults.start(patient, project.root, "1", "2"))
    published = faults.publish(project)
    said = [training.out, training.err, published.out, published.err]
    assert (training.err, published.err) == ("", "")
    assert results(project).total() == 4
    assert leaks(project.root, *said) == []


def test_a_database_s_password_is_no_argument_of_the_pages_server(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everybody on a machine can read the arguments of its processes."""
    uri = f"sqlite:///{project.root}/mlflow.db?password={SECRETS['in the query']}"
    given = []
    monkeypatch.setattr(os, "environ", {**os.environ, "MLFLOW_TRACKING_URI": uri})
    monkeypatch.setattr(os, "execvp", lambda file, arguments: given.extend(arguments))
    monkeypatch.setattr(sys, "argv", ["ui", str(free_port())])
    monkeypatch.setattr(tracking, "open_client", lambda place: None)
    monkeypatch.setattr(tracking, "experiment", lambda *_: "1")
    ui.main()
    assert given and SECRETS["in the query"] not in " ".join(given)
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://me:p/a@ss@host:5000/a", "http://host:5000/a"),
        ("postgresql://u:p/w@h/db", "postgresql://h/db"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////a:b@c/mlflow.db", "sqlite:////a:b@c/mlflow.db"),
    ],
)
def test_addresses_are_shown_without_credentials(uri: str, expected: str) -> None:
    assert tracking.shown(uri) == expected
