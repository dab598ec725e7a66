"""The summary run: made once, renewed with its report, and no trouble to the results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.records import RunId, write_table
from pipeline.tracking import client as tracking
from pipeline.tracking import mirror, summary
from pipeline.tracking.mirror import Done
from tests.tracking.conftest import Project, write_run

TEXT = """# Which way of training?

## The verdict

**No difference detected.** Take `finetune`.

![Accuracy](figures/accuracy.svg)

- 10 images a class: nothing

## Scores

| method | accuracy |
"""
VERDICT = "**No difference detected.** Take `finetune`.\n\n\n- 10 images a class: nothing"
HEADER = ("method", "shots", "metric", "difference", "low", "high", "verdict")


@pytest.fixture
def reported(project: Project) -> Project:
    """The project with a report."""
    write_report(project.root)
    return project


def write_report(root: Path) -> None:
    row = ("breakdown", 10, "test/accuracy", 0.25, -0.5, 1.0, "no difference detected")
    other = ("breakdown", 10, "other", 9.0, None, None, "")
    write_table(root / "reports/comparison.csv", [row, other], HEADER)
    (root / "reports/report.md").write_text(TEXT)
    (root / "reports/index.html").write_text("<p>made at noon</p>")
    (root / "reports/figures").mkdir()
    (root / "reports/figures/accuracy.svg").write_text("<svg/>")


def publish(project: Project) -> Done:
    return mirror.publish(project.params, project.root, project.store)


def summaries(project: Project) -> list[Any]:
    client = tracking.open_client(project.store)
    number = client.get_experiment_by_name(tracking.RESULTS).experiment_id
    return list(client.search_runs([number], "tags.kind = 'summary'"))


def the_summary(project: Project) -> Any:
    (run,) = summaries(project)
    return run


def artifact(project: Project, run: Any, path: str, folder: Path) -> str:
    client = tracking.open_client(project.store)
    return Path(client.download_artifacts(run.info.run_id, path, str(folder))).read_text()


def test_it_has_the_report_and_says_the_verdict(reported: Project, tmp_path: Path) -> None:
    assert publish(reported) == Done(created=4, kept=0, replaced=0)
    run = the_summary(reported)
    assert (run.info.run_name, run.info.status) == ("summary of 2 methods", "FINISHED")
    assert run.data.tags["mlflow.note.content"] == f"{VERDICT}\n\n{summary.POINTERS}"
    assert run.data.params["compare.reference"] == "finetune"
    assert run.data.params["compare.seeds"] == "[0, 1]"
    assert run.data.metrics == {
        "summary/accuracy/breakdown": pytest.approx(0.55),
        "summary/accuracy/finetune": pytest.approx(0.55),
        "summary/difference/breakdown": 0.25,
    }
    client = tracking.open_client(reported.store)
    listed = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert listed == {"comparison.csv", "figures", "index.html", "report.md", "results.csv"}
    assert artifact(reported, run, "figures/accuracy.svg", tmp_path) == "<svg/>"


def test_it_stands_before_the_results_and_is_none_of_them(reported: Project) -> None:
    publish(reported)
    client = tracking.open_client(reported.store)
    number = client.get_experiment_by_name(tracking.RESULTS).experiment_id
    everything = client.search_runs([number], order_by=["attributes.start_time DESC"])
    assert [run.data.tags["kind"] for run in everything] == ["summary", *["result"] * 4]
    assert "method" not in the_summary(reported).data.tags


def test_a_second_time_changes_nothing(reported: Project) -> None:
    publish(reported)
    first = the_summary(reported)
    for forget in (False, True):  # what nothing has changed since, and a look into the store
        if forget:
            (reported.root / "mlflow.db.published").unlink()
        assert publish(reported) == Done(created=0, kept=4, replaced=0)
        assert the_summary(reported).to_dictionary() == first.to_dictionary()


def test_another_page_is_renewed_in_place(reported: Project, tmp_path: Path) -> None:
    publish(reported)
    first = the_summary(reported)
    (reported.root / "reports/index.html").write_text("<p>made at one</p>")
    (reported.root / "reports/report.md").write_text("# x\n\n## y\n\nanother\n")
    publish(reported)
    run = the_summary(reported)
    assert run.info.run_id == first.info.run_id
    assert artifact(reported, run, "index.html", tmp_path) == "<p>made at one</p>"
    assert run.data.tags["mlflow.note.content"] == f"another\n\n{summary.POINTERS}"


@pytest.mark.parametrize("change", ["table", "figure"])
def test_other_findings_are_another_run_in_its_place(reported: Project, change: str) -> None:
    publish(reported)
    first = the_summary(reported)
    if change == "table":
        row = ("breakdown", 10, "test/accuracy", 0.125, 0.0, 1.0, "better")
        write_table(reported.root / "reports/comparison.csv", [row], HEADER)
    else:
        shutil.move(
            reported.root / "reports/figures/accuracy.svg",
            reported.root / "reports/figures/forest.svg",
        )
    assert publish(reported) == Done(created=0, kept=4, replaced=0)
    assert the_summary(reported).info.run_id != first.info.run_id


def test_a_deleted_one_comes_back(reported: Project) -> None:
    publish(reported)
    client = tracking.open_client(reported.store)
    client.delete_run(the_summary(reported).info.run_id)
    assert publish(reported) == Done(created=0, kept=4, replaced=0)
    assert the_summary(reported)


def test_another_configuration_has_its_own(reported: Project) -> None:
    publish(reported)
    write_run(reported.root, RunId("breakdown", 10, 0), parameters={"method": {"lr": 0.2}})
    publish(reported)
    assert len(summaries(reported)) == 2


@pytest.mark.parametrize("missing", ["comparison", "record", "result"])
def test_without_a_report_of_all_runs_there_is_none(reported: Project, missing: str) -> None:
    if missing == "comparison":
        (reported.root / "reports/comparison.csv").unlink()
    elif missing == "record":
        (reported.root / RunId("finetune", 10, 1).folder / "record.json").unlink()
    else:
        reported.compare["seeds"] = [0]
    publish(reported)
    assert summaries(reported) == []


def test_an_older_report_has_fewer_files(reported: Project) -> None:
    (reported.root / "reports/report.md").unlink()
    shutil.rmtree(reported.root / "reports/figures")
    publish(reported)
    assert the_summary(reported).data.tags["mlflow.note.content"] == summary.POINTERS


def test_an_interrupted_one_is_made_again(
    reported: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", stop)
        with pytest.raises(KeyboardInterrupt):
            publish(reported)
    half = the_summary(reported)
    assert "config_key" not in half.data.tags
    publish(reported)
    assert the_summary(reported).info.run_id != half.info.run_id


def rows(*of: tuple[str, str, str, float]) -> list[dict[str, str]]:
    names = ("method", "shots", "metric", "value")
    return [
        dict(zip(names, map(str, row), strict=True)) | {"seed": str(seed)}
        for seed, row in enumerate(of)
    ]


def test_means_stand_at_the_images_a_class_and_all_beyond_them() -> None:
    scores = rows(
        ("a", "5", "test/official_accuracy", 0.25),
        ("a", "5", "test/official_accuracy", 0.75),
        ("a", "20", "test/official_accuracy", 0.5),
        ("a", "all", "test/official_accuracy", 1.0),
        ("a", "all", "test/eer", 0.125),
    )
    difference = {"method": "b", "shots": "all", "metric": "test/official_accuracy"}
    worse = difference | {"shots": "5", "difference": "-0.5"}
    other = worse | {"metric": "test/eer"}
    assert summary.points(scores, [difference | {"difference": "0.25"}, worse, other]) == [
        ("summary/official_accuracy/a", 0.5, 5),
        ("summary/official_accuracy/a", 0.5, 20),
        ("summary/official_accuracy/a", 1.0, 40),
        ("summary/difference/b", 0.25, 40),
        ("summary/difference/b", -0.5, 5),
    ]


def test_all_alone_has_no_step() -> None:
    assert summary.points(rows(("a", "all", "test/accuracy", 0.5)), []) == [
        ("summary/accuracy/a", 0.5, 0)
    ]


def test_a_long_verdict_is_cut_at_a_line() -> None:
    said = "\n".join(f"- line {number} of the verdict" for number in range(1000))
    text = summary.note(f"# x\n\n## The verdict\n\n{said}\n\n## Scores\n")
    assert len(text) <= summary.LONGEST_NOTE
    assert text.endswith(f"of the verdict\n\n…\n\n{summary.POINTERS}")


def test_a_text_without_sections_has_no_verdict() -> None:
    assert summary.verdict("# x\n\nhello\n") == ""
