"""The page that MLflow opens: a saved view of the experiment, and the address that shows it.

Left to itself, MLflow's runs table shows no metric and its charts stand in alphabetical order.
A view is what *Views > Save as new view* would store in MLflow 3.17: a tag of the experiment.
MLflow adds a chart for each metric that the view does not name.
"""

from __future__ import annotations

import json
from typing import Any

NAME = "Compare methods"
KEY = "compare-methods"
TAG = f"mlflow.sharedViewState.{KEY}"
COLUMNS = (
    "test/accuracy",
    "test/macro_f1",
    "test/nll",
    "test/ece",
    "best/val_accuracy",
    "cost/images_seen",
    "cost/train_seconds",
)
# the titles say what MLflow's own axis, which reads "Step", cannot
TEST = "On the test split (a dot or bar a run)"
CURVES = "Cross-entropy phases (step = images seen)"
ENCODER = "Encoder phases (step = images seen)"
MORE = "More scores, and what training cost"
BARS = {
    TEST: ("test/accuracy", "test/nll"),
    MORE: (
        "test/macro_f1",
        "test/ece",
        "best/val_accuracy",
        "cost/images_seen",
        "cost/train_seconds",
        "cost/peak_memory_mb",
    ),
}
LINES = {
    CURVES: ("val/accuracy", "val/loss", "train/loss"),
    ENCODER: ("encoder/val/loss", "encoder/train/loss"),
}
ALL_RUNS = 1000
# without these MLflow smooths the lines and leaves out the axis
LINE = {
    "lineSmoothness": 0,
    "xAxisKey": "step",
    "xAxisScaleType": "linear",
    "selectedXAxisMetricKey": "",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "scaleType": "linear",
    "range": {},
}
HEIGHT = 320  # pixels: the second row of charts shows on a common screen


def page(server: str, experiment_id: str) -> str:
    """The address of the view in its charts, in the mode for model training.

    The mode stands in the address: MLflow 3.17 goes by it, not by the kind of the experiment.
    """
    query = f"workflowType=machine_learning&viewStateShareKey={KEY}&compareRunsMode=CHART"
    return f"{server}/#/experiments/{experiment_id}/runs?{query}"


def saved_view() -> str:
    """The view as the value of its tag: the same bytes each time."""
    columns = [f"metrics.`{name}`" for name in COLUMNS]
    state = {
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "SHOW_ALL",  # else only the first ten are drawn
        "isAccordionReordered": True,
        "compareRunSections": [_section(name) for name in (TEST, CURVES, ENCODER, MORE)],
        "compareRunCharts": _charts(),
    }
    return _json({"name": NAME, "createdAt": 0, "updatedAt": 0, "state": _json(state)})


def _json(value: Any) -> str:
    # without spaces: a tag is no place for much
    return json.dumps(value, separators=(",", ":"))


def _charts() -> list[dict[str, Any]]:
    charts = [_by_method("test/accuracy")]
    for section, metrics in BARS.items():
        charts += [_chart("BAR", section, metric, metricKey=metric) for metric in metrics]
    for section, metrics in LINES.items():
        charts += [_chart("LINE", section, metric, metricKey=metric, **LINE) for metric in metrics]
    return charts


def _by_method(metric: str) -> dict[str, Any]:
    """A dot for each run above its method: unlike bars, these axes do not begin at zero."""
    axes = {"xaxis": {"key": "method", "type": "PARAM"}, "yaxis": {"key": metric, "type": "METRIC"}}
    return _chart("SCATTER", TEST, metric, **axes)


def _chart(kind: str, section: str, metric: str, **more: Any) -> dict[str, Any]:
    place = {"uuid": f"{kind}-{metric}", "type": kind, "metricSectionId": section}
    return {**place, "runsCountToCompare": ALL_RUNS, **more}


def _section(name: str) -> dict[str, Any]:
    about = {"uuid": name, "name": name, "display": True, "isReordered": True}
    return {**about, "cardHeight": HEIGHT}
