import io
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.items import Trial
from pipeline.data.sources import class_names, find
from pipeline.errors import InputError

SMALL, TESTED, RUNS = "images_background_small1", "images_evaluation", "all_runs"


def characters(top: str, *alphabets: str) -> dict[str, str]:
    """Two characters of each alphabet by two drawers, each file with its own path as content."""
    paths = (
        f"{top}/{alphabet}/character{number:02}/0{number}_{drawer:02}.png"
        for alphabet in alphabets
        for number in (1, 2)
        for drawer in (1, 2)
    )
    return {path: path for path in paths}


def run(name: str, answers=(2, 3, 1)) -> dict[str, str]:
    """A run with as many queries and classes as answers."""
    texts = {}
    lines = []
    for number, answer in enumerate(answers, start=1):
        texts |= {f"{name}/{path}{number:02}.png": "" for path in ("test/item", "training/class")}
        lines.append(f"{name}/test/item{number:02}.png {name}/training/class{answer:02}.png\n")
    return {path: path for path in texts} | {f"{name}/class_labels.txt": "".join(lines)}


BACKGROUND = characters(SMALL, "Greek", "Japanese_(katakana)")
EVALUATION = characters(TESTED, "Angelic")
OFFICIAL = run("run01") | run("run02", (2, 1))
ALL = {SMALL: BACKGROUND, TESTED: EVALUATION, RUNS: OFFICIAL}


def pack(root: Path, parts: dict[str, dict[str, str]]) -> Path:
    """Zips as they are published; LICENSE and strokes lie beside them."""
    root.mkdir(parents=True, exist_ok=True)
    for name, texts in {"strokes_background": {"a.txt": ""}, **parts}.items():
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for path, text in texts.items():
                archive.writestr(path, text)
    (root / "LICENSE").write_text("MIT")
    return root


def unpack(root: Path, parts: dict[str, dict[str, str]]) -> Path:
    """The same, each unpacked to a folder of its name."""
    pack(root, parts)
    for name in parts:
        file = root / f"{name}.zip"
        with zipfile.ZipFile(file) as archive:
            archive.extractall(root / (name if name == RUNS else "."))
        file.unlink()
    return root


@pytest.fixture(params=[pack, unpack], ids=["zips", "folders"])
def put(request, tmp_path):
    return lambda parts: request.param(tmp_path / "set", parts)


def refused(target: Path, root: Path | None = None) -> str:
    """The error without the set's folder; places in a zip as those in its folder."""
    with pytest.raises(InputError) as error:
        find(target, "omniglot", "verification")
    message = str(error.value)
    root = root or target
    assert "\n" not in message and message.startswith(str(root))
    message = message.replace(str(root), "").replace(".zip", "")
    return re.sub(rf"/({SMALL}|{TESTED})/\1/", r"/\1/", message)


def test_background_and_runs(put):
    found = find(put({SMALL: BACKGROUND, RUNS: OFFICIAL}), "omniglot", "verification")
    items = [item for item in found.items if item.split == "train"]
    assert [(item.image, item.class_name, item.group) for item in items] == [
        (path, "/".join(path.split("/")[1:3]), path.split("/")[1]) for path in BACKGROUND
    ]
    assert [item.read().decode() for item in items] == list(BACKGROUND)
    drawn = [item for item in found.items if item.split == "test"]
    assert [(item.image, item.class_name, item.group) for item in drawn] == [
        (f"all_runs/{name}", class_name, class_name.split("/")[0])
        for name, class_name in [
            ("run01/test/item03.png", "run01/class01"),
            ("run01/training/class01.png", "run01/class01"),
            ("run01/test/item01.png", "run01/class02"),
            ("run01/training/class02.png", "run01/class02"),
            ("run01/test/item02.png", "run01/class03"),
            ("run01/training/class03.png", "run01/class03"),
            ("run02/test/item02.png", "run02/class01"),
            ("run02/training/class01.png", "run02/class01"),
            ("run02/test/item01.png", "run02/class02"),
            ("run02/training/class02.png", "run02/class02"),
        ]
    ]
    assert [f"all_runs/{item.read().decode()}" for item in drawn] == [i.image for i in drawn]


