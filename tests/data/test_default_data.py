import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

SCRIPT = Path(__file__).parents[2] / "scripts/default_data.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("default_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("default") / "data"
    assert script.write(folder) == 1797
    return folder


def test_pixels_are_the_dataset(written):
    digits = load_digits()
    for index, (values, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        side = "source" if digit in (0, 1, 2, 3, 4) else "target"
        with Image.open(written / side / str(digit) / f"{index:04d}.png") as image:
            assert (image.format, image.mode, image.info) == ("PNG", "L", {})
            pixels = np.asarray(image)
        expected = [[round(float(value) * 255 / 16) for value in row] for row in values]
        assert pixels.tolist() == expected


def test_counts(written):
    digits = load_digits().target
    counts = {
        str(folder.relative_to(written)): len(list(folder.iterdir()))
        for folder in sorted(written.glob("*/*"))
    }
    assert counts == {
        f"{'source' if digit < 5 else 'target'}/{digit}": int((digits == digit).sum())
        for digit in range(10)
    }
    assert sum(counts.values()) == 1797


def test_same_bytes_each_time_and_everywhere(script, written, tmp_path):
    script.write(tmp_path / "again")
    again = contents(tmp_path / "again")
    assert again == contents(written)
    total = hashlib.md5(b"".join(name.encode() + data for name, data in again.items()))
    assert total.hexdigest() == "72dd4a99519a4110f5393612921f3343"


@pytest.mark.parametrize("file", ["x/notes.txt", "x"])
def test_a_folder_in_use_is_refused_in_one_line(tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {tmp_path}/x: is not empty; name a new folder or clear this one\n"
    )
    assert contents(tmp_path) == {file: b"mine"}
