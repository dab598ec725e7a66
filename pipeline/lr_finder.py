"""Find a learning rate: ``python -m pipeline.lr_finder METHOD``.

Trains a phase of a method for some steps while the learning rate rises from very small to very
large, draws the loss against it and suggests one. Source: Smith, "Cyclical Learning Rates for
Training Neural Networks" (WACV 2017), section 3.3. The sweep uses training images alone; the phases
before it are trained as always.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline import check, recipes, workspace
from pipeline.errors import InputError, command
from pipeline.params import Params, nearest
from pipeline.records import RunId, write_table
from pipeline.tasks import runs
from pipeline.training import runtime
from pipeline.training.loop import SMALLER_BATCHES, fit
from pipeline.training.optimizers import make_optimizer
from pipeline.training.phase import Phase, Solve
from pipeline.training.run import Run

FOLDER = Path("lr_finder")
WINDOW = 0.5  # decades either side over which a slope is taken
SMOOTHING = 0.9  # of the exponential moving average of losses
BLOWN_UP = 3.0  # rise above the smallest smoothed loss, in units of it, that ends the sweep
FEWEST_STEPS = 3


@dataclass(frozen=True)
class Sweep:
    """Learning rates and the losses at them, smoothed, each (S,); and the one suggested."""

    rates: np.ndarray
    losses: np.ndarray
    suggested: float


def sweep(
    phase: Phase, device: torch.device, precision: str, lowest: float, highest: float, steps: int
) -> Sweep:
    """Train ``phase`` with a learning rate that rises geometrically; its module is used up.

    Losses are smoothed by an exponential moving average, corrected for its start. The sweep ends
    early where the smoothed loss is four times its smallest, or not finite.

    Raises:
        InputError: the loss blows up in the first steps.
    """
    factors = [group["lr"] / phase.settings.lr for group in phase.groups]
    optimizer = make_optimizer(phase.groups, phase.settings)
    phase.training_mode()
    batches = _endless(phase)
    rates, losses = [], []
    average, best = 0.0, math.inf
    for step, rate in enumerate(np.geomspace(lowest, highest, steps), start=1):
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        batch = next(batches)  # augmented in full precision, as in training
        with runtime.autocast(device, precision):
            loss = phase.loss(batch).mean()
        value = loss.item()
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        smoothed = average / (1 - SMOOTHING**step)
        if not math.isfinite(smoothed) or smoothed > best + BLOWN_UP * abs(best):
            break
        best = min(best, smoothed)
        rates.append(float(rate))
        losses.append(smoothed)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if len(rates) < FEWEST_STEPS:
        raise InputError(
            f"{phase.name}: the loss blows up at a learning rate of {lowest:g} already; start "
            "lower, with --from"
        )
    return Sweep(np.array(rates), np.array(losses), suggest(np.array(rates), np.array(losses)))


def suggest(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate around which the loss falls most steeply against the rate's logarithm.

    Steepness is the slope of a straight line through all losses within half a factor of ten
    either way, so that no noise of single batches decides. Only rates up to the smallest loss are
    considered. Both (S,), S >= 3.
    """
    end = max(3, int(np.argmin(losses)) + 1)
    decades = np.log10(rates[:end])
    reach = int(WINDOW / (decades[1] - decades[0]))
    reach = max(1, min(reach, (end - 1) // 2))
    slopes = [
        np.polyfit(decades[first:last], losses[first:last], 1)[0]
        for first, last in ((n, n + 2 * reach + 1) for n in range(end - 2 * reach))
    ]
    return float(rates[int(np.argmin(slopes)) + reach])


def find_phase(params: Params, run: RunId, name: str | None) -> tuple[Phase, torch.device]:
    """A phase of a method, ready to train; those before it are trained in full first.

    Raises:
        InputError: there is no such phase, or it is solved in closed form; a matched budget is too
            small.
    """
    asked = recipes.of(params.methods[run.method])
    is_breakdown = isinstance(asked, recipes.Breakdown)

    def load() -> Run:
        return runs.BY_TASK[params.task].load(params, run, asked, pairs=is_breakdown)[0]

    made = load()
    recipe = workspace.within_budget(params, asked, made)
    if name is not None:  # known before any phase is trained
        known = [phase.name for phase in _phases(recipe, load())]
        if name not in known:
            raise InputError(
                f"command line: --phase: methods.{run.method} has no phase '{name}'; "
                f"{nearest(name, known)}"
            )
    for phase in _phases(recipe, made):
        if name in (None, phase.name):
            if isinstance(phase, Solve):
                raise InputError(
                    f"methods.{run.method}: its phase {phase.name} is solved in closed form and "
                    "has no learning rate"
                )
            return phase, made.device
        print(f"{run.method}: training {phase.name} first", flush=True)
        fit(phase, made.device, params.runtime.precision)
    raise AssertionError("a recipe has the same phases each time")


def draw(found: Sweep, title: str, current: float, path: Path) -> None:
    """Draw loss against learning rate as SVG, with the suggested and the present rate."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="#0072b2")
    axes.axvline(found.suggested, color="#d55e00", label=f"suggested: {found.suggested:.1e}")
    axes.axvline(current, color="#777777", linestyle="--", label=f"in params.yaml: {current:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed", title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "siamese-breakdown"}):  # else its ids are random
        figure.savefig(path, metadata={"Date": None})


def _phases(recipe: recipes.Recipe, run: Run) -> Iterator[Phase | Solve]:
    if isinstance(recipe, recipes.Breakdown):
        yield from recipe.encoder_phases(run)
        yield from recipe.head_phases(run)
    elif isinstance(recipe, recipes.Baseline):
        yield from recipe.phases(run)


def _endless(phase: Phase) -> Iterator[object]:
    while True:
        yield from phase.batches()


def main() -> None:
    """Sweep, draw, and print the suggestion."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.lr_finder",
        description="Draw loss against learning rate for a phase of a method and suggest one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("method", help="a method of params.yaml")
    parser.add_argument("--phase", help="its phase, such as head; the first if not given")
    parser.add_argument("--shots", help="images a class; the first of compare.shots if not given")
    parser.add_argument("--seed", type=int, help="the first of compare.seeds if not given")
    parser.add_argument("--from", type=float, default=1e-7, dest="lowest", help="lowest rate")
    parser.add_argument("--to", type=float, default=10.0, dest="highest", help="highest rate")
    parser.add_argument("--steps", type=int, default=100, help="training steps")
    given = parser.parse_args()
    _check_sweep(given.lowest, given.highest, given.steps)
    params = check.load()
    run = _run(params, given.method, given.shots, given.seed)
    phase, device = find_phase(params, run, given.phase)
    with runtime.in_one_line(f"{run.name}: {phase.name}", SMALLER_BATCHES):
        found = sweep(
            phase, device, params.runtime.precision, given.lowest, given.highest, given.steps
        )
    path = FOLDER / f"{run.name}-{phase.name}"
    write_table(
        path.with_suffix(".csv"),
        zip(found.rates.tolist(), found.losses.tolist(), strict=True),
        ("lr", "loss"),
    )
    title = f"{given.method}, {phase.name.replace('_', ' ')}"
    draw(found, title, phase.settings.lr, path.with_suffix(".svg"))
    print(
        f"{given.method}: {phase.name}: suggested lr {found.suggested:.1e} "
        f"(params.yaml has {phase.settings.lr:g}); drawn in {path.with_suffix('.svg')}"
    )


def _check_sweep(lowest: float, highest: float, steps: int) -> None:
    if not 0 < lowest < highest < math.inf:
        raise InputError(
            f"command line: --from {lowest:g} --to {highest:g}: must be two rates above 0, the "
            "lower first"
        )
    if steps < FEWEST_STEPS:
        raise InputError(f"command line: --steps {steps}: must be at least {FEWEST_STEPS}")


def _run(params: Params, method: str, shots: str | None, seed: int | None) -> RunId:
    if method not in params.methods:
        known = ", ".join(params.methods)
        raise InputError(f"command line: there is no method '{method}'; there are {known}")
    listed = {str(of): of for of in params.compare.shots}
    if shots is not None and shots not in listed:
        raise InputError(f"command line: --shots: must be one of {', '.join(listed)}")
    if seed is not None and seed not in params.compare.seeds:
        known = ", ".join(map(str, params.compare.seeds))
        raise InputError(f"command line: --seed: must be one of {known}")
    run = RunId(
        method,
        params.compare.shots[0] if shots is None else listed[shots],
        params.compare.seeds[0] if seed is None else seed,
    )
    if not run.train_list.exists():
        raise InputError(f"{run.train_list}: is not there; run dvc repro prepare weights first")
    return run


if __name__ == "__main__":
    command(main)
