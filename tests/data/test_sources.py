import csv
import io
import os
import pickle
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.data.items import _archive
from pipeline.data.sources import Found, Item, class_names, find, find_images
from pipeline.errors import InputError


def lay(root: Path, *paths: str) -> Path:
    """Write files whose content is their own path; a path that ends in '/' is an empty folder."""
    for path in paths:
        place = root / path
        if path.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(path)
    return root


def pack(file: Path, *paths: str, **texts: str) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.writestr(path, "" if path.endswith("/") else path)
        for name, text in texts.items():
            archive.writestr(f"{name}.txt", text)
    return file


def found(target: Path, layout: str = "folders") -> list[tuple[str, str, str]]:
    return [(item.image, item.class_name, item.split) for item in find_images(target, layout)]


def refused(target: Path, layout: str = "folders") -> str:
    with pytest.raises(InputError) as error:
        find_images(target, layout)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(target))
    return message.removeprefix(str(target))


PLAIN = ("cat/2.jpg", "cat/1.PNG", "dog/old/a.gif", "dog/b.webp")
SPLIT = tuple(
    f"{split}/{name}/{index}.jpg"
    for split in ("train", "val", "test")
    for name in ("cat", "dog")
    for index in range(2)
)


@pytest.fixture(params=["folder", "zip"])
def put(request, tmp_path):
    """Lay files in a folder or pack them in a zip."""
    if request.param == "folder":
        return lambda *paths: lay(tmp_path / "set", *paths)
    return lambda *paths: pack(tmp_path / "set.zip", *paths)


class TestFolders:
    def test_classes_with_nested_folders(self, put):
        assert found(put(*PLAIN)) == [
            ("cat/1.PNG", "cat", ""),
            ("cat/2.jpg", "cat", ""),
            ("dog/b.webp", "dog", ""),
            ("dog/old/a.gif", "dog", ""),
        ]

    def test_splits(self, put):
        expected = sorted((p, p.split("/")[1], p.split("/")[0]) for p in SPLIT)
        assert sorted(found(put(*SPLIT))) == expected

    @pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "validation", "test")])
    def test_names_of_splits(self, put, names):
        items = found(put(*(f"{n}/{c}/{i}.jpg" for n in names for c in "ab" for i in "12")))
        expected = {name: "val" if name == "validation" else name.lower() for name in names}
        assert {image.split("/")[0]: split for image, _, split in items} == expected
        assert {name for _, name, _ in items} == {"a", "b"}

    def test_capitals_of_a_class_may_differ_between_splits(self, put):
        items = found(put("Train/Cats/1.jpg", "Train/Cats/2.jpg", "Train/dogs/1.jpg",
                          "Train/dogs/2.jpg", "TEST/cats/3.jpg", "TEST/Dogs/3.jpg"))  # fmt: skip
        assert {(name, split) for _, name, split in items} == {
            ("Cats", "train"), ("dogs", "train"), ("Cats", "test"), ("dogs", "test"),
        }  # fmt: skip

    def test_capitals_that_tell_classes_apart_are_kept(self, put):
        said = refused(put(*(f"train/{name}/{n}.jpg" for name in ("a", "A") for n in range(2)),
                           "test/a/1.jpg", "test/b/1.jpg"))  # fmt: skip
        assert "class 'b' of test" in said

    def test_a_train_part_alone_leaves_the_splits_to_be_drawn(self, put):
        items = found(put(*(path for path in SPLIT if path.startswith("train"))))
        assert {(name, split) for _, name, split in items} == {("cat", ""), ("dog", "")}

    def test_a_wrapper_around_splits_is_looked_through(self, put):
        items = found(put(*(f"cats_dogs/{path}" for path in SPLIT), "README"))
        assert {image.split("/")[0] for image, _, _ in items} == {"cats_dogs"}
        assert {split for _, _, split in items} == {"train", "val", "test"}

    def test_a_wrapper_around_classes_is_looked_through_in_a_zip(self, tmp_path):
        items = found(pack(tmp_path / "a.ZIP", *(f"pets/{path}" for path in PLAIN)))
        assert {name for _, name, _ in items} == {"cat", "dog"}

    def test_a_class_may_be_called_train(self, put):
        items = found(put("train/1.jpg", "train/2.jpg", "bus/1.jpg", "bus/2.jpg"))
        assert {(name, split) for _, name, split in items} == {("train", ""), ("bus", "")}

    def test_what_systems_and_people_leave_there_is_no_image(self, put):
        target = put(
            *PLAIN,
            "cat/notes.txt",
            "cat/Thumbs.db",
            "cat/.hidden.jpg",
            "cat/._1.jpg",
            ".git/x.jpg",
            "__MACOSX/cat/._1.jpg",
            "labels.odd",
            "README",
        )
        assert len(found(target)) == len(PLAIN)

    def test_order_does_not_depend_on_the_file_system(self, tmp_path):
        paths = [f"{label}/{index}.jpg" for label in range(12) for index in range(3)]
        shuffled = random.Random(0).sample(paths, len(paths))
        one, two = lay(tmp_path / "one", *paths), lay(tmp_path / "two", *shuffled)
        three = pack(tmp_path / "three.zip", *shuffled)
        assert found(one) == found(two) == found(three)
        assert [image for image, _, _ in found(one)] == paths

    def test_links_are_followed(self, tmp_path):
        lay(tmp_path, "pool/1.jpg", "pool/2.jpg", "set/dog/1.jpg", "set/dog/2.jpg")
        (tmp_path / "set/cat").symlink_to(tmp_path / "pool")
        assert [image for image, _, _ in found(tmp_path / "set")][:2] == ["cat/1.jpg", "cat/2.jpg"]

    def test_odd_names_become_one_line_of_valid_text(self, tmp_path):
        lay(tmp_path, *PLAIN, "cat/new\nline.jpg", "cat/größe 猫.jpg")
        (tmp_path / os.fsdecode(b"cat/\xff.jpg")).write_text("bytes")
        items = {item.image: item for item in find_images(tmp_path, "folders")}
        assert {"cat/new\\nline.jpg", "cat/größe 猫.jpg", "cat/\\udcff.jpg"} < set(items)
        assert items["cat/\\udcff.jpg"].read() == b"bytes"
        "".join(items).encode()