def test_trials_query_by_query(put):
    found = find(put({SMALL: BACKGROUND, RUNS: OFFICIAL}), "omniglot", "verification")
    expected = [
        Trial(
            "test",
            f"all_runs/{name}/test/item{query:02}.png",
            f"all_runs/{name}/training/class{support:02}.png",
            support == answer,
            "official",
            name,
        )
        for name, answers in (("run01", (2, 3, 1)), ("run02", (2, 1)))
        for query, answer in enumerate(answers, start=1)
        for support in range(1, len(answers) + 1)
    ]
    assert found.trials == expected


def test_runs_go_by_number(put):
    runs = run("run10", (1, 2)) | run("run2", (1, 2)) | run("run1", (1, 2))
    found = find(put({SMALL: BACKGROUND, RUNS: runs}), "omniglot", "verification")
    assert list(dict.fromkeys(trial.episode for trial in found.trials)) == ["run1", "run2", "run10"]


def test_evaluation_alphabets_are_for_the_test(put):
    found = find(put({SMALL: BACKGROUND, TESTED: EVALUATION}), "omniglot", "verification")
    assert not found.trials
    assert {(item.split, item.group) for item in found.items} == {
        ("train", "Greek"), ("train", "Japanese_(katakana)"), ("test", "Angelic"),
    }  # fmt: skip


def test_all_three(put):
    found = find(put(ALL), "omniglot", "verification")
    assert len(found.items) == len({item.image for item in found.items}) == 8 + 4 + 10
    assert len(found.trials) == 9 + 4
    assert class_names(found.items)[:2] == ["Angelic/character01", "Angelic/character02"]


def test_a_background_alone_leaves_the_splits_to_be_drawn(put):
    found = find(put({SMALL: BACKGROUND}), "omniglot", "verification")
    assert {item.split for item in found.items} == {""} and not found.trials


def test_zips_and_folders_are_named_alike(tmp_path):
    one = find(pack(tmp_path / "one", ALL), "omniglot", "verification")
    two = find(unpack(tmp_path / "two", ALL), "omniglot", "verification")
    assert [item.image for item in one.items] == [item.image for item in two.items]
    assert one.trials == two.trials


def test_one_of_several_backgrounds_is_named(put):
    further = characters("images_background_small2", "Tagalog")
    parts = ALL | {"images_background_small2": further}
    target = put(parts)
    ending = next(path.suffix for path in target.iterdir() if path.name.startswith(SMALL))
    assert refused(target) == (
        f": has {SMALL} and images_background_small2; name one as data.target, such as /{SMALL}"
    )
    named = target / f"images_background_small2{ending}"
    found = find(named, "omniglot", "verification")
    assert {item.group for item in found.items if item.split == "train"} == {"Tagalog"}
    assert len(found.trials) == 9 + 4


def test_runs_without_a_folder_around_them_are_no_silent_loss(tmp_path):
    target = unpack(tmp_path, {SMALL: BACKGROUND})
    (target / "run01").mkdir()
    assert refused(target) == "/run01: lies beside the published files; put the runs in a folder " \
        "all_runs there"  # fmt: skip


def test_a_doubled_folder_around_the_alphabets(put):
    texts = {f"{SMALL}/{path}": path for path in BACKGROUND}
    found = find(put({SMALL: texts}), "omniglot", "verification")
    assert [item.image for item in found.items] == list(BACKGROUND)


def test_a_zip_without_a_folder_around_the_alphabets(tmp_path):
    texts = {path.removeprefix(f"{SMALL}/"): path for path in BACKGROUND}
    found = find(pack(tmp_path, {SMALL: texts}), "omniglot", "verification")
    assert [item.image for item in found.items] == list(BACKGROUND)


