"""Stage ``encoder``: the first part of a breakdown, up to the latent."""

from __future__ import annotations

from pipeline import recipes, workspace
from pipeline.params import Params
from pipeline.records import RunId
from pipeline.stages import common
from pipeline.stages.follow import follow, say
from pipeline.tasks import runs


def encoder(params: Params, run: RunId) -> None:
    """Train the encoder on the run's pairs and write it to ``encoder/`` in the run's folder."""
    recipe = recipes.of(params.methods[run.method])
    assert isinstance(recipe, recipes.Breakdown)
    made, inputs = runs.BY_TASK[params.task].load(params, run, recipe, pairs=True)
    recipe = workspace.within_budget(params, recipe, made)
    asked = workspace.asked(params, recipe)
    del asked["method"]["head"]  # neither this nor the rule has a part in it
    del asked["training"]["rule"]
    checkpoint = workspace.checkpoint(params, "encoder", run, asked, inputs, made.device)
    module = recipe.encoder_module(made)
    workspace.check_room(run.folder / "encoder", module)
    results = workspace.train(
        recipe.encoder_phases(made),
        made.device,
        params.runtime,
        follow(params, run),
        checkpoint,
    )
    phases = [result.record() for result in results]
    record = workspace.record(params, run, recipe, made, inputs, phases, results[-1].reason)
    record["parameters"] = asked
    history = workspace.continue_history([], results)
    tensors = workspace.encoder_tensors(module, results[-1].kept)
    gradients = workspace.continue_gradients([], results)
    workspace.write_run(run.folder / "encoder", tensors, record, history, gradients, results)
    checkpoint.drop()
    say(run, record)


if __name__ == "__main__":
    common.main_run(encoder)