class TestReading:
    def test_bytes_from_folder_and_zip(self, put):
        for item in find_images(put(*PLAIN), "folders"):
            assert item.read().decode() == item.image

    def test_items_travel_between_processes(self, put):
        items = find_images(put(*PLAIN), "folders")
        again = pickle.loads(pickle.dumps(items))  # noqa: S301
        assert again == items
        assert again[0].read() == items[0].read()

    def test_many_threads_read_one_zip(self, tmp_path):
        paths = [f"{'ab'[index % 2]}/{index}.jpg" for index in range(400)]
        items = find_images(pack(tmp_path / "set.zip", *paths), "folders") * 5
        with ThreadPoolExecutor(16) as pool:
            read = list(pool.map(Item.read, items))
        assert [content.decode() for content in read] == [item.image for item in items]

    def test_a_forked_process_has_its_own_handle(self, tmp_path, monkeypatch):
        target = pack(tmp_path / "set.zip", *PLAIN)
        mine = _archive(target)
        assert _archive(target) is mine
        monkeypatch.setattr(os, "getpid", lambda: 0)  # as after a fork, memory and all
        assert _archive(target) is not mine

    def test_a_changed_zip_is_opened_again(self, tmp_path):
        item = find_images(pack(tmp_path / "set.zip", *PLAIN), "folders")[0]
        assert item.read() == b"cat/1.PNG"
        pack(tmp_path / "set.zip", "cat/0.jpg", *PLAIN)
        assert item.read() == b"cat/1.PNG"

    def test_names_in_a_zip_with_backslashes_and_dots(self, tmp_path):
        target = pack(tmp_path / "set.zip", "./a/1.jpg", "a\\2.jpg", "b/1.jpg", "b\\c\\2.jpg")
        items = find_images(target, "folders")
        assert [item.image for item in items] == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/c/2.jpg"]
        contents = [item.read().decode() for item in items]
        assert contents == ["./a/1.jpg", "a\\2.jpg", "b/1.jpg", "b\\c\\2.jpg"]


