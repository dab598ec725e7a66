"""What README.md says is so: its recipe runs, its tables and commands name what there is."""

import re
from pathlib import Path
from typing import get_args

import pytest

from pipeline import recipes
from pipeline.params import Data, Training, Weights
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
    before = {name: tensor.clone() for name, tensor in run.network.named_parameters()}
    phases = recipe.phases(run)
    results = [fit(next(phases), run.device, "fp32")]
    changed = {n for n, p in run.network.named_parameters() if not p.equal(before[n])}
    assert changed == run.classifier
    results += [fit(phase, run.device, "fp32") for phase in phases]
    assert [result.phase for result in results] == ["head", "end_to_end"]


@pytest.mark.parametrize(
    ("schema", "field", "heading"),
    [(Data, "layout", "data.layout"), (Weights, "from_", "weights.from")],
)
def test_tables_of_values_are_whole(schema, field, heading):
    rows = README.split(f"| `{heading}` |", 1)[1].split("\n\n", 1)[0]
    named = set(re.findall(r"^\s*\| `(\w+)` \|", rows, re.MULTILINE))
    assert named == set(get_args(schema.model_fields[field].annotation))


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
    for module in re.findall(r"python -m (pipeline[\w.]*)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / link).exists(), link
    for config in re.findall(r"configs/(\w+)\.yaml", README):
        assert (ROOT / "configs" / f"{config}.yaml").exists()
