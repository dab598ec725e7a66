"""The whole of params.yaml, checked before anything runs.

``python -m pipeline.check`` also builds the network and tries every latent.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline import recipes
from pipeline.data.items import printable
from pipeline.data.trees import missing
from pipeline.errors import InputError, command
from pipeline.params import METHOD_NAME, PARAMS_FILE, Params, Task, nearest, walk
from pipeline.params_file import Source, parse, plain, read
from pipeline.training.budget import NO_PASSES

if TYPE_CHECKING:
    from torch import nn

    from pipeline.training.losses import LossBlock

# keys with defaults that dvc.yaml names one by one
WATCHED = {
    "data.source": "null",
    "data.layout": "folders",
    "data.resize": "crop",
    "data.channels": "3",
    "data.splits": "{val: 0.2, test: 0.3, seed: 0}",
    "data.val_per_class": "null",
    "data.exact_duplicates": "error",
    "data.near_duplicates": "warn",
    "data.shuffle_labels": "false",
    "model.dropout": "null",
    "compare.budget": "own",
    "training.passes": "null",
    "training.rule": "val_loss",
    "training.augmentation": "{flip: false}",
    "weights.file": "pretrained",
}
DATA_FILE = Path("data.dvc")
UNTRACKED = (
    "DVC does not track data/, and experiments in other folders and other machines would go "
    "without; run 'dvc add data'"
)
OWN_ARCHITECTURES = ("small", "bvlc_alexnet", "koch", "drawings")  # as models.architectures.OWN
CLASS_LAYOUTS = ("folders", "lists", "csv")  # those that classification has too
# where a compared method's block shows that it learns the other task, by recipe and task asked for
OTHER_TASK = {
    ("breakdown", "verification"): (
        ("head",),
        "classifies; for task: verification give it pairs, such as 'pairs: {kind: difference}'",
    ),
    ("breakdown", "classification"): (
        ("head", "pairs"),
        "is for task: verification; leave it out, or set the task",
    ),
    ("features", "verification"): (
        ("head", "kind"),
        "classifies; for task: verification it must be distance",
    ),
    ("features", "classification"): (
        ("head", "kind"),
        "distance is for task: verification; use linear, svm, knn or mlp, or set the task",
    ),
}
RECIPE_OF = {
    "classification": "use another, such as finetune, set the task, or do not compare it",
    "verification": "use siamese, breakdown or features, set the task, or do not compare it",
}


def load(path: Path | str = PARAMS_FILE, files: bool = True) -> Params:
    """Read and check params.yaml, every method of it, without loading torch.

    Args:
        path: the file.
        files: whether the files it names must be there already.

    Raises:
        InputError: the first thing that is wrong, with file, line and key.
    """
    source = read(path)
    params = parse(Params, plain(source.tree), source)
    _check_recipes(params, source)
    for method, block in params.methods.items():
        if not METHOD_NAME.match(method):
            problem = "a method's name is up to 100 small letters, digits and _, after a letter"
            raise source.error(("methods", method), problem)
        _check_recipe_block(method, block, source)
    _check_present(source)
    _check_data(params, source)
    _check_task(params, source)
    _check_compare(params, source)
    _check_budget(params, source)
    _check_weights(params, source)
    if files:
        _check_files(params, source)
    return params


def check_models(
    params: Params, path: Path | str = PARAMS_FILE, methods: Sequence[str] | None = None
) -> None:
    """Build the network without memory and try on it what methods ask for.

    Args:
        params: the whole of params.yaml.
        path: the file.
        methods: which; None: all that are compared.

    Raises:
        InputError: unknown architecture, image size too small for it, no such latent, no cut, a
            layer or a loss that there is not.
    """
    from pipeline.models import architectures
    from pipeline.models.cut import cut
    from pipeline.training.optimizers import check_prefixes

    source = read(path)
    name, data = params.model.architecture, params.data
    if not architectures.is_known(name):
        problem = f"there is no '{name}'; {nearest(name, architectures.names())}"
        raise source.error(("model", "architecture"), problem)
    architectures.check_size(name, data.image_size, data.channels)
    with architectures.empty_on_meta():
        network = architectures.build(
            name, 2, data.channels, data.image_size, params.model.dropout, 0
        )
    if params.weights.source is not None:
        at = ("weights", "source", "weight_decays")
        _try(source, at, check_prefixes, params.weights.source.weight_decays, network)
    for method in params.compare.methods if methods is None else methods:
        _check_recipe(recipes.of(params.methods[method]), method, network, source)
    if params.diagnostics.latent is not None:
        _try(source, ("diagnostics", "latent"), cut, network, params.diagnostics.latent)


def _check_recipe(recipe: recipes.Recipe, method: str, network: nn.Module, source: Source) -> None:
    """Try a method's latents, the layers that it names, and its losses."""
    from pipeline.models.cut import split
    from pipeline.training.losses import LossBlock
    from pipeline.training.optimizers import check_prefixes

    at = ("methods", method)
    for place, latents in recipe.cuts():
        _try(source, (*at, *place), split, network, latents)
    for place, problem in recipe.fit_to(network):
        raise source.error((*at, *place), problem)
    for place, block in walk(recipe, at):
        for key in ("weight_decays", "lr_factors", "l2"):
            named = recipe.layers(block, network)
            _try(source, (*place, key), check_prefixes, getattr(block, key, {}), named)
        if isinstance(block, LossBlock):
            _try_loss(source, place, block)


