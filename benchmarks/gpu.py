"""The GPU's table of speeds, ours against what people would use instead.

    python -m benchmarks.gpu [--device DEVICE] [--rows NAME ...] [--repetitions N] [--quick]
                             [--json FILE] [--profile ROW]

Needs PyTorch 2.11 or later with torchvision, NumPy and Pillow, and nothing else. Where
pytorch-metric-learning is not installed, its rows are left out, which is said. Networks have random
weights and images are made on the way, so that nothing is downloaded. ``--quick`` takes tiny
sizes, to see that all runs.

``--profile`` measures nothing: it runs our way of one row under torch's profiler, and prints in
which share of the time the GPU was busy, and where the time went, by the GPU's and by the host's.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import (
    REPETITIONS,
    Maker,
    Measured,
    Row,
    about,
    line,
    measure,
    missed,
    table,
    write,
)
from benchmarks.rows.encoder import against_bare_loop, against_two_towers
from benchmarks.rows.finetune import against_compiled_step
from benchmarks.rows.head import against_encoder_each_epoch
from benchmarks.rows.made import Setting
from benchmarks.rows.streaming import against_resident
from benchmarks.rows.trainers import against_metric_learning
from pipeline.errors import InputError, command
from pipeline.params import nearest

JSON = Path("benchmarks/gpu.json")
METRIC_LEARNING = "pytorch_metric_learning"
LATENTS = {
    "small": "embedding",
    "squeezenet1_1": "features.12",
    "alexnet": "classifier.2",
    "resnet50": "avgpool",
}
HEAD_LATENTS = {
    "alexnet": "classifier.3",
    "squeezenet1_1": "classifier.0",
    "resnet18": "avgpool",
}
GRAPHS = "_graphs"  # ends the names of rows with CUDA graphs
LINES = 25  # of each table of the profiler


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much the rows do.

    Attributes:
        small, squeezenet, alexnet, resnet: the side of the images, how many there are, and how
            many a batch.
        epochs: of an encoder phase in one repetition.
        tower_steps: steps of two towers in one repetition.
        trainer_images: photos, or drawings, of the rows that start from files.
        trainer_epochs, head_epochs, finetune_epochs: of those phases.
        finetune_images, head_images: to train on.
    """

    small: tuple[int, int, int] = (8, 1280, 32)
    squeezenet: tuple[int, int, int] = (128, 2048, 64)
    alexnet: tuple[int, int, int] = (224, 2048, 128)
    resnet: tuple[int, int, int] = (224, 1024, 64)
    epochs: int = 4
    tower_steps: int = 100
    trainer_images: int = 500
    trainer_epochs: int = 20
    head_images: int = 2000
    head_epochs: int = 20
    finetune_images: int = 2000
    finetune_epochs: int = 80


QUICK = Sizes(
    small=(8, 20, 10),
    squeezenet=(32, 8, 4),
    alexnet=(64, 4, 4),
    resnet=(32, 4, 2),
    epochs=4,  # more steps than are made before one is recorded
    tower_steps=1,
    trainer_images=20,
    trainer_epochs=1,
    head_images=4,
    head_epochs=4,
    finetune_images=4,
    finetune_epochs=4,
)


def entries(device: torch.device, sizes: Sizes) -> dict[str, Maker]:
    """The rows by name; on a CUDA device those of training twice, with and without CUDA graphs."""
    made = _entries(device, sizes, cuda_graphs=False)
    if device.type == "cuda":
        recorded = _entries(device, sizes, cuda_graphs=True)
        once = ("streaming", "towers")
        made |= {
            f"{name}{GRAPHS}": _warmed(of)
            for name, of in recorded.items()
            if not name.startswith(once)
        }
    return made


