"""The short table of methods for the terminal, from the files of ``reports/`` alone.

``python -m pipeline.report.summary`` prints it and the ways to look further.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.records import read_json
from pipeline.report import words

REPORTS = Path("reports")


def summary_table(reports: Path = REPORTS) -> str:
    """The primary metric's mean with its interval, by shots and method, with the verdicts.

    The primary metric is the first of each run in ``results.csv``. Diverged runs are in the means,
    and are counted beside the seeds.

    Raises:
        InputError: a file of the reports folder is missing or damaged.
    """
    try:
        metric, diverged = _results(reports / "results.csv")
        metrics = read_json(reports / "metrics.json")
        verdicts = _verdicts(reports / "comparison.csv", metric)
        return _text(metric, diverged, metrics, verdicts)
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


def _verdicts(path: Path, metric: str) -> dict[tuple[str, str], str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (row["shots"], row["method"]): row["verdict"]
            for row in csv.DictReader(file)
            if row["metric"] == metric
        }


def _text(
    metric: str,
    diverged: dict[tuple[str, str], int],
    metrics: dict[str, Any],
    verdicts: dict[tuple[str, str], str],
) -> str:
    compared = {method for _, method in verdicts}
    reference = next((method for _, method in diverged if method not in compared), "")
    rows: list[tuple[str, ...]] = [
        ("shots", "method", "accuracy", "95 % interval", "seeds", f"against {reference}")
    ]
    for (shots, method), lost in diverged.items():
        found = metrics[method][shots][metric]
        rows.append(
            (
                shots,
                method,
                f"{100 * found['mean']:.1f} %",
                _interval(found["low"], found["high"]),
                f"{found['n']}, {lost} diverged" if lost else str(found["n"]),
                verdicts.get((shots, method), "(reference)"),
            )
        )
    heading = f"{words.capital(words.named(metric))}, mean over seeds"
    return "\n".join([heading, "", *_aligned(rows, right={0, 2, 3, 4})])


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "–"
    return f"{100 * max(low, 0):.1f} to {100 * min(high, 1):.1f}"


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