class TestClassNames:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["10", "9", "0"], ["0", "9", "10"]),
            (["n10", "n9", "N1"], ["N1", "n9", "n10"]),
            (["dog", "Cat", "ant"], ["ant", "Cat", "dog"]),
            (["01", "1", "2"], ["01", "1", "2"]),
            (["a-1", "a10", "a2", "a"], ["a", "a2", "a10", "a-1"]),
            (["-1", "1", "x", "2b"], ["1", "2b", "-1", "x"]),
            (["²", "1", "٣"], ["1", "²", "٣"]),
        ],
    )
    def test_order(self, names, expected):
        items = [Item(f"{name}/1.jpg", Path("x"), name) for name in names]
        assert class_names(items) == expected
        assert class_names(items[::-1] * 2) == expected


LISTED = ("p/1.jpg", "p/2.jpg", "p/3 with spaces.jpg", "q/4", "q/5.jpg", "q/6.jpg")
TRAIN = "p/1.jpg 0\np/2.jpg 0\np/3 with spaces.jpg\t1\nq/4  1\n"
TEST = "q/5.jpg 1\nq/6.jpg 0\n"


class TestLists:
    @pytest.fixture(params=["folder", "zip", "wrapped"])
    def put(self, request, tmp_path):
        def write(**texts: str) -> Path:
            if request.param == "zip":
                return pack(tmp_path / "set.zip", *LISTED, **texts)
            below = "around/" if request.param == "wrapped" else ""
            if below:
                return pack(
                    tmp_path / "set.zip",
                    *(below + path for path in LISTED),
                    **{below + name: text for name, text in texts.items()},
                )
            root = lay(tmp_path / "set", *LISTED)
            for name, text in texts.items():
                (root / f"{name}.txt").write_bytes(text.encode())
            return root

        return write

    def test_splits_and_paths(self, put):
        items = find_images(put(train=TRAIN, test=TEST), "lists")
        wrapper = "around/" if items[0].image.startswith("around") else ""
        assert [
            (item.image.removeprefix(wrapper), item.class_name, item.split) for item in items
        ] == [
            ("p/1.jpg", "0", "train"),
            ("p/2.jpg", "0", "train"),
            ("q/6.jpg", "0", "test"),
            ("p/3 with spaces.jpg", "1", "train"),
            ("q/4", "1", "train"),
            ("q/5.jpg", "1", "test"),
        ]
        assert [item.read().decode() for item in items] == [item.image for item in items]

    def test_train_alone_leaves_the_splits_to_be_drawn(self, put):
        items = find_images(put(train=TRAIN), "lists")
        assert {item.split for item in items} == {""}
        assert len(items) == 4

    def test_signs_of_other_systems(self, put):
        text = "\ufeff" + TRAIN.replace("\n", "  \r\n") + "\r\n \r\n"
        assert len(find_images(put(train=text), "lists")) == 4

    def test_names_as_labels(self, put):
        items = find_images(put(train=TRAIN.replace("0\n", "Katze\n")), "lists")
        assert class_names(items) == ["1", "Katze"]

    def test_absolute_paths_and_paths_above(self, tmp_path):
        lay(tmp_path, *LISTED, "set/")
        lines = [f"{tmp_path}/p/1.jpg a", f"{tmp_path}/p/2.jpg a", "../q/4 b", "./../q/5.jpg b"]
        (tmp_path / "set/train.txt").write_text("\n".join(lines))
        items = find_images(tmp_path / "set", "lists")
        assert [item.image for item in items] == [
            f"{tmp_path}/p/1.jpg",
            f"{tmp_path}/p/2.jpg",
            "../q/4",
            "../q/5.jpg",
        ]
        assert [item.read().decode() for item in items] == ["p/1.jpg", "p/2.jpg", "q/4", "q/5.jpg"]

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("p/1.jpg", "has no label"),
            ("p/3 with spaces.jpg", "has no label"),
            ("p/9.jpg 1", "there is no file 'p/9.jpg'"),
            ("p 1", "there is no file 'p'"),
            ("p/2.jpg 1", "names 'p/2.jpg' again, as line 2 does"),
        ],
    )
    def test_wrong_lines_are_named(self, tmp_path, line, problem):
        lay(tmp_path, *LISTED)
        (tmp_path / "train.txt").write_text(TRAIN + "\n" + line + "\n")
        assert refused(tmp_path, "lists").startswith(f"/train.txt:6: {problem}")

    @pytest.mark.parametrize("path", ["/p/1.jpg", "../p/1.jpg", "x/../../p/1.jpg"])
    def test_a_list_in_a_zip_stays_in_it(self, tmp_path, path):
        lay(tmp_path, *LISTED)
        target = pack(tmp_path / "set.zip", *LISTED, train=TRAIN + f"{path} 1\n")
        assert refused(target, "lists").startswith(f"/train.txt:5: there is no file '{path}'")

    def test_text_in_another_encoding(self, tmp_path):
        (lay(tmp_path, *LISTED) / "train.txt").write_bytes(b"p/1.jpg gr\xfcn\n")
        assert "/train.txt: is not UTF-8 text" in refused(tmp_path, "lists")

    def test_without_train_list(self, tmp_path):
        lay(tmp_path, *LISTED)
        assert "has no train.txt" in refused(tmp_path, "lists")
        (tmp_path / "test.txt").write_text(TEST)
        assert "has test.txt, but no train" in refused(tmp_path, "lists")

    def test_a_list_of_nothing(self, tmp_path):
        (tmp_path / "train.txt").write_text("\n")
        assert "holds no images" in refused(tmp_path, "lists")


