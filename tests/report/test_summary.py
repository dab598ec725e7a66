import json

import pytest

from pipeline.report.summary import summary_table

HEADER = (
    "method,shots,metric,difference,low,high,p_value,p_adjusted,wins,n,verdict,population,error,df,"
    "detectable,seeds_needed,sign_flip_p\n"
)
LEAD = r"Use a\*b\_c, says the report."
OPEN, ACCURACY = "no difference detected", "test/accuracy"


def row(method, verdict, detectable="", needed="", population="both", metric=ACCURACY):
    return f"{method},10,{metric},0.1,,,,,0,3,{verdict},{population},,,{detectable},{needed},\n"


@pytest.fixture
def reports(tmp_path):
    def write(*rows, low=0.9, high=0.95, metric=ACCURACY):
        methods = ["reference", *(of.split(",")[0] for of in rows)]
        results = "".join(f"{m},10,0,{metric},0.92\n" for m in methods)
        (tmp_path / "results.csv").write_text("method,shots,seed,metric,value\n" + results)
        found = {"10": {metric: {"mean": 0.92, "low": low, "high": high, "n": 3}}}
        (tmp_path / "metrics.json").write_text(json.dumps(dict.fromkeys(methods, found)))
        (tmp_path / "comparison.csv").write_text(HEADER + "".join(rows))
        (tmp_path / "report.md").write_text(f"# Title\n\n## The verdict\n\n**{LEAD}**\n\nMore.\n")
        *lines, blank, lead = summary_table(tmp_path).splitlines()
        assert (blank, lead) == ("", "Use a*b_c, says the report.")
        return lines

    return write


def test_the_heading_says_what_the_interval_speaks_of(reports):
    assert reports(row("a", "worse"))[0] == (
        "Test accuracy, mean over seeds and 95 % interval over new seeds and new test data"
    )
    assert reports(row("a", "worse", population="seeds"))[0].endswith("over new seeds")
    assert reports(row("a", "worse", population="none"))[0] == "Test accuracy, mean over seeds"
    assert reports()[0] == "Test accuracy, mean over seeds"


def test_what_could_have_been_detected_stands_below(reports):
    lines = reports(row("a", OPEN, 0.0323, 7), row("b", OPEN, 0.0211, 11), row("c", "worse", 0.3))
    assert lines[-2:] == [
        "No difference detected: one of 3.2 points would have been seen four times in five.",
        "To see what would matter (compare.smallest_effect), as far as 3 seeds can tell, about 11 "
        "seeds are needed.",
    ]
    assert reports(row("a", OPEN, 0.0323), row("b", OPEN, 0.02, 11))[-1].endswith(
        "as far as 3 seeds can tell, no number of seeds would do: more test data are needed."
    )
    assert "detected" not in "\n".join(reports(row("a", "worse", 0.3)))


@pytest.mark.parametrize(("other", "said"), [(1.2, "any."), (0.4, "any but the largest.")])
def test_what_no_run_could_have_shown_is_said(reports, other, said):
    lines = reports(row("a", OPEN, 1.1), row("b", OPEN, other))
    assert lines[-2] == f"No difference detected: these runs are too few to have seen {said}"


def test_no_width_is_no_spread(reports):
    assert "no spread" in reports(row("a", "worse"), low=0.92, high=0.92)[3]
    assert "90.0 to 95.0" in reports(row("a", "worse"))[3]


def test_the_metric_stands_at_the_head_of_its_column(reports):
    assert "accuracy  95 % interval" in reports(row("a", "worse"))[2]
    metric = "test/5_way_1_shot_accuracy"
    lines = reports(row("a", "worse", metric=metric), metric=metric)
    assert lines[0].startswith("5-way 1-shot accuracy, mean over seeds")
    assert "5-way 1-shot  95 % interval" in lines[2]
