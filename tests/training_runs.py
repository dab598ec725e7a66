"""Whole runs by their stages, in this process."""

from collections.abc import Iterable

from pipeline.params import Params
from pipeline.records import RunId, runs_of
from pipeline.stages.baseline import baseline
from pipeline.stages.encoder import encoder
from pipeline.stages.head import head
from pipeline.stages.test import test as predict_test_split


def train(params: Params, run: RunId) -> None:
    if run.method in params.compare.breakdowns:
        encoder(params, run)
        head(params, run)
    else:
        baseline(params, run)


def train_and_test(params: Params, runs: Iterable[RunId] | None = None) -> None:
    """``runs``, or all that are compared."""
    for run in runs or runs_of(params.compare):
        train(params, run)
        predict_test_split(params, run)
