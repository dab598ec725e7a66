"""Files of runs that were never trained: small, seeded, in the form that the stages leave."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from pipeline.evaluation import diagnosis
from pipeline.evaluation.diagnosis import Arrays, Diagnosis, Histogram, Layer
from pipeline.params import Params
from pipeline.records import (
    ANSWER_COLUMNS,
    RunId,
    digest,
    read_json,
    runs_of,
    write_atomically,
    write_history,
    write_json,
    write_table,
)

CLASSES = ("five", "six", "seven", "eight", "nine")
SKILL = {"breakdown": 2.4, "finetune": 3.2, "scratch": 1.2, "siamese": 3.0, "features": 0.8}
PEOPLE = [f"person {number}" for number in range(30)]
TEST_IMAGES = 150
SIDE = 8  # of the pictures, in pixels
NEAR_COLUMNS = (
    *("left", "right", "left_image", "left_class", "left_split"),
    *("right_image", "right_class", "right_split", "similarity", "mirrored"),
)
LAYERS = ("features.0", "features.3", "embedding", "classifier")
# what stands here beside the usual phases is by the names of the methods
PHASES = {
    "two_latents": {"encoder_1": 20, "encoder_2": 15, "head": 20},
    "best_five": {"encoder": 20, **{f"head_{i}": 12 for i in range(1, 6)}},
    "breakdown_finetune": {"encoder": 20, "head": 15, "release": 15},
    "layerwise": {f"round_{i}": 10 for i in range(1, 9)},
    "features_linear": {"head": 40},
    "features_svm": {"solve": 1},
    "features_knn": {"solve": 1},
    "retrained_head": {"end_to_end": 30, "head": 20},
    "joint": {"joint": 45},
}
RECIPES = {"retrained_head": "retrained_head", "breakdown_finetune": "breakdown_finetune"}
MANY_BREAKDOWNS = ("breakdown", "two_latents", "best_five", "breakdown_finetune")
MANY_BASELINES = (
    *("finetune", "scratch", "layerwise", "features_linear", "features_svm", "features_knn"),
    *("retrained_head", "joint"),
)


def fake_params(
    shots: Sequence[int | str] = (5, 20),
    seeds: Sequence[int] = (0, 1, 2),
    breakdowns: Sequence[str] = ("breakdown",),
    baselines: Sequence[str] = ("finetune", "scratch"),
    task: str = "classification",
    **compare: Any,
) -> Params:
    """A whole params.yaml; what the report does not read is kept short."""
    methods = {
        name: {"recipe": RECIPES.get(name, name.split("_")[0]), "lr": 0.01}
        for name in (*breakdowns, *baselines)
    }
    return Params.model_validate(
        {
            "task": task,
            "data": {"target": "data/target", "image_size": 8, "channels": 1},
            "pairs": {"per_image": 8, "positive_fraction": 0.5},
            "model": {"architecture": "small"},
            "weights": {"from": "none"},
            "compare": {
                "breakdowns": list(breakdowns),
                "baselines": list(baselines),
                "reference": "finetune",
                "shots": list(shots),
                "seeds": list(seeds),
                **compare,
            },
            "training": {"batch_size": 16},
            "methods": methods,
            "diagnostics": {"latent": None},
            "runtime": {"threads": 2},
        }
    )


def write_runs(
    params: Params, classes: Sequence[str] = CLASSES, diverged: Sequence[RunId] = ()
) -> None:
    """All files that ``evaluate`` reads, in the working directory."""
    sizes = {"train": 20, "val": 10, "test": 30}
    write_table("prepared/near_duplicates.csv", [], NEAR_COLUMNS)
    write_json(
        "prepared/summary.json",
        {
            "images": 60 * len(classes),
            "classes": len(classes),
            "splits": {
                name: {"images": size * len(classes), "by_class": dict.fromkeys(classes, size)}
                for name, size in sizes.items()
            },
            "groups": 0,
            "left_out": 0,
            "identical_groups": 3,
            "labels_shuffled": False,
        },
    )
    _write_images(classes)
    for run in runs_of(params.compare):
        write_run(run, run.method in params.compare.breakdowns, classes, run in diverged)


def _write_images(classes: Sequence[str]) -> None:
    """The test images as they are prepared: each class a shade of grey, each image its own."""
    labels = np.arange(TEST_IMAGES) % len(classes)
    noise = np.random.default_rng(7).integers(0, 60, (TEST_IMAGES, 1, SIDE, SIDE))
    pixels = noise + (190 * labels // len(classes))[:, None, None, None]
    packed = io.BytesIO()
    np.save(packed, pixels.astype(np.uint8))
    write_atomically("prepared/images.npy", packed.getvalue())
    write_table(
        "prepared/images.csv",
        (
            (row, name, label, classes[label], "test", "")
            for row, (name, label) in enumerate(
                zip(_names(classes, labels), labels.tolist(), strict=True)
            )
        ),
        ("row", "image", "label", "class", "split", "group"),
    )


def _names(classes: Sequence[str], labels: Any) -> list[str]:
    """The test images' names."""
    return [f"{classes[label]}/image {row}.png" for row, label in enumerate(labels.tolist())]


