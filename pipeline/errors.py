"""The one error that is the user's to mend, and how a command shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable

LONGEST = 1000  # characters of a line that are shown
LAST = 300  # of these at its end, where it says what would be right


class InputError(Exception):
    """Wrong input: one line that names the file and key or line, what is wrong, what is right.

    Stages and commands print it without a traceback and exit with status 1. Where several files
    are wrong, each has a line of ``more``. Whatever the input holds, a line stays one: its
    control characters are escaped, and what is too long loses its middle.
    """

    def __init__(self, problem: str, *more: str):
        super().__init__(problem, *more)

    def __str__(self) -> str:
        return "\n  ".join(_line(text) for text in self.args)


def command(work: Callable[[], None]) -> None:
    """Run ``work`` as a program; an InputError becomes one line and exit status 1."""
    try:
        work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _line(text: str) -> str:
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - LAST]} … {text[-LAST:]}"
    if text.isprintable():
        return text
    text = " ".join(text.splitlines())
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