PHOTOS = ("p/1.jpg", "p/2.jpg", "p/3, with comma.jpg", "q/4", "q/5.jpg", "q/6.jpg")
HEADER = ("image", "label", "split", "group")
ROWS = [
    ("p/1.jpg", "sick", "train", "a"),
    ("p/2.jpg", "well", "Training", "a"),
    ("p/3, with comma.jpg", "sick", "TRAIN", "b"),
    ("q/4", "well", "train_set", ""),
    ("q/5.jpg", "well", "Test", "c"),
    ("q/6.jpg", "sick", "testing", ""),
]


def written(rows, header=HEADER) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue()


def without(column: str, rows=ROWS) -> str:
    at = HEADER.index(column)
    return written((r[:at] + r[at + 1 :] for r in rows), HEADER[:at] + HEADER[at + 1 :])


class TestTable:
    @pytest.fixture(params=["folder", "zip", "wrapped folder", "wrapped zip", "file"])
    def put(self, request, tmp_path):
        """Write photos and tables; the target is what ``data.target`` would name."""

        def write(*, raw: bytes | None = None, **tables: str) -> Path:
            below = "around/" if "wrapped" in request.param else ""
            contents = {below + path: path.encode() for path in PHOTOS}
            contents |= {f"{below}{name}.csv": text.encode() for name, text in tables.items()}
            if raw is not None:
                contents[f"{below}table.csv"] = raw
            if "zip" in request.param:
                with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
                    for path, content in contents.items():
                        archive.writestr(path, content)
                return tmp_path / "set.zip"
            for path, content in contents.items():
                lay(tmp_path / "set", path).joinpath(path).write_bytes(content)
            return tmp_path / ("set/table.csv" if request.param == "file" else "set")

        return write

    def test_splits_groups_and_paths(self, put):
        items = find_images(put(table=written(ROWS)), "csv")
        names = [item.image.removeprefix("around/") for item in items]
        assert [
            (name, item.class_name, item.split, item.group)
            for name, item in zip(names, items, strict=True)
        ] == [
            ("p/1.jpg", "sick", "train", "a"),
            ("p/3, with comma.jpg", "sick", "train", "b"),
            ("q/6.jpg", "sick", "test", ""),
            ("p/2.jpg", "well", "train", "a"),
            ("q/4", "well", "train", ""),
            ("q/5.jpg", "well", "test", "c"),
        ]
        assert [item.read().decode() for item in items] == names

    def test_a_group_in_two_spellings_of_unicode_is_one(self, put):
        groups = iter(["Jos\u00e9", "Jose\u0301"] * len(ROWS))
        rows = [(image, label, split, next(groups)) for image, label, split, _ in ROWS]
        with pytest.raises(InputError, match=r"group 'Jos\u00e9' stands in train .* and in test"):
            find_images(put(table=written(rows)), "csv")

    def test_columns_in_any_order_with_others_between(self, put):
        rows = [("x", group, label, "", image) for image, label, _, group in ROWS]
        header = ("taken at", "Group", " LABEL ", "", "image")
        items = find_images(put(table=written(rows, header)), "csv")
        assert [(item.class_name, item.group, item.split) for item in items] == [
            ("sick", "a", ""), ("sick", "b", ""), ("sick", "", ""),
            ("well", "a", ""), ("well", "", ""), ("well", "c", ""),
        ]  # fmt: skip

    @pytest.mark.parametrize("word", ["train", ""])
    def test_without_a_second_split_they_are_left_to_be_drawn(self, put, word):
        table = written([(image, label, word, group) for image, label, _, group in ROWS])
        assert {item.split for item in find_images(put(table=table), "csv")} == {""}

    def test_image_and_label_suffice(self, put):
        table = written([row[:2] for row in ROWS], HEADER[:2])
        items = find_images(put(table=table), "csv")
        assert len(items) == 6 and {(item.split, item.group) for item in items} == {("", "")}

    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_signs_of_other_systems(self, put, mark, end):
        text = written(ROWS).replace("\r\n", end).replace("sick", '" Größe 猫"')
        items = find_images(put(raw=mark + (text + end + ",,," + end).encode()), "csv")
        assert class_names(items) == ["Größe 猫", "well"] and len(items) == 6

    def test_absolute_paths_and_paths_above(self, tmp_path):
        lay(tmp_path, *PHOTOS, "set/")
        images = [f"{tmp_path}/p/1.jpg", f"{tmp_path}/p/2.jpg", "../q/4", "./../q/5.jpg"]
        rows = zip(images, "aabb", strict=True)
        (tmp_path / "set/images.csv").write_text(written(rows, HEADER[:2]))
        items = find_images(tmp_path / "set", "csv")
        assert [item.read().decode() for item in items] == ["p/1.jpg", "p/2.jpg", "q/4", "q/5.jpg"]

    @pytest.mark.parametrize(
        "others",
        [
            {"sizes": "image,width\np/1.jpg,8\n"},
            {"sizes": "no table"},
            {"images": "image,width\np/1.jpg,8\n"},
            {"other": written(ROWS[:1]), "more": written(ROWS[:2])},
        ],
    )
    def test_one_table_of_several(self, tmp_path, others):
        lay(tmp_path, *PHOTOS)
        for name, text in {"labels": written(ROWS), **others}.items():
            (tmp_path / f"{name}.csv").write_text(text)
        assert len(find_images(tmp_path, "csv")) == 6

    @pytest.mark.parametrize(
        ("tables", "problem"),
        [
            ({}, ": has no .csv at its top"),
            ({"a": written(ROWS), "b": written(ROWS)}, ": has several tables, a.csv, b.csv, and m"),
            ({"a": "x,y\n", "b": "\xff"}, ": has several tables, a.csv, b.csv, and none of them"),
            (
                {"images": written(ROWS), "labels": written(ROWS), "a": "x\n"},
                ": has several tables, images.csv, labels.csv, and more than one of them",
            ),
        ],
    )
    def test_no_one_table(self, tmp_path, tables, problem):
        lay(tmp_path, *PHOTOS)
        for name, text in tables.items():
            (tmp_path / f"{name}.csv").write_text(text, encoding="latin-1")
        assert refused(tmp_path, "csv").startswith(problem)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (without("label"), ":1: has no column label, only image, split, group"),
            (without("image"), ":1: has no column image, only label, split, group"),
            ("\n\n" + without("image"), ":3: has no column image"),
            ("image;label\n", ":1: has no column image, only image;label; the first line must "
             "name the columns image and label, and separate them by commas"),
            ("", ":1: has no column image, only none"),
            ("image,label,Image\n", ":1: has the column image twice"),
            ("image,label\n", ": lists no images"),
            (written([*ROWS, ("p/9.jpg", "sick", "test", "")]), ":8: there is no file 'p/9.jpg'"),
            (written([*ROWS, ("p", "sick", "test", "")]), ":8: there is no file 'p'"),
            (written([*ROWS, ("a" * 300, "sick", "test", "")]), ":8: there is no file 'aaa"),
            (written([*ROWS, ("", "sick", "test", "")]), ":8: has no image"),
            (written([*ROWS, ("p/1.jpg", " ", "test", "")]), ":8: has no label"),
            (written([*ROWS, ("p/../p/1.jpg", "well", "test", "")]),
             ":8: names 'p/1.jpg' again, as line 2 does"),
            (written(ROWS).replace("Test", "held out"), ":6: 'held out' is no split"),
            (written(ROWS).replace("Test", ""), ":6: has no split, but other lines have one"),
            (written([(*ROWS[0][:2], "", ""), *ROWS[1:]]), ":2: has no split"),
            (written(ROWS).replace("Test,c", "Test,a"),
             ":6: group 'a' stands in train (p/1.jpg) and in test (q/5.jpg)"),
            (written(ROWS) + "p/1.jpg,sick\n", ":8: has 2 cell(s), but the header has 4"),
            (written(ROWS) + "q/6.jpg,sick,test,a,\n", ":8: has 5 cell(s), but the header has 4"),
            (written(ROWS).replace("sick", '"si\nck"').replace("q/4", "q/9"),
             ":7: there is no file 'q/9'"),
            (written(ROWS) + 'q/6.jpg,"sick\n', ":8: is no row of a CSV table"),
            (written(ROWS).replace("well", '"we"ll"'), ":3: is no row of a CSV table"),
            (written(ROWS).replace("Test", "val").replace("testing", "valid"),
             ": has train and val, but no test") ,
        ],
    )  # fmt: skip
    def test_wrong_tables_are_named(self, tmp_path, text, problem):
        (lay(tmp_path, *PHOTOS) / "t.csv").write_text(text)
        assert refused(tmp_path, "csv").removeprefix("/t.csv").startswith(problem)
        message = refused(tmp_path / "t.csv", "csv")
        assert message.startswith(problem)

    @pytest.mark.parametrize("path", ["/p/1.jpg", "../p/1.jpg", "x/../../p/1.jpg"])
    def test_a_table_in_a_zip_stays_in_it(self, tmp_path, path):
        with zipfile.ZipFile(pack(tmp_path / "set.zip", *PHOTOS), "a") as archive:
            archive.writestr("t.csv", written([*ROWS, (path, "sick", "test", "")]))
        problem = f"/t.csv:8: there is no file '{path}'; paths are relative to the table and stay"
        assert refused(tmp_path / "set.zip", "csv").startswith(problem)

    def test_text_in_another_encoding(self, put):
        assert "is not UTF-8 text" in refused(put(raw=b"image,label\np/1.jpg,gr\xfcn\n"), "csv")

    def test_a_table_that_is_not_there(self, tmp_path):
        assert "dvc pull data.dvc" in refused(tmp_path / "t.csv", "csv")
        message = refused(lay(tmp_path, "t.txt") / "t.txt", "csv")
        assert message == ": must be a folder or a .zip, or the .csv itself"


