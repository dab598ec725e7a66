"""``make bench``: the CPU's table of speeds, ours against what people would use instead.

    python -m benchmarks.bench [--rows NAME ...] [--repetitions N] [--json FILE] [--store]

Every row is two ways of doing one job, in turns; see ``benchmarks.measure``. Networks have random
weights and images are made on the way, so that nothing is downloaded. Ratios are compared with
those of ``benchmarks/stored/cpu.json``, which ``--store`` writes; where one is worse by more than
15 %, its row is named and the exit status is 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    FALL,
    REPETITIONS,
    Maker,
    Measured,
    about,
    fallen,
    line,
    measure,
    missed,
    stored_rows,
    table,
    write,
)
from benchmarks.rows.decode import in_threads
from benchmarks.rows.encoder import against_bare_loop, against_two_towers
from benchmarks.rows.head import against_encoder_each_epoch
from benchmarks.rows.made import Setting
from benchmarks.rows.repro import nothing_to_do
from benchmarks.rows.stages import live_tracking, outside_training
from benchmarks.rows.trainers import against_metric_learning
from pipeline.errors import InputError, command
from pipeline.params import nearest

STORED = Path(__file__).parent / "stored/cpu.json"
JSON = Path("benchmarks/cpu.json")
OFTEN = 2  # how many times the repetitions of a row that takes but a second


@dataclass(frozen=True)
class Entry:
    """A row of the table: how it is made, and how many times the usual repetitions it takes."""

    make: Maker
    times: int = 1


def entries() -> dict[str, Entry]:
    """The rows by name, each at a size of a second or a few for a repetition on two cores."""
    small = partial(Setting, "small", 8, channels=1, classes=5)
    squeezenet = partial(Setting, "squeezenet1_1", 128)
    bare = partial(partial, against_bare_loop)
    trainers = partial(partial, against_metric_learning)
    head = partial(partial, against_encoder_each_epoch)
    return {
        "encoder_small": Entry(bare(small(640, 32), "embedding", epochs=8), OFTEN),
        "encoder_squeezenet": Entry(bare(squeezenet(200, 20), "features.12", 1, wanted=0.9)),
        "encoder_alexnet": Entry(bare(Setting("alexnet", 224, 64, 32), "classifier.2", 2, 0.9)),
        "towers": Entry(
            partial(
                against_two_towers, squeezenet(200, 20), "features.12",
                epochs=1, tower_steps=5, wanted=3.0,
            )
        ),
        "trainers_small": Entry(trainers(small(200, 20), "embedding", wanted=2.0)),
        "trainers_squeezenet": Entry(
            trainers(squeezenet(40, 20, classes=5), "features.12", wanted=1.3)
        ),
        "head_alexnet": Entry(head(Setting("alexnet", 227, 256, 128), "classifier.3", 20, 1)),
        "head_squeezenet": Entry(head(squeezenet(128, 64), "classifier.0", 20, 1)),
        "head_resnet": Entry(head(Setting("resnet18", 64, 256, 64), "avgpool", 20, 2)),
        "decode": Entry(partial(in_threads, photos=400, side=128, wanted=1.8), OFTEN),
        "stage_baseline": Entry(partial(outside_training, "baseline")),
        "stage_head": Entry(partial(outside_training, "head")),
        "stage_followed": Entry(partial(outside_training, "baseline", followed=True)),
        "live_tracking": Entry(live_tracking),
        "repro": Entry(nothing_to_do),
    }  # fmt: skip


def run(
    chosen: dict[str, Entry], repetitions: int, say: Callable[[str], None]
) -> tuple[list[Measured], dict[str, Any]]:
    """Measure rows one after the other; what they are and what they were measured on.

    Args:
        chosen: the rows.
        repetitions: of a row that takes no more than usual.
        say: takes the head, each row when it is finished, and the whole table.
    """
    head = about("cpu")
    say(", ".join(f"{name} {value}" for name, value in head.items()))
    rows = []
    for entry in chosen.values():
        with entry.make() as row:
            found = measure(row, entry.times * repetitions)
        rows.append(found)
        say(line(found))
    say("\n" + table(rows))
    return rows, head


def choose(names: Sequence[str]) -> dict[str, Entry]:
    """The rows of these names, in the table's order; all without any.

    Raises:
        InputError: there is no such row.
    """
    known = entries()
    for name in names:
        if name not in known:
            raise InputError(
                f"command line: --rows: there is no row '{name}'; {nearest(name, list(known))}"
            )
    return {name: entry for name, entry in known.items() if not names or name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write and compare; the exit status, 1 where a row fell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of each row")
    parser.add_argument("--json", type=Path, default=JSON, metavar="FILE", help="the table's file")
    parser.add_argument("--store", action="store_true", help=f"write {STORED.name} as well")
    given = parser.parse_args(arguments)
    if given.repetitions < 1:
        raise InputError(f"command line: --repetitions {given.repetitions}: must be at least 1")
    if given.store and given.rows:
        raise InputError("command line: --store keeps a whole table; leave --rows out")
    rows, head = run(choose(given.rows), given.repetitions, partial(print, flush=True))
    write(given.json, rows, head)
    for said in missed(rows):
        print(said)
    if given.store:
        write(STORED, rows, head)
        return 0
    return compare(rows, STORED)


def compare(rows: Sequence[Measured], stored: Path) -> int:
    """Say which rows fell against a stored table; the exit status."""
    if not stored.exists():
        print(f"{stored}: is not there, so that nothing is compared; --store writes it")
        return 0
    known = stored_rows(stored)
    for row in rows:
        if row.name not in known:
            print(
                f"{row.name}: is not in {stored.name}, so that nothing guards it; --store adds it"
            )
    fell = fallen(rows, stored)
    for said in fell:
        print(f"FELL: {said}")
    if not fell:
        print(f"no row fell by more than {FALL:.0%} against {stored.name}")
    return int(bool(fell))


if __name__ == "__main__":

    def _program() -> None:
        raise SystemExit(main())

    command(_program)
