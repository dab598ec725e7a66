"""A run of classification: how it is loaded, and what its record adds."""

from __future__ import annotations

from typing import Any

from pipeline import workspace
from pipeline.params import Params
from pipeline.training.run import Run

load = workspace.load_run


def outcome(params: Params, made: Run, chosen: dict[str, Any]) -> dict[str, Any]:
    """The validation accuracy of the chosen epoch."""
    accuracy = chosen.get("val/accuracy")
    return {} if accuracy is None else {"metrics": {"best/val_accuracy": accuracy}}
