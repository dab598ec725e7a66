"""The short table of methods for the terminal, from the files of ``reports/`` alone.

``python -m pipeline.report.summary`` prints it and the ways to look further.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.records import read_json

REPORTS = Path("reports")
METRIC = "test/accuracy"


def summary_table(reports: Path = REPORTS) -> str:
    """Mean test accuracy with its interval, by shots and method, with the verdicts.

    Raises:
        InputError: a file of the reports folder is missing or damaged.
    """
    try:
        order = _order(reports / "results.csv")
        metrics = read_json(reports / "metrics.json")
        verdicts = _verdicts(reports / "comparison.csv")
        return _text(order, metrics, verdicts)
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename}: there is no such file; make it with 'dvc repro'"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{reports}: its files do not belong together ({error!r}); "
            "make them anew with 'dvc repro evaluate'"
        ) from None


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


def _order(path: Path) -> list[tuple[str, str]]:
    """(shots, method) in compare order, shots outermost."""
    with path.open(encoding="utf-8", newline="") as file:
        found = dict.fromkeys((row["method"], row["shots"]) for row in csv.DictReader(file))
    methods = dict.fromkeys(method for method, _ in found)
    return [(s, m) for s in dict.fromkeys(shots for _, shots in found) for m in methods]


def _verdicts(path: Path) -> dict[tuple[str, str], str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (row["shots"], row["method"]): row["verdict"]
            for row in csv.DictReader(file)
            if row["metric"] == METRIC
        }


def _text(
    order: list[tuple[str, str]], metrics: dict[str, Any], verdicts: dict[tuple[str, str], str]
) -> str:
    compared = {method for _, method in verdicts}
    reference = next((method for _, method in order if method not in compared), "")
    rows: list[tuple[str, ...]] = [
        ("shots", "method", "accuracy", "95 % interval", "seeds", f"against {reference}")
    ]
    for shots, method in order:
        found = metrics[method][shots][METRIC]
        rows.append(
            (
                shots,
                method,
                f"{100 * found['mean']:.1f} %",
                _interval(found["low"], found["high"]),
                str(found["n"]),
                verdicts.get((shots, method), "(reference)"),
            )
        )
    return _aligned(rows, right={0, 2, 3, 4})


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "–"
    return f"{100 * max(low, 0):.1f} to {100 * min(high, 1):.1f}"


def _aligned(rows: list[tuple[str, ...]], right: set[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(["Test accuracy, mean over seeds", "", *lines])


if __name__ == "__main__":
    main()
