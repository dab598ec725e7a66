"""Draw a validation metric against a swept setting: ``python -m pipeline.sweep METHOD KEY``.

DVC runs a sweep, an experiment a value: ``dvc exp run --queue -S 'methods.finetune.lr=0.01,0.1'``,
then ``dvc queue start``. Every run of every experiment is in MLflow. This reads those of a method
that agree with params.yaml in all but the swept key, and draws them. A setting is chosen by such a
figure, so the metrics of the test split are refused.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from pydantic import ValidationError

from pipeline import check, plan, recipes
from pipeline.colours import colour
from pipeline.errors import InputError, command
from pipeline.evaluation.diagnosis import SEPARABLE
from pipeline.params import PARAMS_FILE, Params, Shots, nearest
from pipeline.records import RunId, read_json, write_atomically, write_table
from pipeline.report import words
from pipeline.report.figures import INK, STYLE, WIDTH, legend, panel, percent
from pipeline.tracking import client as tracking
from pipeline.training.budget import passes_of, recorded_training

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FOLDER = Path("reports/sweeps")
METRIC = "best/val_accuracy"
SECONDS = "cost/train_seconds"
TITLES = {METRIC: "validation accuracy"}
COLUMNS = ("value", "seed", "status", "metric", "score", "seconds")
# sections of which a run records every key; of others just what it uses
WHOLE = ("method", "task", "model", "training", "runtime")
HEIGHT = 300  # points, without the legend
LOG_FROM = 10  # times the smallest value, from which the axis is logarithmic
LABEL_GAP = 0.06  # least width of a label with the space around it, as a share of the axis
LETTER = 0.028  # width of a letter of it
PAGE = 1000
LARGEST_NOTE = 3  # keys that a note names

Value = int | float | str


@dataclass(frozen=True)
class Wish:
    """What is to be drawn.

    Attributes:
        method: a method of params.yaml.
        key: dotted, in the method's block.
        metric: by its name in MLflow.
        shots: training images a class.
        params: all parameters that params.yaml asks for now, as MLflow has them.
        matched: a recorded run's parameters to those of its method that a matched budget makes of
            params.yaml with its value of the key; None where every method has its own budget.
    """

    method: str
    key: str
    metric: str
    shots: str
    params: dict[str, str]
    matched: Callable[[Mapping[str, str]], dict[str, str]] | None = None

    @property
    def name(self) -> str:
        """The swept key with its place in params.yaml."""
        return f"methods.{self.method}.{self.key}"

    @property
    def present(self) -> Value:
        """The swept key's value in params.yaml."""
        return swept_value(self.params, self.key)


@dataclass(frozen=True)
class Point:
    """One run of a sweep; ``score`` is None where the run diverged."""

    value: Value
    seed: int
    status: str
    score: float | None
    seconds: float | None


@dataclass(frozen=True)
class Found:
    """The points of a sweep, by value and seed, and what to say of other runs of the method."""

    points: list[Point]
    notes: list[str]

    @property
    def values(self) -> list[Value]:
        """The swept values, in order."""
        return list(dict.fromkeys(point.value for point in self.points))

    def at(self, value: Value) -> list[Point]:
        """The runs of one value."""
        return [point for point in self.points if point.value == value]


def make_wish(params: Params, method: str, key: str, metric: str, shots: str | None) -> Wish:
    """Check what is asked for.

    Raises:
        InputError: no such method, key or number of shots; a metric of the test split; a matched
            budget sets the key, or counts pairs.
    """
    if method not in params.methods:
        known = nearest(method, list(params.methods))
        raise InputError(f"command line: there is no method '{method}'; {known}")
    if _looks_at_test(metric):
        raise InputError(
            f"command line: --metric: '{metric}' looks at the test split, by which no setting may "
            f"be chosen; name a metric of validation, such as {METRIC}"
        )
    listed = [str(number) for number in params.compare.shots]
    if shots is not None and shots not in listed:
        raise InputError(f"command line: --shots: must be one of {', '.join(listed)}")
    asked = params.model_dump() | {
        "training": recorded_training(params),
        "method": recipes.of(params.methods[method]).model_dump(),
    }
    flat = tracking.flat(asked)
    keys = [name.removeprefix("method.") for name in flat if name.startswith("method.")]
    keys.remove("recipe")
    if key not in keys:
        raise InputError(
            f"command line: methods.{method} has no key '{key}' with one value; "
            f"{nearest(key, keys)}"
        )
    asked_shots = params.compare.shots[listed.index(shots) if shots else 0]
    matched = _matched(params, method, key, asked_shots)
    return Wish(method, key, metric, str(asked_shots), flat, matched)