def _try(
    source: Source, at: tuple[str | int, ...], attempt: Callable[..., object], *given: object
) -> None:
    try:
        attempt(*given)
    except InputError as error:
        raise source.error(at, str(error)) from None


def _try_loss(source: Source, at: tuple[str | int, ...], loss: LossBlock) -> None:
    """Try a loss, whose errors name the key but know no line."""
    try:
        loss.check(".".join(map(str, at)))
    except InputError as error:
        _, keys, problem = str(error).split(": ", 2)
        within = (int(key) if key.isdigit() else key for key in keys.split("."))
        raise source.error(tuple(within), problem) from None


def _check_present(source: Source) -> None:
    """Refuse a file without a key that dvc.yaml names: DVC has no defaults."""
    for key, default in WATCHED.items():
        section, name = key.split(".")
        if name not in source.tree[section]:
            problem = f"is missing; DVC watches it, so write '{name}: {default}' or what you want"
            raise source.error((section, name), problem)


def _check_data(params: Params, source: Source) -> None:
    for key in ("target", "source"):
        value = getattr(params.data, key)
        if value is None:
            continue
        parts = PurePosixPath(value).parts
        if not parts or parts[0] != "data" or ".." in parts:
            problem = f"'{value}' must lie in data/, the folder that data.dvc tracks"
            raise source.error(("data", key), problem)
        if printable(value) != value:
            raise source.error(("data", key), f"'{printable(value)}' has control characters")
    if params.data.splits.val + params.data.splits.test >= 1:
        raise source.error(("data", "splits"), "val and test together must be less than 1")


def _check_recipe_block(method: str, block: Any, source: Source) -> None:
    at = ("methods", method)
    names = recipes.names()
    if not isinstance(block, dict) or "recipe" not in block:
        raise source.error(at, f"needs a recipe; recipes are {', '.join(names)}")
    if block["recipe"] not in names:
        problem = f"there is no recipe '{block['recipe']}'; {nearest(str(block['recipe']), names)}"
        raise source.error((*at, "recipe"), problem)
    parse(recipes.load(block["recipe"]), block, source, at)


def _check_recipes(params: Params, source: Source) -> None:
    """Refuse compared recipes that are for the other task, whatever the settings they may lack."""
    for method in params.compare.methods:
        block = params.methods.get(method, {})
        task = _task_of(block.get("recipe"))
        if task not in (None, params.task):
            problem = f"{block['recipe']} is for task: {task}; {RECIPE_OF[params.task]}"
            raise source.error(("methods", method, "recipe"), problem)


def _task_of(recipe: Any) -> Task | None:
    """The one task of a recipe; None: its settings say which, or there is no such recipe."""
    if recipe not in recipes.names():
        return None
    try:
        return recipes.load(recipe).model_construct().task
    except AttributeError:  # it looks for a setting
        return None


def _check_task(params: Params, source: Source) -> None:
    """Refuse what only the other task has, and settings that learn the other, where compared."""
    check = _check_verification if params.task == "verification" else _check_classification
    check(params, source)
    for method in params.compare.methods:
        if method not in params.methods:
            continue  # said elsewhere
        recipe = recipes.of(params.methods[method])
        if recipe.task != params.task:
            known = OTHER_TASK.get((recipe.recipe, params.task))
            problem = f"{recipe.recipe} is for task: {recipe.task}; {RECIPE_OF[params.task]}"
            place, problem = known or (("recipe",), problem)
            raise source.error(("methods", method, *place), problem)


