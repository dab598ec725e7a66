"""Any bytes give every reader a result or an InputError of one line, and nothing else."""

import io
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from dvc.utils.serialize import parse_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from pipeline import check
from pipeline.data.images import FORMATS, decode, decode_all
from pipeline.data.sources import find
from pipeline.errors import InputError
from pipeline.models import weights
from pipeline.params_file import plain, read

ROOT = Path(__file__).parents[1]
PARAMS = (ROOT / "configs/digits.yaml").read_text(encoding="utf-8")
FEW = settings(
    max_examples=60, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def only_input_errors(work: Callable[[], object]) -> bool:
    """Whether ``work`` gives a result; an InputError, of one line that can be shown, is none."""
    try:
        work()
    except InputError as error:
        said = str(error)
        assert said.isprintable() and 0 < len(said) < 1500
        return False
    return True


def altered(content: bytes) -> st.SearchStrategy[bytes]:
    """The content as it is, cut off, with some bytes changed, or with some put in or taken out."""
    place = st.integers(0, len(content))

    def change(edits: list[tuple[int, bytes, bool]], end: int) -> bytes:
        made = bytearray(content)
        for at, new, inserted in edits:
            made[at : at if inserted else at + len(new)] = new
        return bytes(made[:end])

    edit = st.tuples(place, st.binary(min_size=1, max_size=8), st.booleans())
    whole = st.just(len(content) + 100)
    return st.builds(change, st.lists(edit, max_size=6), st.one_of(whole, whole, place))


def with_pieces(*pieces: str) -> st.SearchStrategy[bytes]:
    """Texts of pieces that a reader knows, and of any others, sometimes of odd bytes."""
    known = st.sampled_from(
        [*pieces, "\n", "\r", "\r\n", "\t", " ", ",", '"', "\0", "\ufeff", "../"]
    )
    text = st.lists(st.one_of(known, known, known, st.text(max_size=4)), max_size=40)
    made = text.map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
    return st.one_of(made, made, st.binary(max_size=60))


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images that lists, tables and pairs can name."""
    home = tmp_path_factory.mktemp("fuzz")
    for name in ("a/a_1.png", "a/a_2.png", "b/b_1.png", "b/b_2.png"):
        path = home / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)))
    for number in range(2):
        path = home / f"drawn/images_background/Greek/character0{number}/1.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png(number))
    for name in ("test/item1", "test/item2", "training/class1", "training/class2"):
        path = home / f"drawn/all_runs/run01/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(9))
    return home


class TestTexts:
    @FEW
    @given(content=with_pieces("a/a_1.png x\n", "a/a_2.png x\n", "b/b_1.png y\n", "b/b_2.png y\n"))
    def test_lists(self, folder, content):
        (folder / "set/train.txt").write_bytes(content)
        only_input_errors(lambda: find(folder / "set", "lists", "classification", folder / "set"))
        (folder / "set/train.txt").unlink()

    @FEW
    @given(
        content=with_pieces(
            "image,label\n", "image,label,split,group\n", "a/a_1.png,x\n", "b/b_1.png,y,train,g\n",
            "b/b_2.png,y,test,g\n", "image", "label",
        )
    )  # fmt: skip
    def test_tables(self, folder, content):
        (folder / "set/t.csv").write_bytes(content)
        for target in (folder / "set", folder / "set/t.csv"):
            only_input_errors(lambda at=target: find(at, "csv", "classification", folder / "set"))
        (folder / "set/t.csv").unlink()

    @FEW
    @given(
        train=with_pieces("1 1\n", "a 1 2\n", "a 1 b 2\n", "a\t2\tb\t1\n", "a", "0"),
        test=with_pieces("b 1 2\n", "b 1 a 2\n"),
    )
    def test_pairs(self, folder, train, test):
        (folder / "set/pairs_train.txt").write_bytes(train)
        (folder / "set/pairs_test.txt").write_bytes(test)
        only_input_errors(lambda: find(folder / "set", "pairs", "verification", folder / "set"))
        (folder / "set/pairs_train.txt").unlink()
        (folder / "set/pairs_test.txt").unlink()

    @FEW
    @given(
        content=with_pieces(
            "run01/test/item1.png run01/training/class1.png\n",
            "run01/test/item2.png run01/training/class2.png\n", "run01/test/", "item1.png",
        )
    )  # fmt: skip
    def test_answers_of_omniglot(self, folder, content):
        (folder / "drawn/all_runs/run01/class_labels.txt").write_bytes(content)
        only_input_errors(lambda: find(folder / "drawn", "omniglot", "verification", folder))

    def test_each_reads_what_is_right(self, folder):
        """Else all of the above could be refused for a reason of their own."""
        rows = "a/a_1.png,x\na/a_2.png,x\nb/b_1.png,y\nb/b_2.png,y\n"
        (folder / "set/train.txt").write_text(rows.replace(",", " "))
        assert only_input_errors(lambda: find(folder / "set", "lists", "classification"))
        (folder / "set/train.txt").unlink()
        (folder / "set/t.csv").write_text("image,label\n" + rows)
        assert only_input_errors(lambda: find(folder / "set", "csv", "classification"))
        (folder / "set/t.csv").unlink()


NAME = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1,
               max_size=12).filter(lambda name: name not in (".", ".."))  # fmt: skip
FILES = st.lists(
    st.lists(st.one_of(NAME, st.sampled_from(["train", "test", "run01", "character01"])),
             min_size=1, max_size=4), max_size=6,
)  # fmt: skip


@FEW
@given(paths=FILES, layout=st.sampled_from(["folders", "pairs", "omniglot", "lists", "csv"]),
       suffix=st.sampled_from([".png", ".txt", ".csv", ".zip", ""]))  # fmt: skip
def test_names_of_files(paths, layout, suffix):
    with tempfile.TemporaryDirectory() as home:
        starts = ["images_background"] if layout == "omniglot" else []
        for path in paths:
            place = Path(home, *starts, *path)
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.with_name(place.name + suffix).write_bytes(b"")
            except OSError:
                continue  # a file stands where a folder must, or a name is too long
        task = "classification" if layout in ("folders", "lists", "csv") else "verification"
        only_input_errors(lambda: find(Path(home), layout, task, Path(home)))


def packed(*members: tuple[str, bytes], way: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", way) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, way)
    return file.getvalue()


ZIPS = [
    packed(*((f"{name}/{number}.png", png(number)) for name in "ab" for number in (1, 2)), way=way)
    for way in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
]


@FEW
@given(content=st.one_of(*map(altered, ZIPS)))
def test_zips(content, tmp_path_factory):
    with tempfile.TemporaryDirectory() as home:
        target = Path(home, "set.zip")
        target.write_bytes(content)

        def work() -> None:
            out = Path(home, "images.npy")
            for item in find(target, "folders", "classification", Path(home)).items:
                # one at a time: of several that are bad each has a line
                alone = partial(decode_all, [item], out, 4, "crop", 1, progress=False)
                only_input_errors(alone)

        only_input_errors(work)


@pytest.mark.parametrize("content", ZIPS)
def test_the_zips_are_right(content, tmp_path):
    (tmp_path / "set.zip").write_bytes(content)
    items = find(tmp_path / "set.zip", "folders", "classification", tmp_path).items
    assert [item.read() for item in items] == [png(1), png(2)] * 2


def pictures() -> list[bytes]:
    """A small picture of every kind and mode that is read."""
    made = []
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    for kind in FORMATS:
        for mode in ("L", "RGB", "P", "CMYK", "I;16", "RGBA"):
            file = io.BytesIO()
            try:
                picture = Image.new(mode, (9, 7), 77) if mode == "I;16" else colours.convert(mode)
                picture.save(file, kind)
            except (OSError, ValueError, KeyError):
                continue  # the kind knows no such mode
            made.append(file.getvalue())
    return made


@settings(FEW, max_examples=150)
@given(
    content=st.one_of(st.binary(max_size=60), *map(altered, pictures())),
    resize=st.sampled_from(["crop", "squash", "pad"]),
    channels=st.sampled_from([1, 3]),
)
def test_images(content, resize, channels):
    def work() -> None:
        pixels = decode(content, 6, resize, channels)
        assert (pixels.shape, pixels.dtype) == ((channels, 6, 6), np.uint8)

    only_input_errors(work)


VALUES = re.findall(
    r"\S+",
    "null true -1 0 1e400 .nan 'x' [] {} [a,{b:1}] 2001-01-01 0x1F 1_0 *a << all auto .. ~ +.inf "
    "2001-01-01T00:00:00Z",
)
VALUES += ["!!str 1", "&a 1", "? a", "- a", '"\\ud800"', "'\0'", "9" * 5000, "|\n  x"]
VALUES += ["{? {a: b} : c}", "{? [a] : c}"]


@st.composite
def texts_of_params(draw: st.DrawFn) -> str:
    """The default with some values, keys or lines replaced."""
    lines = PARAMS.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[at].partition(": ")
        value = draw(st.one_of(st.sampled_from(VALUES), st.text(max_size=6)))
        kind = draw(st.sampled_from(["value", "line", "drop", "twice", "indent"]))
        if kind == "value" and colon:
            lines[at] = f"{key}: {value}"
        elif kind == "line":
            lines[at] = value
        elif kind == "drop":
            del lines[at]
        elif kind == "twice":
            lines.insert(at, lines[at])
        else:
            lines[at] = " " * draw(st.integers(0, 6)) + lines[at].lstrip()
    return "\n".join(lines)


@settings(FEW, max_examples=40)
@given(text=texts_of_params())
def test_params(text, tmp_path_factory):
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "params.yaml")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        only_input_errors(lambda: check.load(path, files=False))
        only_input_errors(lambda: as_dvc_reads(path))


def as_dvc_reads(path: Path) -> None:
    # of the representation: a NaN is no NaN's equal
    tree = plain(read(path).tree)
    assert repr(tree) == repr(parse_yaml(path.read_text(encoding="utf-8-sig"), path))


@settings(FEW, max_examples=200)
@given(
    row=st.integers(0, PARAMS.count("\n") - 8),
    edits=st.lists(
        st.tuples(
            st.integers(0, 200),
            st.sampled_from([*" \n\t:-#[]{},'\"|>?&*!%@`~01.eE+_aé\r\x85\u2028", "[a:b]", "{a:1}"]),
        ),
        max_size=3,
    ),
)
def test_what_is_read_is_what_dvc_reads(row, edits, tmp_path_factory):
    text = "\n".join(PARAMS.split("\n")[row : row + 8])
    for at, put in edits:
        text = text[:at] + put + text[at:]
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "params.yaml")
        path.write_text(text, encoding="utf-8", newline="")
        only_input_errors(lambda: as_dvc_reads(path))


@FEW
@given(
    content=with_pieces("a: ", "[", "]", "{", "}", "- ", "&a", "*a", "!!", "%YAML 1.1", "---", "? ")
)
def test_yaml_of_any_form(content, tmp_path_factory):
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "params.yaml")
        path.write_bytes(content)
        only_input_errors(lambda: as_dvc_reads(path))


STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


def torch_file(legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def npy_file() -> bytes:
    file = io.BytesIO()
    layers = {"conv1": [np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32)]}
    np.save(file, np.array(layers, dtype=object), allow_pickle=True)
    return file.getvalue()


HEADER = st.dictionaries(
    st.text(max_size=4),
    st.fixed_dictionaries({
        "dtype": st.sampled_from(["F32", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "C64", "X"]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 4, -1, 2**31, 2**63, 2**64, 1.5]), max_size=3),
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 16, -4, 2**63, 2**64]), max_size=3),
    }), max_size=3,
).map(lambda tensors: str(tensors).replace("'", '"').encode("utf-8", "surrogatepass"))  # fmt: skip
SAFETENSORS = st.builds(
    lambda header, data, more: struct.pack("<Q", max(0, len(header) + more)) + header + data,
    HEADER, st.binary(max_size=16), st.sampled_from([0, 0, 0, 1, -1, 2**40]),
)  # fmt: skip
WEIGHTS = st.one_of(
    st.tuples(st.just("w.safetensors"), st.one_of(SAFETENSORS, altered(safetensors_bytes(STATE)))),
    st.tuples(st.just("w.pth"), st.one_of(altered(torch_file(False)), altered(torch_file(True)))),
    st.tuples(st.just("w.npy"), altered(npy_file())),
)


@settings(FEW, max_examples=200)
@given(file=WEIGHTS)
def test_weights(file):
    name, content = file
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2)})
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, name)
        path.write_bytes(content)

        def work() -> None:
            tensors = weights.from_file(path)
            fitted, _ = weights.fit(tensors, network, set(), str(path))
            assert all(bool(tensor.isfinite().all()) for tensor in fitted.values())

        only_input_errors(work)


@pytest.mark.parametrize("name", ["w.safetensors", "new.pth", "old.pth"])
def test_the_weights_are_right(name, tmp_path):
    content = {"w.safetensors": safetensors_bytes(STATE), "new.pth": torch_file(False),
               "old.pth": torch_file(True)}[name]  # fmt: skip
    (tmp_path / name).write_bytes(content)
    assert weights.from_file(tmp_path / name).keys() == STATE.keys()
