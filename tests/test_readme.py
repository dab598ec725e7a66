"""What README.md says is so: its recipe runs, its tables and commands name what there is."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter

from pipeline import recipes
from pipeline.params import Augmentation, Classification, Data, Optimization, Training, Weights
from pipeline.recipes.features import Features
from pipeline.training import losses
from pipeline.training.loop import fit
from tests.digits import make_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_recipe_shown_is_found_checked_and_trained(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) < 30
    (tmp_path / "gradual.py").write_text(code)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    assert "gradual" in recipes.names()
    recipe = recipes.of({"recipe": "gradual", "epochs": 2, "lr": 0.01})
    run = make_run()
    assert isinstance(recipe, recipes.Baseline)
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    phases = recipe.phases(run)
    results = [fit(next(phases), run.device, "fp32")]
    changed = {n for n, p in run.network.state_dict().items() if not p.equal(before[n])}
    assert changed == run.classifier
    results += [fit(phase, run.device, "fp32") for phase in phases]
    assert [result.phase for result in results] == ["head", "release"]


@pytest.mark.parametrize(
    ("schema", "field", "heading"),
    [(Data, "layout", "data.layout"), (Weights, "from_", "weights.from")],
)
def test_tables_of_values_are_whole(schema, field, heading):
    rows = README.split(f"| `{heading}` |", 1)[1].split("\n\n", 1)[0]
    assert first_column(rows) == set(get_args(schema.model_fields[field].annotation))


def first_column(rows):
    return set(re.findall(r"^\s*\| `(\w+)` \|", rows, re.MULTILINE))


def table(heading):
    return README.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]


def test_recipes_losses_and_heads_are_those_there_are():
    assert first_column(table("recipe | what it is")) == set(recipes.names())
    assert first_column(table("loss | on | what it is")) == set(losses.names())
    heads = get_args(get_args(Features.model_fields["head"].annotation)[0])
    heads = heads or get_args(Features.model_fields["head"].annotation)
    kinds = {get_args(kind.model_fields["kind"].annotation)[0] for kind in heads}
    assert first_column(table("head | fitted by | what it is")) == kinds
    for row in re.findall(r"^\| `(\w+)` \| (pairs|images) \|", README, re.MULTILINE):
        made = {"name": row[0]}
        assert TypeAdapter(losses.Loss).validate_python(made).on == row[1]


def test_what_every_phase_has_is_named_and_no_more():
    said = README.split("Every phase has an", 1)[1].split("\n\n", 1)[0]
    for key in ("optimizer", "schedule"):
        listed = re.search(rf"`{key}`\s*\(([^)]*)\)", said)[1]
        named = set(re.findall(r"`(\w+)`", listed)) - {"nesterov"}
        assert named == set(get_args(Optimization.model_fields[key].annotation))
    named = re.findall(r"`(\w+)`", said.split("Phases of cross-entropy")[1].split(". What")[0])
    assert set(named) - {"joint"} <= set(Classification.model_fields)
    changes = re.search(r"augmentation \(([^)]*)\)", said)[1]
    changing = set(Augmentation.model_fields) - {"turns_as_classes"}  # which changes no image
    assert set(re.split(r",\s+", changes)) == changing


def test_no_placeholder_is_left():
    assert not re.search(r"^[A-Z_]{6,}$|TODO|XXX", README, re.MULTILINE)


def test_rules_named_are_those_there_are():
    said = README.split("by what the epoch is chosen:", 1)[1].split(".\n", 1)[0]
    assert set(re.findall(r"`(\w+)`", said)) == set(
        get_args(Training.model_fields["rule"].annotation)
    )


def test_make_targets_commands_and_files_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", README):
        if target not in {"and", "a"}:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in re.findall(r"python -m ((?:pipeline|benchmarks|scripts)[\w.]*)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
    for config in re.findall(r"configs/(\w+)\.yaml", README):
        assert (ROOT / "configs" / f"{config}.yaml").exists()


def test_pictures_and_links_lead_somewhere():
    headings = {
        "#" + re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))
        for heading in re.findall(r"^#+ (.*)", README, re.MULTILINE)
    }
    found = re.findall(r'\]\(\s*([^)\s]+)|\b(?:src|href)="([^"]+)"', README)
    links = {one or other for one, other in found}
    links = {link for link in links if not re.match(r"\w+:", link)}
    pictures = {link for link in links if link.endswith((".svg", ".png"))}
    assert pictures and links & headings
    for link in links - headings:
        file = link.partition("#")[0]
        assert file and (ROOT / file).exists(), link


def test_speeds_are_those_of_the_stored_table():
    """No figure is left of an older table, here or where all of them are told."""
    stored = json.loads((ROOT / "benchmarks/stored/cpu.json").read_text(encoding="utf-8"))["rows"]
    ratios = {(row["name"], row["against"]): f"{row['ratio']:.2f}" for row in stored}
    told = re.findall(r"^\| (.+?) \| (.+?) \| ([\d.]+) \|$", README, re.MULTILINE)
    shown = {(name, against): ratio for name, against, ratio in told if (name, against) in ratios}
    assert len(shown) >= 8 and shown.items() <= ratios.items()
    whole = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for (name, against), ratio in ratios.items():
        (line,) = [of for of in whole.splitlines() if of.startswith(f"| {name} | {against} |")]
        assert f" | {ratio} | " in line