def _check_classification(params: Params, source: Source) -> None:
    data, augmentation = params.data, params.training.augmentation
    if data.layout not in CLASS_LAYOUTS:
        problem = f"{data.layout} is for task: verification; use {', '.join(CLASS_LAYOUTS[:-1])} "
        problem += f"or {CLASS_LAYOUTS[-1]}, or set the task"
        raise source.error(("data", "layout"), problem)
    used: dict[tuple[str, ...], bool] = {
        ("data", "splits", "whole"): data.splits.whole != "classes",
        ("pairs", "episodes"): bool(params.pairs.episodes),
        ("model", "views"): params.model.views != 1,
        ("training", "augmentation", "turns_as_classes"): augmentation.turns_as_classes != 1,
    }
    _refuse(used, "verification", source)


def _check_verification(params: Params, source: Source) -> None:
    compare, data = params.compare, params.data
    used: dict[tuple[str, ...], bool] = {
        ("compare", "positive"): compare.positive is not None,
        ("compare", "beta"): compare.beta != 1,
        ("diagnostics", "latent"): params.diagnostics.latent is not None,
    }
    _refuse(used, "classification", source)
    if data.near_duplicates == "group":
        problem = (
            "group is for task: classification, here whole classes are split; use warn or refuse"
        )
        raise source.error(("data", "near_duplicates"), problem)
    names = [episodes.name for episodes in params.pairs.episodes]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise source.error(("pairs", "episodes", number), f"{name} is named twice; remove one")
    if data.layout == "pairs" and data.splits.whole == "groups":
        problem = "layout pairs brings no groups; leave it out, or use classes"
        raise source.error(("data", "splits", "whole"), problem)
    for shots in compare.shots:
        if data.layout == "pairs" and shots != "all":
            problem = f"{shots} images a class cannot be drawn, as layout pairs lists the pairs; "
            raise source.error(("compare", "shots"), f"{problem}use all")


def _refuse(used: dict[tuple[str, ...], bool], task: str, source: Source) -> None:
    """Refuse the first key in use that is for the other ``task``."""
    for key, is_used in used.items():
        if is_used:
            raise source.error(key, f"is for task: {task}; leave it out, or set the task")


def _check_compare(params: Params, source: Source) -> None:
    compare = params.compare
    at = ("compare",)
    for kind, wanted in (("breakdowns", recipes.Breakdown), ("baselines", recipes.Baseline)):
        for method in getattr(compare, kind):
            if method not in params.methods:
                problem = f"there is no method '{method}'; {nearest(method, list(params.methods))}"
                raise source.error((*at, kind), problem)
            recipe = params.methods[method]["recipe"]
            if not issubclass(recipes.load(recipe), wanted):
                other = "baselines" if kind == "breakdowns" else "breakdowns"
                problem = f"'{method}' has the recipe {recipe}, which goes under {other}"
                raise source.error((*at, kind), problem)
    for key in ("methods", "shots", "seeds"):
        values = getattr(compare, key)
        for value in values:
            if values.count(value) > 1:
                place = at if key == "methods" else (*at, key)
                raise source.error(place, f"{value} is named twice; name it once")
    if not compare.methods:
        raise source.error(at, "names no method; list some under breakdowns or baselines")
    if compare.reference not in compare.methods:
        problem = (
            f"'{compare.reference}' is not compared; {nearest(compare.reference, compare.methods)}"
        )
        raise source.error((*at, "reference"), problem)
    for shots in compare.shots:
        if shots != "all" and shots < 1:
            raise source.error((*at, "shots"), f"{shots} must be at least 1, or all")
        if shots == 1 and (compare.breakdowns or params.task == "verification"):
            who = "verification" if params.task == "verification" else "a breakdown"
            problem = f"one image a class makes no pair of one class, which {who} needs; "
            raise source.error((*at, "shots"), f"{problem}use 2 or more")


def _check_budget(params: Params, source: Source) -> None:
    """Refuse a matched budget without a number, and compared recipes that do not match it."""
    if params.compare.budget == "own":
        return
    if params.training.passes is None:
        raise source.error(("training", "passes"), NO_PASSES)
    for method in params.compare.methods:
        if problem := recipes.of(params.methods[method]).unmatched():
            raise source.error(("methods", method, "recipe"), problem)