def verification_params(**more: Any) -> Params:
    """As `fake_params`, of methods that verify."""
    usual = {"baselines": ("siamese", "features"), "reference": "siamese", "shots": ("all",)}
    return fake_params(**{"task": "verification", **usual, **more})


def write_verification_runs(
    params: Params, pairs: int = 240, episodes: Sequence[str] = ("official", "5_way_1_shot")
) -> None:
    """As `write_runs`, of verification: so many pairs, and these sets of episodes."""
    sizes = {"min": 1, "median": 2.0, "mean": 3.4567, "max": 53}
    counted = {"images": 1471, "classes": 923, "images_a_class": sizes}
    counted["pairs"] = {"same": 1100, "different": 1200}
    asked = {
        name: {"episodes": len(of), "queries": sum(map(len, of)), "trials": 99}
        for name, of in ((name, _episodes(name)) for name in episodes)
    }
    nothing = {"episodes": 0, "queries": 0, "trials": pairs}
    write_table("prepared/near_duplicates.csv", [], NEAR_COLUMNS)
    write_json(
        "prepared/summary.json",
        {
            "images": 60 * len(PEOPLE),
            "analysis": dict.fromkeys(("train", "val", "test"), counted),
            "trials": {"pairs": nothing, **asked},
            "val_trials": {},
        },
    )
    for run in runs_of(params.compare):
        breakdown = run.method in params.compare.breakdowns
        write_run(run, breakdown, PEOPLE)
        draw = np.random.default_rng([*run.method.encode(), run.seed])
        skill = SKILL[run.method.split("_")[0]]
        rows = [*_pair_rows(skill, pairs, draw)]
        for name in episodes:
            rows += _episode_rows(name, skill, draw)
        write_table(run.predictions, rows, ANSWER_COLUMNS)
        record = read_json(run.folder / "record.json")
        record["inputs"] |= {"trials": digest("trials"), "val_trials": digest("val trials")}
        write_json(run.folder / "record.json", record)


def _pair_rows(skill: float, pairs: int, draw: Any) -> Iterator[tuple[Any, ...]]:
    """Pairs, every other of one person; the questions are the same for all runs."""
    asked = np.random.default_rng(0)
    for number in range(pairs):
        same = (number + 1) % 2
        left, right = asked.choice(len(PEOPLE), 2, replace=False)
        right = left if same else right
        score = 1 / (1 + np.exp(-draw.normal(skill * (same - 0.5), 1.0)))
        names = (PEOPLE[left], PEOPLE[right])
        images = (f"{names[0]}/{number}a.jpg", f"{names[1]}/{number}b.jpg")
        yield "pairs", "", *images, *names, same, int(score >= 0.5), float(score)


def _episodes(name: str) -> list[list[str]]:
    """The classes of each episode, of which each is asked for once."""
    asked = np.random.default_rng([2, *name.encode()])
    count, ways = (20, 20) if name == "official" else (12, int(name.split("_")[0]))
    return [
        [f"run{number}/class{place}" for place in range(ways)]
        if name == "official"
        else [PEOPLE[of] for of in asked.choice(len(PEOPLE), ways, replace=False)]
        for number in range(count)
    ]


def _episode_rows(name: str, skill: float, draw: Any) -> Iterator[tuple[Any, ...]]:
    for episode, classes in enumerate(_episodes(name)):
        for label, own in enumerate(classes):
            right = draw.random() < skill / (skill + 1)
            picked = (
                label if right else int((label + draw.integers(1, len(classes))) % len(classes))
            )
            images = (f"{own}/{episode} query.png", f"{classes[picked]}/{episode}.png")
            yield name, f"run{episode:02}", *images, own, classes[picked], label, picked, 0.75


