import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.items import Trial
from pipeline.data.sources import class_names, find
from pipeline.errors import InputError

PEOPLE = {"Ann_Bo": (1, 2, 3), "Cy": (1, 12), "Di": (1,), "Eve": (1, 2), "Flo": (4,)}
PHOTOS = [f"{name}/{name}_{number:04}.jpg" for name in PEOPLE for number in PEOPLE[name]]
TRAIN = "Ann_Bo\t1\t2\nAnn_Bo\t3\tCy\t12\n"
TEST = "Eve\t1\t2\nFlo\t4\tEve\t2\n"
LISTS = {"pairsDevTrain.txt": TRAIN, "pairsDevTest.txt": TEST}


def lay(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode())
    return root


def pack(file: Path, texts: dict[str, str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    return file


def photos(around: str = "faces", paths=PHOTOS) -> dict[str, str]:
    """Image files, each with its own path as content; ``around`` is the folder around them."""
    return {f"{around}/{path}" if around else path: path for path in paths}


def refused(target: Path) -> str:
    with pytest.raises(InputError) as error:
        find(target, "pairs", "verification")
    message = str(error.value)
    assert "\n" not in message and message.startswith(str(target))
    return message.removeprefix(str(target))


@pytest.fixture
def put(tmp_path):
    """A set of all photos with the given lists in place of the good ones."""

    def write(train: str = TRAIN, test: str = TEST, **others: str) -> Path:
        lists = {"pairsDevTrain.txt": train, "pairsDevTest.txt": test}
        lists |= {f"{name}.txt": text for name, text in others.items()}
        return lay(tmp_path / "set", photos() | lists)

    return write


@pytest.mark.parametrize("spelt", ["Jos\u00e9", "Jose\u0301"])
def test_accents_may_be_in_their_letters_or_apart(tmp_path, spelt):
    paths = [f"{spelt}/{spelt}_{number:04}.jpg" for number in (1, 2)]
    train = "Jos\u00e9\t1\t2\nJose\u0301\t1\tCy\t12\n"
    texts = photos(paths=[*PHOTOS, *paths]) | LISTS | {"pairsDevTrain.txt": train}
    found = find(lay(tmp_path, texts), "pairs", "verification")
    assert [item.class_name for item in found.items if "Jos" in item.class_name] == [
        "Jos\u00e9"
    ] * 2


def arrangements(root: Path) -> dict[str, Path]:
    """One set, in all the ways in which it may lie there."""
    faces = pack(root / "beside/faces.zip", photos()).parent
    pack(root / "deep/around/faces.ZIP", photos("a/b/faces"))
    return {
        "folder": lay(root / "plain", photos() | LISTS),
        "people beside the lists": lay(root / "flat", photos("") | LISTS),
        "zip beside the lists": lay(faces, LISTS),
        "folder around zip and lists": lay(root / "deep/around", LISTS).parent,
        "zip": pack(root / "set.zip", photos() | LISTS),
        "zip with a folder around": pack(
            root / "around.zip",
            {f"lfw/{name}": text for name, text in (photos() | LISTS).items()},
        ),
    }


ARRANGED = ("folder", "people beside the lists", "zip beside the lists",
            "folder around zip and lists", "zip", "zip with a folder around")  # fmt: skip


@pytest.mark.parametrize("name", ARRANGED)
def test_images_and_trials(tmp_path, name):
    found = find(arrangements(tmp_path)[name], "pairs", "verification")
    assert [(item.read().decode(), item.class_name, item.split) for item in found.items] == [
        ("Ann_Bo/Ann_Bo_0001.jpg", "Ann_Bo", "train"),
        ("Ann_Bo/Ann_Bo_0002.jpg", "Ann_Bo", "train"),
        ("Ann_Bo/Ann_Bo_0003.jpg", "Ann_Bo", "train"),
        ("Cy/Cy_0012.jpg", "Cy", "train"),
        ("Eve/Eve_0001.jpg", "Eve", "test"),
        ("Eve/Eve_0002.jpg", "Eve", "test"),
        ("Flo/Flo_0004.jpg", "Flo", "test"),
    ]
    content = {item.image: item.read().decode() for item in found.items}
    assert len(content) == len(found.items)
    assert [(t.split, content[t.left], content[t.right], t.same) for t in found.trials] == [
        ("train", "Ann_Bo/Ann_Bo_0001.jpg", "Ann_Bo/Ann_Bo_0002.jpg", True),
        ("train", "Ann_Bo/Ann_Bo_0003.jpg", "Cy/Cy_0012.jpg", False),
        ("test", "Eve/Eve_0001.jpg", "Eve/Eve_0002.jpg", True),
        ("test", "Flo/Flo_0004.jpg", "Eve/Eve_0002.jpg", False),
    ]
    assert {(trial.set, trial.episode) for trial in found.trials} == {("pairs", "")}


def test_names_do_not_tell_a_zip_from_a_folder(tmp_path):
    sets = arrangements(tmp_path)
    one, two = (find(sets[name], "pairs", "verification") for name in ARRANGED[0:3:2])
    assert [item.image for item in one.items] == [item.image for item in two.items]
    assert one.trials == two.trials
    assert one.trials[0] == Trial(
        "train", "faces/Ann_Bo/Ann_Bo_0001.jpg", "faces/Ann_Bo/Ann_Bo_0002.jpg", True
    )


@pytest.mark.parametrize("header", ["", "2\n", "1100\n", "10\t300\n", "\n \n1 1\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
@pytest.mark.parametrize("gap", ["\t", " ", "  \t "])
def test_forms_of_a_list(put, header, end, gap):
    text = "\ufeff" + (header + TRAIN).replace("\t", gap).replace("\n", end)
    found = find(put(text), "pairs", "verification")
    assert found == find(put(), "pairs", "verification")


@pytest.mark.parametrize("number", ["1", "01", "0001", "00000001"])
@pytest.mark.parametrize("file", ["Di_1.png", "Di_001.jpg", "Di_0000001.JPEG"])
def test_numbers_go_by_value(put, number, file):
    target = put(f"Ann_Bo 1 2\nDi {number} Cy 1\n")
    (target / "faces/Di/Di_0001.jpg").rename(target / f"faces/Di/{file}")
    right = find(target, "pairs", "verification").trials[1]
    assert (right.left, right.right) == (f"faces/Di/{file}", "faces/Cy/Cy_0001.jpg")


def test_names_with_blanks_in_tabbed_lists(tmp_path):
    people = [path.replace("Ann_Bo", "Ann Bo") for path in PHOTOS]
    lists = {name: text.replace("Ann_Bo", "Ann Bo") for name, text in LISTS.items()}
    found = find(lay(tmp_path, photos(paths=people) | lists), "pairs", "verification")
    assert class_names(found.items) == ["Ann Bo", "Cy", "Eve", "Flo"]


@pytest.mark.parametrize(
    "names",
    [
        ("pairsDevTrain.txt", "pairsDevTest.txt"),
        ("pairs_train.txt", "pairs_test.txt"),
        ("TRAIN.TXT", "Testing.txt"),
    ],
)
def test_names_of_lists(tmp_path, names):
    # LFW has lists of people too, and notes are no list
    others = {"peopleDevTrain.txt": "2\nCy\t2\n", "notes.txt": "x", "pairs_eval.txt": "y"}
    others = others if "pairs" in names[0] else {"notes.txt": "x"}
    lists = dict(zip(names, (TRAIN, TEST), strict=True))
    found = find(lay(tmp_path, photos() | lists | others), "pairs", "verification")
    assert [trial.split for trial in found.trials] == ["train"] * 2 + ["test"] * 2


def test_only_images_that_pairs_name_are_taken(put):
    target = put()
    lay(target, {"faces/Ann_Bo/Ann_Bo_1.jpg.tmp": "", "faces/Di/Di_1.gif": "", "faces/x.jpg": ""})
    named = {item.image for item in find(target, "pairs", "verification").items}
    assert not any("/Di/" in image or image.endswith(("tmp", "x.jpg")) for image in named)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("Cy 1", "has 2 column(s); each line is 'name i j' or 'name i other j'"),
        ("Cy", "has 1 column(s)"),
        ("Cy 1 12 Di 1", "has 5 column(s)"),
        ("4 5", "has 2 column(s)"),  # no header in the middle
        ("Cy 1 x", "'x' is no number of an image, a whole number from 1"),
        ("Cy 1.0 12", "'1.0' is no number"),
        ("Cy -1 12", "'-1' is no number"),
        ("Cy 0 12", "'0' is no number"),
        ("Cy 1 Di 00", "'00' is no number"),
        ("Cy 1 Di " + "9" * 5000, "'9999"),
        ("Cy 1 Di ١", "'١' is no number"),
        ("Ann Bo 1 2", "'Bo' is no number"),
        ("Ann_B 1 2", "there is no folder 'Ann_B' with images; did you mean 'Ann_Bo'?"),
        ("cy 1 Zzyzx 2", "there is no folder 'cy' with images; did you mean 'Cy'?"),
        ("Cy 1 Zzyzx 2", "there is no folder 'Zzyzx' with images; add it or remove the line"),
        ("Ann_Bo 2 4", "'Ann_Bo' has no image 4, only 1 to 3; images are called Ann_Bo_0001.jpg"),
        ("Cy 1 2", "'Cy' has no image 2, only 1, 12;"),
        ("Cy 1 Di 2", "'Di' has no image 2, only 1;"),
        ("Cy 12 012", "pairs image 12 of 'Cy' with itself"),
        ("Cy 1 Cy 12", "names 'Cy' as two people; write a pair of one person as 'name i j'"),
        ("Cy 1 Cy 1", "names 'Cy' as two people"),
        ("Ann_Bo 2 1", "names the pair of {place}:1 again; remove one"),
        ("Cy 12 Ann_Bo 3", "names the pair of {place}:2 again; remove one"),
    ],
)
def test_wrong_lines_are_named(put, line, problem):
    target = put(TRAIN + "\n" + line + "\nDi 1 Cy 1\n")
    problem = problem.format(place=f"{target}/pairsDevTrain.txt")
    assert refused(target).startswith(f"/pairsDevTrain.txt:4: {problem}")


def test_a_person_in_two_lists(put):
    target = put(test=TEST + "Eve 1 Cy 1\n")
    assert refused(target) == (
        f"/pairsDevTest.txt:3: 'Cy' stands in {target}/pairsDevTrain.txt:2 too; nobody may be in "
        "the lists of two splits, so remove that person from one"
    )
    assert "/pairs_val.txt:1: 'Ann_Bo' stands in" in refused(put(pairs_val="Ann_Bo 1 2\n"))


@pytest.mark.parametrize("spelt", ["cy", "CY", "Ｃｙ"])
def test_a_person_in_two_lists_in_two_spellings(put, spelt):
    target = put(test=TEST + f"Eve 1 {spelt} 1\n")
    lay(target, photos(paths=[f"{spelt}/{spelt}_1.jpg"]))
    said = f"/pairsDevTest.txt:3: '{spelt}' stands in {target}/pairsDevTrain.txt:2 too as 'Cy'; nob"
    assert refused(target).startswith(said)


def test_three_lists(put):
    target = put(pairs_val="Gus 1 2\nDi 1 Gus 1\n")
    lay(target, photos(paths=["Gus/Gus_1.jpg", "Gus/Gus_2.jpg"]))
    found = find(target, "pairs", "verification")
    assert [trial.split for trial in found.trials] == ["train", "train", "val", "val",
                                                       "test", "test"]  # fmt: skip
    assert {item.class_name for item in found.items if item.split == "val"} == {"Di", "Gus"}


def test_many_numbers_are_cut_short(put):
    target = put("Bob 2 4\n")
    lay(target, photos(paths=[f"Bob/Bob_{number}.jpg" for number in range(1, 60, 2)]))
    assert "has no image 2, only 1, 3, 5, 7, 9, 11, 13, 15, …;" in refused(target)


def test_a_person_without_numbered_images(put):
    target = lay(put("Bob 1 2\n"), photos(paths=["Bob/face.jpg"]))
    assert "'Bob' has no image 1, only images with other names;" in refused(target)


def test_an_image_that_is_there_twice(put):
    target = lay(put(), photos(paths=["Cy/Cy_12.png"]))
    assert refused(target) == (
        f"/pairsDevTrain.txt:2: image 12 of 'Cy' is there twice, as {target}/faces/Cy/Cy_0012.jpg "
        f"and as {target}/faces/Cy/Cy_12.png; remove one"
    )
    (target / "faces/Cy/Cy_12.png").unlink()
    pack(target / "faces.zip", photos())
    assert f"image 1 of 'Ann_Bo' is there twice, as {target}/faces/Ann_Bo" in refused(target)
    assert f"and as {target}/faces.zip/faces/Ann_Bo/Ann_Bo_0001.jpg" in refused(target)


@pytest.mark.parametrize(
    ("lists", "problem"),
    [
        ({}, ": has no lists of pairs; add pairs_train.txt and pairs_test.txt: each line is"),
        ({"pairs.txt": TRAIN}, ": has no lists of pairs"),
        ({"pairs_test.txt": TEST}, ": has no list of train pairs; add pairs_train.txt"),
        ({"train.txt": TRAIN, "val.txt": TEST}, ": has no list of test pairs"),
        (
            {**LISTS, "pairs_train.txt": TRAIN},
            ": has two lists of train pairs, pairsDevTrain.txt and pairs_train.txt; keep one",
        ),
        (
            {**LISTS, "pairs_trainval.txt": TRAIN},
            "/pairs_trainval.txt: has train and val in its name; name each list of pairs after one",
        ),
        (LISTS | {"pairsDevTest.txt": ""}, "/pairsDevTest.txt: lists no pair of one person"),
        (LISTS | {"pairsDevTest.txt": "2\n"}, "/pairsDevTest.txt: lists no pair of one person"),
        (LISTS | {"pairsDevTest.txt": "Eve 1 2"}, "/pairsDevTest.txt: lists no pair of two people"),
        (
            LISTS | {"pairsDevTrain.txt": "Cy 1 Di 1"},
            "/pairsDevTrain.txt: lists no pair of one person",
        ),
    ],
)
def test_wrong_lists_are_named(tmp_path, lists, problem):
    # two folders, so that neither is looked through
    others = {"people/notes": "", "other/notes": ""}
    assert refused(lay(tmp_path, photos("people/faces") | others | lists)).startswith(problem)


def test_text_in_another_encoding(put):
    target = put()
    (target / "pairsDevTest.txt").write_bytes(b"Andr\xe9 1 2\n")
    assert refused(target).startswith("/pairsDevTest.txt: is not UTF-8 text")


def test_no_images(tmp_path):
    assert "holds no images of people; put <name>" in refused(lay(tmp_path / "a", LISTS))
    inner = pack(tmp_path / "faces.zip", photos())
    outer = pack(tmp_path / "set.zip", LISTS)
    with zipfile.ZipFile(outer, "a") as archive:
        archive.write(inner, "faces.zip")
    assert "unpack faces.zip, a zip in a zip, or put" in refused(outer)


def test_a_damaged_zip_beside_the_lists(tmp_path):
    target = lay(tmp_path, LISTS | {"faces.zip": "no zip"})
    assert refused(target).startswith("/faces.zip: cannot be read as a zip")


def test_missing(tmp_path):
    assert "dvc pull data.dvc" in refused(tmp_path / "nothing")


def test_classification_has_no_pairs(put):
    with pytest.raises(InputError, match=r"params.yaml: data.layout: pairs is for task: verif"):
        find(put(), "pairs", "classification")


def test_order_does_not_depend_on_the_file_system(tmp_path):
    forward = lay(tmp_path / "one", photos() | LISTS)
    backward = dict(reversed((photos() | LISTS).items()))
    one = find(forward, "pairs", "verification")
    two = find(lay(tmp_path / "two", backward), "pairs", "verification")
    assert [item.image for item in one.items] == [item.image for item in two.items]
    assert one.trials == two.trials


def test_images_can_be_decoded(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(file, "PNG")
    target = lay(tmp_path, LISTS)
    with zipfile.ZipFile(target / "faces.zip", "w") as archive:
        for path in PHOTOS:
            archive.writestr(f"faces/{path}", file.getvalue())
    item = find(target, "pairs", "verification").items[0]
    assert np.asarray(Image.open(io.BytesIO(item.read()))).tolist() == [[7] * 4] * 4
    assert item.place == f"{target}/faces.zip/faces/Ann_Bo/Ann_Bo_0001.jpg"


@pytest.mark.shared
def test_labeled_faces_in_the_wild():
    root = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "../shared"))
    target = root / "data/lfw_pairs"
    if not target.exists():
        pytest.skip(f"the development data is not at {root}")
    found = find(target, "pairs", "verification")
    people = {split: {i.class_name for i in found.items if i.split == split}
              for split in ("train", "val", "test")}  # fmt: skip
    assert not people["val"] and not people["train"] & people["test"]
    sames = {split: [trial.same for trial in found.trials if trial.split == split]
             for split in ("train", "test")}  # fmt: skip
    assert (len(sames["train"]), len(sames["test"])) == (2026, 942)
    assert (sum(sames["train"]), sum(sames["test"])) == (1009, 471)
    assert len(found.items) == len({item.image for item in found.items}) == 4673
    named = {image for trial in found.trials for image in (trial.left, trial.right)}
    assert named == {item.image for item in found.items}