def _looks_at_test(metric: str) -> bool:
    return metric.startswith("test") or metric == SEPARABLE


def _matched(
    params: Params, method: str, key: str, shots: Shots
) -> Callable[[Mapping[str, str]], dict[str, str]] | None:
    """See ``Wish.matched``."""
    if passes_of(params) is None:
        return None
    if params.task == "verification":
        raise InputError(
            f"{PARAMS_FILE}: compare.budget: matched counts the pairs of each run, so that the "
            "epochs of its runs cannot be told from params.yaml; set it to own to draw a sweep"
        )
    if key.split(".")[-1] in ("epochs", "rounds"):
        raise InputError(
            f"command line: methods.{method}.{key}: is set by compare.budget: matched; name "
            "another key, or set the budget to own"
        )
    counts = plan.count(params)

    def matched(recorded: Mapping[str, str]) -> dict[str, str]:
        block = copy.deepcopy(params.methods[method])
        _put(block, key, _parsed(recorded[f"method.{key}"]))
        swept = params.model_copy(update={"methods": {method: block}})
        run = RunId(method, shots, int(recorded["seed"]))
        return tracking.flat(plan.recipe_of(swept, run, counts).model_dump(), "method.")

    return matched


def _put(block: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of nested blocks."""
    first, _, rest = key.partition(".")
    if rest:
        _put(block.setdefault(first, {}), rest, value)
    else:
        block[first] = value


def find(wish: Wish, place: tracking.Store) -> Found:
    """Read the runs of a sweep from the store.

    They agree with params.yaml in every recorded parameter but the swept one, and, seed by seed,
    in the digests of their images and starting weights with the newest run.

    Raises:
        InputError: no store, a store that cannot be read, no such metric, or fewer than two values.
    """
    if place.database and not place.database.exists():
        raise InputError(f"{place.database}: there is no such store; make it with 'dvc repro'")
    try:
        client = tracking.open_client(place)
        runs = list(_runs(client, wish))
        family = [run for run in runs if not differing(run.data.params, wish)]
        kept = _of_last_inputs(client, family)
    except Exception as error:  # whatever MLflow raises
        why = tracking.reason(error, place.uri)
        raise InputError(f"{tracking.shown(place.uri)}: cannot be read: {why}") from None
    _check_metric(kept, wish)
    found = Found(_points(kept, wish), _left_out(runs, family, kept, wish))
    if len(found.values) < 2:
        raise InputError(_too_few(found, wish))
    found.notes.extend(_incomparable(found, kept))
    return found


def _runs(client: MlflowClient, wish: Wish) -> Iterator[Any]:
    """The method's result runs, newest first; none that is half published."""
    experiment = client.get_experiment_by_name(tracking.RESULTS)
    if experiment is None:
        return
    of = f"tags.method = '{wish.method}' and tags.shots = '{wish.shots}'"
    token = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id], of, max_results=PAGE, page_token=token
        )
        yield from (run for run in page if "config_key" in run.data.tags)
        if not (token := page.token):
            return


def differing(recorded: Mapping[str, str], wish: Wish) -> list[str]:
    """Parameters but the swept one in which a run and params.yaml disagree."""
    about = ("method", "shots", "seed", "recipe")
    run = {key: value for key, value in recorded.items() if key not in about}
    asked = {
        key: value
        for key, value in _asked(recorded, wish).items()
        if key in run or key.partition(".")[0] in WHOLE
    }
    keys = sorted((run.keys() | asked.keys()) - {f"method.{wish.key}"})
    return [key for key in keys if run.get(key) != asked.get(key)]