def write_run(
    run: RunId, breakdown: bool, classes: Sequence[str] = CLASSES, diverged: bool = False
) -> None:
    """The files of one run; a breakdown has an encoder beside its head."""
    draw = np.random.default_rng(
        [*run.method.encode(), 1 if run.shots == "all" else run.shots, run.seed]
    )
    skill = SKILL.get(run.method, 2.0) * (1.6 if run.shots == "all" else run.shots / 20) ** 0.25
    _write_predictions(run, skill, classes, draw)
    write_history(run.folder / "history.csv", _history(run, breakdown, skill, draw))
    _write_timings(run, breakdown, draw)
    picture = io.BytesIO()
    Image.new("RGB", (1126, 20 + run.seed), "grey").save(picture, "png")
    write_atomically(run.examples, picture.getvalue())
    _write_gradients(run, breakdown, draw)
    _write_diagnosis(run, skill, classes, draw)
    write_json(run.folder / "record.json", _record(run, breakdown, len(classes), diverged))


def _write_predictions(run: RunId, skill: float, classes: Sequence[str], draw: Any) -> None:
    labels = np.arange(TEST_IMAGES) % len(classes)
    logits = draw.normal(size=(TEST_IMAGES, len(classes)))
    logits[np.arange(TEST_IMAGES), labels] += skill
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    write_table(
        run.predictions,
        (
            (name, int(labels[row]), int(p[row].argmax()), *p[row].tolist())
            for row, name in enumerate(_names(classes, labels))
        ),
        ["image", "label", "predicted", *(f"p_{name}" for name in classes)],
    )


def _history(run: RunId, breakdown: bool, skill: float, draw: Any) -> list[dict[str, Any]]:
    images = 100 if run.shots == "all" else 5 * run.shots
    rows: list[dict[str, Any]] = []
    for phase, epochs in phases_of(run, breakdown).items():
        for epoch in range(1, epochs + 1):
            loss = 1.6 * np.exp(-skill * len(rows) / 40) + 0.05 * draw.random()
            row = {"phase": phase, "epoch": epoch, "images_seen": images * (len(rows) + 1)}
            row |= {"train/loss": 0.9 * loss, "val/loss": loss}
            if not phase.startswith("encoder"):
                row["val/accuracy"] = 1 - loss / 2
            rows.append(row)
    return rows


def phases_of(run: RunId, breakdown: bool) -> dict[str, int]:
    """The run's phases, and how many epochs each has."""
    usual = {"encoder": 20 + run.seed, "head": 25} if breakdown else {"end_to_end": 45}
    return PHASES.get(run.method, usual)


def _write_timings(run: RunId, breakdown: bool, draw: Any) -> None:
    def timing(phase: str, images: int = 4500) -> dict[str, Any]:
        seconds = 2 + float(draw.random())
        speed = images / seconds
        return {
            "phase": phase,
            "images_seen": images,
            "seconds": seconds,
            "images_per_second": speed,
            "peak_memory_mb": 412.5,
        }

    timings = [timing(phase) for phase in phases_of(run, breakdown)]
    first = [t for t in timings if t["phase"].startswith("encoder")]
    if breakdown:
        write_json(run.folder / "encoder" / "timing.json", {"phases": first})
    write_json(run.folder / "timing.json", {"phases": [t for t in timings if t not in first]})
    tested = {"phases": [timing("test", TEST_IMAGES)], "one_image_seconds": 0.0012}
    write_json(run.test_timing, tested)


def _write_gradients(run: RunId, breakdown: bool, draw: Any) -> None:
    """Of encoders the layers up to the latent, of heads the last; of what is solved for none."""
    rows: list[tuple[Any, ...]] = []
    for phase, epochs in phases_of(run, breakdown).items():
        layers = LAYERS
        if phase.startswith(("encoder", "head")):
            layers = LAYERS[:3] if phase.startswith("encoder") else LAYERS[3:]
        steep = 1.2 if phase.startswith("encoder") else 3.0
        for epoch in range(1, epochs + 1) if phase != "solve" else ():
            norms = np.exp(-epoch / 20) * steep ** np.arange(len(layers))
            rows += [
                (phase, epoch, layer, float(norm * draw.uniform(0.9, 1.1)))
                for layer, norm in zip(layers, norms, strict=True)
            ]
    write_table(run.gradients, rows, ("phase", "epoch", "layer", "norm"))


