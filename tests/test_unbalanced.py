"""The unbalanced set: how many images of each class and split, which ones, and what is refused."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.data.sources import find_images
from pipeline.errors import InputError
from scripts import unbalanced_data

ROOT = Path(__file__).parents[1]


def make_target(folder, **classes):
    """Class folders of files that are told apart by their bytes; nothing decodes them."""
    for name, count in classes.items():
        for n in range(count):
            path = folder / name / f"{n:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name} {n}".encode())
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    # just as many as are needed of the first two, and of the last two together
    return make_target(tmp_path_factory.mktemp("made") / "target", a=165, b=180, c=200, d=160)


@pytest.fixture(scope="module")
def written(target):
    folder = target.parent / "unbalanced"
    counts = unbalanced_data.write(target, folder, 0)
    return folder, counts


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_counts_of_each_class_and_split(written):
    folder, counts = written
    expected = {
        f"{split}/{name}": count
        for name, train in (("rare", 5), ("uncommon", 20), ("common", 200))
        for split, count in (("train", train), ("val", 10), ("test", 150))
    }
    assert counts == expected
    found = find_images(folder, "folders")  # as the pipeline reads it
    assert Counter(f"{item.split}/{item.class_name}" for item in found) == expected


def test_each_class_is_made_of_its_digits_and_no_image_stands_twice(written):
    files = contents(written[0])
    assert len(set(files.values())) == len(files)
    digits = {"rare": {"a"}, "uncommon": {"b"}, "common": {"c", "d"}}
    for split in ("train", "val", "test"):
        for name, expected in digits.items():
            place = f"{split}/{name}/"
            inside = {
                path.removeprefix(place): files[path] for path in files if path.startswith(place)
            }
            assert {path.split("/")[0] for path in inside} == expected
            for path, content in inside.items():
                digit, number = path.removesuffix(".png").split("/")
                assert content == f"{digit} {int(number)}".encode()


def test_the_same_seed_gives_the_same_files_and_another_seed_others(target, written, tmp_path):
    first = contents(written[0])
    unbalanced_data.write(target, tmp_path / "again", 0)
    assert contents(tmp_path / "again") == first
    counts = unbalanced_data.write(target, tmp_path / "other", 1)
    assert counts == written[1] and contents(tmp_path / "other") != first


def test_a_zip_does_as_well(target, written, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "target"), "zip", target)
    unbalanced_data.write(Path(archive), tmp_path / "made", 0)
    assert contents(tmp_path / "made") == contents(written[0])


WRONG = [
    ({"a": 165, "b": 180}, "has 2 classes; three at least make rare, uncommon, common"),
    ({"a": 164, "b": 180, "c": 360}, r"has 164 images for 'rare' \(a\), but 165 are needed: 5 to"),
    ({"a": 165, "b": 179, "c": 360}, r"has 179 images for 'uncommon' \(b\), but 180 are needed"),
    ({"a": 165, "b": 180, "c": 2, "d": 357}, r"for 'common' \(c, d\), but 360 are needed: 200 to"),
]


@pytest.mark.parametrize(("classes", "said"), WRONG, ids=lambda value: str(value)[:20])
def test_too_few_classes_or_images_are_refused_before_anything_is_written(tmp_path, classes, said):
    target = make_target(tmp_path / "target", **classes)
    with pytest.raises(InputError, match=said) as error:
        unbalanced_data.write(target, tmp_path / "made", 0)
    assert str(error.value).startswith(f"{target}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()


def test_a_folder_in_use_is_left_alone(target, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(InputError, match="is in use; remove it first"):
            unbalanced_data.write(target, folder, 0)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize("words", [["x"], ["-1"], ["1.5"], ["1", "2"]], ids=" ".join)
def test_a_seed_that_is_none_is_refused(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unbalanced_data", *words])
    with pytest.raises(InputError, match=r"usage: python -m scripts\.unbalanced_data \[SEED=0\]"):
        unbalanced_data.main()
    assert not any(tmp_path.iterdir())


def test_the_command_says_what_is_wrong_in_one_line_and_writes_the_set_of_its_seed(
    target, tmp_path
):
    done = run(tmp_path, "3")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: data/target: there is no such folder or .zip; fetch it")
    assert not any(tmp_path.iterdir())

    shutil.copytree(target, tmp_path / "data/target")
    done = run(tmp_path, "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data/unbalanced: train/rare 5, val/rare 10, test/rare 150, ")
    unbalanced_data.write(target, tmp_path / "expected", 3)
    assert contents(tmp_path / "data/unbalanced") == contents(tmp_path / "expected")


def run(folder, *words):
    command = [sys.executable, "-m", "scripts.unbalanced_data", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
