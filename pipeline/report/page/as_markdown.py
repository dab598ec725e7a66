"""The short report in Markdown, for a pull request; its figures lie beside it as files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import singledispatch
from itertools import chain

from pipeline.report import words
from pipeline.report.page.contents import document
from pipeline.report.page.document import (
    Block,
    Cell,
    Code,
    Facts,
    Figures,
    Fold,
    Inline,
    Items,
    Link,
    Listing,
    Method,
    Paragraph,
    Section,
    Small,
    Strong,
    Table,
    Text,
    Web,
)
from pipeline.report.page.report import Report

SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&$])")
SPACES = re.compile(r"[\r\n\t]+")


def markdown(report: Report) -> str:
    """The brief sections; what is folded away on the page stays out, as do small pictures.

    Raises:
        InputError: as ``document``.
    """
    made = document(report)
    lines = [f"# {escaped(made.title)}", _text(made.lede)]
    parts = [part for section in made.sections if section.brief for part in _section(section)]
    return "\n\n".join([*lines, *parts]) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown takes as it stands, on one line, also in a table."""
    return SPECIAL.sub(r"\\\1", _on_one_line(text))


def _on_one_line(text: str) -> str:
    return words.visible(SPACES.sub(" ", text))


def _section(section: Section) -> Iterator[str]:
    yield f"## {escaped(section.title)}"
    yield from chain.from_iterable(map(_block, section.blocks))


@singledispatch
def _block(block: Block) -> list[str]:
    """What has no place in the short report."""
    return []


@_block.register
def _(block: Paragraph) -> list[str]:
    text = _text(block.text)
    return [{"lead": f"**{text}**", "warning": f"> {text}"}.get(block.role, text)]


@_block.register
def _(block: Items) -> list[str]:
    lines = []
    for item in block.items:
        below = f" {escaped(item.below)}" if item.below else ""
        lines.append(f"- {_text(item.text)}{below}")
    return ["\n".join(lines)]


@_block.register
def _(block: Table) -> list[str]:
    heads = [f"{c.title} ({c.below})" if c.below else c.title for c in block.columns]
    rule = ["---:" if column.number else "---" for column in block.columns]
    rows = [[_cell(cell) for cell in row] for row in block.rows]
    table = "\n".join(map(_line, [[escaped(head) for head in heads], rule, *rows]))
    return [*([f"**{escaped(block.caption)}**"] if block.caption else []), table]


@_block.register
def _(block: Facts) -> list[str]:
    return ["\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in block.rows)]


@_block.register
def _(block: Figures) -> list[str]:
    return [
        part
        for figure in block.figures
        for part in (
            *(f"![{escaped(panel.title)}](figures/{panel.name}.svg)" for panel in figure.panels),
            escaped(figure.caption),
        )
    ]


@_block.register
def _(block: Listing) -> list[str]:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
    return [f"{fence}\n{words.visible(block.text)}\n{fence}"]


@_block.register
def _(block: Fold) -> list[str]:
    if not block.open:
        return []
    return [f"**{_text(block.summary)}**", *chain.from_iterable(map(_block, block.blocks))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = _text(cell.text)
    text = f"**{text}**" if cell.best or cell.bad else text
    below = f"<br>{escaped(cell.below)}" if cell.below else ""
    return f"{text}{below}{f'<br>{escaped(cell.verdict)}' if cell.verdict else ''}"


def _text(text: Text) -> str:
    return "".join(map(_inline, text))


def _inline(part: Inline) -> str:
    if isinstance(part, str):
        return escaped(part)
    if isinstance(part, Code):
        return _code(part.text)
    if isinstance(part, Strong):
        return f"**{escaped(part.text)}**"
    if isinstance(part, Small):
        return f" ({escaped(part.text)})"
    if isinstance(part, Link):  # perhaps to what stays out here
        return f"{escaped(part.text)}: see `index.html`"
    if isinstance(part, Web):
        return f"[{escaped(part.text)}]({part.address})"
    assert isinstance(part, Method)
    return escaped(part.name)


def _code(text: str) -> str:
    """Between as many backticks as it takes; a bar would end a cell."""
    text = _on_one_line(text).replace("|", "¦")
    if "`" not in text:
        return f"`{text}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", text))))
    return f"{fence} {text} {fence}"
