"""What ``dvc repro`` is about to make: runs, disk and time. ``python -m pipeline.plan``.

With ``--jobs N``, what ``pipeline.jobs`` is about to make, with N runs at a time.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import check, jobs, recipes
from pipeline.cells import BUSY, mend, wrong_files
from pipeline.data.memory import cores
from pipeline.errors import InputError, command
from pipeline.params import PARAMS_FILE, Block, Optimizer, Params
from pipeline.recipes.breakdown import Encoder
from pipeline.records import PAIRS, RunId, read_json, runs_of
from pipeline.training.budget import Budget, passes_of
from pipeline.training.losses.samplers import class_batch

STAGE_SECONDS = 5.0  # a stage's start and end: imports, reading, writing
FORKED_SECONDS = 1.0  # the same in pipeline.jobs, where imports are done already
TRAINING = ("encoder", "head", "baseline")
UPSTREAM = ("images", "prepare", "weights")


@dataclass(frozen=True)
class Counts:
    """What a plan goes by.

    Attributes:
        images: how many there are in all.
        training: how many of them can be trained on.
        classes: to train on.
        pairs: training pairs of the runs whose lists are made, by ``shots-<n>/seed-<s>``.
        listed: training pairs that the layout lists; 0: they are drawn.
    """

    images: int
    training: int
    classes: int
    pairs: dict[str, int]
    listed: int = 0


class Drawn(NamedTuple):
    """Training images of a run, their classes and pairs; in verification with their turns."""

    images: int
    classes: int
    pairs: int


def stale_runs(params: Params) -> list[RunId]:
    """The runs of ``compare`` that DVC would train, all of them if what they stand on changed."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo

    try:
        with Repo(".") as repo:
            with lock_repo(repo):
                mend()
            stale = {str(n): why for n, why in repo.status().items() if why != ["always changed"]}
    except LockError:
        raise InputError(BUSY) from None
    except DvcException as error:
        raise InputError(wrong_files(error)) from None
    runs = runs_of(params.compare)
    for name, why in stale.items():
        if (name in UPSTREAM and not _only_other_runs(why)) or name.endswith(".dvc"):
            return runs
    cells = {name.split("@", 1)[1] for name in stale if name.split("@", 1)[0] in TRAINING}
    return [run for run in runs if f"{run.method}-{run.shots}-{run.seed}" in cells]


def _only_other_runs(why: list[Any]) -> bool:
    """Whether a stage is stale for other seeds, shots or methods alone, which alter no old list."""
    changed = [key for reason in why for deps in reason.values() for key in deps.items()]
    return bool(changed) and all(
        path.endswith(PARAMS_FILE)
        and isinstance(keys, dict)
        and all(str(key).startswith("compare.") for key in keys)
        for path, keys in changed
    )