def without(texts: dict[str, str], start: str) -> dict[str, str]:
    return {path: text for path, text in texts.items() if not path.startswith(start)}


def relabelled(old: str, new: str) -> dict[str, str]:
    path = "run01/class_labels.txt"
    assert old in OFFICIAL[path]
    return {RUNS: OFFICIAL | {path: OFFICIAL[path].replace(old, new)}}


FIRST = "run01/test/item01.png run01/training/class02.png\n"


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({SMALL: BACKGROUND | {f"{SMALL}/Greek/1.png": ""}}, f"/{SMALL}/Greek/1.png: lies in no"),
        (
            {SMALL: BACKGROUND | {f"{SMALL}/Greek/character02/a/1.png": ""}},
            f"/{SMALL}/Greek/character02/a/1.png: lies in no folder <alphabet>/character<NN>",
        ),
        ({SMALL: BACKGROUND | {f"{SMALL}/Greek/alpha/1.png": ""}}, f"/{SMALL}/Greek/alpha/1.png:"),
        ({SMALL: {f"{SMALL}/Greek/character01/a.txt": ""}}, f"/{SMALL}: holds no images"),
        (
            {SMALL: BACKGROUND | {f"{SMALL}/Greek/character03/notes.txt": ""}},
            f"/{SMALL}/Greek/character03: holds no image",
        ),
        (
            {TESTED: characters(TESTED, "greek")},
            f"/{TESTED}: has the alphabet 'greek', as {SMALL} has; the published sets share none",
        ),
        (
            {TESTED: characters(TESTED, "Greek")},
            f"/{TESTED}: has the alphabet 'Greek', as {SMALL} has; the published sets share none",
        ),
        (
            {SMALL: dict.fromkeys(list(BACKGROUND)[:2], "")},
            ": has 1 class(es) to train on; verification needs two at least",
        ),
        (
            {SMALL: dict.fromkeys(list(BACKGROUND)[::2], "")},
            ": has a single image of each class to train on",
        ),
        ({RUNS: {"notes.txt": ""}}, "/all_runs: has no folders run01, run02, …"),
        (
            {RUNS: without(OFFICIAL, "run02/class_labels")},
            "/all_runs/run02/class_labels.txt: is missing",
        ),
        (
            {RUNS: without(OFFICIAL, "run02/test")},
            "/all_runs/run02/test: holds no images; fetch the run again",
        ),
        (
            {RUNS: without(OFFICIAL, "run02/training")},
            "/all_runs/run02/training: holds no images",
        ),
        ({RUNS: run("run01", (1,))}, "/all_runs/run01/training: has one class"),
        (
            {RUNS: OFFICIAL | {f"copy/{path}": text for path, text in run("run03").items()}},
            "/all_runs/copy/run03: lies apart from /all_runs/run01; keep all runs in one folder",
        ),
        (
            relabelled("class02", "class04"),
            "/all_runs/run01/class_labels.txt:1: 'run01/training/class04.png' is no image in "
            "run01/training; paths are relative to the folder of all runs",
        ),
        (
            relabelled("run01/test/item02", "run02/test/item02"),
            "/all_runs/run01/class_labels.txt:2: 'run02/test/item02.png' is no image in run01/test",
        ),
        (
            relabelled("run01/test/item02", "run01/training/class02"),
            "/all_runs/run01/class_labels.txt:2: 'run01/training/class02.png' is no image in run01/"
            "test",
        ),
        (
            relabelled(FIRST, ""),
            "/all_runs/run01/class_labels.txt: does not say what run01/test/item01.png shows",
        ),
        (
            relabelled(FIRST, FIRST + "\n" + FIRST.replace("class02", "class01")),
            "/all_runs/run01/class_labels.txt:3: answers 'run01/test/item01.png' again, as line 1",
        ),
        (
            relabelled("class03", "class02"),
            "/all_runs/run01/class_labels.txt:2: gives 'run01/training/class02.png' again, as line "
            "1 does; each class is asked for once",
        ),
        (
            relabelled(FIRST, FIRST.replace(" ", ",")),
            "/all_runs/run01/class_labels.txt:1: has 1 column(s); each line is 'run01/test/item01",
        ),
    ],
)
def test_wrong_sets_are_named(put, parts, problem):
    assert refused(put({SMALL: BACKGROUND} | parts)).startswith(problem)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_answers_of_other_systems(put, end):
    path = "run01/class_labels.txt"
    text = "\ufeff" + OFFICIAL[path].replace(" ", "\t").replace("\n", end) + end
    one = find(put({SMALL: BACKGROUND, RUNS: OFFICIAL}), "omniglot", "verification")
    two = find(put({SMALL: BACKGROUND, RUNS: OFFICIAL | {path: text}}), "omniglot", "verification")
    assert one.trials == two.trials


