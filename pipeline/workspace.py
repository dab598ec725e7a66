"""From prepared files to a run on its device, and from a trained run to its files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.batches import load_sets, read_list, read_pairs
from pipeline.errors import InputError
from pipeline.models import architectures, weights
from pipeline.models.cut import block_ends
from pipeline.params import Params, Runtime
from pipeline.records import (
    CHECKPOINTS,
    RECORD_VERSION,
    RunId,
    check_disk,
    digest,
    file_digest,
    project_root,
    write_history,
    write_json,
    write_table,
)
from pipeline.training import runtime
from pipeline.training.budget import Budget, passes_of, recorded_training
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.loop import Kept, Log, Result, State, fit, snapshot
from pipeline.training.phase import Phase, Solve
from pipeline.training.run import Run
from pipeline.training.steps import check_graphs

if TYPE_CHECKING:  # what it trains is not this file's business
    from pipeline.recipes import Recipe

IMAGES = Path("prepared/images.npy")
START = Path("weights/start.safetensors")
VAL_LIST = Path("prepared/splits/val.csv")
VAL_PAIRS = Path("prepared/pairs/val.csv")
DIGEST_ROWS = 1024  # images read at a time
KEPT = re.compile(r"kept\.(\d+)\.(.+)")  # keys of the encoders beside the best
CHECKPOINT_VERSION = 1
CODE = (  # of training; that of the stage itself is added
    *("data", "models", "recipes", "tasks", "training"),
    *("params.py", "records.py", "workspace.py"),
)
LIBRARIES = ("pytorch-metric-learning", "scikit-learn", "scipy", "torchvision")
GRADIENT_COLUMNS = ("phase", "epoch", "layer", "norm")
AnyRecipe = TypeVar("AnyRecipe", bound="Recipe")
Follow = Callable[[Phase | Solve], AbstractContextManager[Log]]


def load_run(
    params: Params, run: RunId, recipe: Recipe, pairs: bool, classes: int | None = None
) -> tuple[Run, dict[str, str]]:
    """Build a run's network with its starting weights and bring its data near the device.

    Args:
        params: the whole of params.yaml.
        run: which one.
        recipe: of its method.
        pairs: whether pair lists are wanted.
        classes: outputs of the network; None: as many as there are classes to train on.

    Returns:
        the run and the MD5 of each of its inputs by role: ``images`` (the pixels it uses),
        ``train``, ``val``, ``start``, ``pairs``, ``val_pairs``.
    """
    device = runtime.start(params.runtime)
    rows, labels = read_list(run.train_list)
    val_rows, val_labels = read_list(VAL_LIST)
    classes = classes or int(labels.max()) + 1
    name = params.model.architecture
    network, classifier = new_network(params, classes, run.seed)
    inputs = {
        "train": file_digest(run.train_list),
        "val": file_digest(VAL_LIST),
        "images": _pixel_digest(rows, val_rows),
    }
    if recipe.uses_start:
        weights.load_start(network, START, classifier)
        inputs["start"] = file_digest(START)
    if params.runtime.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, val = load_sets(
        IMAGES,
        [(rows, labels), (val_rows, val_labels)],
        device,
        params.data.placement,
        copies=params.training.augmentation.turns_as_classes,
    )
    made = Run(
        network=network.to(device),
        architecture=name,
        classifier=classifier,
        classes=classes,
        train=train,
        val=val,
        training=params.training,
        seed=run.seed,
        device=device,
        method=run.method,
        placement=params.data.placement,
    )
    if pairs:
        made.pairs = read_pairs(run.pair_list, rows)
        made.val_pairs = read_pairs(VAL_PAIRS, val_rows)
        inputs |= {"pairs": file_digest(run.pair_list), "val_pairs": file_digest(VAL_PAIRS)}
    return made, inputs


def new_network(params: Params, classes: int, seed: int) -> tuple[nn.Module, set[str]]:
    """The seed's random network, and the keys of its last layer."""
    name, data = params.model.architecture, params.data
    network = architectures.build(
        name, classes, data.channels, data.image_size, params.model.dropout,
        runtime.stream_seed(seed, "initialisation"),
    )  # fmt: skip
    return network, architectures.classifier_keys(name, data.channels, data.image_size)


