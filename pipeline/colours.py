"""One colour and one marker a method, the same in every figure and in MLflow."""

from __future__ import annotations

# Apart also for red-green blind eyes, and readable on white and on near-black.
PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#a587ff",
    "#964b69",
    "#4b3cff",
    "#d20fa5",
    "#8796c3",
    "#ff5a69",
    "#c3001e",
    "#3c78ff",
    "#3c692d",
    "#b44bd2",
    "#ff5ab4",
    "#d28700",
    "#960fd2",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")


def colour(index: int) -> str:
    """Hex colour of the method at ``index`` of the compared methods; repeats after sixteen."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """Matplotlib marker of that method; eleven of them, so that no pair repeats before 176."""
    return MARKERS[index % len(MARKERS)]
