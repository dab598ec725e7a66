"""The short table of methods for the terminal, from the files of ``reports/`` alone.

``python -m pipeline.report.summary`` prints it and the ways to look further.
"""

from __future__ import annotations

import csv
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.records import read_json
from pipeline.report import words

REPORTS = Path("reports")
LEAD = re.compile(r"^## The verdict\n\n\*\*(.+)\*\*$", re.MULTILINE)
WIDTH = 100
POPULATIONS = {
    "both": "new seeds and new test data",
    "seeds": "new seeds",
    "units": "new test data",
    "none": "",
}


def summary_table(reports: Path = REPORTS) -> str:
    """The primary metric's mean with its interval, by shots and method, with the verdicts.

    The primary metric is the first of each run in ``results.csv``. Diverged runs are in the means,
    and are counted beside the seeds. Below the table stands what could have been detected.

    Raises:
        InputError: a file of the reports folder is missing or damaged.
    """
    try:
        metric, diverged = _results(reports / "results.csv")
        metrics = read_json(reports / "metrics.json")
        compared = _comparisons(reports / "comparison.csv", metric)
        table = _text(metric, diverged, metrics, compared)
        return f"{table}\n\n{_lead(reports / 'report.md')}"
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename}: there is no such file; make it with 'dvc repro'"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{reports}: its files do not belong together ({error!r}); "
            "make them anew with 'dvc repro evaluate'"
        ) from None


def _lead(path: Path) -> str:
    """The sentence of the report that says which method to use."""
    found = LEAD.search(path.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{path.name} has no verdict")
    plain = re.sub(r"\\(.)", r"\1", found[1]).replace(words.FIXED, " ")
    return textwrap.fill(plain, WIDTH)


def main() -> None:
    """Print the table and where to look further."""
    try:
        print(summary_table())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print("\nLook further:")
    print(f"  {'make ui':<20}  every run, its curves and files, in MLflow")
    print(f"  {REPORTS / 'index.html'!s:<20}  the report, for any browser")


def _results(path: Path) -> tuple[str, dict[tuple[str, str], int]]:
    """The primary metric; diverged runs by (shots, method) in compare order, shots outermost."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path.name} holds no result")
    methods = dict.fromkeys(row["method"] for row in rows)
    shots = dict.fromkeys(row["shots"] for row in rows)
    diverged = Counter(
        (row["shots"], row["method"])
        for row in rows
        if row["metric"] == "diverged" and float(row["value"])
    )
    return rows[0]["metric"], {(s, m): diverged[s, m] for s in shots for m in methods}


def _comparisons(path: Path, metric: str) -> dict[tuple[str, str], dict[str, str]]:
    """The rows of a metric by (shots, method)."""
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (row["shots"], row["method"]): row
            for row in csv.DictReader(file)
            if row["metric"] == metric
        }


def _text(
    metric: str,
    diverged: dict[tuple[str, str], int],
    metrics: dict[str, Any],
    compared: dict[tuple[str, str], dict[str, str]],
) -> str:
    methods = {method for _, method in compared}
    reference = next((method for _, method in diverged if method not in methods), "")
    rows: list[tuple[str, ...]] = [
        (
            "shots",
            "method",
            words.in_table(metric),
            "95 % interval",
            "seeds",
            f"against {reference}",
        )
    ]
    for (shots, method), lost in diverged.items():
        found = metrics[method][shots][metric]
        row = compared.get((shots, method))
        rows.append(
            (
                shots,
                method,
                f"{100 * found['mean']:.1f} %",
                _interval(found["low"], found["high"]),
                f"{found['n']}, {lost} diverged" if lost else str(found["n"]),
                row["verdict"] if row else "(reference)",
            )
        )
    populations = dict.fromkeys(row["population"] for row in compared.values())
    spoken = words.listed([POPULATIONS[of] for of in populations if POPULATIONS[of]])
    heading = f"{words.capital(words.named(metric))}, mean over seeds"
    heading += f" and 95 % interval over {spoken}" if spoken else ""
    table = _aligned(rows, right={0, 2, 3, 4})
    return "\n".join([heading, "", *table, *_detectable(metric, compared)])


def _detectable(metric: str, compared: dict[tuple[str, str], dict[str, str]]) -> list[str]:
    """Of what differs undetectedly, how large a difference these runs would have shown."""
    open_rows = [row for row in compared.values() if row["verdict"] == "no difference detected"]
    sizes = [float(row["detectable"]) for row in open_rows if row["detectable"]]
    if not sizes:
        return []
    least = words.detectable(metric, max(sizes)).replace(words.FIXED, " ")
    seen = f"one of {least} would have been seen four times in five"
    if max(sizes) >= 1 and metric not in words.UNITS:
        but = "" if min(sizes) >= 1 else " but the largest"
        seen = f"these runs are too few to have seen any{but}"
    lines = ["", f"No difference detected: {seen}."]
    wanted = [row["seeds_needed"] for row in open_rows if row["detectable"]]
    n = int(open_rows[0]["n"])
    most = max(map(int, wanted)) if all(wanted) else None
    lines.append(
        f"To see what would matter (compare.smallest_effect), as far as {words.seeds(n)} can tell, "
        f"{words.enough(most, n, 'test data')}."
    )
    return lines


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "–"
    first, last = f"{100 * max(low, 0):.1f}", f"{100 * min(high, 1):.1f}"
    return words.NO_SPREAD if first == last else f"{first} to {last}"


def _aligned(rows: list[tuple[str, ...]], right: set[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


if __name__ == "__main__":
    main()