def _write_diagnosis(run: RunId, skill: float, classes: Sequence[str], draw: Any) -> None:
    latents = draw.normal(size=(60, 4)).astype(np.float32)
    labels = np.arange(60) % len(classes)
    latents[np.arange(60), labels % 4] += 2 * skill
    filters = draw.normal(size=(6, 1, 3, 3)).astype(np.float32)
    arrays = Arrays(
        latents,
        labels,
        np.array(_names(classes, labels)),
        filters[:0] if run.method == "scratch" else filters,
        filters + draw.normal(0, 0.3, filters.shape).astype(np.float32),
    )
    packed = io.BytesIO()
    np.savez(packed, **{name: getattr(arrays, name) for name in Arrays.__dataclass_fields__})
    write_atomically(run.latents, packed.getvalue())
    write_json(run.diagnosis, asdict(_diagnosis(run, skill, classes is not PEOPLE, draw)))


def _diagnosis(run: RunId, skill: float, probed: bool, draw: Any) -> Diagnosis:
    """What a network of that skill might be like inside; in verification no probe is taken."""
    right = float(1 - 0.4 / (1 + skill) - 0.02 * draw.random())
    values = {
        diagnosis.PROBE_TRAIN: 1.0 if probed else None,
        diagnosis.PROBE_VAL: right if probed else None,
        diagnosis.SEPARABLE: 0.9 if probed else None,
        diagnosis.FISHER: skill * right,
        diagnosis.DISTANCE_AUC: right,
        diagnosis.DISTANCE_OVERLAP: 1 - right,
        diagnosis.EFFECTIVE_RANK: 3.2,
        diagnosis.SPREAD: 0.8,
        diagnosis.TRAIN_ACCURACY: 1.0,
        diagnosis.VAL_ACCURACY: right,
        diagnosis.ACCURACY_GAP: 1 - right,
        diagnosis.TRAIN_LOSS: 0.01,
        diagnosis.VAL_LOSS: 2 * (1 - right),
        diagnosis.LOSS_GAP: 2 * (1 - right) - 0.01,
    }
    edges = np.linspace(0, 2.5, 31).tolist()
    near, far = (draw.poisson(_bump(edges, middle)).tolist() for middle in (0.6, 1.3 + skill / 9))
    weights = np.linspace(-1, 1, 31).tolist()
    layers = [
        Layer(
            layer,
            weights,
            None if run.method == "scratch" else draw.poisson(_bump(weights, 0.0)).tolist(),
            draw.poisson(_bump(weights, 0.1)).tolist(),
        )
        for layer in LAYERS
    ]
    return Diagnosis(
        latent="embedding",
        dimension=4,
        values=values,
        collapsed=False,
        cause="",
        same=Histogram(edges, near),
        different=Histogram(edges, far),
        layers=layers,
        parameters=12_345,
        multiply_adds=67_890,
        model_bytes=50_000,
    )


def _bump(edges: Sequence[float], middle: float) -> Any:
    """Expected counts of a bell between the edges."""
    centres = (np.array(edges[1:]) + np.array(edges[:-1])) / 2
    return 60 * np.exp(-(((centres - middle) / 0.3) ** 2))


def _record(run: RunId, breakdown: bool, classes: int, diverged: bool) -> dict[str, Any]:
    inputs = {
        "train": digest(f"train {run.shots} {run.seed}"),
        "val": digest("val"),
        "images": digest(f"images {run.shots} {run.seed}"),
    }
    if run.method != "scratch":
        inputs["start"] = digest("start")
    if breakdown:
        inputs["pairs"] = digest(f"pairs {run.shots} {run.seed}")
    return {
        "version": 1,
        "method": run.method,
        "recipe": run.method,
        "shots": run.shots,
        "seed": run.seed,
        "status": "diverged" if diverged else "finished",
        "reason": "head: train/loss was inf in epoch 3" if diverged else "",
        "classes": classes,
        "parameters": {"method": {"lr": 0.01}},
        "phases": [
            {
                "phase": phase,
                "status": "finished",
                "epochs": epochs,
                "chosen_epoch": epochs // 2 + 1,
            }
            for phase, epochs in phases_of(run, breakdown).items()
        ],
        "metrics": {
            "best/val_accuracy": 0.5 + run.seed / 10,
            "cost/images_seen": 4500 * len(phases_of(run, breakdown)),
        },
        "inputs": inputs,
        "versions": {"python": "3.11.9", "torch": "2.15.0"},
        "device": "cpu",
        "threads": 2,
    }