def _check_weights(params: Params, source: Source) -> None:
    weights = params.weights
    if weights.from_ == "source" and weights.source is None:
        raise source.error(
            ("weights",), "from: source needs source: how to train on the source set"
        )
    if weights.from_ == "source" and params.data.source is None:
        raise source.error(("weights", "from"), "source needs data.source, the images to train on")
    name = params.model.architecture
    if weights.from_ == "imagenet" and name in OWN_ARCHITECTURES:
        problem = f"there are no ImageNet weights of {name} to download; use source, file or none"
        raise source.error(("weights", "from"), problem)


def _check_files(params: Params, source: Source) -> None:
    weights = params.weights
    if not Path(weights.file).exists():
        problem = f"'{weights.file}' is not there; put the file there (for experiments in other "
        problem += "folders, dvc add it), or name the folder pretrained"
        raise source.error(("weights", "file"), problem)
    if not (Path(weights.file).is_file() or Path(weights.file).is_dir()):
        problem = f"'{weights.file}' is no regular file; name one, or the folder pretrained"
        raise source.error(("weights", "file"), problem)
    if weights.from_ == "file" and not Path(weights.file).is_file():
        problem = (
            f"'{weights.file}' is a folder; from: file needs a .safetensors, .pth, .pt or .npy file"
        )
        raise source.error(("weights", "file"), problem)


def untracked_data() -> str | None:
    """What is wrong with data.dvc, and what to do, where DVC would not bring ``data/`` along."""
    data, there = Path("data").exists(), DATA_FILE.exists()
    if not there and not data:
        return "is not there, nor is data/; put your images into data/, then run 'dvc add data'"
    if not there:
        return f"is not there, so {UNTRACKED}"
    try:
        outs = [out["path"] for out in read(DATA_FILE).tree["outs"]]
    except (InputError, KeyError, TypeError):
        return "is no file of DVC; remove it, put your images into data/ and run 'dvc add data'"
    return None if "data" in outs else f"does not name data, so {UNTRACKED}"


def own_data_in_embedded_store() -> bool:
    """Whether data.dvc would push a user's images into the store that is part of the project."""
    try:
        (tracked,) = read(DATA_FILE).tree["outs"]
        stored = f"dvcstore/files/md5/{tracked['md5'][:2]}/{tracked['md5'][2:]}"
        return tracked.get("remote") == "embedded" and not Path(stored).exists()
    except (InputError, KeyError, TypeError, ValueError):
        return False


def positive_is_unknown(params: Params) -> str | None:
    """What is wrong with ``compare.positive``, by the images that were prepared last."""
    positive, table = params.compare.positive, Path("prepared/images.csv")
    if positive is None or not table.exists():
        return None
    with table.open(newline="", encoding="utf-8") as file:
        classes = {line["class"]: None for line in csv.DictReader(file)}
    known = positive in classes
    return None if known else f"'{positive}' is no class; the classes are {', '.join(classes)}"


def _check_there(params: Params) -> None:
    """Refuse images that are not in ``data/``, where that is there, so that nothing brings them."""
    if not Path("data").exists():
        if not DATA_FILE.exists():
            raise InputError(
                f"{DATA_FILE}: is not there, nor is data/; put your images into data/, then run "
                "'dvc add data'"
            )
        return
    asked = {"data.target": params.data.target, "data.source": params.data.source}
    for key, value in asked.items():
        if value is not None and not Path(value).exists():
            none = "; without source images set data.source: null" if key == "data.source" else ""
            raise InputError(f"{PARAMS_FILE}: {key}: {missing(Path(value))}{none}")


def main() -> None:
    """Check params.yaml and the models it names."""
    params = load()
    check_models(params)
    _check_there(params)
    if problem := untracked_data():
        print(f"warning: {DATA_FILE}: {problem}", file=sys.stderr)
    if problem := positive_is_unknown(params):
        problem += ", unless data changed since; the report would fail"
        print(f"warning: {PARAMS_FILE}: compare.positive: {problem}", file=sys.stderr)
    if own_data_in_embedded_store():
        print(
            f"warning: {DATA_FILE}: these are not the embedded images, but dvc push would put them "
            "into dvcstore/; remove the line 'remote: embedded' from data.dvc",
            file=sys.stderr,
        )
    print(f"{PARAMS_FILE} is right", flush=True)


if __name__ == "__main__":
    command(main)