def check_room(folder: Path, module: nn.Module) -> None:
    """Refuse, before it is trained, what could not be written after.

    Raises:
        InputError: the disk of ``folder`` has less room than the module takes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(tensor.nbytes for tensor in module.state_dict().values())
    again = "make room there, then run the same command again"
    check_disk(folder, needed, "what is to be trained", again)


def within_budget(params: Params, recipe: AnyRecipe, made: Run) -> AnyRecipe:
    """A run's recipe with the epochs that ``compare.budget`` gives it.

    Args:
        params: the whole of params.yaml.
        recipe: of the run's method, as it stands there.
        made: the run, before any phase of it.

    Raises:
        InputError: ``training.passes`` is null, or too small; the recipe does not say how it is
            matched.
    """
    passes = passes_of(params)
    if passes is None:
        return recipe
    blocks = len(block_ends(made.network)) + 1
    return recipe.matched(
        Budget(passes, made.method, blocks, made.passes_of_pairs, made.passes_of_classes)
    )


def checkpoint(
    params: Params,
    stage: str,
    run: RunId,
    asked: Mapping[str, Any],
    inputs: Mapping[str, str],
    device: torch.device,
) -> Checkpoint:
    """Where a stage of a run keeps how far it is, by all that could alter its results.

    Args:
        params: the whole of params.yaml.
        stage: the name of its file.
        run: which one.
        asked: the parameters that alter what the stage trains.
        inputs: the MD5 of each input.
        device: where it trains.
    """
    about = {
        "version": CHECKPOINT_VERSION,
        "stage": stage,
        "run": [run.method, run.shots, run.seed],
        "parameters": asked,
        "inputs": inputs,
        "versions": runtime.versions(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": runtime.device_name(device),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": params.runtime.threads,
    }
    key = digest(json.dumps(about, sort_keys=True), code_digest(stage))
    folder = (project_root() or Path.cwd()) / CHECKPOINTS
    return Checkpoint(folder / f"{stage}-{run.name}.{key}", device)


def code_digest(stage: str) -> str:
    """MD5 of the code that can alter what a stage trains."""
    here = Path(__file__).parent
    places = [here / name for name in (*CODE, f"stages/{stage}.py")]
    files = sorted(
        file for place in places for file in ([place] if place.is_file() else place.rglob("*.py"))
    )
    parts = ((str(file.relative_to(here)), file.read_bytes()) for file in files)
    return digest(*(part for pair in parts for part in pair))


def train(
    phases: Iterator[Phase | Solve],
    device: torch.device,
    settings: Runtime,
    follow: Follow,
    checkpoint: Checkpoint,
) -> list[Result]:
    """Train phases one after the other; one that diverges is the last.

    They go on from the checkpoint, which may be that of several calls in the same order.

    Raises:
        InputError: CUDA graphs are asked for where there is no CUDA.
    """
    check_graphs(settings, device)
    results: list[Result] = []
    while not results or results[-1].status != "diverged":
        with runtime.in_one_line("latents of a frozen part"):  # they are computed here
            phase = next(phases, None)
        if phase is None:
            break
        checkpoint.begin()
        done = checkpoint.phase_is_finished
        if checkpoint.known and not done:
            epochs = len(checkpoint.known["result"]["history"])
            print(f"{phase.name}: goes on after epoch {epochs}, from a checkpoint")
        with nullcontext(_no_log) if done else follow(phase) as log:
            results.append(
                fit(phase, device, settings.precision, log, checkpoint, settings.cuda_graphs)
            )
    return results


def _no_log(row: dict[str, Any]) -> None:
    """Of a phase that is not followed."""


def asked(params: Params, recipe: Recipe) -> dict[str, Any]:
    """The parameters that a run's training goes by."""
    model = params.model.model_dump()
    if params.task == "verification":
        del model["views"]  # answers alone go by them, and the test records them
    return {
        "method": recipe.model_dump(),
        "task": params.task,
        "model": model,
        "training": recorded_training(params),
        "data": {"image_size": params.data.image_size, "channels": params.data.channels},
        "runtime": params.runtime.model_dump(),
    }


