"""A run of classification: how it is loaded, and what its record adds."""

from __future__ import annotations

from typing import Any

from pipeline import workspace

load = workspace.load_run


def metrics(chosen: dict[str, Any]) -> dict[str, float]:
    """The validation accuracy of the chosen epoch."""
    accuracy = chosen.get("val/accuracy")
    return {} if accuracy is None else {"best/val_accuracy": accuracy}
