"""Stage ``baseline``: a run of a recipe that is no breakdown."""

from __future__ import annotations

from pipeline import recipes, workspace
from pipeline.params import Params
from pipeline.records import RunId
from pipeline.stages import common
from pipeline.stages.follow import follow, say
from pipeline.tasks import runs


def baseline(params: Params, run: RunId) -> None:
    """Train all phases of the run and write its files."""
    recipe = recipes.of(params.methods[run.method])
    assert isinstance(recipe, recipes.Baseline)
    made, inputs = runs.BY_TASK[params.task].load(params, run, recipe, pairs=False)
    workspace.check_room(run.folder, made.network)
    recipe = workspace.within_budget(params, recipe, made)
    asked = workspace.asked(params, recipe)
    checkpoint = workspace.checkpoint(params, "baseline", run, asked, inputs, made.device)
    results = workspace.train(
        recipe.phases(made),
        made.device,
        params.runtime,
        follow(params, run),
        checkpoint,
    )
    phases = [result.record() for result in results]
    metrics = runs.BY_TASK[params.task].metrics(phases[-1])
    record = workspace.record(
        params, run, recipe, made, inputs, phases, results[-1].reason, metrics
    )
    history = workspace.continue_history([], results)
    gradients = workspace.continue_gradients([], results)
    workspace.write_run(run.folder, made.network.state_dict(), record, history, gradients, results)
    checkpoint.drop()
    say(run, record)


if __name__ == "__main__":
    common.main_run(baseline)
