"""The one error that is the user's to mend, and how a command shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(Exception):
    """Wrong input: one line that names the file and key or line, what is wrong, what is right.

    Stages and commands print it without a traceback and exit with status 1.
    """


def command(work: Callable[[], None]) -> None:
    """Run ``work`` as a program; an InputError becomes one line and exit status 1."""
    try:
        work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
