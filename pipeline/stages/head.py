"""Stage ``head``: the second part of a breakdown, on the encoder as it was left."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from pipeline import recipes, workspace
from pipeline.models import weights
from pipeline.params import Params
from pipeline.records import RunId, file_digest, places_of, read_record
from pipeline.stages import common
from pipeline.stages.follow import follow, say
from pipeline.tasks import runs
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.loop import Result, State, snapshot
from pipeline.training.run import Run

HISTORY_COLUMNS = ("phase", "epoch", "images_seen")
ENCODER = ("model.safetensors", "record.json")  # what its files can alter in a head


def head(params: Params, run: RunId) -> None:
    """Train a head on each encoder that was kept, and write the files of the whole run.

    Validation picks one of them, by ``training.rule``.
    """
    recipe = recipes.of(params.methods[run.method])
    assert isinstance(recipe, recipes.Breakdown)
    made, inputs = runs.BY_TASK[params.task].load(params, run, recipe, pairs=False)
    workspace.check_room(run.folder, made.network)
    recipe = workspace.within_budget(params, recipe, made)
    first = read_record(run.folder / "encoder")
    asked = workspace.asked(params, recipe)
    of_encoder = {f"encoder/{name}": file_digest(run.folder / "encoder" / name) for name in ENCODER}
    inputs |= of_encoder
    checkpoint = workspace.checkpoint(params, "head", run, asked, inputs, made.device)
    trials = _heads(params, run, recipe, made, len(first["phases"]), checkpoint)
    sound = [trial for trial in trials if trial[0][-1].status == "finished"]
    best = max(sound or trials, key=lambda trial: trial[0][-1].value)  # of equals the first
    weights.put(made.network, best[1])
    results = [result for trial, _ in trials for result in trial]
    last = results.index(best[0][-1]) - len(results)
    phases = first["phases"] + [result.record() for result in results]
    reason = first["reason"] or ("" if sound else best[0][-1].reason)
    metrics = runs.BY_TASK[params.task].metrics(phases[last])
    record = workspace.record(params, run, recipe, made, first["inputs"], phases, reason, metrics)
    if len(trials) > 1:
        record["kept_encoder"] = _kept(first, trials.index(best))
    known = _of_encoder(run, "history.csv", HISTORY_COLUMNS)
    history = workspace.continue_history(known, results)
    known = _of_encoder(run, "gradients.csv", workspace.GRADIENT_COLUMNS)
    gradients = workspace.continue_gradients(known, results)
    workspace.write_run(run.folder, best[1], record, history, gradients, results)
    checkpoint.drop()
    say(run, record, last)


def _heads(
    params: Params,
    run: RunId,
    recipe: recipes.Breakdown,
    made: Run,
    phases: int,
    checkpoint: Checkpoint,
) -> list[tuple[list[Result], State]]:
    """For each kept encoder, best first, the phases after it and the network they left."""
    encoder = recipe.encoder_module(made)
    path = run.folder / "encoder" / "model.safetensors"
    kept = workspace.kept_encoders(path, set(encoder.state_dict()))
    network, start = made.network, snapshot(made.network)
    trials = []
    for number, tensors in enumerate(kept, start=1):
        made.network = network  # a head on pairs took its place
        weights.put(network, start)
        weights.put(encoder, tensors)
        made.phases = phases  # each goes on where the encoder's ended
        results = workspace.train(
            recipe.head_phases(made),
            made.device,
            params.runtime,
            follow(params, run),
            checkpoint,
        )
        for result in results if len(kept) > 1 else []:
            result.rename(f"{result.phase}_{number}")
        trials.append((results, snapshot(made.network)))
    return trials


def _kept(encoder: dict[str, Any], number: int) -> dict[str, int]:
    """Which of the kept encoders the run goes on with: its rank and epoch."""
    return {"rank": number + 1, "epoch": encoder["phases"][-1]["kept_epochs"][number]}


def _of_encoder(run: RunId, table: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
    path = run.folder / "encoder" / table
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        places_of(path, rows.fieldnames or [], wanted)
        return list(rows)


if __name__ == "__main__":
    common.main_run(head)
