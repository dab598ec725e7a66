"""The saved view: what MLflow's page needs of it, and that a user's own is left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow.utils import validation

from pipeline.evaluation import diagnosis
from pipeline.tracking import client as tracking
from pipeline.tracking import entries, views
from tests.tracking.conftest import Project

BOTH = {
    "train/loss", "val/loss", "val/accuracy", "encoder/train/loss", "encoder/val/loss",
    "best/val_accuracy", "test/accuracy", "cost/images_seen", "cost/train_seconds",
    "cost/predict_seconds", "cost/peak_memory_mb", "cost/one_image_ms", "cost/parameters",
    "cost/multiply_adds", "cost/model_mb", "system/images_per_second", "system/peak_memory_mb",
    *(f"{of}grad/{name}" for of in ("", "encoder/")
      for name in ("first_norm", "last_norm", "first_to_last")),
    *(value for name, value in vars(diagnosis).items()
      if name.isupper() and str(value).startswith(("latent/", "fit/"))),
}  # fmt: skip
CLASSIFICATION = {"test/macro_f1", "test/nll", "test/ece"}
VERIFICATION = {
    "test/official_accuracy", "test/5_way_1_shot_accuracy", "test/20_way_1_shot_accuracy",
    "test/roc_auc", "test/eer", "test/tar_at_far_0.01", "test/tar_at_far_0.001",
}  # fmt: skip
METRICS = BOTH | CLASSIFICATION | VERIFICATION


def state() -> dict[str, Any]:
    return json.loads(json.loads(views.saved_view())["state"])


def test_every_metric_has_one_chart_in_a_section_that_is_there() -> None:
    charts = state()["compareRunCharts"]
    keys = [chart["metricKey"] for chart in charts if "metricKey" in chart]
    assert sorted(keys) == sorted(METRICS)
    sections = [section["uuid"] for section in state()["compareRunSections"]]
    assert {chart["metricSectionId"] for chart in charts} == set(sections)
    for names in (sections, [chart["uuid"] for chart in charts]):
        assert len(names) == len(set(names))


def test_charts_of_metrics_that_no_run_has_are_hidden() -> None:
    """Each task has some that the other lacks."""
    assert state()["hideEmptyCharts"] is True


def test_dots_stand_above_the_methods() -> None:
    dots = [chart for chart in state()["compareRunCharts"] if chart["type"] == "SCATTER"]
    assert [chart["yaxis"]["key"] for chart in dots] == ["test/accuracy", "test/official_accuracy"]
    assert {chart["xaxis"]["key"] for chart in dots} == {"method"}


def test_the_columns_are_metrics() -> None:
    assert set(views.COLUMNS) <= METRICS
    columns = state()["selectedColumns"]
    assert columns == state()["columnOrder"]
    shown = ("test/accuracy", "test/official_accuracy", "test/roc_auc", "test/eer")
    assert columns[:4] == [f"metrics.`{name}`" for name in shown]


def test_it_is_small_for_a_tag() -> None:
    assert len(views.saved_view()) < 10_000  # half of what a store takes


def test_it_shows_results_alone() -> None:
    """A summary's own metrics would be charts beside those of the runs."""
    assert state()["searchFilter"] == f"tags.{entries.KIND} = '{entries.RESULT}'"


def test_what_few_look_at_is_folded() -> None:
    folded = [part["uuid"] for part in state()["compareRunSections"] if not part["display"]]
    assert folded == ["latent", "gradients", "system"]


def test_a_view_that_the_user_has_changed_stays(project: Project) -> None:
    client = tracking.open_client(project.store)
    number = tracking.experiment(client, tracking.RESULTS, project.store)
    client.set_experiment_tag(number, views.TAG, "mine")
    tracking.experiment(client, tracking.RESULTS, project.store)
    assert client.get_experiment(number).tags[views.TAG] == "mine"
    client.delete_experiment_tag(number, views.TAG)
    tracking.experiment(client, tracking.RESULTS, project.store)
    assert client.get_experiment(number).tags[views.TAG] == views.saved_view()


def test_a_store_whose_tags_are_too_short_goes_without_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a server before MLflow 3.16."""
    monkeypatch.setattr(validation, "MAX_EXPERIMENT_TAG_VAL_LENGTH", 5000)
    client = tracking.open_client(project.store)
    number = tracking.experiment(client, tracking.RESULTS, project.store)
    assert tracking.experiment(client, tracking.RESULTS, project.store) == number
    tags = client.get_experiment(number).tags
    assert views.TAG not in tags and tracking.KIND in tags


def test_the_address_names_the_view_and_the_mode() -> None:
    page = views.page("http://127.0.0.1:5000", "7")
    place, _, query = page.partition("?")
    assert place == "http://127.0.0.1:5000/#/experiments/7/runs"
    assert "workflowType=machine_learning" in query.split("&")
    assert f"viewStateShareKey={views.TAG.removeprefix('mlflow.sharedViewState.')}" in query
