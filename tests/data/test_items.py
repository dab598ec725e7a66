"""Members of a zip read past ``zipfile``, with its answers and its errors."""

import io
import random
import struct
import unicodedata
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.items import Directory, Item, printable

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
PLAIN = METHODS[:2]


def packed(file, members):
    """A zip of (name, content, method) at a path or in a buffer."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, content, method in members:
            archive.writestr(name, content, method)
    return file


def listed(file):
    with zipfile.ZipFile(file) as archive:
        return Directory(file, archive.infolist())


def by_zipfile(file, name):
    with zipfile.ZipFile(file) as archive:
        return archive.read(name)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/\\"), min_size=1, max_size=9)
member = st.tuples(names, st.binary(max_size=300), st.sampled_from(METHODS))


@given(st.lists(member, min_size=1, max_size=6, unique_by=lambda of: of[0]))
@settings(max_examples=60, deadline=None)
def test_any_member_is_what_zipfile_reads(tmp_path_factory, members):
    file = packed(tmp_path_factory.mktemp("zip") / "set.zip", members)
    directory = listed(file)
    for name, content, method in members:
        assert Item("", file, "", member=name).read() == content
        if method in PLAIN and name.isascii():
            assert directory.read(name) == content


def test_long_extra_fields_in_the_file_are_passed_over(tmp_path):
    file = tmp_path / "set.zip"
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.extra = struct.pack("<HH", 0xCAFE, 400) + bytes(400)
        archive.writestr(info, b"content" * 100)
        archive.writestr("b.png", b"other")
    assert listed(file).read("a.png") == b"content" * 100


def test_sizes_that_only_the_list_of_members_tells(tmp_path):
    class Stream(io.RawIOBase):
        """Where nobody can go back to write sizes in front of the content."""

        def __init__(self, file):
            self.file = file

        def writable(self):
            return True

        def write(self, data):
            return self.file.write(data)

    file = tmp_path / "set.zip"
    with file.open("wb") as out:
        packed(Stream(out), [("a.png", b"a" * 500, zipfile.ZIP_DEFLATED), ("b.png", b"b", 0)])
    directory = listed(file)
    assert directory.read("a.png") == b"a" * 500 and directory.read("b.png") == b"b"


def test_of_two_members_with_one_name_the_last(tmp_path):
    file = tmp_path / "set.zip"
    with pytest.warns(UserWarning, match="Duplicate name"):
        packed(file, [("a.png", b"first", 0), ("a.png", b"second", 0)])
    assert listed(file).read("a.png") == by_zipfile(file, "a.png") == b"second"


def damaged(content, rng):
    """The zip with one byte changed, before its list of members."""
    end = content.rindex(b"PK\1\2")
    place = rng.randrange(content.index(b"PK\1\2") if end else end)
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def test_a_damaged_zip_gives_what_zipfile_gives(tmp_path):
    rng = random.Random(0)
    members = [(f"{n}.png", rng.randbytes(40) * 3, method) for n, method in enumerate(PLAIN * 2)]
    whole = packed(tmp_path / "whole.zip", members).read_bytes()
    wrong = 0
    for number in range(300):
        file = tmp_path / f"{number}.zip"
        file.write_bytes(damaged(whole, rng))
        for name, *_ in members:
            try:
                expected = by_zipfile(file, name)
            except Exception as error:
                wrong += 1
                with pytest.raises(type(error)) as raised:
                    Item("", file, "", member=name).read()
                assert str(raised.value) == str(error)
            else:
                assert Item("", file, "", member=name).read() == expected
    assert wrong > 100


def test_members_that_overlap_are_left_to_zipfile(tmp_path):
    file = packed(tmp_path / "set.zip", [("a.png", b"a" * 50, 0), ("b.png", b"b" * 50, 0)])
    with zipfile.ZipFile(file) as archive:
        first, second = archive.infolist()
    assert Directory(file, [first, second]).read("a.png") == b"a" * 50
    first.compress_size += 60
    assert Directory(file, [first, second]).read("a.png") is None
    assert Directory(file, [second, first]).read("b.png") is None


def test_what_is_not_there_is_left_to_zipfile(tmp_path):
    file = packed(tmp_path / "set.zip", [("a.png", b"a", 0)])
    assert listed(file).read("b.png") is None
    with pytest.raises(KeyError, match=r"b\.png"):
        Item("", file, "", member="b.png").read()


def test_threads_that_come_at_once_list_a_zip_once(tmp_path, monkeypatch):
    file = packed(tmp_path / "set.zip", [(f"{n}.png", b"%d" % n, 0) for n in range(50)])
    opened = []
    real = zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda *given: opened.append(given) or real(*given))
    items = [Item("", file, "", member=f"{n}.png") for n in range(50)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(Item.read, items)) == [b"%d" % n for n in range(50)]
    assert len(opened) == 1


@given(st.text())
def test_printable_text_is_one_line_of_utf_8_and_else_as_it_was(text):
    odd = {char for char in text if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")}
    expected = "".join(repr(char)[1:-1] if char in odd else char for char in text)
    assert printable(text) == expected
    assert len(printable(text).encode().decode().splitlines()) <= 1
