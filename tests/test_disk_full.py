"""A full disk at every write: one line that names the file, all else whole, and a rerun completes.

The quick part is a limit on the size of files, which any process may set for itself. The rest has
the project on a small file system of its own, which becomes full, or is read-only: ``make
torture``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import cells, configure, records, workers, workspace
from pipeline.errors import InputError, command, naming, refusal
from pipeline.params import Params
from pipeline.records import TIMED, RunId
from pipeline.stages import evaluate as evaluating
from pipeline.stages.baseline import baseline
from pipeline.stages.encoder import encoder
from pipeline.stages.evaluate import evaluate
from pipeline.stages.head import head
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from pipeline.stages.test import test as predict
from pipeline.stages.weights import make_weights
from pipeline.training import checkpoints
from tests.digits import write_digits
from tests.projects import bytes_of, call, edit, small_project
from tests.test_stages import run_all, tiny_params

TORTURE = pytest.mark.torture
ROOT = Path(__file__).parents[1]
PLACES = ("prepared", "weights", "runs", "predictions", "reports")
BREAKDOWN, FINETUNE = RunId("breakdown", 4, 0), RunId("finetune", 4, 0)
STAGES: dict[str, tuple[Callable[[Params], None], tuple[str, ...]]] = {  # and what they make
    "images": (images, ("prepared/images.*", "prepared/source.*", "prepared/listed.csv")),
    "prepare": (
        prepare,
        (
            *("prepared/splits/*", "prepared/train/**/*", "prepared/pairs/**/*"),
            *("prepared/trials/**/*", "prepared/near_duplicates.csv", "prepared/summary.json"),
        ),
    ),
    "weights": (make_weights, ("weights/*",)),
    "encoder": (partial(encoder, run=BREAKDOWN), (f"{BREAKDOWN.folder}/encoder/*",)),
    "head": (partial(head, run=BREAKDOWN), (f"{BREAKDOWN.folder}/*.*",)),
    "baseline": (partial(baseline, run=FINETUNE), (f"{FINETUNE.folder}/*.*",)),
    "test": (partial(predict, run=FINETUNE), (f"predictions/{FINETUNE.name}.*",)),
    "evaluate": (evaluate, ("reports/**/*",)),
}


def small_params() -> Params:
    return tiny_params(compare__baselines=["finetune"], weights__source__epochs=1)


def make_project(folder: Path) -> None:
    """All of it finished, in the current folder."""
    write_digits(folder / "data/target", [5, 6], 16)
    write_digits(folder / "data/source", [0, 1], 10)
    run_all(small_params())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_project(folder)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    records._left_behind.cache_clear()
    return folder


def outputs(stage: str) -> list[Path]:
    found = (path for pattern in STAGES[stage][1] for path in Path().glob(pattern))
    return sorted(path for path in found if path.is_file() and path.name != ".lock")


def files() -> dict[str, bytes]:
    """All that there is, whatever its name."""
    found = (path for place in PLACES for path in sorted(Path(place).rglob("*")))
    return {str(path): path.read_bytes() for path in found if path.is_file()}


def check_whole(expected: dict[str, bytes]) -> None:
    """Nothing is there but whole files, each as it was or as it is to be, which is the same."""
    found = files()
    assert found.keys() <= expected.keys()
    for name, content in found.items():
        if not name.endswith(TIMED):
            assert content == expected[name], name
        elif name.endswith(".json"):
            json.loads(content)
        else:
            assert abs(len(content) - len(expected[name])) < 200, name


@contextmanager
def size_limit(size: int) -> Iterator[None]:
    """No file of this process can grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def limits(sizes: Sequence[int], number: int) -> list[int]:
    """Sizes that the smallest, some and the largest of the files do not fit."""
    below = sorted({size - 1 for size in sizes if size})
    return [below[round(i * (len(below) - 1) / (number - 1))] for i in range(number)]


def check_line(err: str, reason: int, names: Sequence[str]) -> None:
    """A last line with a file, what is wrong with it and what to do; no traceback before it."""
    *before, last = err.splitlines()
    assert all(line.startswith(("warning: ", "prepare: ")) for line in before), err
    assert last.startswith("error: "), err
    named, rest = last.removeprefix("error: ").split(": ", 1)
    assert named in names, err
    assert os.strerror(reason) in rest or "disk has" in rest, err
    assert "; " in rest, err