class TestVerification:
    """The layouts of classification, with identities as classes."""

    PEOPLE = ("train/Ann/1.jpg", "train/Ann/2.jpg", "train/Bo/1.jpg",
              "val/Cy/1.jpg", "test/Di/1.jpg", "test/Di/2.jpg")  # fmt: skip

    @staticmethod
    def refused(target: Path, layout: str = "folders") -> str:
        with pytest.raises(InputError) as error:
            find(target, layout, "verification")
        message = str(error.value)
        assert "\n" not in message and message.startswith(str(target))
        return message.removeprefix(str(target))

    def test_identities_of_their_own_in_each_split(self, put):
        people = find(put(*self.PEOPLE), "folders", "verification")
        assert [(item.image, item.class_name, item.split) for item in people.items] == [
            (path, path.split("/")[1], path.split("/")[0]) for path in self.PEOPLE
        ]
        assert people.trials == []
        with pytest.raises(InputError, match="class 'Di' of test"):
            find(put(*self.PEOPLE), "folders", "classification")

    @pytest.mark.parametrize("above", ["", "train/"])
    def test_splits_to_be_drawn(self, put, above):
        paths = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg")
        people = find(put(*(above + path for path in paths)), "folders", "verification")
        assert [(item.class_name, item.split) for item in people.items] == [
            (path[0], "") for path in paths
        ]

    def test_lists_and_tables(self, tmp_path):
        lay(tmp_path, *PHOTOS)
        (tmp_path / "train.txt").write_text("p/1.jpg Ann\np/2.jpg Ann\nq/4 Bo\n")
        (tmp_path / "test.txt").write_text("q/5.jpg Di\n")
        listed = find(tmp_path, "lists", "verification").items
        expected = [("p/1.jpg", "Ann", "train"), ("p/2.jpg", "Ann", "train"),
                    ("q/4", "Bo", "train"), ("q/5.jpg", "Di", "test")]  # fmt: skip
        assert [(item.image, item.class_name, item.split) for item in listed] == expected
        (tmp_path / "t.csv").write_text(written(expected, HEADER[:3]))
        assert find(tmp_path, "csv", "verification").items == listed

    @pytest.mark.parametrize(
        ("paths", "problem"),
        [
            (
                [*PEOPLE, "test/Bo/2.jpg"],
                ": 'Bo' stands in test (test/Bo/2.jpg) and in train (train/Bo/1.jpg); in "
                "verification a class lies in one split alone",
            ),
            # capitals alone tell nobody apart
            ([*PEOPLE, "val/bo/2.jpg"], ": 'Bo' stands in train (train/Bo/1.jpg) and in val"),
            (["a/1.jpg", "a/2.jpg"], ": has 1 class(es) to train on"),
            ([p for p in PEOPLE if "Bo" not in p], ": has 1 class(es) to train on"),
            ([p for p in PEOPLE if "Ann/2" not in p], ": has a single image of each class to"),
            ([*PEOPLE, "train/emu/"], "/train/emu: holds no image"),
            ([*PEOPLE, "val/Zo\u00eb/1.jpg", "test/Zoe\u0308/1.jpg"], ": class 'Zo"),
            ([p for p in PEOPLE if p[:4] != "test"], ": has train and val, but no test"),
            (["cat/"], ": holds no images"),
        ],
    )
    def test_wrong_sets_are_named(self, put, paths, problem):
        assert self.refused(put(*paths)).startswith(problem)

    def test_classification_is_found_as_ever(self, put):
        target = put(*SPLIT)
        assert find(target, "folders", "classification") == Found(
            find_images(target, "folders"), []
        )


