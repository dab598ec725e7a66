"""No credential is written or said: a secret in each place that has one, searched for everywhere.

Tracking alone is tried in ``tests/tracking/test_faults.py``; here are the stages, DVC and git.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline import check
from pipeline.errors import InputError
from pipeline.models import weights
from pipeline.params import PARAMS_FILE
from pipeline.stages.publish import publish
from pipeline.tracking import ui
from tests.digits import write_digits
from tests.projects import call, edit, small_project
from tests.test_stages import DEFAULT, run_all, tiny_params
from tests.tracking.conftest import free_port

SECRETS = {
    name: f"s3cr3t/{name}+{number:02}"
    for number, name in enumerate(
        (
            *("tracking-uri", "tracking-query", "tracking-password", "tracking-token"),
            *("dvc-url", "dvc-password", "dvc-access-key", "dvc-secret-key"),
            *("git-remote", "proxy", "aws", "aws-session", "github", "own", "param"),
        )
    )
}
USER = "some-user"
ENVIRONMENT = {
    "MLFLOW_TRACKING_USERNAME": USER,
    "MLFLOW_TRACKING_PASSWORD": SECRETS["tracking-password"],
    "MLFLOW_TRACKING_TOKEN": SECRETS["tracking-token"],
    "AWS_ACCESS_KEY_ID": USER,
    "AWS_SECRET_ACCESS_KEY": SECRETS["aws"],
    "AWS_SESSION_TOKEN": SECRETS["aws-session"],
    "GITHUB_TOKEN": SECRETS["github"],
    "ANY_OTHER": SECRETS["own"],
}
HOLDERS = {".dvc/config.local", ".git/config", PARAMS_FILE}  # where a secret is at home


def quoted(name: str) -> str:
    """A secret as an address has it."""
    return quote(SECRETS[name], safe="")


def forms(secret: str) -> set[bytes]:
    """A secret as it stands, in an address, escaped, reversed, and in base64 at every offset."""
    plain = [secret, quote(secret), quote(secret, safe="")]
    headers = [f"{USER}:{text}" for text in plain]
    found = {text.encode() for text in plain} | {secret[::-1].encode()}
    for text in plain + headers:
        for shift in range(3):
            coded = base64.b64encode(b"\0" * shift + text.encode())
            found.add(coded[4 if shift else 0 : -4])  # what its neighbours do not alter
    return found


def leaks(root: Path, *said: str) -> list[str]:
    """Which secret is where: in what was said, or in any file of a folder, or in its name."""
    texts = {"what was said": "\n".join(said).encode()}
    for path in root.rglob("*"):
        place = path.relative_to(root).as_posix()
        texts[f"the name {place}"] = place.encode()
        if path.is_file() and place not in HOLDERS:
            texts[place] = path.read_bytes()
    return [
        f"{name} in {place}"
        for name, secret in SECRETS.items()
        for place, text in texts.items()
        if any(form in text for form in forms(secret))
    ]


def plant(root: Path, remote: str = "https://dvc.test/store") -> None:
    """Credentials of DVC and git, each in its own file; the folder is a repository of git."""
    scheme, _, rest = remote.partition("://")
    (root / ".dvc").mkdir(exist_ok=True)
    (root / ".dvc/config.local").write_text(
        "[core]\n    remote = mine\n['remote \"mine\"']\n"
        f"    url = {scheme}://{USER}:{quoted('dvc-url')}@{rest}\n"
        f"    auth = basic\n    user = {USER}\n    password = {SECRETS['dvc-password']}\n"
        "['remote \"bucket\"']\n    url = s3://bucket/path\n"
        f"    access_key_id = {SECRETS['dvc-access-key']}\n"
        f"    secret_access_key = {SECRETS['dvc-secret-key']}\n"
    )
    address = f"https://{USER}:{quoted('git-remote')}@git.test/project.git"
    for words in (["init", "-q"], ["remote", "add", "origin", address]):
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)


def proxies() -> dict[str, str]:
    """Proxies with a password, at which nobody listens; loopback goes without."""
    address = f"http://{USER}:{quoted('proxy')}@127.0.0.1:{free_port()}"
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    return dict.fromkeys(names, address) | {"no_proxy": "127.0.0.1"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project's folder, and an environment, full of credentials."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    for name, value in (ENVIRONMENT | proxies()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    plant(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / PARAMS_FILE).write_bytes(DEFAULT.read_bytes())
    yield tmp_path


@pytest.mark.parametrize("secret", SECRETS.values())
def test_a_leak_would_be_found(tmp_path: Path, secret: str) -> None:
    for number, text in enumerate((secret, quote(secret, safe=""))):
        coded = base64.b64encode(f"{USER}:{text}".encode()).decode()
        (tmp_path / f"{number}.txt").write_text(f"Authorization: Basic {coded}")
    assert len(leaks(tmp_path)) == 2
    assert len(leaks(tmp_path, f"error: {secret}")) == 3


@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")
def test_no_stage_writes_or_says_a_credential(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(root / "data/target", [5, 6], 16)
    write_digits(root / "data/source", [0, 1], 10)
    params = tiny_params()
    run_all(params)
    publish(params)
    printed = capfd.readouterr()
    assert "MLflow: 3 runs created" in printed.out
    assert (root / "mlflow.db").exists() and (root / "reports/index.html").exists()
    assert leaks(root, printed.out, printed.err) == []
    uri = f"http://{USER}:{quoted('tracking-uri')}@127.0.0.1:{free_port()}/x"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{uri}?token={quoted('tracking-query')}")
    publish(params)
    printed = capfd.readouterr()
    assert printed.err.startswith("warning: MLflow: ")
    assert leaks(root, printed.out, printed.err) == []


def test_a_failing_download_says_nothing_of_the_proxy(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(root / "hub"))
    with pytest.raises(InputError, match="could not download") as refused:
        weights.from_imagenet("squeezenet1_1")
    assert leaks(root, str(refused.value)) == []


@pytest.mark.parametrize(
    "key",
    [
        *("data__target", "data__source", "weights__file", "model__architecture"),
        *("compare__reference", "diagnostics__latent", "runtime__device", "methods__scratch__lr"),
        *("compare__breakdowns", "training__rule"),
    ],
)
def test_a_refused_parameter_is_named_without_its_password(root: Path, key: str) -> None:
    address = f"https://{USER}:{quoted('param')}@host.test/path?token={quoted('tracking-query')}"
    edit(root, **{key: [address] if key == "compare__breakdowns" else address})
    with pytest.raises(InputError) as refused:
        check.check_models(check.load())
    said = str(refused.value)
    assert key.replace("__", ".") in said and "\n" not in said
    assert leaks(root, said) == []


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://some-user:{uri}@127.0.0.1:{port}/runs",
        "mysql+pymysql://some-user:{uri}@127.0.0.1:{port}/runs?password={query}",
        "sqlite:////dev/null/mlflow.db?password={query}",
        "nothing://some-user:{uri}@127.0.0.1:{port}/?token={query}",
    ],
)
def test_a_store_that_the_pages_cannot_open_is_named_without_its_password(
    root: Path, address: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    known = {"uri": quoted("tracking-uri"), "query": quoted("tracking-query")}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(**known, port=free_port()))
    monkeypatch.setattr(os, "execvp", lambda *_: pytest.fail("a server was started"))
    monkeypatch.setattr(sys, "argv", ["ui", str(free_port())])
    with pytest.raises(InputError, match=r"^MLflow: ") as refused:
        ui.main()
    printed = capfd.readouterr()
    assert "\n" not in str(refused.value)
    assert leaks(root, str(refused.value), printed.out, printed.err) == []


@pytest.mark.torture
def test_no_command_writes_or_says_a_credential(tmp_path: Path) -> None:
    """Real DVC: a comparison, failing publishes, runs side by side, crashes, a failing remote."""
    small_project(tmp_path)
    plant(tmp_path, f"http://127.0.0.1:{free_port()}/store")
    given = ENVIRONMENT | proxies()
    uri = f"http://{USER}:{quoted('tracking-uri')}@127.0.0.1:{free_port()}/x"
    failing = {"MLFLOW_TRACKING_URI": f"{uri}?token={quoted('tracking-query')}"}
    python = (sys.executable, "-m")
    said = [
        call(tmp_path, "dvc", "repro", **given),
        call(tmp_path, "dvc", "repro", "-f", "-s", "publish", **given, **failing),
        call(tmp_path, *python, "pipeline.tracking.ui", str(free_port()), **given, **failing),
    ]
    assert "warning: MLflow: " in said[1]
    edit(tmp_path, methods__breakdown__head__epochs=3)
    said.append(call(tmp_path, *python, "pipeline.jobs", "2", **given, **failing))
    (tmp_path / "prepared/images.npy").write_bytes(b"nothing")
    for stage in ("prepare", "evaluate", "images"):
        said.append(call(tmp_path, *python, f"pipeline.stages.{stage}", check=False, **given))
    said.append(call(tmp_path, "dvc", "push", check=False, **given))
    assert "Cannot connect to host" in said[-1]
    shutil.rmtree(tmp_path / ".dvc/cache")
    said.append(call(tmp_path, "dvc", "pull", "--force", check=False, **given))
    assert "md5: " in said[-1]  # it names what it did not get
    assert leaks(tmp_path, *said) == []
