"""The house's rules: imports run one way, and DVC knows the code that can alter a stage's bytes."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import check
from pipeline.params import Params

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "pipeline").rglob("*.py"))
STAGES = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

# lower may not import higher
RANKS = {
    "errors": 0, "colours": 0,
    "params": 1, "records": 1,
    "data": 2, "models": 2, "params_file": 2,
    "training": 3, "evaluation": 3, "tracking": 3,
    "report": 4, "recipes": 4,
    "check": 5, "workspace": 5,
    "cells": 6, "tasks": 6, "workers": 6,
    "configure": 7, "jobs": 7, "lr_finder": 7, "predict": 7, "prune": 7, "repro": 7,
    "stages": 7,
    "plan": 8, "sweep": 9,
}  # fmt: skip

# Code that runs in a stage and cannot alter its bytes: validation, tracking, progress.
NEUTRAL = {
    "pipeline/errors.py",
    "pipeline/check.py",
    "pipeline/stages/common.py",
    "pipeline/stages/follow.py",
}
NEUTRAL_FOLDERS = ("pipeline/tracking/",)


def is_neutral(file):
    return file in NEUTRAL or file.startswith(NEUTRAL_FOLDERS)


def module_file(name):
    path = ROOT / name.replace(".", "/")
    if path.is_dir():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


def imports(file, types_too=True):
    """Files of ours that a file imports, at its top or inside its functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types and not types_too:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("pipeline") and (found := module_file(name)):
                yield found


def closure(file):
    """All that a stage's file imports, but for what neutral files alone bring in."""
    seen, waiting = set(), [file]
    while waiting:
        current = waiting.pop()
        if current not in seen and not is_neutral(str(current.relative_to(ROOT))):
            seen.add(current)
            waiting += imports(current, types_too=False)
            if current == ROOT / "pipeline/recipes/__init__.py":
                waiting += (ROOT / "pipeline/recipes").glob("*.py")  # imported by name
    return {str(path.relative_to(ROOT)) for path in seen}


def rank(file):
    part = file.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    return part, RANKS.get(part, 0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file):
    part, height = rank(file)
    for imported in imports(file, types_too=False):
        other, other_height = rank(imported)
        assert other == part or other_height < height, f"{file} imports {imported}"


def code_of(stage):
    module = STAGES[stage]["cmd"].split()[2]
    files = closure(ROOT / (module.replace(".", "/") + ".py"))
    return {
        file
        for file in files
        if (ROOT / file).read_text(encoding="utf-8").count("\n") > 1  # an empty package file
    }


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "publish"])
def test_a_stage_depends_on_the_code_it_imports_and_no_other(stage):
    listed = {dep for dep in STAGES[stage]["deps"] if dep.startswith("pipeline")}
    code = code_of(stage)
    covered = {file for file in code if any(file == d or file.startswith(d + "/") for d in listed)}
    assert code - covered == set(), "code that DVC does not watch"
    unused = {d for d in listed if not any(f == d or f.startswith(d + "/") for f in code)}
    assert unused == set(), "code that the stage does not import"


# Stages that depend on a folder, and what lies there that they do not import. A change of it makes
# start weights anew that are the same, and costs one short run.
FOLDERS = {
    "weights": {"pipeline/training/solve.py"},
    "encoder": set(),
    "head": set(),
    "baseline": set(),
    "test_breakdown": set(),
    "test_baseline": set(),
}


@pytest.mark.parametrize("stage", FOLDERS)
def test_no_run_is_trained_anew_for_code_that_it_does_not_import(stage):
    """A folder among the dependencies of a stage has none but code of that stage."""
    folders = [ROOT / dep for dep in STAGES[stage]["deps"] if dep.startswith("pipeline")]
    there = {
        str(file.relative_to(ROOT))
        for folder in folders
        for file in folder.rglob("*.py")  # nothing, of a file
        if file.read_text(encoding="utf-8").count("\n") > 1  # an empty package file
    }
    assert len(there) > 10
    assert there - code_of(stage) == FOLDERS[stage]


def test_no_stage_but_images_reads_the_raw_folder():
    users = [name for name, stage in STAGES.items() if "data" in stage["deps"]]
    assert users == ["images"]


def test_every_optional_key_that_dvc_names_must_be_written():
    """DVC stops at a parameter that params.yaml lacks, whatever default it has in the schema."""
    listed = {key for stage in STAGES.values() for key in stage.get("params", []) if "$" not in key}
    listed |= {"weights.file"}  # named as a dependency
    optional = set()
    for key in (key for key in listed if "." in key):
        section, name = key.split(".")
        schema = Params.model_fields[section].annotation
        if not schema.model_fields[name].is_required():
            optional.add(key)
    assert optional == set(check.WATCHED)


def test_none_but_the_test_stages_reads_the_test_split():
    """By DVC's graph, and by name in the code: who could open it at all."""
    for test_list in ("prepared/splits/test.csv", "prepared/splits/trials.csv"):
        readers = {name for name, stage in STAGES.items() if test_list in stage["deps"]}
        assert readers == {"test_breakdown", "test_baseline"}
    folders = {"prepared", "prepared/splits"}
    assert not any(folders & set(stage["deps"]) for stage in STAGES.values())
    naming = {
        str(file.relative_to(ROOT))
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and ("splits/test" in node.value or "splits/trials" in node.value)
    }
    writers = {f"pipeline/tasks/{task}/lists.py" for task in ("classification", "verification")}
    assert naming == {"pipeline/stages/test.py", *writers}


def test_what_is_evaluated_needs_no_torch_and_no_mlflow():
    text = "".join((ROOT / file).read_text(encoding="utf-8") for file in code_of("evaluate"))
    heavy = {"torch", "torchvision", "mlflow"}
    for node in ast.walk(ast.parse(text.replace("from __future__ import annotations", ""))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & heavy
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in heavy
