"""Two ways of doing one job, timed side by side in one process: rows of the performance tables.

A row's module in ``benchmarks/rows`` offers context managers that make a ``Row`` and clear up after
it; ``benchmarks.bench`` and ``benchmarks.gpu`` say which rows at which size.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError

REPETITIONS = 5
FALL = 0.15  # by which share a ratio may be worse than the stored one before it is named


@dataclass(frozen=True)
class Taken:
    """What one repetition took: seconds, for an amount of work such as a number of images."""

    seconds: float
    amount: float = 1.0


Work = Callable[[], Taken]


@dataclass(frozen=True)
class Row:
    """A job, ours against another way of doing it.

    Attributes:
        name: what is timed, such as ``encoder phase, squeezenet1_1 at 128``.
        against: what it is compared with, such as ``bare loop``.
        ours, other: do the job once; they take turns.
        unit: of an amount, ``images`` or ``seconds``; for people. With ``seconds`` the figures
            shown are seconds, else amounts a second.
        wanted: what the ratio, the speed of ours by that of the other, should at least be;
            None: it is shown for comparison.
        at_most: seconds that ours may take, where that is what is wanted.
        parts: filled by ``ours`` with the seconds of each part of the job, by name.
        note: what limits it, in a few words.
        operations: floating-point operations of ours for an amount of one, where they are counted.
        peak: operations a second that the device can do at most, where that is known.
    """

    name: str
    against: str
    ours: Work
    other: Work
    unit: str
    wanted: float | None = None
    at_most: float | None = None
    parts: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    operations: float | None = None
    peak: float | None = None


@dataclass(frozen=True)
class Measured:
    """A row as it was measured: medians over repetitions, and what is asked of it."""

    name: str
    against: str
    unit: str
    ours: float
    other: float
    ratio: float
    lowest: float
    highest: float
    wanted: float | None
    at_most: float | None
    repetitions: int
    parts: dict[str, float]
    note: str
    operations_a_second: float | None = None
    share_of_peak: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether what was wanted is there; None where nothing was."""
        if self.at_most is not None:
            return self.ours <= self.at_most
        return None if self.wanted is None else self.ratio >= self.wanted


Maker = Callable[[], AbstractContextManager[Row]]


def measure(row: Row, repetitions: int = REPETITIONS) -> Measured:
    """Time both ways of a row in turns, the first of a repetition being now one, now the other.

    Each is done once before. A repetition's ratio is of two times taken right after one another,
    so that a machine that is busy for a while slows both; the row's is the median of them.
    """
    row.ours(), row.other()
    for times in row.parts.values():
        times.clear()
    taken: dict[str, list[Taken]] = {"ours": [], "other": []}
    for number in range(repetitions):
        turns = [("ours", row.ours), ("other", row.other)]
        for who, work in turns if number % 2 == 0 else reversed(turns):
            taken[who].append(work())
    speeds = {who: [each.amount / each.seconds for each in all_] for who, all_ in taken.items()}
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["other"], strict=True)]
    shown = {who: statistics.median(found) for who, found in speeds.items()}
    if row.unit == "seconds":
        shown = {
            who: statistics.median(each.seconds for each in all_) for who, all_ in taken.items()
        }
    done = None
    if row.operations is not None:
        done = row.operations * statistics.median(speeds["ours"])
    return Measured(
        name=row.name,
        against=row.against,
        unit=row.unit,
        ours=shown["ours"],
        other=shown["other"],
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        wanted=row.wanted,
        at_most=row.at_most,
        repetitions=repetitions,
        parts={name: statistics.median(times) for name, times in row.parts.items() if times},
        note=row.note,
        operations_a_second=done,
        share_of_peak=done / row.peak if done is not None and row.peak else None,
    )


def table(rows: Iterable[Measured]) -> str:
    """The rows as a table in Markdown."""
    header = ["what", "against", "unit", "ours", "other", "ratio", "of repetitions", "wanted", ""]
    lines = [_line(header), _line(["---"] * len(header))]
    for row in rows:
        unit = row.unit if row.unit == "seconds" else f"{row.unit}/s"
        wanted = f"{row.wanted:g}" if row.wanted is not None else ""
        if row.at_most is not None:
            wanted = f"at most {row.at_most:g} s"
        reached = {True: "reached", False: "NOT reached", None: ""}[row.reached]
        spread = f"{row.lowest:.2f} to {row.highest:.2f}"
        ours, other = (f"{value:.4g}" for value in (row.ours, row.other))
        lines.append(
            _line(
                [
                    *(row.name, row.against, unit, ours, other),
                    *(f"{row.ratio:.2f}", spread, wanted, reached),
                ]
            )
        )
        lines += [_line([said, *[""] * (len(header) - 1)]) for said in _further(row)]
    return "\n".join(lines)


def line(row: Measured) -> str:
    """A finished row in a line, and what it was measured with."""
    wanted = {True: ", reached", False: ", NOT reached", None: ""}[row.reached]
    note = f" ({row.note})" if row.note else ""
    return (
        f"{row.name}: {row.ratio:.2f} ({row.lowest:.2f} to {row.highest:.2f}) "
        f"against {row.against}{_asked(row)}{wanted}{note}"
    )


def missed(rows: Iterable[Measured]) -> list[str]:
    """The rows that do not reach what is wanted, a line each."""
    return [
        f"{row.name}: {_figure(row)}{_asked(row)}, not reached"
        for row in rows
        if row.reached is False
    ]


def fallen(rows: Iterable[Measured], stored: Path, allowed: float = FALL) -> list[str]:
    """What is worse than in a stored table by more than a share, a line for each row."""
    kept = stored_rows(stored)
    return [
        f"{row.name}: the ratio to {row.against} fell from {kept[row.name]['ratio']:.2f} to "
        f"{row.ratio:.2f}, by more than {allowed:.0%}"
        for row in rows
        if row.name in kept and row.ratio < kept[row.name]["ratio"] * (1 - allowed)
    ]


def stored_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a table that ``write`` wrote, by name.

    Raises:
        InputError: it is of another form.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {row["name"]: row | {"ratio": float(row["ratio"])} for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: no table of measurements ({error!r}); write it anew with --store"
        ) from None


def write(path: Path, rows: Iterable[Measured], about: dict[str, Any]) -> None:
    """Write a table as JSON, with what it was measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"about": about, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def about(device: Literal["cpu", "cuda"] | str) -> dict[str, Any]:
    """The machine and the versions, for a table's head."""
    import torch
    import torchvision

    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }
    if device.startswith("cuda"):
        found["cuda"] = torch.version.cuda
    return found


def _further(row: Measured) -> list[str]:
    """What is said below a row of the table."""
    said = []
    if row.parts:
        parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in row.parts.items())
        said.append(f"of it: {parts}")
    if row.operations_a_second is not None:
        share = row.share_of_peak
        of_peak = "" if share is None else f", {share:.1%} of the device's peak"
        said.append(f"ours: {row.operations_a_second / 1e12:.3g} TFLOP/s{of_peak}")
    return said


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _asked(row: Measured) -> str:
    if row.at_most is not None:
        return f", wanted at most {row.at_most:g} s"
    return "" if row.wanted is None else f", wanted {row.wanted:.3g}"


def _figure(row: Measured) -> str:
    return f"{row.ours:.2f} s" if row.at_most is not None else f"{row.ratio:.2f}"
