"""The page that MLflow opens: a saved view of the experiment, and the address that shows it.

Left to itself, MLflow's runs table shows no metric and its charts stand in alphabetical order.
A view is what *Views > Save as new view* would store in MLflow 3.17: a tag of the experiment.
MLflow adds a chart for each metric that the view does not name, and hides those of metrics that no
run has; so one view does for both tasks.
"""

from __future__ import annotations

import json
from typing import Any

NAME = "Compare methods"
KEY = "compare-methods"
TAG = f"mlflow.sharedViewState.{KEY}"
COLUMNS = (
    "test/accuracy",
    "test/official_accuracy",
    "test/roc_auc",
    "test/eer",
    "test/macro_f1",
    "test/nll",
    "test/ece",
    "best/val_accuracy",
    "latent/probe_val_accuracy",
    "fit/accuracy_gap",
    "cost/images_seen",
    "cost/train_seconds",
)
ONLY_RESULTS = "tags.kind = 'result'"  # a summary of them all has none of their metrics
# what the sections are called; the titles say what MLflow's own axis, which reads "Step", cannot
SECTIONS = {
    "test": "On the test split (a dot or bar a run)",
    "curves": "Cross-entropy phases (step = images seen)",
    "encoder": "Encoder phases (step = images seen)",
    "more": "More scores, and what training and predicting cost",
    "latent": "Inside the networks: latent and fit",
    "gradients": "Gradient norms (step = images seen)",
    "system": "Speed and memory of the last phase",
}
FOLDED = ("latent", "gradients", "system")
DOTS = ("test/accuracy", "test/official_accuracy")  # each in the section test, above the methods
BARS = {
    "test": (
        "test/accuracy",
        "test/official_accuracy",
        "test/roc_auc",
        "test/eer",
        "test/5_way_1_shot_accuracy",
        "test/20_way_1_shot_accuracy",
        "test/nll",
    ),
    "more": (
        "test/tar_at_far_0.01",
        "test/tar_at_far_0.001",
        "test/macro_f1",
        "test/ece",
        "best/val_accuracy",
        "cost/images_seen",
        "cost/train_seconds",
        "cost/predict_seconds",
        "cost/one_image_ms",
        "cost/peak_memory_mb",
        "cost/parameters",
        "cost/multiply_adds",
        "cost/model_mb",
    ),
    "latent": (
        "latent/probe_val_accuracy",
        "latent/probe_train_accuracy",
        "latent/separable_pairs",
        "latent/fisher_ratio",
        "latent/distance_auc",
        "latent/distance_overlap",
        "latent/effective_rank",
        "latent/spread",
        "fit/accuracy_gap",
        "fit/loss_gap",
        "fit/train_accuracy",
        "fit/val_accuracy",
        "fit/train_loss",
        "fit/val_loss",
    ),
    # MLflow's own charts of these go by time, at which runs have nothing in common
    "system": ("system/images_per_second", "system/peak_memory_mb"),
}
LINES = {
    "curves": ("val/accuracy", "val/loss", "train/loss"),
    "encoder": ("encoder/val/loss", "encoder/train/loss"),
    "gradients": (
        "grad/first_to_last",
        "grad/first_norm",
        "grad/last_norm",
        "encoder/grad/first_to_last",
        "encoder/grad/first_norm",
        "encoder/grad/last_norm",
    ),
}
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
        "searchFilter": ONLY_RESULTS,
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "SHOW_ALL",  # else only the first ten are drawn
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunSections": [_section(*section) for section in SECTIONS.items()],
        "compareRunCharts": _charts(),
    }
    return _json({"name": NAME, "createdAt": 0, "updatedAt": 0, "state": _json(state)})


def _json(value: Any) -> str:
    # without spaces: a tag is no place for much
    return json.dumps(value, separators=(",", ":"))


def _charts() -> list[dict[str, Any]]:
    charts = [_by_method(metric) for metric in DOTS]
    for section, metrics in BARS.items():
        charts += [_chart("BAR", section, metricKey=metric) for metric in metrics]
    for section, metrics in LINES.items():
        charts += [_chart("LINE", section, metricKey=metric, **LINE) for metric in metrics]
    return [{"uuid": f"c{number}", **chart} for number, chart in enumerate(charts)]


def _by_method(metric: str) -> dict[str, Any]:
    """A dot for each run above its method: unlike bars, these axes do not begin at zero."""
    axes = {"xaxis": {"key": "method", "type": "PARAM"}, "yaxis": {"key": metric, "type": "METRIC"}}
    return _chart("SCATTER", "test", **axes)


def _chart(kind: str, section: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "metricSectionId": section, **more}


def _section(identity: str, name: str) -> dict[str, Any]:
    shown = identity not in FOLDED
    about = {"uuid": identity, "name": name, "display": shown, "isReordered": True}
    return {**about, "cardHeight": HEIGHT}