class TestBadSets:
    def test_missing(self, tmp_path):
        assert "dvc pull data.dvc" in refused(tmp_path / "nothing")
        assert "dvc pull data.dvc" in refused(tmp_path / "nothing.zip")

    def test_a_slip_is_told(self, put):
        target = put("cat/1.jpg")
        slip = target.with_name(target.name.replace("set", "st", 1))
        assert refused(slip).endswith(f"no such folder or .zip; did you mean {target}?")

    def test_neither_folder_nor_zip(self, tmp_path):
        assert "must be a folder or a .zip" in refused(lay(tmp_path, "set.tar") / "set.tar")
        table = lay(tmp_path, "set.csv") / "set.csv"
        assert "must be a folder or a .zip (for a table set data.layout to csv)" in refused(table)

    def test_empty(self, put):
        assert "holds no images" in refused(put("cat/", "dog/"))

    def test_a_zip_that_is_none(self, tmp_path):
        assert "cannot be read as a zip" in refused(lay(tmp_path, "set.zip") / "set.zip")

    @pytest.mark.parametrize(
        ("paths", "problem"),
        [
            ([*PLAIN, "emu/"], "/emu: holds no image"),
            ([*PLAIN, "emu/notes.txt"], "/emu: holds no image"),
            ([*SPLIT, "train/emu/"], "/train/emu: holds no image"),
            ([p for p in SPLIT if p[:3] != "val"] + ["val/"], "/val: holds no image"),
            ([*PLAIN, "3.jpg"], "/3.jpg: lies in no class folder"),
            ([*SPLIT, "train/3.jpg"], "/train/3.jpg: lies in no class folder"),
            (["cat/1.jpg", "cat/2.jpg"], ": has the one class 'cat'"),
            ([*PLAIN, "emu/1.jpg"], ": class 'emu' has a single image;"),
            (
                [*PLAIN, "na\u00efve/1.jpg", "nai\u0308ve/1.jpg"],
                ": class 'na\u00efve' is spelled in two ways that look the same (nai\u0308ve/1.jpg "
                "and na\u00efve/1.jpg)",
            ),
            ([*SPLIT, "train/emu/1.jpg"], ": class 'emu' has a single training image"),
            ([*SPLIT, "test/emu/1.jpg"], ": class 'emu' of test (test/emu/1.jpg) is not in train"),
            ([*PLAIN, "cat/3.heic"], "/cat/3.heic: is no kind of image that is read here"),
            ([*SPLIT, "emu/1.jpg"], "/test: looks like a split, but stands beside 'emu'"),
            ([*SPLIT, "Train/cat/3.jpg"], ": Train and train are the same split"),
            ([*SPLIT, "valid/cat/3.jpg"], ": val and valid are the same split"),
            ([p for p in SPLIT if p[:4] != "test"], ": has train and val, but no test"),
            ([p for p in SPLIT if p[:5] != "train"], ": has test and val, but no train"),
        ],
    )
    def test_layouts(self, put, paths, problem):
        assert refused(put(*paths)).startswith(problem)

    @pytest.mark.parametrize("name", ["../cat/1.jpg", "/cat/1.jpg", "c:\\cat\\1.jpg", "a/../../b"])
    def test_a_zip_that_points_outside_itself(self, tmp_path, name):
        assert "points outside the zip" in refused(pack(tmp_path / "set.zip", *PLAIN, name))

    def test_an_encrypted_zip(self, tmp_path):
        target = pack(tmp_path / "set.zip", *PLAIN)
        content = bytearray(target.read_bytes())
        content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
        target.write_bytes(content)
        assert "is encrypted" in refused(target)

    @pytest.mark.parametrize("link", ["loop", "cat/loop", "cat/deep/loop"])
    @pytest.mark.parametrize("up", [".", "..", "../.."])
    def test_circles_of_links_end(self, tmp_path, link, up):
        target = lay(tmp_path / "set", *PLAIN, "cat/deep/1.jpg")
        (target / link).symlink_to(up)
        message = refused(target)
        assert "is a link to a folder that it lies in" in message or "symbolic links" in message

    def test_a_link_to_itself(self, tmp_path):
        target = lay(tmp_path / "set", *PLAIN)
        (target / "emu").symlink_to("emu")
        assert "/emu: cannot be read" in refused(target)


@pytest.mark.shared
def test_real_photos():
    root = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "../shared"))
    target = root / "data/cats_dogs/cats_dogs.zip"
    if not target.exists():
        pytest.skip(f"the development data is not at {root}")
    items = find_images(target, "folders")
    assert class_names(items) == ["cats", "dogs"]
    counts = {
        (split, name): sum((item.split, item.class_name) == (split, name) for item in items)
        for split in ("train", "test")
        for name in ("cats", "dogs")
    }
    assert list(counts.values()) == [1000, 1000, 400, 400]
