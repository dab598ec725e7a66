"""DVC's plots: every template takes its table, and needs no column that the table lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc_render.vega import VegaRenderer
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
COLUMNS = {
    "reports/accuracy.csv": ("method", "shots", "seed", "accuracy"),
    "reports/comparison.csv": (
        *("method", "shots", "metric", "difference", "low", "high"),
        *("p_value", "p_adjusted", "wins", "n", "verdict"),
    ),
    "reports/confusion.csv": ("method", "shots", "actual", "predicted", "images"),
    "reports/training.csv": (
        *("method", "shots", "seed", "phase", "epoch", "images_seen"),
        *("val_accuracy", "val_loss"),
    ),
}


def drawn() -> dict[str, dict[str, Any]]:
    """What dvc.yaml draws from tables, by name."""
    content = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    named = [plot for plot in content["plots"] if isinstance(plot, dict)]
    return {name: dict(about) for plot in named for name, about in plot.items()}


def table(about: dict[str, Any]) -> str:
    (file,) = about["y"]
    return str(file)


def filled(about: dict[str, Any], revisions: tuple[str, ...] = ("workspace",)) -> dict[str, Any]:
    """The template with a row of each revision, as ``dvc plots`` fills it."""
    columns = COLUMNS[table(about)]
    rows = [dict.fromkeys(columns, "1") | {"rev": revision} for revision in revisions]
    settings = about | {"y": about["y"][table(about)], "template_dir": str(ROOT / ".dvc/plots")}
    return VegaRenderer(rows, "plot", **settings).get_filled_template()


def inside(content: Any, key: str) -> Iterator[Any]:
    """All values of a key, however deep."""
    if isinstance(content, dict):
        if key in content:
            yield content[key]
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from inside(part, key)


@pytest.mark.parametrize("about", drawn().values(), ids=drawn())
def test_a_template_takes_its_table(about: dict[str, Any]) -> None:
    assert (ROOT / f".dvc/plots/{about['template']}.json").is_file()
    content = filled(about, ("workspace", "HEAD"))
    assert "<DVC_METRIC" not in json.dumps(content)
    assert [row["rev"] for row in content["data"]["values"]] == ["workspace", "HEAD"]
    assert content["title"]["text"] == about["title"]


@pytest.mark.parametrize("about", drawn().values(), ids=drawn())
def test_a_template_needs_no_column_that_is_not_there(about: dict[str, Any]) -> None:
    content = filled(about)
    values = content.pop("data")["values"]
    fields = {field for field in inside(content, "field") if isinstance(field, str)}
    fields |= set(re.findall(r"datum\.(\w+)", json.dumps(content)))
    made = set(filter(None, inside(content.get("transform", []), "as")))
    assert {about["x"], about["y"][table(about)]} <= fields
    assert fields - made <= set(values[0])


def test_what_people_compare_is_drawn() -> None:
    assert {table(about) for about in drawn().values()} == set(COLUMNS)
