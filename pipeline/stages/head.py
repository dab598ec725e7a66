"""Stage ``head``: the second part of a breakdown, on the encoder as it was left."""

from __future__ import annotations

import csv
from typing import Any

from pipeline import recipes
from pipeline.models import weights
from pipeline.params import Params
from pipeline.records import RunId, read_json
from pipeline.stages import common, workspace
from pipeline.stages.follow import follow, say


def head(params: Params, run: RunId) -> None:
    """Train the head and write the files of the whole run."""
    recipe = recipes.of(params.methods[run.method])
    assert isinstance(recipe, recipes.Breakdown)
    made, _ = workspace.load_run(params, run, recipe, pairs=False)
    first = read_json(run.folder / "encoder" / "record.json")
    weights.restore(recipe.encoder_module(made), run.folder / "encoder" / "model.safetensors")
    results = workspace.train(
        recipe.head_phases(made), made.device, params.runtime.precision, follow(params, run)
    )
    phases = first["phases"] + [result.record() for result in results]
    reason = first["reason"] or results[-1].reason
    record = workspace.record(params, run, recipe, made, first["inputs"], phases, reason)
    history = workspace.continue_history(_read_history(run), results)
    workspace.write_run(run.folder, made.network.state_dict(), record, history, results)
    say(run, record)


def _read_history(run: RunId) -> list[dict[str, Any]]:
    with open(run.folder / "encoder" / "history.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    common.main_run(head)