def record(
    params: Params,
    run: RunId,
    recipe: Recipe,
    made: Run,
    inputs: dict[str, str],
    phases: Sequence[dict[str, Any]],
    reason: str,
    metrics: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """``record.json``: what was asked and what became of it; nothing that differs by the hour.

    A run that diverged has none of ``metrics``, which the task adds.
    """
    found = {"cost/images_seen": sum(phase["images_seen"] for phase in phases)}
    return {
        "version": RECORD_VERSION,
        "method": run.method,
        "recipe": recipe.recipe,
        "shots": run.shots,
        "seed": run.seed,
        "status": "diverged" if reason else "finished",
        "reason": reason,
        "classes": made.classes,
        "parameters": asked(params, recipe),
        "phases": list(phases),
        "metrics": found if reason else {**found, **(metrics or {})},
        "inputs": inputs,
        "versions": runtime.versions(),
        "device": runtime.device_name(made.device),
        "threads": params.runtime.threads,
    }


def encoder_tensors(module: nn.Module, kept: Sequence[Kept]) -> State:
    """The tensors of an encoder's file: the best by its own keys, the others' as ``kept.2.…``.

    Args:
        module: the whole encoder as it was left, with the best of ``kept`` in it.
        kept: the states of its last part, best first.
    """
    tensors = snapshot(module)
    for rank, other in enumerate(kept[1:], start=2):
        tensors |= {f"kept.{rank}.{key}": tensor for key, tensor in other.state.items()}
    return tensors


def kept_encoders(path: Path, keys: set[str]) -> list[State]:
    """The encoders of a file that ``encoder_tensors`` made, best first, each whole.

    Raises:
        InputError: the file is broken or of another network.
    """
    tensors = weights.load(path)
    found = {0: {key: of for key, of in tensors.items() if not KEPT.fullmatch(key)}}
    if found[0].keys() != keys:
        raise InputError(f"{path}: is the model of another network; train it again with dvc repro")
    for key, tensor in tensors.items():
        if named := KEPT.fullmatch(key):
            found.setdefault(int(named[1]), dict(found[0]))[named[2]] = tensor
    return [found[rank] for rank in sorted(found)]


def write_run(
    folder: Path,
    tensors: dict[str, Tensor],
    record: dict[str, Any],
    history: Sequence[dict[str, Any]],
    gradients: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
) -> None:
    """Write a run's five files into its folder."""
    weights.save(folder / "model.safetensors", tensors)
    write_json(folder / "record.json", record)
    write_history(folder / "history.csv", history)
    rows = ([row[column] for column in GRADIENT_COLUMNS] for row in gradients)
    write_table(folder / "gradients.csv", rows, GRADIENT_COLUMNS)
    write_json(folder / "timing.json", {"phases": [result.timing() for result in results]})


def continue_history(
    earlier: Sequence[dict[str, Any]], results: Sequence[Result]
) -> list[dict[str, Any]]:
    """History rows of all phases, with ``images_seen`` counted from the run's start."""
    rows = list(earlier)
    seen = int(rows[-1]["images_seen"]) if rows else 0
    for result in results:
        rows += [{**row, "images_seen": seen + row["images_seen"]} for row in result.history]
        seen += result.images_seen
    return rows


def continue_gradients(
    earlier: Sequence[Mapping[str, Any]], results: Sequence[Result]
) -> list[Mapping[str, Any]]:
    """Rows of ``gradients.csv`` of all phases."""
    return [*earlier, *(row for result in results for row in result.gradients)]


def _pixel_digest(*rows: np.ndarray) -> str:
    """As ``records.digest`` of the images' shape and of the pixels of each list, some at a time."""
    pixels = np.load(IMAGES, mmap_mode="r")
    shape = str(pixels.shape[1:]).encode()
    total = hashlib.md5(len(shape).to_bytes(8, "little") + shape, usedforsecurity=False)
    for listed in rows:
        total.update((len(listed) * pixels[:1].nbytes).to_bytes(8, "little"))
        for start in range(0, len(listed), DIGEST_ROWS):
            total.update(pixels[listed[start : start + DIGEST_ROWS]])
    return total.hexdigest()