def _entries(device: torch.device, sizes: Sizes, cuda_graphs: bool) -> dict[str, Maker]:
    exact, fast = (
        _networks(device, sizes, precision, cuda_graphs) for precision in ("fp32", "bf16")
    )
    steps = {"epochs": sizes.epochs}
    made: dict[str, Maker] = {}
    for setting in (*exact.values(), *fast.values()):
        name, wanted = setting.architecture, None if setting.architecture == "small" else 0.9
        made[f"encoder_{name}_{setting.precision}"] = _row(
            against_bare_loop, setting, LATENTS[name], wanted=wanted, **steps
        )
    made["towers"] = _row(
        against_two_towers, fast["squeezenet1_1"], LATENTS["squeezenet1_1"],
        tower_steps=sizes.tower_steps, wanted=3.0, **steps,
    )  # fmt: skip
    for name in ("small", "squeezenet1_1"):
        # fp32, as the library's trainers
        setting = dataclasses.replace(exact[name], images=sizes.trainer_images, classes=5)
        made[f"trainers_{name}"] = _row(
            against_metric_learning, setting, LATENTS[name], epochs=sizes.trainer_epochs, wanted=5.0
        )
    for setting in _head_settings(fast, sizes):
        name = setting.architecture
        made[f"head_{name}"] = _row(
            against_encoder_each_epoch, setting, HEAD_LATENTS[name], epochs=sizes.head_epochs
        )
    made["finetune"] = partial(
        against_compiled_step, _finetuned(fast, sizes), sizes.finetune_epochs, wanted=0.85,
        compiled=device.type == "cuda",
    )  # fmt: skip
    for name in ("small", "squeezenet1_1", "alexnet"):
        made[f"streaming_{name}"] = _row(
            against_resident, fast[name], LATENTS[name], wanted=0.8, **steps
        )
    return made


def available(rows: dict[str, Maker]) -> dict[str, Maker]:
    """The rows that can be measured here; says which are left out."""
    if importlib.util.find_spec(METRIC_LEARNING) is not None:
        return rows
    without = {name: make for name, make in rows.items() if not name.startswith("trainers")}
    left = ", ".join(name for name in rows if name not in without)
    print(f"left out, as pytorch-metric-learning is not installed: {left}", flush=True)
    return without


def choose(rows: dict[str, Maker], names: Sequence[str], option: str) -> dict[str, Maker]:
    """The rows of these names, in the table's order; all without any.

    Raises:
        InputError: there is no such row.
    """
    for name in names:
        if name not in rows:
            raise InputError(
                f"command line: {option}: there is no row '{name}'; {nearest(name, list(rows))}"
            )
    return {name: make for name, make in rows.items() if not names or name in names}


