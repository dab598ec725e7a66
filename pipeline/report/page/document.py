"""What the report is made of, whatever it is written in: sections of blocks, and text in them.

All text is data: how it is escaped, and how it looks, is for what writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipeline.report.figures import Panel


@dataclass(frozen=True)
class Method:
    """A method's name, in its colour."""

    name: str
    kind: ClassVar[str] = "method"


@dataclass(frozen=True)
class Strong:
    """Text that stands out."""

    text: str
    kind: ClassVar[str] = "strong"


@dataclass(frozen=True)
class Code:
    """A name that is typed, such as a parameter or a path."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Small:
    """A side remark; a bad one stands out."""

    text: str
    bad: bool = False
    kind: ClassVar[str] = "small"


@dataclass(frozen=True)
class Link:
    """A way to another section of the same document."""

    text: str
    section: str
    kind: ClassVar[str] = "link"


@dataclass(frozen=True)
class Web:
    """A page elsewhere, to go to by hand; nothing of it is needed here."""

    text: str
    address: str
    kind: ClassVar[str] = "web"


Inline = str | Method | Strong | Code | Small | Link | Web
Text = tuple[Inline, ...]


@dataclass(frozen=True)
class Paragraph:
    """Some sentences; ``role`` is ``text``, ``lead`` (the answer), ``note`` or ``warning``."""

    text: Text
    role: str = "text"
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Item:
    """One of several, with a line below it; one of a method bears its colour."""

    text: Text
    below: str = ""
    method: str = ""


@dataclass(frozen=True)
class Items:
    """Items one below the other; ``role`` as a paragraph's."""

    items: Sequence[Item]
    role: str = "text"
    kind: ClassVar[str] = "items"


@dataclass(frozen=True)
class Column:
    """The head of a column: its title, what stands small below it, and where it goes on a phone.

    ``place`` is ``wide`` (a line of its own) or ``second``, ``third``, ``fourth``, ``last``.
    """

    title: str
    below: str = ""
    number: bool = True
    place: str = ""

    @property
    def label(self) -> str:
        """The title where each cell has its own."""
        return f"{self.title}, {self.below}" if self.below in ("MB", "ms", "s") else self.title


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the line below it, and the verdict on it."""

    text: Text
    below: str = ""
    verdict: str = ""
    best: bool = False
    bad: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; the first cell of a row names it."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    dense: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Facts:
    """Pairs of a name and what it is."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Figure:
    """Panels that belong together, under a title, if it has one, and above a caption."""

    title: str
    caption: str
    panels: Sequence[Panel]
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Figures:
    """Figures side by side where there is room."""

    figures: Sequence[Figure]
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Picture:
    """A small picture (PNG) with its caption and the lines below it."""

    png: bytes
    caption: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Pictures:
    """Small pictures side by side."""

    pictures: Sequence[Picture]
    kind: ClassVar[str] = "pictures"


@dataclass(frozen=True)
class Sheet:
    """A large picture (PNG), and what it shows, for who cannot see it."""

    png: bytes
    shows: str
    kind: ClassVar[str] = "sheet"


@dataclass(frozen=True)
class Listing:
    """Lines as they are typed."""

    text: str
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True)
class Fold:
    """Blocks that open under a summary."""

    summary: Text
    blocks: Sequence[Block]
    open: bool = False
    kind: ClassVar[str] = "fold"


Block = (
    Paragraph | Items | Table | Facts | Figures | Pictures | Sheet | Listing | Fold
)  # what a section is made of


@dataclass(frozen=True)
class Section:
    """A titled part of the report; ``brief`` parts are in the short one, too."""

    name: str
    title: str
    blocks: Sequence[Block]
    brief: bool = False


@dataclass(frozen=True)
class Document:
    """The whole report: its title, its name among others, what was compared, the sections."""

    title: str
    name: str
    lede: Text
    sections: Sequence[Section]


def text(*parts: Inline) -> Text:
    """Inline parts as one text."""
    return parts


def cell(value: Inline, below: str = "") -> Cell:
    """A cell of one part."""
    return Cell((value,), below)


def paragraph(*parts: Inline, role: str = "text") -> Paragraph:
    """A paragraph of parts."""
    return Paragraph(parts, role)


def note(*parts: Inline) -> Paragraph:
    """A paragraph that explains."""
    return Paragraph(parts, "note")


def warning(*parts: Inline) -> Paragraph:
    """A paragraph that must not be missed."""
    return Paragraph(parts, "warning")


def bullets(sentences: Sequence[str], role: str = "text") -> Items:
    """Items of plain sentences."""
    return Items([Item((sentence,)) for sentence in sentences], role)
