"""What all panels share: the style, frames, axes, legends, and SVG that is short and clean."""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

LONG_NUMBER = re.compile(r"\d+\.\d{2,}")
NEEDLESS_SPACE = re.compile(r'(?<=[:;MLC]) | (?=[LCz] )| (?=")')  # of styles and paths
MARKS = re.compile(r'<g((?: clip-path="[^"]*")?)>((?:<use [^>]*style="[^"]*"/>){2,})</g>')
INK = "#010203"  # stands for the page's text colour until the SVG is written
WIDTH, HEIGHT = 340, 250  # points; one point is one pixel of the SVG
ROW_HEIGHT = 34
FRAME_HEIGHT = 105
LEGEND_ROW = 18
LABEL_SIZE = 11
FRAMED = 6  # from so many methods on, curves have a frame a method
BACKDROP: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": "--", "alpha": 0.6}
ZERO: dict[str, Any] = {"color": INK, "linewidth": 1.1, "alpha": 0.7}
MOST_POINTS = 200  # drawn of one curve
MOST_CLASSES = 20  # with a row of their own
NARROW = 14  # letters that a name may have over one of three frames in a row
FEW_DECADES = 1.5  # of a logarithmic axis: 2 and 5 are labelled, too
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": LABEL_SIZE,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "legend.fontsize": LABEL_SIZE,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "siamese-breakdown",
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $5
    "xtick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.color": INK,
    "ytick.major.width": 0.6,
}
# on its own a file follows the viewer's light or dark setting; inside a page it has no root to set
CSS = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    "svg:root{color:#1c1d20;background:#fff}"
    "@media(prefers-color-scheme:dark){svg:root{color:#e6e6e3;background:#16171a}}"
)


@dataclass(frozen=True)
class Panel:
    """One SVG file: its stem, the group it is shown with, its title, and its text.

    ``framed`` tells that every method has a frame of its own.
    """

    name: str
    group: str
    title: str
    svg: str
    framed: bool = False

    @property
    def inline(self) -> str:
        """The SVG as an element of an HTML page: accessible, without size and namespaces."""
        tag, rest = self.svg.split(">", 1)
        tag = re.sub(r'\s(width|height|version|xmlns(:\w+)?)="[^"]*"', "", tag)
        return f'{tag} role="img" aria-label="{html.escape(self.title)}">{rest}'


def panel(name: str, group: str, title: str, figure: Figure) -> Panel:
    """A figure as a panel; ``name`` must be unlike those of the page's other panels."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # the page's fonts draw the text; matplotlib's own only measure it
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return Panel(name, group, title, _cleaned(file.getvalue(), name), len(figure.axes) > 1)


def new(height: float) -> tuple[Figure, Any]:
    """A figure as wide as a phone, so many points high, and its axes."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.subplots()


def one_frame(methods: int) -> tuple[Figure, list[Any]]:
    """One axes for all methods."""
    figure, axes = new(HEIGHT)
    return figure, [axes] * methods


def frames(
    names: Sequence[str],
    share_y: bool = True,
    share_x: bool = True,
    columns: int = 2,
    height: float = FRAME_HEIGHT,
) -> tuple[Figure, list[Any]]:
    """An axes a name, ``columns`` side by side, named above, each ``height`` points high.

    Many curves in one could not be told.
    """
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH / 72, (40 + height * rows) / 72), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=share_x, sharey=share_y, squeeze=False)
    found = list(grid.flat)
    for place, unused in enumerate(found[len(names) :], start=len(names)):
        unused.remove()
        if place >= columns:
            found[place - columns].tick_params(labelbottom=True)  # now the last of its column
    for axes, name in zip(found, names, strict=False):
        axes.set_title(cut(name, 44 // columns), fontsize=10, loc="left", pad=3)
        axes.tick_params(labelsize=9)
    return figure, found[: len(names)]


def across(names: Sequence[str]) -> int:
    """How many frames stand in a row: two, or three where two would leave a hole and names fit."""
    odd_rows = len(names) % 6 == 3
    return 3 if odd_rows and max(map(len, names)) <= NARROW else min(len(names), 2)


def label(figure: Figure, found: Sequence[Any], x: str, y: str) -> None:
    """Axis labels once, and a legend unless every method has its own frame."""
    if len(set(found)) > 1:
        figure.supxlabel(x, fontsize=LABEL_SIZE)
        figure.supylabel(y, fontsize=LABEL_SIZE)
        return
    found[0].set_xlabel(x)
    found[0].set_ylabel(y)
    legend(figure, found[0])


def legend(figure: Figure, axes: Any) -> None:
    """Put the legend of ``axes`` below the figure, which grows by its rows."""
    handles, labels = axes.get_legend_handles_labels()
    key(figure, handles, labels)


def key(
    figure: Figure,
    handles: Sequence[Any],
    labels: Sequence[str],
    above: bool = False,
    columns: int | None = None,
) -> None:
    """A legend below the figure or above it; the figure grows by its rows.

    Labels may be any text; without ``columns`` as many stand side by side as their length allows.
    """
    if columns is None:
        columns = 1 if max(map(len, labels)) > 18 else 2
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * rows / 72)
    drawn = figure.legend(
        handles,
        ["–"] * len(labels),  # matplotlib would leave out a label with an underscore in front
        loc="outside upper center" if above else "outside lower center",
        ncols=columns,
        handlelength=1.4,
        borderaxespad=0.2,
    )
    for text, name in zip(drawn.get_texts(), labels, strict=True):
        text.set_text(cut(name, 40))


def rows_of(axes: Any, names: Sequence[str], margin: float = 0.6) -> None:
    """Name the rows 0, 1, … of ``axes`` from top to bottom."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 1 + margin, -margin)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def percent(axis: Any, ticks: int = 5) -> None:
    """Label an axis of shares in percent."""
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 1):g} %"))


def points(axis: Any, ticks: int = 5) -> None:
    """Label an axis of differences between shares in points."""
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: _signed(round(100 * share, 1))))


def logarithmic(axes: Any) -> None:
    """Make the y axis logarithmic and label it without mathematical markup."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if math.log10(high / low) < FEW_DECADES else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: power(y)))


def shots_axis(axes: Any, place: dict[int | str, float]) -> None:
    """A logarithmic x axis with a tick at each number of shots, by `shots_places`."""
    axes.set_xscale("log")
    axes.set_xticks(list(place.values()), [str(shots) for shots in place])
    axes.xaxis.set_minor_locator(NullLocator())


def shots_places(shots: Sequence[int | str]) -> dict[int | str, float]:
    """Where each number of shots stands on a logarithmic axis; ``all`` beyond the largest."""
    numbers = [float(n) for n in shots if n != "all"]
    return {n: 2 * max(numbers, default=0.5) if n == "all" else float(n) for n in shots}


def line(axes: Any, x: Any, y: Any, **style: Any) -> None:
    """A line of at most ``MOST_POINTS``; where there is one point only, its marker."""
    step = max(1, math.ceil(len(x) / MOST_POINTS))
    kept = sorted({*range(0, len(x), step), len(x) - 1})
    point = {"marker": style.pop("marker", "o"), "markersize": style.pop("markersize", 3)}
    axes.plot(x[kept], y[kept], **style, **(point if len(kept) == 1 else {}))


def finite(values: Iterable[float | None]) -> list[float]:
    """Those values that there are."""
    return [value for value in values if value is not None and math.isfinite(value)]


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the places 0 to ``count`` - 1, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()})


