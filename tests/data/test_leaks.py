"""Near duplicates and the splits: kept together, told of, or refused."""

import numpy as np
import pandas as pd
import pytest

from pipeline.data import leaks, splits
from pipeline.data.near_duplicates import NearDuplicates
from pipeline.errors import InputError
from pipeline.params import Splits


def found(*pairs, mirrored=()):
    """Near duplicates as they would have been found."""
    left, right = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T
    turned = np.array([pair in mirrored for pair in sorted(pairs)], dtype=bool)
    return NearDuplicates(left, right, np.full(len(left), 0.98765, np.float32), turned)


def table(classes, groups=None):
    """A table of images with these classes, and groups."""
    count = len(classes)
    return pd.DataFrame(
        {
            "row": range(count),
            "image": [f"{name}/{row}.png" for row, name in enumerate(classes)],
            "label": pd.factorize(np.array(list(classes), dtype=object), sort=True)[0],
            "class": list(classes),
            "split": "",
            "group": groups or [""] * count,
        }
    )


def test_copies_and_the_groups_that_they_connect_become_one():
    images = table("aaaaaaaa", ["x", "x", "", "", "y", "", "", "z"])
    made = leaks.joined(images, found((1, 2), (2, 4), (5, 6)))["group"].tolist()
    assert made[0] == made[1] == made[2] == made[4] != ""  # x, what is alike to it, and y
    assert made[5] == made[6] != "" and made[5] != made[0]
    assert made[3] == made[7] == ""  # alone, whatever its group was called
    assert leaks.joined(images, found())["group"].tolist() == [made[0], made[0], *[""] * 6]


def test_copies_in_groups_come_into_one_split():
    rng = np.random.default_rng(0)
    images = table(["cat"] * 60 + ["dog"] * 60)
    pairs = {tuple(sorted(map(int, rng.choice(120, 2, replace=False)))) for _ in range(25)}
    near = found(*pairs)
    asked = Splits(val=0.2, test=0.3, seed=1)
    apart = splits.assign(images, asked, None)
    kept = splits.assign(leaks.joined(images, near), asked, None)
    assert sum(apart[left] != apart[right] for left, right in pairs) > 5
    assert all(kept[left] == kept[right] for left, right in pairs)
    assert leaks.counts(leaks.check(images, kept, near, "group"))["in_two_splits"] == 0


IMAGES = table("aaabbb")
SPLIT = pd.Series(["train", "test", "train", "train", "test", ""])
NEAR = found((0, 1), (0, 2), (0, 3), (4, 5), mirrored={(0, 1)})


def test_what_is_found_is_listed_the_worst_first(capsys):
    listed = leaks.check(IMAGES, SPLIT, NEAR, "warn")
    assert list(zip(listed["left"], listed["right"], strict=True)) == [(0, 1), (0, 3), (0, 2)]
    assert listed.iloc[0].to_dict() == {
        "left": 0, "right": 1,
        "left_image": "a/0.png", "left_class": "a", "left_split": "train",
        "right_image": "a/1.png", "right_class": "a", "right_split": "test",
        "similarity": 0.988, "mirrored": 1,
    }  # fmt: skip
    assert leaks.counts(listed) == {"pairs": 3, "in_two_splits": 1, "of_two_classes": 1}
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "a/0.png (a, train) and a/1.png (a, test) look like one picture, mirrored: if" in said


@pytest.mark.parametrize(("other", "of"), [("val", "validation"), ("test", "test")])
def test_what_a_copy_spoils_is_told(other, of, capsys):
    leaks.check(IMAGES, SPLIT.replace("test", other), found((0, 1)), "warn")
    assert f"if they are copies, {of} scores are too good; all" in capsys.readouterr().out


def test_a_pair_that_is_tested_is_named_before_one_that_is_not(capsys):
    split = SPLIT.copy()
    split[1], split[2], split[3] = "val", "test", "val"
    leaks.check(IMAGES, split, found((0, 1), (0, 2), (0, 3)), "warn")
    said = capsys.readouterr().out
    assert said.startswith("prepare: a/0.png (a, train) and a/2.png (a, test) look like one pict")
    assert ": if they are copies, test scores are too good; " in said


def test_what_is_kept_together_is_told(capsys):
    leaks.check(IMAGES, SPLIT, found((0, 2), (0, 3)), "group")
    assert capsys.readouterr().out == (
        "prepare: near duplicates stay in one split: a/0.png (a, train) and a/2.png (a, train) "
        "look like one picture, and so does 1 more pair; all are in prepared/near_duplicates.csv\n"
    )


def test_only_what_the_task_has_is_advised(capsys):
    leaks.check(IMAGES, SPLIT, NEAR, "warn", can_group=False)
    assert "group" not in capsys.readouterr().out
    with pytest.raises(InputError, match=r"near_duplicates: warn\Z"):
        leaks.check(IMAGES, SPLIT, NEAR, "refuse", can_group=False)


def test_nothing_is_said_where_all_stay_in_their_split(capsys):
    leaks.check(IMAGES, SPLIT, found((0, 2)), "refuse")
    assert len(leaks.check(IMAGES, SPLIT, found(), "refuse")) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("choice", "pairs", "said"),
    [
        ("refuse", [(0, 1), (0, 2)], "a/1.png (a, test) look like one picture; remove all but one"),
        (
            "refuse",
            [(0, 2), (0, 3)],
            "a/0.png (a, train) and b/3.png (b, train) look like one picture",
        ),
        ("refuse", [(0, 1), (0, 3), (2, 3)], "and so do 2 more pairs; remove"),
        (
            "group",
            [(0, 1), (0, 3)],
            "a/1.png (a, test) look like one picture, and the layout brings",
        ),
    ],
)
def test_what_is_refused_is_named(choice, pairs, said):
    with pytest.raises(InputError) as error:
        leaks.check(IMAGES, SPLIT, found(*pairs), choice)
    assert said in str(error.value) and "\n" not in str(error.value)