def describe(params: Params, at_a_time: int | None = None) -> str:
    """The plan in a few lines.

    Args:
        params: of the project in this folder.
        at_a_time: runs at a time in ``pipeline.jobs``; None: by ``dvc repro``.

    Raises:
        InputError: there is nothing to count, or a matched budget is not given or too small.
    """
    passes_of(params)  # before anything is counted
    stale = stale_runs(params)
    aside = [method for method in params.methods if method not in params.compare.methods]
    total = len(runs_of(params.compare))
    methods = ", ".join(params.compare.methods)
    head = f"{total} runs are compared: {methods}; shots {_listed(params.compare.shots)}; seeds {_listed(params.compare.seeds)}"  # noqa: E501
    if aside:
        head += f"\nnot compared: {', '.join(aside)}"
    if not stale:
        return f"{head}\nnone of them is to be trained"
    counts = count(params)
    head += _matched(params, counts)
    speed, model_mb, device = _measure(params)
    passes = sum(image_passes(params, run, counts) for run in stale)
    stages = sum(3 if run.method in params.compare.breakdowns else 2 for run in stale)
    seconds = passes / speed + stages * (FORKED_SECONDS if at_a_time else STAGE_SECONDS)
    seconds /= min(at_a_time or 1, len(stale), max(1, cores() // params.runtime.threads))
    copies = 2  # in the workspace and in DVC's cache
    models = sum(1.0 + 0.7 * _encoders(params.methods[run.method]) for run in stale)
    data = params.data
    disk = copies * (models * model_mb + counts.images * data.channels * data.image_size**2 / 1e6)
    return (
        f"{head}\n{len(stale)} of them are to be trained on {device}: about {passes:,} image "
        f"passes at most, {_duration(seconds)}, {max(1, round(disk)):,} MB of disk"
    )


def _matched(params: Params, counts: Counts) -> str:
    """A line on the epochs that a matched budget gives each method, at the first shots and seed."""
    if passes_of(params) is None:
        return ""
    compare, told = params.compare, []
    for method in compare.methods:
        run = RunId(method, compare.shots[0], compare.seeds[0])
        epochs = recipe_of(params, run, counts).epochs_in_all()
        told.append(f"{method} {epochs}" if epochs else f"{method} as it is, without epochs")
    return f"\nmatched to {passes_of(params)} passes; epochs in all: {', '.join(told)}"


def recipe_of(params: Params, run: RunId, counts: Counts) -> recipes.Recipe:
    """A run's recipe, with about the epochs that a matched budget gives it.

    Raises:
        InputError: the budget is not given or too small, or the recipe does not say how it is
            matched.
    """
    recipe, passes = recipes.of(params.methods[run.method]), passes_of(params)
    if passes is None:
        return recipe
    drawn, data = _drawn(params, run, counts), params.data
    return recipe.matched(
        Budget(
            passes,
            run.method,
            _blocks(params.model.architecture, data.channels, data.image_size),
            lambda settings: _pass_of_pairs(params, settings, drawn) / max(1, drawn.images),
            _of_classes(params, run.method, drawn),
        )
    )


def image_passes(params: Params, run: RunId, counts: Counts) -> int:
    """About how many images a run's training takes through its network, at most.

    In verification an image that several pairs of a batch share passes once, turned images count
    as well, and a head on pairs takes each image through its fixed encoder once in all, unless
    images are augmented.
    """
    recipe = recipe_of(params, run, counts)
    drawn = _drawn(params, run, counts)
    epochs, images = recipe.epochs_in_all(), drawn.images
    surplus = _surplus(recipe, images, _of_classes(params, run.method, drawn))
    if params.task == "classification":
        return images * max(1, epochs) + surplus
    if not isinstance(recipe, recipes.Breakdown):
        return epochs * _pass_of_pairs(params, recipe, drawn) or images
    kept = _encoders(params.methods[run.method])
    on_head = kept * getattr(recipe.head, "epochs", 0)
    on_encoder = (epochs - on_head) * images + surplus
    if params.training.augmentation.off:
        return on_encoder + kept * images
    return on_encoder + on_head * _pass_of_pairs(params, recipe.head, drawn)


def _drawn(params: Params, run: RunId, counts: Counts) -> Drawn:
    """What a run is trained on."""
    images = counts.training if run.shots == "all" else int(run.shots) * counts.classes
    images = min(images, counts.training)
    made = counts.pairs.get(f"shots-{run.shots}/seed-{run.seed}")
    pairs = made or counts.listed or images * params.pairs.per_image
    turns = params.training.augmentation.turns_as_classes  # 1 in classification
    return Drawn(images * turns, counts.classes * turns, pairs * turns)


@functools.cache
def _blocks(architecture: str, channels: int, image_size: int) -> int:
    """Blocks of a network, which is built without memory."""
    from pipeline.models import architectures
    from pipeline.models.cut import block_ends

    with architectures.empty_on_meta():
        network = architectures.build(architecture, 2, channels, image_size, None, 0)
    return len(block_ends(network)) + 1


def _pass_of_pairs(params: Params, block: Block, drawn: Drawn) -> int:
    """Different images in each batch of pairs, summed over an epoch.

    Where all N images are as likely in a pair, B pairs have ``N (1 - (1 - 1 / N)^(2 B))`` of them
    on average.
    """
    from pipeline.data.batches import batch_count

    batches = batch_count(drawn.pairs, _batch_size(params, block, drawn))
    missed = (1 - 1 / max(1, drawn.images)) ** (2 * drawn.pairs / batches)  # share not in a batch
    return round(batches * drawn.images * (1 - missed))


def _of_classes(params: Params, method: str, drawn: Drawn) -> Callable[[Optimizer, int], float]:
    """See ``pipeline.training.budget.Budget.of_classes``."""

    def passes(settings: Optimizer, per_class: int) -> float:
        from pipeline.data.batches import batch_count

        size = _batch_size(params, settings, drawn)
        where = f"methods.{method}.encoder.per_class"
        together, each = class_batch(drawn.classes, size, per_class, where)
        return batch_count(drawn.images, size) * together * each / max(1, drawn.images)

    return passes


def _surplus(
    recipe: recipes.Recipe, images: int, of_classes: Callable[[Optimizer, int], float]
) -> int:
    """Images that epochs of ``per_class`` a class count beyond every image once, in all."""
    encoder = getattr(recipe, "encoder", None)
    if not isinstance(encoder, Encoder):
        return 0
    parts = zip(encoder.passes_of_parts(of_classes), encoder.epochs_of_parts(), strict=True)
    return round(images * sum((passes - 1) * epochs for passes, epochs in parts))


def _batch_size(params: Params, block: Block, drawn: Drawn) -> int:
    from pipeline.data.batches import auto_batch_size

    size: int | str = getattr(block, "batch_size", None) or params.training.batch_size
    return auto_batch_size(drawn.images) if isinstance(size, str) else size


def _encoders(block: dict[str, Any]) -> int:
    """How many encoders a run keeps beside its model."""
    recipe = recipes.of(block)
    return getattr(recipe.encoder, "keep", 1) if isinstance(recipe, recipes.Breakdown) else 0


def count(params: Params) -> Counts:
    """What there is, as ``prepare`` counted it last or else as the raw folder has it.

    Raises:
        InputError: there is no raw folder, or its layout is wrong.
    """
    summary = Path("prepared/summary.json")
    if summary.exists():
        with suppress(KeyError, TypeError, ValueError):  # it is of another form: not of today
            counted = read_json(summary)
            if ("classes" in counted["splits"]["train"]) == (params.task == "verification"):
                return _count_prepared(params, counted)  # else it is of the other task
    return _count_raw(params)


def _count_prepared(params: Params, counted: dict[str, Any]) -> Counts:
    training = counted["splits"]["train"]
    pairs = {
        name: of["same"] + of["different"]
        for name, of in counted["pairs"].items()
        if name not in ("val", "test")
    }
    listed = max(pairs.values(), default=0) if params.data.layout == "pairs" else 0
    classes = training.get("classes", counted["classes"])
    return Counts(counted["images"], training["images"], classes, pairs, listed)


def _count_raw(params: Params) -> Counts:
    """Splits that are still to be drawn get their shares of images, or of classes and pairs."""
    from pipeline.data import sources

    data = params.data
    found = sources.find(Path(data.target), data.layout, params.task)
    brought = {item.split for item in found.items}
    shares = {"val": data.splits.val, "test": data.splits.test}
    left = 1 - sum(share for name, share in shares.items() if name not in brought)
    training = [item for item in found.items if item.split in ("", "train")]
    classes = len(sources.class_names(training))
    listed = sum(trial.set == PAIRS and trial.split == "train" for trial in found.trials)
    return Counts(
        images=len(found.items),
        training=round(left * len(training)),
        classes=round(left * classes) if params.task == "verification" else classes,
        pairs={},
        listed=round(left * listed),
    )


def _measure(params: Params) -> tuple[float, float, str]:
    """Images a second of a training step here and now, MB of a model, and the device."""
    import torch

    from pipeline.models import architectures
    from pipeline.training import losses, runtime, steps

    device = runtime.start(params.runtime)
    steps.check_graphs(params.runtime, device)
    name, data = params.model.architecture, params.data
    network = architectures.build(
        name, 2, data.channels, data.image_size, params.model.dropout, 0
    ).to(device)
    asked = params.training.batch_size
    size = 32 if asked == "auto" else asked
    shape = (size, data.channels, data.image_size, data.image_size)
    inputs = architectures.normalise(torch.zeros(shape, dtype=torch.uint8, device=device), name)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    network.train()
    for step in range(3):
        if step == 1:  # the first is warm-up
            started = time.perf_counter()
        losses.cross_entropy(network(inputs), labels).mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - started) / 2
    megabytes = sum(tensor.nbytes for tensor in network.state_dict().values()) / 1e6
    return size / seconds, megabytes, runtime.device_name(device)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds / 10)) * 10} seconds"
    if seconds < 5400:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"


def main() -> None:
    """Print the plan of the current params.yaml."""
    match sys.argv[1:]:
        case []:
            at_a_time = None
        case ["--jobs", number]:
            at_a_time = jobs.number_of(number)
        case _:
            raise InputError("usage: python -m pipeline.plan [--jobs N], N runs at a time")
    print(describe(check.load(), at_a_time), flush=True)


if __name__ == "__main__":
    command(main)
