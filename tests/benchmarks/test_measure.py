import json

import pytest

from benchmarks.measure import Row, Taken, fallen, measure, table, write


def in_turn(seconds, amount=1.0, log=None, name=""):
    left = iter(seconds)

    def work():
        if log is not None:
            log.append(name)
        return Taken(next(left), amount)

    return work


def row(ours, other, **fields):
    fields = {"unit": "images", "name": "a job", "against": "another way", **fields}
    return Row(ours=in_turn([99, *ours]), other=in_turn([99, *other]), **fields)


def test_a_ratio_is_of_speeds_and_its_median_of_repetitions():
    ours, other = in_turn([9, 1, 2, 4], amount=8), in_turn([9, 2, 2, 2], amount=4)
    found = measure(Row("a", "b", ours, other, "images", wanted=2.0), 3)
    assert (found.ours, found.other) == (4.0, 2.0)  # of 8, 4, 2 and of 2, 2, 2
    assert (found.lowest, found.ratio, found.highest) == (1.0, 2.0, 4.0)
    assert found.reached and found.repetitions == 3


def test_the_first_of_a_repetition_changes():
    log: list[str] = []
    measure(Row("a", "b", in_turn([1] * 4, log=log, name="ours"),
                in_turn([1] * 4, log=log, name="other"), "images"), 3)  # fmt: skip
    assert log == ["ours", "other", *["ours", "other"], *["other", "ours"], *["ours", "other"]]


def test_seconds_are_shown_as_such_and_parts_are_medians_without_the_first():
    parts: dict[str, list[float]] = {"import": [], "nothing": []}
    left = iter([50.0, 1.0, 3.0, 2.0])

    def ours():
        parts["import"].append(seconds := next(left))
        return Taken(seconds)

    made = Row("a", "b", ours, in_turn([1] * 4), "seconds", at_most=1.5, parts=parts)
    found = measure(made, 3)
    assert found.ours == 2.0 and found.parts == {"import": 2.0}
    assert found.reached is False
    assert "| seconds | 2 | 1 |" in table([found]) and "of it: import 2.00 s" in table([found])


def test_operations_are_of_an_amount_of_one():
    made = row([1, 1, 1], [1, 1, 1], operations=5e11, peak=2e12)
    found = measure(made, 3)
    assert (found.operations_a_second, found.share_of_peak) == (5e11, 0.25)
    assert "ours: 0.5 TFLOP/s, 25.0% of the device's peak" in table([found])
    unknown = measure(row([1], [1], operations=5e11), 1)
    assert unknown.share_of_peak is None and "peak" not in table([unknown])


@pytest.mark.parametrize(("second", "told"), [(1.0, 0), (1.17, 0), (1.2, 1)])
def test_a_row_fell_where_its_ratio_is_worse_by_more_than_15_percent(second, told, tmp_path):
    write(tmp_path / "stored.json", [measure(row([1], [1]), 1)], {"cores": 2})
    assert json.loads((tmp_path / "stored.json").read_text())["about"] == {"cores": 2}
    now = [measure(row([second], [1]), 1), measure(row([9], [1], name="a new one"), 1)]
    said = fallen(now, tmp_path / "stored.json")
    assert len(said) == told
    assert all("a job: the ratio to another way fell from 1.00 to 0.83" in line for line in said)


def test_what_is_wanted_stands_in_the_table():
    reached = measure(row([1], [2], wanted=1.5), 1)
    missed = measure(row([2], [1], wanted=1.5), 1)
    shown = table([reached, missed, measure(row([1], [1]), 1)]).splitlines()
    assert shown[2].endswith("| 1.5 | reached |") and shown[3].endswith("| 1.5 | NOT reached |")
    assert shown[4].endswith("|  |  |")
