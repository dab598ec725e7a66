"""Stage ``weights``: the starting weights as a tracked file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import workspace
from pipeline.data import splits
from pipeline.data.batches import load_sets
from pipeline.errors import InputError
from pipeline.models import weights
from pipeline.params import Params, SourceTraining
from pipeline.records import RECORD_VERSION, RunId, file_digest, write_json
from pipeline.stages import common
from pipeline.stages.follow import follow
from pipeline.training import runtime
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.run import Run

SOURCE = Path("prepared/source.npy")
SOURCE_TABLE = Path("prepared/source.csv")


def make_weights(params: Params) -> None:
    """Write ``weights/start.safetensors``, all but the last layer, and ``weights/record.json``."""
    settings, name = params.weights, params.model.architecture
    checkpoint: Checkpoint | None = None
    about: dict[str, Any] = {"version": RECORD_VERSION, "from": settings.from_}
    if settings.from_ == "source":
        assert settings.source is not None
        tensors, about["source"], checkpoint = _train_on_source(params, settings.source)
    elif settings.from_ == "none":
        tensors = {}
    else:
        if settings.from_ == "imagenet":
            found, origin = weights.from_imagenet(name), "weights.from: imagenet"
        else:
            found, origin = weights.from_file(Path(settings.file)), settings.file
        network, classifier = workspace.new_network(params, 2, 0)
        tensors, about["notes"] = weights.fit(found, network, classifier, origin)
    weights.save(workspace.START, tensors)
    write_json(workspace.START.with_name("record.json"), about)
    if checkpoint:
        checkpoint.drop()
    start = f"{len(tensors)} tensors from {settings.from_}" if tensors else "random ones"
    print(f"weights: {start} for {name}")
    for note in about.get("notes", []):
        print(f"weights: {note}")


def _train_on_source(
    params: Params, settings: SourceTraining
) -> tuple[dict[str, Any], Any, Checkpoint]:
    """Train the network end to end by cross-entropy on the source set; all layers but the last.

    A part of each class, ``val``, chooses the epoch. The checkpoint is to be dropped when these
    weights are written.
    """
    device = runtime.start(params.runtime)
    images = splits.read_images(SOURCE_TABLE)
    if images.empty:
        raise InputError(f"{SOURCE_TABLE}: has no images; weights.from: source needs data.source")
    split = splits.cut_validation(images, settings.val, settings.seed)
    rows = {name: images[split == name] for name in ("train", "val")}
    lists = [
        (of["row"].to_numpy(copy=True), of["label"].to_numpy(copy=True)) for of in rows.values()
    ]
    train, val = load_sets(SOURCE, lists, device, params.data.placement)
    classes = int(images["label"].max()) + 1
    network, classifier = workspace.new_network(params, classes, settings.seed)
    run = Run(
        network=network.to(device),
        architecture=params.model.architecture,
        classifier=classifier,
        classes=classes,
        train=train,
        val=val,
        training=params.training,
        seed=settings.seed,
        device=device,
        placement=params.data.placement,
    )
    phases = iter([run.classification("end_to_end", run.network, settings)])
    named = RunId("source", "all", settings.seed)
    asked = {
        "source": settings.model_dump(),
        "model": params.model.model_dump(),
        "training": params.training.model_dump(),
        "data": {"image_size": params.data.image_size, "channels": params.data.channels},
        "runtime": params.runtime.model_dump(),
    }
    inputs = {str(path): file_digest(path) for path in (SOURCE, SOURCE_TABLE)}
    checkpoint = workspace.checkpoint(params, "weights", named, asked, inputs, device)
    (result,) = workspace.train(phases, device, params.runtime, follow(params, named), checkpoint)
    if result.status == "diverged":
        checkpoint.drop()
        raise InputError(f"params.yaml: weights.source: training diverged: {result.reason}")
    tensors = {key: of for key, of in run.network.state_dict().items() if key not in classifier}
    return tensors, result.record(), checkpoint


if __name__ == "__main__":
    common.main(make_weights)