@pytest.mark.parametrize("before", ["finished", "new"])
@pytest.mark.parametrize(
    "stage", [pytest.param(name, marks=TORTURE if name == "evaluate" else ()) for name in STAGES]
)
def test_a_stage_whose_files_cannot_grow(
    stage: str, before: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = outputs(stage)
    expected, params, run = files(), small_params(), STAGES[stage][0]
    names = [str(path) for path in made] + ["reports/figures"]
    sizes = [path.stat().st_size for path in made]
    for limit in limits(sizes, 2 if before == "new" else 3):
        for path in made if before == "new" else ():
            path.unlink(missing_ok=True)
        with size_limit(limit), pytest.raises(SystemExit) as ended:
            command(lambda: run(params))
        assert ended.value.code == 1
        check_line(capsys.readouterr().err, errno.EFBIG, names)
        check_whole(expected)
    run(params)
    assert files().keys() == expected.keys()
    check_whole(expected)


def test_a_folder_that_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, before = Path("reports/figures"), {"a.svg": "a", "b.svg": "b"}
    evaluating._replace_folder(folder, before)
    with size_limit(100), pytest.raises(OSError) as found:
        evaluating._replace_folder(folder, {"a.svg": "new", "c.svg": "c" * 101})
    assert found.value.filename == str(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("stage", ["weights", "encoder", "baseline"])
def test_checkpoints_that_cannot_be_kept_cost_a_warning(
    stage: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They hold what the optimizer remembers, too, and do not fit where the model does."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)
    expected, made = files(), outputs(stage)
    with size_limit(max(path.stat().st_size for path in made)):
        STAGES[stage][0](small_params())
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and err.count("\n") == 1, err
    assert "no checkpoint could be written" in err and os.strerror(errno.EFBIG) in err
    assert files().keys() == expected.keys()
    check_whole(expected)
    assert not Path(records.CHECKPOINTS).exists()


@pytest.mark.parametrize("stage", ["encoder", "head", "baseline"])
def test_a_disk_without_room_for_the_model_is_told_of_before_training(
    stage: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(workspace, "train", lambda *_: pytest.fail("it is trained"))
    with pytest.raises(InputError, match=r"needs 0\.\d MB .* has 0\.0 MB left; make room"):
        STAGES[stage][0](small_params())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pygtrie's, of an empty project
def test_a_lock_that_a_full_disk_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n")
    Path("dvc.yaml").write_text("stages:\n  images: {cmd: python}\n")
    with cells.opened():
        pass
    for left in ("", "schema: '2.0'\nstages:\n  images:\n    cm", "\0\0"):
        Path("dvc.lock").write_text(left)
        with pytest.raises(InputError, match=r"^dvc\.lock: is damaged.*remove it"), cells.opened():
            pass


def test_a_list_of_files_in_use_that_a_full_disk_damaged_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells.mend()
    cells.IN_USE.parent.mkdir(parents=True)
    for content, stays in (('{"a": {}}', True), ('{"a": {"read": [{"pi', False), ("", False)):
        cells.IN_USE.write_text(content)
        cells.mend()
        assert cells.IN_USE.exists() == stays


def test_output_that_nobody_can_take() -> None:
    """A log on a full disk: the status tells, and Python adds nothing of its own."""
    for code, told in (("print('x')", True), ("raise InputError('x')", False)):
        program = "from pipeline.errors import InputError, command\n"
        program += f"def work(): {code}\ncommand(work)"
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-c", program], stdout=full,
                stderr=subprocess.PIPE if told else full,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        assert done.returncode == 1
        if told:
            line = (
                "error: output: No space left on device; make room on that disk, then run the same"
            )
            assert done.stderr.decode() == f"{line} command again\n"


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit"),
        (errno.EROFS, "writable"),
        (errno.EACCES, "right"),
        (errno.EIO, "check"),
    ],
)
def test_each_refusal_says_what_to_do(
    reason: int, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with naming("some/file.csv", "some/.file.csv.1"):
            raise OSError(reason, "x", "some/.file.csv.1")

    with pytest.raises(SystemExit):
        command(work)
    err = capsys.readouterr().err
    assert err.startswith(f"error: some/file.csv: {os.strerror(reason)}; ") and advice in err


def test_what_is_no_refusal_keeps_its_traceback() -> None:
    """It is a fault of ours."""

    def work() -> None:
        raise FileNotFoundError(errno.ENOENT, "x", "y")

    assert refusal(OSError("no number")) is None
    with pytest.raises(FileNotFoundError):
        command(work)


def test_a_name_that_the_file_system_gives_stays() -> None:
    for given in ("other", "some/.file.csv.12"):
        with pytest.raises(OSError) as found, naming("some/file.csv", "some/.file.csv.1"):
            raise OSError(errno.ENOSPC, "x", given)
        assert found.value.filename == given


def test_a_process_that_has_no_room_to_print_is_not_started(tmp_path: Path) -> None:
    side = workers.Workers(1, tmp_path, [])
    with size_limit(workers.ROOM - 1), pytest.raises(OSError) as found:
        workers._take_room(tmp_path / "a.out", tmp_path / "a.err")
    assert found.value.filename == str(tmp_path / "a.out")
    assert list(tmp_path.iterdir()) == [] and side.free == 1


def test_configure_keeps_params(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "configs"):
        copy = shutil.copytree if name == "configs" else shutil.copy
        copy(ROOT / "configs" if name == "configs" else ROOT / "configs/digits.yaml", name)
    Path("params.yaml").write_text("# mine\n" + Path("params.yaml").read_text())
    before = {path: path.read_bytes() for path in Path().glob("*params*")}
    with size_limit(1000), pytest.raises(OSError) as found:
        configure.put_in_place("cats_dogs")
    assert found.value.filename == "params.yaml.1"
    assert {path: path.read_bytes() for path in Path().glob("*params*")} == before


# the rest is called by name, in a process whose folder is a small file system
ON_SMALL_DISK = """
import os, shutil, subprocess, sys
source, place, name, *arguments = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=True)
shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True)
os.chdir(place)
from tests import test_disk_full
getattr(test_disk_full, name)(*arguments)
"""


def on_small_disk(source: Path, tmp_path: Path, work: Callable[..., None], *given: str) -> str:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs unshare -rm, to mount a small tmpfs")
    place = tmp_path / "small disk"
    place.mkdir()
    command_line = ["unshare", "-rm", sys.executable, "-c", ON_SMALL_DISK, source, place]
    done = subprocess.run(
        [*command_line, work.__name__, *given],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def full_but_for(left: int) -> Iterator[None]:
    """The disk of this folder has so many bytes left."""
    disk = os.statvfs(".")
    with open("fill", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - left)
    try:
        yield
    finally:
        os.unlink("fill")


@contextmanager
def read_only() -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", "."], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", "."], check=True)


def forked(run: Callable[[], None]) -> tuple[int, str]:
    """Status of a command, in a process of its own, and what it says."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        status = 99
        try:
            command(run)
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="utf-8") as said:
        err = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), err


def attack(stage: str) -> None:
    """A stage on a disk with ever more room, both over its own files and without them."""
    made, expected, params, run = outputs(stage), files(), small_params(), STAGES[stage][0]
    names = [*map(str, made), "reports/figures", *(str(path.parent) for path in made)]
    room = sum(path.stat().st_size + 4096 for path in made)
    failed = 0
    for new in (False, True):
        for part in range(5):
            for path in made if new else ():
                path.unlink(missing_ok=True)
            with full_but_for(room * part // 5 // 4096 * 4096):
                status, err = forked(lambda: run(params))
            if status:
                assert status == 1, (status, err)
                check_line(err, errno.ENOSPC, names)
                failed += 1
            check_whole(expected)
        assert failed > 2 or not new, failed
        assert forked(lambda: run(params))[0] == 0
        assert files().keys() == expected.keys()
        check_whole(expected)
    with read_only():
        status, err = forked(lambda: run(params))
    assert status == 1, (status, err)
    check_line(err, errno.EROFS, names)
    assert files().keys() == expected.keys()
    check_whole(expected)
    print(failed)


@TORTURE
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_full_disk(stage: str, finished: Path, tmp_path: Path) -> None:
    on_small_disk(finished, tmp_path, attack, stage)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of DVC's, in which a run, its test and all that follows are stale."""
    folder = tmp_path_factory.mktemp("reproduced")
    small_project(folder)
    call(folder, "dvc", "repro")
    (folder / "mlflow.db").unlink()  # its paths are of this folder
    shutil.rmtree(folder / "mlruns")
    edit(folder, methods__finetune__epochs=4)
    return folder


# what DVC may say, too: it reads its own files again, and could not write them whole
OF_DVC = ("cache link types", "Unable to read RWLock-file")


def reproduce(*words: str) -> None:
    """DVC with its cache and its lock on a full disk, then with room again."""
    here = Path.cwd()
    before = Path("dvc.lock").read_bytes()
    for left in (0, 60_000):
        call(here, "python", "-m", "pipeline.plan")  # as make does
        with full_but_for(left):
            output = call(here, *words, check=False)
        assert not output.endswith("status 0") and "Traceback" not in output, output
        assert any(of in output for of in ("No space left", "disk has", *OF_DVC)), output
        assert len(Path("dvc.lock").read_bytes()) >= len(before) // 2, output
    call(here, "python", "-m", "pipeline.plan")
    call(here, *words)
    for name, content in bytes_of(here).items():
        print(name, hashlib.md5(content).hexdigest())


@TORTURE
def test_all_of_dvc_on_a_full_disk(reproduced: Path, tmp_path: Path) -> None:
    expected = shutil.copytree(reproduced, tmp_path / "never full", symlinks=True)
    call(expected, "dvc", "repro")
    sums = [
        f"{name} {hashlib.md5(found).hexdigest()}" for name, found in bytes_of(expected).items()
    ]
    for number, words in enumerate([("dvc", "repro"), ("python", "-m", "pipeline.jobs", "2")]):
        place = tmp_path / str(number)
        place.mkdir()
        assert on_small_disk(reproduced, place, reproduce, *words).splitlines() == sums