def power(number: float) -> str:
    """``0.02``, ``1``, ``500``; beyond four places with a power of ten: ``2·10⁻⁶``."""
    exponent = math.floor(math.log10(number) + 1e-9)
    if -3 <= exponent <= 3:
        return f"{number:g}"
    first = round(number / 10**exponent, 2)
    ten = "10" + str(exponent).translate(SUPERSCRIPTS)
    return ten if first == 1 else f"{first:g}·{ten}"


def cut(name: str, most: int) -> str:
    """A name of at most so many letters; what cannot be printed is replaced."""
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def wrapped(method: str, width: int = 18) -> str:
    """A method's name on one or two lines, broken at an underscore; what is longer is cut."""
    lines = textwrap.wrap(method.replace("_", "_ "), width, max_lines=2, placeholder="…")
    return "\n".join(line.replace("_ ", "_") for line in lines)


def _signed(number: float) -> str:
    return f"{number:+g}".replace("-", "−") if number else "0"


def _cleaned(svg: str, name: str) -> str:
    """Matplotlib's SVG with the page's text colour, ids of its own, and nothing to look up."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href").replace(INK, "currentColor")
    svg = re.sub(r'\sxmlns:xlink="[^"]*"', "", svg)
    svg = re.sub(r'font-family: [^";]*;? ?', "", svg)
    svg = svg.replace("</style>", f"{CSS}</style>", 1)
    return _shortened(svg, name) + "\n"


def _shortened(svg: str, name: str) -> str:
    """The same picture in half of the bytes: short numbers, no spaces, and ids in use alone.

    Ids are short, too, and begin with the panel's name, as a page has many panels.
    """
    used = dict.fromkeys(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    ids = {long: f"{name}-{number}" for number, long in enumerate(used)}
    svg = re.sub(r'(url\(#|href="#)([^")]+)', lambda found: found[1] + ids[found[2]], svg)
    svg = re.sub(r'\sid="([^"]*)"', lambda f: f' id="{ids[f[1]]}"' if f[1] in ids else "", svg)
    svg = re.sub(r'\stransform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r">\s+<", "><", re.sub(r"<[^>]+>", _shortened_tag, svg)).strip()
    return MARKS.sub(_styled_once, svg)


def _shortened_tag(tag: re.Match[str]) -> str:
    if tag[0].startswith("<image"):  # its data have nothing to round
        return tag[0]
    short = LONG_NUMBER.sub(lambda number: _shortened_number(float(number[0])), tag[0])
    return NEEDLESS_SPACE.sub("", " ".join(short.split()))


def _shortened_number(number: float) -> str:
    """Tenths of a pixel for places in the panel, hundredths for the shapes of markers."""
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _styled_once(group: re.Match[str]) -> str:
    """Marks of one style in a group that has the style; opacity would not be inherited."""
    styles = set(re.findall(r' style="([^"]*)"', group[2]))
    style = styles.pop()
    if styles or re.search(r"(^|;)opacity", style):
        return group[0]
    return f'<g{group[1]} style="{style}">' + group[2].replace(f' style="{style}"', "") + "</g>"
