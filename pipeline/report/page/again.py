"""How to make it again: the commit, the data, the settings, the versions, the commands."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from pipeline.params import Params
from pipeline.report import words
from pipeline.report.page.document import (
    Block,
    Code,
    Column,
    Fold,
    Inline,
    Listing,
    Method,
    Section,
    Table,
    Web,
    cell,
    note,
    paragraph,
)
from pipeline.report.page.provenance import NO_PART, Made, differing
from pipeline.report.page.report import Report
from pipeline.tracking.client import RESULTS

MLFLOW = "http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"  # as make ui serves
COMMANDS = """\
make repro    # trains what is missing, and writes this report
make ui       # the same runs in MLflow"""
PARAMS = "params.yaml"
LONGEST = 60  # characters of a setting
OPEN_ROWS = 12
SHOWN_CHANGES = 5


def section(report: Report) -> Section:
    """Enough for somebody else to get the same numbers."""
    made, compare = report.made, report.compare
    recipes = dict.fromkeys((run.id.method, run.record["recipe"]) for run in report.evidence.runs)
    compared: list[Inline] = ["Compared were "]
    for number, (method, recipe) in enumerate(recipes):
        compared += [", "] * bool(number) + [Method(method), f" (recipe {recipe})"]
    compared.append(
        f"; shots {', '.join(map(str, compare.shots))}; seeds "
        f"{', '.join(map(str, compare.seeds))}; reference {compare.reference}."
    )
    blocks = [
        paragraph(*_state(made)),
        Listing("\n".join([*_checkout(made), COMMANDS])),
        paragraph(
            "In MLflow the runs, and a summary that holds this report, stand in the experiment ",
            *(Code(RESULTS), ": while ", Code("make ui"), " is running, at "),
            *(Web("127.0.0.1:5000", MLFLOW), "."),
        ),
        paragraph(*compared),
        *_differences(report.params, made),
        _machines(report),
        *_versions(made),
        Fold((PARAMS,), [Listing(as_yaml(report.params))]),
    ]
    return Section("again", "Make it again", blocks, brief=True)


def _state(made: Made) -> Iterator[Inline]:
    if made.commit:
        yield "Made of commit "
        yield Code(made.commit)
        yield (
            f", with changes that are not in it: {_shown(made.changed)}. The commit alone is not "
            "enough."
            if made.dirty
            else ", unchanged."
        )
    else:
        yield "Made outside a git repository: there is no commit to name. It takes this "
        yield "project, the "
        yield Code(PARAMS)
        yield " below and this data."
    if made.data:
        yield " The data is "
        yield Code(made.data)
        yield " (the md5 in "
        yield Code("data.dvc")
        yield ")."


def _shown(files: Sequence[str]) -> str:
    more = len(files) - SHOWN_CHANGES
    return f"{', '.join(files[:SHOWN_CHANGES])} and {more} more" if more > 0 else ", ".join(files)


def _checkout(made: Made) -> Iterator[str]:
    """The lines that put the files in place."""
    if not made.commit:
        return
    yield f"git checkout {made.commit[:12]}"
    if PARAMS in made.changed:
        yield f"# then put the {PARAMS} below in its place"
    if set(made.changed) - {PARAMS}:
        yield "# then make the other changes named above"


def _differences(params: Params, made: Made) -> Iterator[Block]:
    """Parameters unlike the default comparison's, where there is one to look at."""
    if made.default is None:
        return
    rows = differing(params, made.default)
    if not rows:
        yield paragraph("All parameters are those of ", Code("configs/digits.yaml"), ".")
        return
    titles = ("Parameter", "Here", "Default")
    columns = [Column(title, number=False, place="wide") for title in titles]
    table = Table(columns, [[*map(cell, (key, _setting(one), _setting(other)))]
                            for key, one, other in rows], dense=True)  # fmt: skip
    summary = f"{len(rows)} parameters unlike those of configs/digits.yaml"
    yield Fold((summary,), [table], open=len(rows) <= OPEN_ROWS)


def _setting(value: Any) -> str:
    if value is None:
        return words.NONE
    text = value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _plain(value: Any) -> Any:
    """Of a block, the settings that are switched on."""
    return (
        {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value
    )


def _machines(report: Report) -> Table:
    """Device, threads and versions, with the number of runs that had each; one row is best."""
    counted: dict[tuple[str, int, str], int] = {}
    for run in report.evidence.runs:
        record = run.record
        versions = ", ".join(f"{name} {v}" for name, v in sorted(record["versions"].items()))
        key = (record["device"], record["threads"], versions)
        counted[key] = counted.get(key, 0) + 1
    columns = [
        Column("Trained on", number=False),
        *(Column("Runs"), Column("Threads"), Column("Versions", number=False)),
    ]
    rows = [
        [*map(cell, (device, str(n), str(threads), versions))]
        for (device, threads, versions), n in counted.items()
    ]
    return Table(columns, rows)


def _versions(made: Made) -> Iterator[Block]:
    if made.versions:
        shown = ", ".join(f"{name} {version}" for name, version in made.versions.items())
        yield note(f"Evaluated with {shown}. All versions are in ", Code("requirements.lock"), ".")


def as_yaml(params: Params) -> str:
    """All parameters that have a part in the results, defaults included."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    writer.dump(params.model_dump(mode="json", by_alias=True, exclude=NO_PART), text)
    return text.getvalue()