def _asked(recorded: Mapping[str, str], wish: Wish) -> dict[str, str]:
    """What params.yaml asks of a run with its value of the swept key."""
    if wish.matched is None or f"method.{wish.key}" not in recorded:
        return wish.params
    try:
        method = wish.matched(recorded)
    except (InputError, ValidationError):  # its value does not go with params.yaml's others
        return wish.params
    others = {key: text for key, text in wish.params.items() if not key.startswith("method.")}
    return others | method


def _of_last_inputs(client: MlflowClient, runs: Sequence[Any]) -> list[Any]:
    """The runs, newest first, on the same inputs as the newest of their seed."""
    last: dict[str, dict[str, str]] = {}
    kept = []
    with TemporaryDirectory() as folder:
        for run in runs:
            record = read_json(client.download_artifacts(run.info.run_id, "record.json", folder))
            if last.setdefault(run.data.tags["seed"], record["inputs"]) == record["inputs"]:
                kept.append(run)
    return kept


def _left_out(
    runs: Sequence[Any], family: Sequence[Any], kept: Sequence[Any], wish: Wish
) -> list[str]:
    """How many runs of the method are not of the sweep, and why."""
    notes = []
    if count := len(runs) - len(family):
        keys = Counter(key for run in runs for key in differing(run.data.params, wish))
        most = [key for key, _ in keys.most_common(LARGEST_NOTE)]
        more = ", …" if len(keys) > LARGEST_NOTE else ""
        named = f"{', '.join(most)}{more}".replace("method.", f"methods.{wish.method}.")
        notes.append(f"left out: {_counted(count)} unlike params.yaml in {named}")
    if count := len(family) - len(kept):
        notes.append(f"left out: {_counted(count)} on other images or starting weights")
    return notes


def _incomparable(found: Found, runs: Sequence[Any]) -> Iterator[str]:
    if len({tuple(point.seed for point in found.at(value)) for value in found.values}) > 1:
        yield "not every value has the same seeds, and means over other seeds differ by that too"
    if len(devices := sorted({run.data.tags.get("device", "") for run in runs})) > 1:
        yield f"trained on {', '.join(devices)}: seconds compare on one device alone"


def _counted(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def _check_metric(runs: Sequence[Any], wish: Wish) -> None:
    known = {name for run in runs for name in run.data.metrics if not _looks_at_test(name)}
    finished = [run for run in runs if run.data.tags["status"] == "finished"]
    if finished and wish.metric not in known:
        raise InputError(
            f"command line: --metric: no run of {wish.method} has '{wish.metric}'; "
            f"{nearest(wish.metric, sorted(known))}"
        )


def _points(runs: Sequence[Any], wish: Wish) -> list[Point]:
    """A point a value and seed, in order; of two that come to the same, the newest."""
    points: dict[tuple[Value, int], Point] = {}
    for run in runs:
        value, seed = swept_value(run.data.params, wish.key), int(run.data.tags["seed"])
        status, metrics = run.data.tags["status"], run.data.metrics
        # what a diverged run leaves is no result of its setting
        score = metrics.get(wish.metric) if status == "finished" else None
        point = Point(value, seed, status, score, metrics.get(SECONDS))
        points.setdefault((value, seed), point)
    return sorted(points.values(), key=lambda p: (isinstance(p.value, str), p.value, p.seed))


def swept_value(params: Mapping[str, str], key: str) -> Value:
    """A key's value in a run's parameters as MLflow has them: a number, or text.

    A ``batch_size`` of null is the shared one.
    """
    text = params[f"method.{key}"]
    if text == "null" and key.split(".")[-1] == "batch_size":
        text = params["training.batch_size"]
    value = _parsed(text)
    return value if type(value) in (int, float) else text


def _parsed(text: str) -> Any:
    """A parameter as it was before ``tracking.flat``."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _too_few(found: Found, wish: Wish) -> str:
    shown = ", ".join(map(short, found.values)) or "none"
    noted = "".join(f" ({note})" for note in found.notes)
    return (
        f"{wish.name}: two values are needed and {shown} is recorded{noted}; run "
        f"dvc exp run --queue -S '{wish.name}=VALUE,VALUE' and then dvc queue start"
    )


def short(value: Value) -> str:
    """A value as people write it: ``5e-6``, ``0.01``, ``32``, ``cosine``."""
    if isinstance(value, str):
        return value
    exact = np.format_float_scientific(value, trim="-", exp_digits=1).replace("e+", "e")
    return min(f"{value:.12g}", exact, key=len)


def score_text(metric: str, score: float) -> str:
    """A metric's value for people; shares as percent."""
    return f"{100 * score:.1f} %" if _is_share(metric) else f"{score:.4g}"


def seconds_text(seconds: float) -> str:
    """Seconds with as many decimals as matter."""
    return words.count(seconds, 0 if seconds >= 10 else 2)


def _is_share(metric: str) -> bool:
    return metric.endswith("accuracy")


def _title(metric: str) -> str:
    if metric in TITLES or metric.startswith(("best/", "cost/")):
        return TITLES.get(metric, metric)
    return f"{metric}, last epoch"


def table(found: Found, wish: Wish) -> str:
    """The sweep for the terminal, a line a value; the present one has a mark."""
    header = (wish.key, "", _title(wish.metric), "lowest to highest", "seeds", "seconds", "")
    rows = [header, *(_row(found.at(value), wish) for value in found.values)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)).rstrip()
        + (f"  {row[-1]}" if row[-1] else "")
        for row in rows
    )


