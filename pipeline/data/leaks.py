"""Near duplicates against the splits: a picture that is learnt from must not be tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.data.near_duplicates import NearDuplicates
from pipeline.errors import InputError
from pipeline.records import write_table

LISTED = Path("prepared/near_duplicates.csv")
KEY = "data.near_duplicates"

Choice = Literal["warn", "group", "refuse"]


def joined(images: pd.DataFrame, found: NearDuplicates) -> pd.DataFrame:
    """The table of images with near duplicates in one group, and groups that they connect in one.

    An image that is in no group, and alike to none, stays alone.
    """
    names = images["group"].to_numpy(object)
    alone = np.arange(len(images))
    known = np.where(names == "", alone, len(images) + pd.factorize(names)[0])
    groups = found.groups(known.astype(np.int64))
    several = np.bincount(groups, minlength=1)[groups] > 1
    named = [f"joined {group}" if more else "" for group, more in zip(groups, several, strict=True)]
    return images.assign(group=named)


def check(
    images: pd.DataFrame,
    split: pd.Series,
    found: NearDuplicates,
    choice: Choice,
    can_group: bool = True,
) -> pd.DataFrame:
    """Say which near duplicates stand in two splits, or refuse them.

    Args:
        images: all of them, as in ``images.csv``.
        split: of each image; nothing is said of those without one.
        found: among all images.
        choice: ``warn`` prints a line; ``refuse`` allows no pair in two splits or of two classes,
            ``group``, whose groups the splits kept whole, none in two splits.
        can_group: whether ``group`` is there to be advised; verification splits whole classes.

    Returns:
        the pairs in the splits, first those in two, then those of two classes: ``left`` and
        ``right`` with image, class and split, ``similarity`` and ``mirrored`` (1 or 0).

    Raises:
        InputError: naming the first pair that is not allowed, and how many there are.
    """
    table = _table(images.assign(split=split), found)
    apart = table["left_split"] != table["right_split"]
    mixed = table["left_class"] != table["right_class"]
    if choice == "refuse" and (apart | mixed).any():
        raise InputError(
            f"data.target: {_named(table, apart | mixed)}; remove all but one of each, or set "
            f"{KEY}: {'group, which keeps them in one split, or ' if can_group else ''}warn"
        )
    if choice == "group" and apart.any():
        raise InputError(
            f"data.target: {_named(table, apart)}, and the layout brings these splits; move or "
            f"remove one of each, or set {KEY}: warn"
        )
    if choice == "group" and len(table):
        print(
            f"prepare: near duplicates stay in one split: {_named(table, ~apart)}; all are in "
            f"{LISTED}"
        )
    if apart.any():
        advice = f"; {KEY}: group keeps them in one split" if can_group else ""
        tested = apart & (table[["left_split", "right_split"]] == "test").any(axis=1)
        of = "test" if tested.any() else "validation"
        print(
            f"prepare: {_named(table, tested if tested.any() else apart)}: if they are copies, "
            f"{of} scores are too good; all are in {LISTED}{advice}"
        )
    return table.iloc[np.lexsort((~mixed, ~apart))].reset_index(drop=True)


def write(table: pd.DataFrame) -> None:
    """Write ``prepared/near_duplicates.csv``."""
    write_table(LISTED, table.itertuples(index=False, name=None), list(table.columns))


def counts(table: pd.DataFrame) -> dict[str, int]:
    """How many pairs there are, how many of them in two splits and how many of two classes."""
    return {
        "pairs": len(table),
        "in_two_splits": int((table["left_split"] != table["right_split"]).sum()),
        "of_two_classes": int((table["left_class"] != table["right_class"]).sum()),
    }


def _table(images: pd.DataFrame, found: NearDuplicates) -> pd.DataFrame:
    """The pairs of images that both have a split."""
    table = pd.DataFrame({"left": found.left, "right": found.right})
    for side in ("left", "right"):
        of = images.iloc[table[side]].reset_index(drop=True)
        table = table.assign(**{f"{side}_{name}": of[name] for name in ("image", "class", "split")})
    table["similarity"] = found.similarity.astype(np.float64).round(3)
    table["mirrored"] = found.mirrored.astype(np.int64)
    return table[(table["left_split"] != "") & (table["right_split"] != "")]


def _named(table: pd.DataFrame, those: pd.Series) -> str:
    """The first of those pairs, and how many more there are."""
    first, more = table[those].iloc[0], int(those.sum()) - 1
    left, right = (
        f"{first[f'{side}_image']} ({first[f'{side}_class']}, {first[f'{side}_split']})"
        for side in ("left", "right")
    )
    how = "look like one picture, mirrored" if first["mirrored"] else "look like one picture"
    others = ", and so does 1 more pair" if more == 1 else f", and so do {more} more pairs"
    return f"{left} and {right} {how}{others if more else ''}"
