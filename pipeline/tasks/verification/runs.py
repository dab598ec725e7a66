"""A run of verification: its pairs, and its classes, turned or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline import workspace
from pipeline.data.batches import ImageSet, read_list, read_pairs
from pipeline.data.turns import with_turns
from pipeline.params import Params
from pipeline.records import VAL_TRIALS, RunId, file_digest
from pipeline.training.run import Run

if TYPE_CHECKING:
    from pipeline.recipes import Recipe


def load(params: Params, run: RunId, recipe: Recipe, pairs: bool) -> tuple[Run, dict[str, str]]:
    """See ``pipeline.tasks.runs.Runs``; every recipe gets pairs."""
    made, inputs = workspace.load_run(params, run, recipe, pairs=False, classes=2)
    rows, _ = read_list(run.train_list)
    val_rows, _ = read_list(workspace.VAL_LIST)
    listed = read_pairs(run.trial_list, rows)
    made.val_pairs = read_pairs(VAL_TRIALS, val_rows)
    turns = params.training.augmentation.turns_as_classes
    made.train, made.pairs = with_turns(_numbered(made.train), listed, turns)
    made.val = _numbered(made.val)
    made.classes = 1 + int(torch.cat([made.train.labels, made.val.labels]).max())
    trials = {"trials": file_digest(run.trial_list), "val_trials": file_digest(VAL_TRIALS)}
    return made, inputs | trials


def _numbered(images: ImageSet) -> ImageSet:
    """The same images with their own classes numbered from 0, whatever other splits have."""
    return ImageSet(images.pixels, images.labels.unique(return_inverse=True)[1])


def metrics(chosen: dict[str, Any]) -> dict[str, float]:
    """None: the test stage chooses the threshold and takes the validation scores at it."""
    return {}
