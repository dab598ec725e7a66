import io

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.report.pictures import Album, small_picture


@pytest.fixture
def album(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared").mkdir()
    pixels = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 1, 8, 8)
    np.save("prepared/images.npy", pixels)
    write_names("row,image,label,class,split,group\n0,a,0,x,test,\n2,c,0,x,test,\n1,b,0,x,,\n")
    return Album()


def write_names(text):
    with open("prepared/images.csv", "w", encoding="utf-8") as file:
        file.write(text)


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_images_are_found_by_name(album):
    third, first = album.small(["c", "a"])
    pixels = np.load("prepared/images.npy")
    np.testing.assert_array_equal(decoded(third)[::8, ::8], pixels[2, 0])
    np.testing.assert_array_equal(decoded(first)[::8, ::8], pixels[0, 0])


def test_nothing_is_read_for_no_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Album().small([]) == []


def test_small_images_keep_their_pixels_and_large_ones_shrink():
    small = np.random.default_rng(0).integers(0, 256, (3, 10, 10), dtype=np.uint8)
    shown = decoded(small_picture(small))
    assert shown.shape == (70, 70, 3)
    np.testing.assert_array_equal(shown, np.kron(small.transpose(1, 2, 0), np.ones((7, 7, 1))))
    assert decoded(small_picture(np.zeros((1, 80, 80), np.uint8))).shape == (80, 80)
    grey = decoded(small_picture(np.full((3, 192, 192), 90, np.uint8)))
    assert grey.shape == (96, 96, 3) and (grey == 90).all()


def test_an_unknown_image_is_named(album):
    with pytest.raises(InputError, match=r"^prepared/images.csv: there is no image 'd'"):
        album.small(["a", "d"])
    write_names("row,image\n3,a\n")
    with pytest.raises(InputError, match=r"there is no image 'a'"):
        album.small(["a"])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda: np.save("prepared/images.npy", np.zeros((3, 8, 8), np.uint8)), "must be uint8"),
        (lambda: np.save("prepared/images.npy", np.zeros((3, 1, 8, 8))), "must be uint8"),
        (lambda: open("prepared/images.npy", "wb").close(), "no readable images"),
        (lambda: write_names("image\na\n"), "columns must be row,image"),
        (lambda: write_names("row,image\nx,a\n"), "columns must be row,image"),
    ],
)
def test_damage_is_one_line(album, damage, said):
    damage()
    with pytest.raises(InputError, match=said) as error:
        album.small(["a"])
    assert "\n" not in str(error.value) and "dvc repro" in str(error.value)