def _row(points: Sequence[Point], wish: Wish) -> tuple[str, ...]:
    value = points[0].value
    scores, seconds = _scores(points), _seconds(points)
    spread = [score_text(wish.metric, end) for end in (min(scores), max(scores))] if scores else []
    diverged = sum(point.status == "diverged" for point in points)
    return (
        short(value),
        "*" if value == wish.present else "",
        score_text(wish.metric, fmean(scores)) if scores else "–",
        " to ".join(spread) or "–",
        str(len(points)),
        seconds_text(fmean(seconds)) if seconds else "–",
        f"{diverged} diverged" if diverged else "",
    )


def _scores(points: Sequence[Point]) -> list[float]:
    return [point.score for point in points if point.score is not None]


def _seconds(points: Sequence[Point]) -> list[float]:
    """Of finished runs: one that diverges ends early."""
    return [
        point.seconds
        for point in points
        if point.seconds is not None and point.status == "finished"
    ]


def draw(found: Found, wish: Wish, index: int) -> str:
    """The figure as SVG: every seed a dot, means joined where values are numbers.

    Below it the seconds of training. ``index`` gives the method's colour.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
        where = _places(found.values, upper)
        scores = {where[v]: _scores(found.at(v)) for v in found.values}
        seconds = {where[v]: _seconds(found.at(v)) for v in found.values}
        joined = not any(isinstance(value, str) for value in found.values)
        _dots(upper, scores, index, joined)
        _dots(lower, seconds, index, joined)
        _crosses(upper, [where[p.value] for p in found.points if p.status == "diverged"])
        if wish.present in where:
            style = {"color": INK, "linestyle": "--", "linewidth": 1, "alpha": 0.6, "zorder": 1}
            lower.axvline(where[wish.present], **style)
            upper.axvline(where[wish.present], label="in params.yaml", **style)
        if _is_share(wish.metric):
            percent(upper.yaxis)
        upper.set_ylabel(_title(wish.metric))
        upper.set_title(wish.method, loc="left", fontsize=11)
        upper.tick_params(axis="x", length=0)
        lower.set_ylim(0, 1.2 * max((s for of in seconds.values() for s in of), default=1) or 1)
        lower.yaxis.set_major_locator(MaxNLocator(3))
        lower.yaxis.set_major_formatter(FuncFormatter(_tick))
        lower.set_ylabel("seconds")
        lower.set_xlabel(wish.key)
        legend(figure, upper)
        title = f"{wish.method}: {_title(wish.metric)} against {wish.key}"
        return panel(_stem(wish), "sweep", title, figure).svg


def _tick(seconds: float, _: int) -> str:
    return words.count(seconds) if seconds >= 1000 else f"{seconds:g}"


def _places(values: Sequence[Value], axes: Any) -> dict[Value, float]:
    """Where each value stands on the x axis, which is scaled and labelled for them."""
    numbers = [float(value) for value in values if not isinstance(value, str)]
    if len(numbers) < len(values):
        numbers = [float(place) for place in range(len(values))]
        axes.set_xlim(-0.5, len(values) - 0.5)
    elif numbers[0] > 0 and numbers[-1] >= LOG_FROM * numbers[0]:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    where = dict(zip(values, numbers, strict=True))
    shares = dict(zip(values, _shares(axes, numbers), strict=True))
    axes.set_xticks(numbers, _labels(shares))
    return where


def _shares(axes: Any, numbers: Sequence[float]) -> list[float]:
    """How far along the axis each number stands, from 0 to 1."""
    drawn = axes.xaxis.get_transform().transform(numbers)
    return [float((place - drawn[0]) / (drawn[-1] - drawn[0])) for place in drawn]


def _labels(shares: Mapping[Value, float]) -> list[str]:
    """A label for each value, from left to right, empty where there is no room for it.

    The last value always has its label.
    """
    texts = [short(value) for value in shares]
    rooms = [max(LABEL_GAP, LETTER * len(text)) for text in texts]
    spans = [
        (share - room / 2, share + room / 2)
        for share, room in zip(shares.values(), rooms, strict=True)
    ]
    end, last = -1.0, len(texts) - 1
    for number, (start, stop) in enumerate(spans):
        if number != last and (start < end or stop > spans[last][0]):
            texts[number] = ""
        else:
            end = stop
    return texts


def _dots(axes: Any, by_place: Mapping[float, Sequence[float]], index: int, joined: bool) -> None:
    """Every seed as a dot, and the mean of each value."""
    own = colour(index)
    places = [place for place, values in by_place.items() if values]
    if not places:
        return
    means = [fmean(by_place[place]) for place in places]
    dots = [(place, value) for place in places for value in by_place[place]]
    style = {"color": own, "linewidth": 1.5, "linestyle": "-" if joined else "none"}
    axes.plot(places, means, marker="_", markersize=13, mew=2.5, label="mean", **style)
    axes.plot(
        *zip(*dots, strict=True), "o", color=own, alpha=0.75, markersize=5, mew=0, label="one seed"
    )


def _crosses(axes: Any, places: Sequence[float]) -> None:
    """Diverged runs, which have no score, at the foot of the panel."""
    if places:
        axes.plot(
            places, [0.04] * len(places), "x", color=INK, markersize=6, label="diverged",
            transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip


def _stem(wish: Wish) -> str:
    return f"{wish.method}-{wish.key}"


def write(found: Found, wish: Wish, index: int) -> Path:
    """Write the table and the figure; the figure's path."""
    rows = [(p.value, p.seed, p.status, wish.metric, p.score, p.seconds) for p in found.points]
    write_table(FOLDER / f"{_stem(wish)}.csv", rows, COLUMNS)
    path = FOLDER / f"{_stem(wish)}.svg"
    write_atomically(path, draw(found, wish, index))
    return path


def main() -> None:
    """Read the runs, draw them, and print a short table."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sweep",
        description="Draw a validation metric of a method's recorded runs against a swept key.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("method", help="a method of params.yaml")
    parser.add_argument("key", help="a key of its block, such as lr or encoder.lr")
    parser.add_argument("--metric", default=METRIC, help="by its name in MLflow")
    parser.add_argument("--shots", help="images a class; the first of compare.shots if not given")
    given = parser.parse_args()
    params = check.load(files=False)
    wish = make_wish(params, given.method, given.key, given.metric, given.shots)
    found = find(wish, tracking.store(tracking.project_root()))
    methods = params.compare.methods
    index = methods.index(wish.method) if wish.method in methods else 0
    path = write(found, wish, index)
    print(table(found, wish))
    for note in found.notes:
        print(note)
    marked = "; * is in params.yaml" if wish.present in found.values else ""
    print(f"drawn in {path}{marked}")


if __name__ == "__main__":
    command(main)