def find_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        InputError: it is not there, or not one that can be timed.
    """
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdigit() or name == kind):
        raise InputError(f"command line: --device {name}: must be cuda, cuda:<number> or cpu")
    found = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= found:
        raise InputError(
            f"command line: --device {name}: is not there ({found} CUDA devices found); "
            "--device cpu --quick tries the rows without one"
        )
    return torch.device(name)


def run(rows: dict[str, Maker], repetitions: int) -> tuple[list[Measured], list[str]]:
    """Measure rows one after the other, saying each when it is finished, and the table last.

    Time on a borrowed machine is short: a row that fails costs no other, and its error is printed.
    But a recording that failed may leave the device in it: no other row with CUDA graphs is begun.

    Returns:
        what was measured, and the names of the rows that were not.
    """
    found: list[Measured] = []
    failed: list[str] = []
    for name, make in rows.items():
        if name.endswith(GRAPHS) and any(other.endswith(GRAPHS) for other in failed):
            failed.append(name)
            continue
        try:
            with make() as row:
                found.append(measure(row, repetitions))
        except Exception:
            traceback.print_exc()
            failed.append(name)
        else:
            print(line(found[-1]), flush=True)
    print("\n" + table(found), flush=True)
    return found, failed


def profiled(make: Maker, device: torch.device) -> str:
    """Where the time of our way of a row goes, after it was run once."""
    with make() as row:
        row.ours()
        told = [row.name]
        if device.type == "cuda":
            alone = [ProfilerActivity.CUDA]  # slows the host least
            with profile(activities=alone, acc_events=True) as light:
                taken = row.ours()
            busy = busy_seconds(light.events())
            told.append(
                f"the GPU was busy for {busy:.3f} s of {taken.seconds:.3f} s, "
                f"{busy / taken.seconds:.0%}"
            )
        activities = [ProfilerActivity.CPU]
        activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
        with profile(activities=activities, acc_events=True) as whole:
            row.ours()
    by = {"self_cpu_time_total": "by the host's time"}
    if device.type == "cuda":
        by = {"self_device_time_total": "by the GPU's time", **by}
    averages = whole.key_averages()
    for column, said in by.items():
        told += [said, averages.table(sort_by=column, row_limit=LINES, max_name_column_width=60)]
    return "\n".join(told)


def busy_seconds(events: Iterable[Any]) -> float:
    """Seconds in which a GPU did anything: its events' time, what overlaps counted once.

    Args:
        events: the profiler's, of all devices, with times in microseconds.
    """
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA
    )
    busy = until = 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write; or profile a row.

    Raises:
        InputError: a row or a device is not there; at the end, naming the rows that failed.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cuda", help="cuda, cuda:<number> or cpu")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of each row")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all runs")
    parser.add_argument("--json", type=Path, default=JSON, metavar="FILE", help="the table's file")
    parser.add_argument("--profile", metavar="ROW", help="say where the time of this row goes")
    given = parser.parse_args(arguments)
    if given.repetitions < 1:
        raise InputError(f"command line: --repetitions {given.repetitions}: must be at least 1")
    device = find_device(given.device)
    sizes = QUICK if given.quick else Sizes()
    if given.profile:
        short = dataclasses.replace(sizes, finetune_epochs=min(2, sizes.finetune_epochs))
        (make,) = choose(entries(device, short), [given.profile], "--profile").values()
        print(profiled(make, device))
        return
    rows = choose(available(entries(device, sizes)), given.rows, "--rows")
    head = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), **about(given.device)}
    print(", ".join(f"{name} {value}" for name, value in head.items()), flush=True)
    found, failed = run(rows, given.repetitions)
    write(given.json, found, head)
    for said in missed(found):
        print(said)
    if failed:
        raise InputError(f"not measured, by the errors above: {', '.join(failed)}")


def _row(
    make: Callable[..., AbstractContextManager[Row]], setting: Setting, *given: Any, **named: Any
) -> Maker:
    """A maker whose row says its precision."""

    @contextmanager
    def made() -> Iterator[Row]:
        with make(setting, *given, **named) as row:
            yield dataclasses.replace(row, name=f"{row.name}, {setting.arithmetic}")

    return made


def _warmed(make: Maker) -> Maker:
    """A maker whose other way is made once before it is timed: recording ours frees its memory."""

    @contextmanager
    def made() -> Iterator[Row]:
        with make() as row:
            yield dataclasses.replace(row, other=lambda: (row.other(), row.other())[1])

    return made


def _networks(
    device: torch.device, sizes: Sizes, precision: str, cuda_graphs: bool
) -> dict[str, Setting]:
    """Settings by architecture; in bf16 with the channels last, as tensor cores take them."""
    kinds = {
        "small": sizes.small,
        "squeezenet1_1": sizes.squeezenet,
        "alexnet": sizes.alexnet,
        "resnet50": sizes.resnet,
    }
    return {
        name: Setting(
            name, *size,
            channels=1 if name == "small" else 3,
            classes=5 if name == "small" else 2,
            device=device, precision=precision, channels_last=precision == "bf16",
            cuda_graphs=cuda_graphs,
        )
        for name, size in kinds.items()
    }  # fmt: skip


def _head_settings(networks: dict[str, Setting], sizes: Sizes) -> Iterator[Setting]:
    alexnet, squeezenet = networks["alexnet"], networks["squeezenet1_1"]
    side = min(64, squeezenet.side)
    resnet = dataclasses.replace(squeezenet, architecture="resnet18", side=side)
    for setting in (_classic(alexnet), squeezenet, resnet):
        yield dataclasses.replace(setting, images=sizes.head_images)


def _finetuned(networks: dict[str, Setting], sizes: Sizes) -> Setting:
    return dataclasses.replace(_classic(networks["alexnet"]), images=sizes.finetune_images)


def _classic(alexnet: Setting) -> Setting:
    """AlexNet on images of 227 instead of 224, as the comparisons of old have it."""
    return dataclasses.replace(alexnet, side=alexnet.side + 3)


if __name__ == "__main__":
    command(main)
