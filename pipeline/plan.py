"""What ``dvc repro`` is about to make: runs, disk and time. ``python -m pipeline.plan``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import check, recipes
from pipeline.errors import command
from pipeline.params import PARAMS_FILE, Params
from pipeline.records import RunId, read_json, runs_of

STAGE_SECONDS = 5.0  # a stage's start and end: imports, reading, writing
TRAINING = ("encoder", "head", "baseline")
UPSTREAM = ("images", "prepare", "weights")


def stale_runs(params: Params) -> list[RunId]:
    """The runs of ``compare`` that DVC would train, all of them if what they stand on changed."""
    from dvc.repo import Repo

    with Repo(".") as repo:
        stale = {str(n): why for n, why in repo.status().items() if why != ["always changed"]}
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


def describe(params: Params) -> str:
    """The plan in a few lines."""
    stale = stale_runs(params)
    aside = [method for method in params.methods if method not in params.compare.methods]
    total = len(runs_of(params.compare))
    methods = ", ".join(params.compare.methods)
    head = f"{total} runs are compared: {methods}; shots {_listed(params.compare.shots)}; seeds {_listed(params.compare.seeds)}"  # noqa: E501
    if aside:
        head += f"\nnot compared: {', '.join(aside)}"
    if not stale:
        return f"{head}\nnone of them is to be trained"
    speed, model_mb, device = _measure(params)
    classes, images = _counts(params)
    passes = 0
    seconds = 0.0
    for run in stale:
        recipe = recipes.of(params.methods[run.method])
        drawn = images if run.shots == "all" else int(run.shots) * classes
        shown = drawn * max(1, recipe.epochs_in_all())
        passes += shown
        stages = 3 if isinstance(recipe, recipes.Breakdown) else 2
        seconds += shown / speed + stages * STAGE_SECONDS
    copies = 2  # in the workspace and in DVC's cache
    models = sum(1.0 + 0.7 * _encoders(params.methods[run.method]) for run in stale)
    data = params.data
    disk = copies * (models * model_mb + images * data.channels * data.image_size**2 / 1e6)
    return (
        f"{head}\n{len(stale)} of them are to be trained on {device}: about {passes:,} image "
        f"passes at most, {_duration(seconds)}, {max(1, round(disk)):,} MB of disk"
    )


def _encoders(block: dict[str, Any]) -> int:
    """How many encoders a run keeps beside its model."""
    recipe = recipes.of(block)
    return getattr(recipe.encoder, "keep", 1) if isinstance(recipe, recipes.Breakdown) else 0


def _counts(params: Params) -> tuple[int, int]:
    """Classes and training images, as ``prepare`` counted them or as the raw folder has them."""
    summary = Path("prepared/summary.json")
    if summary.exists():
        counted: dict[str, Any] = read_json(summary)
        return int(counted["classes"]), int(counted["splits"]["train"]["images"])
    from pipeline.data import sources

    items = sources.find_images(Path(params.data.target), params.data.layout)
    return len(sources.class_names(items)), len(items)


def _measure(params: Params) -> tuple[float, float, str]:
    """Images a second of a training step here and now, MB of a model, and the device."""
    import torch

    from pipeline.models import architectures
    from pipeline.training import losses, runtime

    device = runtime.start(params.runtime)
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
    print(describe(check.load()), flush=True)


if __name__ == "__main__":
    command(main)
