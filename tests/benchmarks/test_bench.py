import json
import re
from contextlib import contextmanager

import pytest

from benchmarks import bench
from benchmarks.bench import Entry
from benchmarks.measure import Row, Taken
from pipeline.errors import InputError


@contextmanager
def fixed(name, seconds, wanted=None, at_most=None):
    yield Row(name, "the other way", lambda: Taken(seconds), lambda: Taken(1.0),
              "seconds" if at_most else "images",
              wanted=wanted, at_most=at_most, note="as it is")  # fmt: skip


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Two rows that take what they are told to, and a stored table of their own."""
    seconds = {"quick": 0.5, "slow": 2.0}
    monkeypatch.setattr(
        bench,
        "entries",
        lambda: {
            "quick": Entry(lambda: fixed("quick job", seconds["quick"], wanted=1.5), 2),
            "slow": Entry(lambda: fixed("slow job", seconds["slow"], wanted=1.5)),
        },
    )
    monkeypatch.setattr(bench, "STORED", tmp_path / "stored.json")
    monkeypatch.chdir(tmp_path)
    return seconds


def test_it_prints_a_head_the_rows_and_the_table(rows, capsys):
    assert bench.main([]) == 0
    said = capsys.readouterr().out
    assert re.match(r"device .*, cores \d+, threads \d+, python .*torch ", said)
    assert "quick job: 2.00 (2.00 to 2.00) against the other way, wanted 1.5, reached" in said
    assert "| slow job | the other way | images/s | 0.5 | 1 | 0.50 |" in said
    assert "slow job: 0.50, wanted 1.5, not reached" in said
    assert "stored.json: is not there, so that nothing is compared" in said


def test_it_writes_json_with_more_repetitions_of_short_rows(rows, tmp_path):
    assert bench.main(["--repetitions", "3", "--json", str(tmp_path / "x/table.json")]) == 0
    found = json.loads((tmp_path / "x/table.json").read_text())
    assert [row["repetitions"] for row in found["rows"]] == [6, 3]
    assert found["about"]["cores"] >= 1


def test_a_row_that_fell_is_named_and_fails(rows, capsys):
    assert bench.main(["--store"]) == 0
    assert bench.main([]) == 0
    assert "no row fell by more than 15%" in capsys.readouterr().out
    rows["quick"] = 0.7
    assert bench.main([]) == 1
    said = capsys.readouterr().out
    assert "FELL: quick job: the ratio to the other way fell from 2.00 to 1.43" in said
    assert "FELL: slow" not in said
    assert bench.main(["--rows", "slow"]) == 0


def test_a_time_that_is_too_long_is_said(rows, monkeypatch, capsys):
    monkeypatch.setattr(
        bench, "entries", lambda: {"a": Entry(lambda: fixed("a stage", 7.0, at_most=5.0))}
    )
    assert bench.main([]) == 0
    assert "a stage: 7.00 s, wanted at most 5 s, not reached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rows", "quik"], "--rows: there is no row 'quik'; .*quick"),
        (["--repetitions", "0"], "--repetitions 0: must be at least 1"),
        (["--store", "--rows", "quick"], "--store keeps a whole table"),
    ],
)
def test_what_is_wrong_is_one_line(words, said, rows):
    with pytest.raises(InputError, match=said):
        bench.main(words)


def test_rows_have_names_and_keep_the_tables_order():
    known = list(bench.entries())
    assert list(bench.choose([])) == known
    assert list(bench.choose([known[-1], known[0]])) == [known[0], known[-1]]