def test_what_is_no_set(tmp_path):
    assert "dvc pull data.dvc" in refused(tmp_path / "nothing")
    assert ": has no images_background…; put one" in refused(pack(tmp_path / "a", {RUNS: OFFICIAL}))
    other = pack(tmp_path / "b", {"omniglot": BACKGROUND}) / "omniglot.zip"
    assert "must be a folder with images_background…" in refused(other, tmp_path)
    damaged = pack(tmp_path / "c", {SMALL: BACKGROUND})
    (damaged / "all_runs.zip").write_text("no zip")
    assert refused(damaged).startswith("/all_runs: cannot be read as a zip")


@pytest.mark.parametrize("role", [TESTED, RUNS])
def test_a_part_that_is_there_twice(tmp_path, role):
    target = pack(unpack(tmp_path, ALL), {role: ALL[role]})
    assert refused(target) == f": has {role} and {role}; keep one"
    named = target / SMALL  # what lies beside it must be clear too
    assert refused(named, target) == f": has {role} and {role}; keep one"


def test_classification_has_no_runs(put):
    with pytest.raises(InputError, match=r"params.yaml: data.layout: omniglot is for task: verif"):
        find(put(ALL), "omniglot", "classification")


def test_images_can_be_decoded(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.eye(4, dtype=bool)).save(file, "PNG")
    with zipfile.ZipFile(tmp_path / f"{SMALL}.zip", "w") as archive:
        for path in BACKGROUND:
            archive.writestr(path, file.getvalue())
    item = find(tmp_path, "omniglot", "verification").items[0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(item.read()))), np.eye(4))
    assert item.place == f"{tmp_path}/{SMALL}.zip/{SMALL}/Greek/character01/01_01.png"


@pytest.mark.shared
def test_published_zips():
    root = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "../shared"))
    folder = root / "data/omniglot"
    if not folder.exists():
        pytest.skip(f"the development data is not at {root}")
    with pytest.raises(InputError, match=r"small1.zip and images_background_small2.zip; name one"):
        find(folder, "omniglot", "verification")
    found = find(folder / "images_background_small1.zip", "omniglot", "verification")
    items = {split: [item for item in found.items if item.split == split]
             for split in ("train", "test")}  # fmt: skip
    assert (len(items["train"]), len(items["test"])) == (2720, 800)
    assert len({item.class_name for item in items["train"]}) == 136
    assert sorted({item.group for item in items["train"]}) == [
        "Balinese", "Early_Aramaic", "Greek", "Korean", "Latin",
    ]  # fmt: skip
    assert len({item.class_name for item in items["test"]}) == 400
    assert len({item.group for item in items["test"]}) == 20
    assert (len(found.trials), sum(trial.same for trial in found.trials)) == (8000, 400)
    queries = {}
    for trial in found.trials:
        queries.setdefault((trial.episode, trial.left), []).append(trial.same)
    assert len(queries) == 400
    assert all(len(sames) == 20 and sum(sames) == 1 for sames in queries.values())
