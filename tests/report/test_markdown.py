import re
from dataclasses import replace

import pytest

from pipeline.records import RunId
from pipeline.report.page import Made, markdown
from pipeline.report.page.as_markdown import escaped
from tests.report.fake_runs import fake_params, write_runs
from tests.report.made_reports import made_report


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = fake_params(shots=(10,), baselines=("finetune", "retrained_head"))
    write_runs(params, ("a|b", "`c`", "<d>"), diverged=[RunId("finetune", 10, 0)])
    return made_report(params, Made("c0ffee", ("a_|_b.py",), "3b7.dir"))


def test_the_short_report_has_the_sections_that_a_pull_request_needs(report):
    text = markdown(report)
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == [
        *("The verdict", "With more training images", "Scores on the test images", "In pictures"),
        *("Every comparison with finetune", "What the breakdown claims", "What it cost"),
        *("Was it a fair comparison?", "Make it again"),
    ]
    assert text.startswith("# Which training serves these images best?\n\n3 methods on ")
    assert re.search(r"## The verdict\n\n\*\*With 10 images a class, .*\*\*\n", text)
    assert "![A panel of forest](figures/forest.svg)" in text
    assert not re.search(r"\d\.\d{5}|\d{8}|None|\bnan\b", text)
    assert "<svg" not in text and "data:image" not in text


def test_what_stays_out_is_said_to_be_on_the_page(report):
    assert "Which, and why: see `index.html`." in markdown(report)


def test_every_table_has_as_many_cells_in_each_row(report):
    tables = re.findall(r"(?:^\|.*\|\n)+", markdown(report), flags=re.MULTILINE)
    assert len(tables) >= 6
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table


def test_names_are_escaped(report):
    text = markdown(report)
    assert "retrained\\_head" in text and "a\\_\\|\\_b.py" in text
    bare = text.replace("<br>", "")
    assert not re.search(r"(?<!\\)<", bare)


def test_escaped_text_stays_on_one_line_and_means_nothing():
    assert escaped("a|b\n# *c* _d_ `e` [f](g) <h> ~i~ $j$") == (
        "a\\|b \\# \\*c\\* \\_d\\_ \\`e\\` \\[f\\](g) \\<h\\> \\~i\\~ \\$j\\$"
    )


def test_commands_are_typed_as_they_stand(report):
    text = markdown(report)
    assert (
        "```\ngit checkout c0ffee\n# then make the other changes named above\nmake repro " in text
    )
    clean = markdown(replace(report, made=Made()))
    assert "```\nmake repro " in clean
