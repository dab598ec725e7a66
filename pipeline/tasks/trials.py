"""Lists of what verification compares while it trains and to choose a threshold.

A stage has the same dependencies in both tasks, so classification has them too, of no pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.params import Compare
from pipeline.records import TRIAL_COLUMNS, VAL_TRIALS, RunId, write_table

# of validation classes; apart from the pairs, which choose the epoch, as they train nothing
VAL_EPISODES = VAL_TRIALS.with_name("val_episodes.csv")


def write_trials(path: Path, lines: Iterable[Sequence[Any]]) -> None:
    """Write ``set,episode,left,right,same``."""
    write_table(path, lines, TRIAL_COLUMNS)


def write_none(compare: Compare) -> None:
    """Write all lists of these runs with a header alone."""
    for path in (*_of_runs(compare), VAL_TRIALS, VAL_EPISODES):
        write_trials(path, ())


def _of_runs(compare: Compare) -> Iterator[Path]:
    for shots in compare.shots:
        for seed in compare.seeds:
            yield RunId("", shots, seed).trial_list
